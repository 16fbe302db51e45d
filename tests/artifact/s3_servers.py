"""Servers that speak S3, on loopback, in processes of their own."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import boto3

from sojourn import platform
from sojourn.artifact.s3.service import S3ArtifactService
from sojourn.testing.s3 import s3_server

PROJECT = Path(__file__).parent.parent.parent
BUCKET = "artifacts"
KEY_ID = "AKIDSENTINEL"
SECRET = "SECRETSENTINEL"
CREDENTIALS = {"access_key_id": KEY_ID, "secret_access_key": SECRET}
QUICK = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20)},
}
"""Tries again, and waits little in between."""


@contextmanager
def moto():
    """A server that honours conditions and takes any signature; gives its port."""
    with s3_server(BUCKET) as address:
        yield int(address.rpartition(":")[2])


@contextmanager
def nanio(directory):
    """A server that checks signatures and ignores conditions; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "nanio"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environ = {**os.environ, "NANIO_ACCESS_KEY": KEY_ID, "NANIO_SECRET_KEY": SECRET, "NANIO_DATA_DIR": str(directory)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = ""
            while f"http://127.0.0.1:{port}" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            threading.Thread(target=process.stdout.read, daemon=True).start()
            client(port).create_bucket(Bucket=BUCKET)
            yield port
        finally:
            process.terminate()


def client(port):
    """Another client's view of a server."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def service_at(port, prefix=None, *, bucket=BUCKET, timeout=20, **options):
    """A service on a server, below a prefix of its own if none is given."""
    place = platform.new_id() if prefix is None else prefix
    return S3ArtifactService(
        f"s3://{bucket}/{place}",
        endpoint=port if isinstance(port, str) else f"http://127.0.0.1:{port}",
        options={**CREDENTIALS, "retry_config": QUICK, **options},
        timeout=timeout,
    )


def keys_below(port, prefix):
    """All keys below a prefix."""
    pages = client(port).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]
