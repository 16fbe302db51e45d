"""`kill -9` of a process at each request that it sends to a bucket, and several processes at one artifact."""

import asyncio
import os
import signal

import pytest

from sojourn import platform
from sojourn.errors import NotFound
from sojourn.testing.artifact_conformance import load_bytes, versions_of
from sojourn.testing.clock import ManualPlatform
from tests.artifact.faultyproxy import CUT, PASS, REPLY_LOST, FaultyProxy
from tests.artifact.processes import saved, worker
from tests.artifact.s3_servers import keys_below, service_at
from tests.artifact.s3_worker import NAME, SCOPE, pieces_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


BEFORE = {"tag": "before", "large": False}


class Victims:
    """Children that are killed at a chosen request."""

    def __init__(self, process, proxy):
        self._process = process
        self._proxy = proxy
        self.killed = 0

    async def live(self, prefix, what, *, die_at, carried_out):
        """A child's report, up to its death or end."""
        self._process.start(self._proxy.url, prefix, what, "child")
        report = self._process.report()
        (_, pid) = await asyncio.to_thread(next, report)
        first = len(self._proxy.seen)

        def fault(method, target, number):
            if number - first != die_at:
                return PASS
            os.kill(int(pid), signal.SIGKILL)
            self.killed += 1
            return REPLY_LOST if carried_out else CUT

        self._proxy.fault = fault
        self._process.start("go")
        lines = await asyncio.to_thread(list, report)
        await self._proxy.quiet()
        return lines


async def stored(service):
    """Tag by version of what is there; fails unless all of it is whole."""
    try:
        versions = await versions_of(service, SCOPE, NAME)
    except NotFound:
        return {}
    assert [v.version for v in versions] == list(range(len(versions)))
    for info in versions:
        expected = b"".join(pieces_of(info.custom_metadata["tag"], info.custom_metadata["large"]))
        assert await load_bytes(service, SCOPE, NAME, info.version) == expected
    return {v.version: v.custom_metadata["tag"] for v in versions}


@pytest.mark.timeout(180)
async def test_processes_killed_at_any_request(moto_port):
    async with FaultyProxy(moto_port).running() as proxy:
        with worker("tests.artifact.s3_worker") as process:
            victims = Victims(process, proxy)
            for what in ("small", "large"):
                for carried_out in (False, True):
                    report, at = [], 0
                    while ["exit", "0"] not in report:
                        at += 1
                        prefix = platform.new_id()
                        service = service_at(moto_port, prefix)
                        await service.save_artifact(SCOPE, NAME, b"".join(pieces_of("before", False)), custom_metadata=BEFORE)
                        report = await victims.live(prefix, what, die_at=at, carried_out=carried_out)
                        await check_round(service, prefix, moto_port, report)
    assert victims.killed >= 50


async def check_round(service, prefix, port, report):
    """Nothing acknowledged is lost, what is there is whole, and what the dead left behind can be swept."""
    assert not [line for line in report if line[0] == "error"], report
    found = await stored(service)
    acknowledged = saved(report)
    if "child-2" not in acknowledged.values() or "before" in found.values():
        assert {0: "before", **acknowledged}.items() <= found.items()
        # The last one may be there although nobody could tell its process.
        assert len(found) <= len(acknowledged) + 2
    else:
        # It died in the deletion or later, and a deletion hides everything in one step.
        assert set(found.items()) <= {(0, "child-3")}
        assert found or "child-3" not in acknowledged.values()
    with platform.use(ManualPlatform(platform.now() + 7200)):
        await service.sweep()
    assert len([key for key in keys_below(port, prefix) if "/data/" in key]) == len(found)
    assert await stored(service) == found


@pytest.mark.timeout(120)
async def test_several_processes_save_without_gaps(moto_port):
    prefix = platform.new_id()
    with worker("tests.artifact.s3_worker") as one, worker("tests.artifact.s3_worker") as other:
        for name, process in (("one", one), ("other", other)):
            process.start(f"http://127.0.0.1:{moto_port}", prefix, "many", name)
            process.start("go")
        reports = await asyncio.gather(*(asyncio.to_thread(lambda p=p: list(p.report())) for p in (one, other)))
    found = await stored(service_at(moto_port, prefix))
    assert found == {**saved(reports[0]), **saved(reports[1])}
    assert sorted(found) == list(range(20))
