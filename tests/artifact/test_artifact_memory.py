"""Streams of any size pass through in constant memory."""

import os
import subprocess
import sys

import pytest

from sojourn import platform
from tests.artifact.s3_servers import BUCKET, KEY_ID, PROJECT, SECRET

pytestmark = pytest.mark.slow

MIB = 1_048_576


def growth(place, warm_up, size, **environ):
    """How much the memory of a process grows when it saves and loads an artifact of this size after a small one."""
    command = [sys.executable, "-m", "tests.artifact.memory_child", place, str(warm_up), str(size)]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_files_stream_in_constant_memory(tmp_path):
    size = int(os.environ.get("SOJOURN_TEST_LARGE_BYTES", 256 * MIB))
    assert growth(str(tmp_path), 8 * MIB, size) < 16 * MIB


def test_objects_stream_in_constant_memory(moto_port):
    credentials = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    place = f"s3://{BUCKET}/{platform.new_id()}?endpoint=http://127.0.0.1:{moto_port}"
    # What is on its way at once, 4 parts of 8 MiB, is in memory at most, and so are they in the warm-up.
    assert growth(place, 32 * MIB, 64 * MIB, **credentials) < 24 * MIB
