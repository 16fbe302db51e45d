"""`kill -9` at any point: what was acknowledged is there, and nothing half."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from tests.artifact.processes import PROJECT, leftovers, saved, stored, worker
from tests.artifact.worker import DELETIONS, SCOPE

MOMENTS = ["before", "after"]


def died(report):
    assert not any(line[0] == "error" for line in report), report
    return any(line[0] == "died" for line in report)


def stored_in(root):
    return asyncio.run(stored(root))


def save(root, data):
    return asyncio.run(FileArtifactService(root).save_artifact(SCOPE, "next", data))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_that_dies_at_any_call_leaves_all_or_nothing(tmp_path, moment):
    seen = set()
    with worker() as process:
        # The directories are there, so that all children go the same way.
        process.run("save-many", tmp_path / "a", "first", 1)
        known = {0: "first-0"}
        for at in range(1000):
            report = process.run("die-saving", tmp_path / "a", moment, at, f"tag-{at}")
            seen.update(line[2] for line in report if line[0] == "died")
            found = stored_in(tmp_path / "a")
            # Of the save that died there is the whole version or nothing; all before it are as they were.
            assert found in (known, known | {len(known): f"tag-{at}"})
            assert saved(report).items() <= found.items()
            known = found
            if not died(report):
                break
    assert not died(report)
    assert len(known) > 1
    assert {"open", "mkdir", "rename", "fsync", "unlink"} <= seen
    # The last child finished, and had cleaned up after all the dead ones.
    assert leftovers(tmp_path / "a") == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_first_save_that_dies_at_any_call_leaves_all_or_nothing(tmp_path, moment):
    seen = set()
    with worker() as process:
        for at in range(1000):
            root = tmp_path / str(at)
            report = process.run("die-saving", root, moment, at, "tag")
            seen.update(line[2] for line in report if line[0] == "died")
            found = stored_in(root)
            assert found in ({}, {0: "tag"})
            assert saved(report).items() <= found.items()
            assert save(root, b"x") == 0
            assert leftovers(root) == []
            if not died(report):
                break
    assert not died(report)
    assert {"open", "mkdir", "rename", "fsync", "fchmod", "unlink", "flock"} <= seen


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("what", DELETIONS)
def test_a_deletion_that_dies_at_any_call_deletes_all_or_nothing(tmp_path, moment, what):
    outcomes = set()
    root = tmp_path / "a"
    with worker() as process:
        for at in range(1000):
            missing = 3 - len(stored_in(root))
            process.run("save-many", root, at, missing)
            before = stored_in(root)
            assert len(before) == 3
            report = process.run("die-deleting", root, what, moment, at)
            after = stored_in(root)
            assert after in (before, {})
            outcomes.add(len(after))
            if not died(report):
                break
    assert not died(report)
    assert outcomes == {0, 3}
    save(root, b"x")
    assert leftovers(root) == []


def test_kill_9_in_mid_save(tmp_path):
    root = tmp_path / "a"
    known = {}
    with worker() as process:
        for round_number in range(20):
            lines_to_see = 2 + int(platform.random() * 12)
            process.start("save-many", root, f"round-{round_number}", 1_000_000)
            report = []
            for line in process.report():
                report.append(line)
                if len(report) == lines_to_see:
                    os.kill(int(report[0][1]), signal.SIGKILL)
            assert report[-1] == ["exit", str(int(signal.SIGKILL))]
            found = stored_in(root)
            acknowledged = known | saved(report)
            assert acknowledged.items() <= found.items(), f"killed after {lines_to_see} lines"
            assert len(found) <= len(acknowledged) + 1
            known = found
    assert save(root, b"x") == 0
    assert leftovers(root) == []


def test_processes_that_save_at_once_get_different_versions(tmp_path):
    with worker() as a, worker() as b, worker() as c, worker() as d:
        workers = {"a": a, "b": b, "c": c, "d": d}
        for tag, process in workers.items():
            process.start("save-many", tmp_path, tag, 20)
        reports = [list(process.report()) for process in workers.values()]
    acknowledged = [saved(report) for report in reports]
    assert [len(one) for one in acknowledged] == [20] * 4
    assert stored_in(tmp_path) == {version: tag for one in acknowledged for version, tag in one.items()}
    assert leftovers(tmp_path) == []


STREAMING = """
import asyncio, sys
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope

MIB = 1024 * 1024
scope = ArtifactScope("app", "alice", "session", "uid")

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024

async def stream(mib):
    for _ in range(mib * 8):
        yield bytes(MIB // 8)

async def save_and_read(service, mib):
    await service.save_artifact(scope, "large", stream(mib))
    opened = await service.open_artifact(scope, "large")
    size = 0
    async for chunk in opened.chunks:
        size += len(chunk)
    assert size == opened.info.size == mib * MIB

async def main():
    service = FileArtifactService(sys.argv[1])
    await save_and_read(service, 4)
    before = peak()
    await save_and_read(service, 64)
    print(peak() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from /proc")
def test_streaming_takes_constant_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STREAMING, str(tmp_path)], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 16, f"reading and writing 64 MiB took {done.stdout} MiB more than 4 MiB did"
