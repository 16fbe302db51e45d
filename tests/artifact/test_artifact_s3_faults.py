"""What networks and busy servers do to the requests of a service, and what becomes of its calls."""

import asyncio
import traceback
from contextlib import asynccontextmanager, suppress

import pytest

from sojourn import platform
from sojourn.artifact.types import ArtifactScope
from sojourn.errors import NotFound, Unavailable
from sojourn.testing.artifact_conformance import load_bytes, names_of, stream, versions_of
from sojourn.testing.clock import ManualPlatform
from tests.artifact.faultyproxy import (
    ANSWERS_LATE,
    BUSY_503,
    CUT,
    DONE_BUT_500,
    ERROR_500,
    FORBIDDEN_403,
    HALF,
    HANGS,
    HELD,
    PASS,
    PAUSES,
    REPLY_LOST,
    STALLS,
    FaultyProxy,
)
from tests.artifact.s3_servers import BUCKET, client, keys_below, service_at

pytestmark = pytest.mark.anyio

SCOPE = ArtifactScope("app", "alice", "session", "uid")
LARGE = bytes(range(256)) * 40_000
ONCE = {"max_retries": 0}
"""The driver gives up at once, so that all is left to the service."""


@asynccontextmanager
async def world(moto_port, **options):
    """A proxy, a service behind it that looks into an empty place, and one that looks there undisturbed."""
    prefix = platform.new_id()
    async with FaultyProxy(moto_port).running() as proxy:
        yield proxy, service_at(proxy.url, prefix, **options), service_at(moto_port, prefix)


async def everything(service):
    """A bit of everything, with what must come of it."""
    assert await service.save_artifact(SCOPE, "a", b"zero") == 0
    assert await service.save_artifact(SCOPE, "a", stream(b"o", b"ne")) == 1
    assert await load_bytes(service, SCOPE, "a", 0) == b"zero"
    assert await (await service.open_artifact(SCOPE, "a", start=1, end=3)).read() == b"ne"
    assert [v.size for v in await versions_of(service, SCOPE, "a")] == [4, 3]
    assert await names_of(service, SCOPE) == ["a"]
    with suppress(Unavailable):
        # Its bytes may be left, but nobody sees them.
        await service.delete_artifact(SCOPE, "a")
    with pytest.raises(NotFound):
        await service.load_artifact(SCOPE, "a")
    assert await service.save_artifact(SCOPE, "a", b"anew") == 0
    assert await names_of(service, SCOPE) == ["a"]


FAULTS = (ERROR_500, CUT, REPLY_LOST, BUSY_503, DONE_BUT_500, HALF)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 2])
async def test_a_fault_at_any_request_changes_nothing(moto_port, first):
    async with world(moto_port) as (proxy, service, _):
        await everything(service)
        requests = len(proxy.seen)
    for number in range(1, requests + 1):
        async with world(moto_port) as (proxy, service, undisturbed):
            fault = FAULTS[(first + number) % len(FAULTS)]
            proxy.fault = lambda _, target, n, at=number, fault=fault: fault if n == at else PASS
            await everything(service)
            assert [v.size for v in await versions_of(undisturbed, SCOPE, "a")] == [4]
            assert len(proxy.seen) >= number, "the fault did not happen"


@pytest.mark.parametrize("fault", [REPLY_LOST, DONE_BUT_500, HANGS, ANSWERS_LATE])
@pytest.mark.parametrize("patience", [{}, {"retry_config": ONCE}], ids=["patient", "impatient"])
async def test_a_version_whose_confirmation_was_lost_is_saved_once(moto_port, fault, patience):
    async with world(moto_port, timeout=1, **patience) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "a", b"before")
        proxy.next("PUT", fault, at="/versions/")
        assert await service.save_artifact(SCOPE, "a", b"mine") == 1
        assert await service.save_artifact(SCOPE, "a", b"next") == 2
        assert len(await versions_of(undisturbed, SCOPE, "a")) == 3
        assert await load_bytes(undisturbed, SCOPE, "a", 1) == b"mine"


@pytest.mark.parametrize("fault", [REPLY_LOST, HANGS])
async def test_a_deletion_whose_confirmation_was_lost_counts(moto_port, fault):
    async with world(moto_port, timeout=1) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"x")
        proxy.next("PUT", fault, at="/versions/")
        await service.delete_artifact(SCOPE, "a")
        with pytest.raises(NotFound):
            await undisturbed.delete_artifact(SCOPE, "a")


async def at_the_first_claim(proxy, call, act):
    """Does something else between the moment when a call looks and that when it writes, and gives what both gave."""
    held = asyncio.Event()

    def fault(method, target, number):
        if method == "PUT" and "/versions/" in target and not held.is_set():
            held.set()
            return HELD
        return PASS

    proxy.fault = fault
    task = asyncio.create_task(call)
    await held.wait()
    done = await act
    proxy.release.set()
    return done, await task


async def test_somebody_elses_version_is_not_taken_for_ones_own(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"before")
        mine, theirs = service.save_artifact(SCOPE, "a", b"mine"), undisturbed.save_artifact(SCOPE, "a", b"theirs")
        assert await at_the_first_claim(proxy, mine, theirs) == (1, 2)
        assert await load_bytes(undisturbed, SCOPE, "a", 1) == b"theirs"
        assert await load_bytes(undisturbed, SCOPE, "a", 2) == b"mine"


async def test_a_save_that_meets_a_deletion_begins_anew(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        for _ in range(3):
            await service.save_artifact(SCOPE, "a", b"before")
        mine = service.save_artifact(SCOPE, "a", b"mine")
        assert await at_the_first_claim(proxy, mine, undisturbed.delete_artifact(SCOPE, "a")) == (None, 0)
        assert [v.size for v in await versions_of(undisturbed, SCOPE, "a")] == [4]


async def test_a_save_that_slept_through_another_and_its_deletion_begins_anew(moto_port):
    async def save_and_delete(other):
        await other.save_artifact(SCOPE, "a", b"theirs")
        await other.delete_artifact(SCOPE, "a")

    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"before")
        mine = service.save_artifact(SCOPE, "a", b"mine")
        # The position that it wants was taken and emptied again: it must not get it.
        assert await at_the_first_claim(proxy, mine, save_and_delete(undisturbed)) == (None, 0)
        assert await load_bytes(undisturbed, SCOPE, "a") == b"mine"


async def test_a_deletion_that_meets_a_save_deletes_it_too(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"before")
        deleting, theirs = service.delete_artifact(SCOPE, "a"), undisturbed.save_artifact(SCOPE, "a", b"theirs")
        assert await at_the_first_claim(proxy, deleting, theirs) == (1, None)
        assert await names_of(undisturbed, SCOPE) == []
        prefix = service._bucket.where.rpartition("/")[2]
        assert not any("/data/" in key for key in keys_below(moto_port, prefix))


@pytest.mark.parametrize("fault", [ERROR_500, BUSY_503, CUT, REPLY_LOST, HANGS])
async def test_a_store_that_is_away_is_unavailable(moto_port, fault):
    hanging = {"timeout": 1, "retry_config": ONCE} if fault == HANGS else {}
    async with world(moto_port, **hanging) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"kept")
        proxy.always(fault)
        calls = (
            service.save_artifact(SCOPE, "b", b"x"),
            service.load_artifact(SCOPE, "a"),
            service.load_artifact(SCOPE, "missing"),
            service.list_artifact_names(SCOPE),
            service.list_versions(SCOPE, "a"),
            service.delete_artifact(SCOPE, "missing"),
            service.delete_session_artifacts(SCOPE),
        )
        for call, outcome in zip(calls, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            assert isinstance(outcome, Unavailable), call
            assert (outcome.code, outcome.retryable) == ("artifact.unavailable", True)
            assert outcome.__cause__ is not None
        proxy.always(PASS)
        assert await load_bytes(service, SCOPE, "a") == b"kept"
        assert await names_of(undisturbed, SCOPE) == ["a"]


@pytest.mark.parametrize("fault", [HALF, STALLS])
@pytest.mark.parametrize("patience", [{}, {"retry_config": ONCE}], ids=["driver", "service"])
async def test_a_download_that_breaks_goes_on_where_it_broke(moto_port, fault, patience):
    async with world(moto_port, timeout=1, **patience) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "a", LARGE)
        proxy.next("GET", fault, at="/data/")
        assert await load_bytes(service, SCOPE, "a") == LARGE
        proxy.next("GET", fault, at="/data/")
        opened = await service.open_artifact(SCOPE, "a", start=1000, end=len(LARGE) - 1000)
        assert await opened.read() == LARGE[1000:-1000]


async def test_a_reader_that_is_cancelled_in_mid_answer_may_go_on(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "a", LARGE)
        proxy.next("GET", PAUSES, at="/data/")
        opened = await service.open_artifact(SCOPE, "a")
        found = []

        async def read():
            async for chunk in opened.chunks:
                found.append(chunk)

        reading = asyncio.create_task(read())
        await proxy.paused.wait()
        reading.cancel()
        await asyncio.wait([reading])
        assert len(b"".join(found)) < len(LARGE)
        proxy.release.set()
        await read()
        assert b"".join(found) == LARGE


async def test_listings_of_many_pages(moto_port):
    async with world(moto_port) as (proxy, service, _):
        proxy.page_size = 2
        for number in range(7):
            await service.save_artifact(SCOPE, "a", b"%d" % number)
            await service.save_artifact(SCOPE, f"name {number}", b"x")
        assert [v.version for v in await versions_of(service, SCOPE, "a")] == list(range(7))
        assert await load_bytes(service, SCOPE, "a") == b"6"
        assert await names_of(service, SCOPE) == ["a", *(f"name {number}" for number in range(7))]
        await service.delete_artifact(SCOPE, "a")
        await service.delete_user_artifacts("app", "alice")
        assert await names_of(service, SCOPE) == []
        prefix = service._bucket.where.rpartition("/")[2]
        assert not any("/data/" in key for key in keys_below(moto_port, prefix))
        with platform.use(ManualPlatform(platform.now() + 7200)):
            await service.sweep()
        assert keys_below(moto_port, prefix) == [".conditional-writes"]


@pytest.mark.parametrize("size", [1000, len(LARGE)])
async def test_a_download_that_breaks_again_and_again_is_unavailable(moto_port, size):
    async with world(moto_port) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "a", LARGE[:size])
        # Each answer gives half of what is asked for, so it never comes to an end.
        proxy.fault = lambda method, target, number: HALF if "/data/" in target else PASS
        with pytest.raises(Unavailable) as caught:
            for _ in range(40):
                await service.load_artifact(SCOPE, "a")
        assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", True)


@pytest.mark.parametrize("patience", [{}, {"retry_config": ONCE}], ids=["driver", "service"])
async def test_what_is_deleted_while_a_connection_breaks_is_not_found(moto_port, patience):
    async with world(moto_port, **patience) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "a", LARGE)
        proxy.next("GET", HALF, at="/data/")
        opened = await service.open_artifact(SCOPE, "a")
        await undisturbed.delete_artifact(SCOPE, "a")
        with pytest.raises(NotFound) as caught:
            await opened.read()
        assert caught.value.code == "artifact.not_found"


@pytest.mark.parametrize("fault", [ERROR_500, CUT, REPLY_LOST, HANGS])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_large_upload_survives_faults(moto_port, method, fault):
    async with world(moto_port, timeout=2) as (proxy, service, undisturbed):
        proxy.next(method, fault, at="/data/")
        assert await service.save_artifact(SCOPE, "a", stream(LARGE[:5_000_000], LARGE[5_000_000:])) == 0
        assert await load_bytes(undisturbed, SCOPE, "a") == LARGE


async def test_a_large_upload_that_fails_ends_the_stream_early(moto_port):
    given = 0

    async def endless():
        nonlocal given
        while True:
            given += 1
            yield bytes(1_000_000)

    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "old", b"x")
        proxy.always(ERROR_500, "PUT")
        with pytest.raises(Unavailable):
            await service.save_artifact(SCOPE, "a", endless())
        assert given < 200
        assert await names_of(undisturbed, SCOPE) == ["old"]


@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_a_stream_that_ends_badly_leaves_no_parts(moto_port, how):
    reached = asyncio.Event()

    async def broken():
        for _ in range(20):
            yield bytes(1_000_000)
        reached.set()
        if how == "error":
            raise KeyError("mine")
        await asyncio.Event().wait()

    async with world(moto_port) as (_, service, undisturbed):
        saving = asyncio.create_task(service.save_artifact(SCOPE, "a", broken()))
        await reached.wait()
        if how == "cancel":
            saving.cancel()
        with pytest.raises(KeyError if how == "error" else asyncio.CancelledError):
            await saving
        assert await names_of(undisturbed, SCOPE) == []
    assert unfinished_uploads(moto_port, service) == []


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "stream"])
@pytest.mark.parametrize("at", ["PUT", "POST"], ids=["a part", "the end"])
async def test_a_cancelled_upload_leaves_no_parts(moto_port, at, streamed):
    def fault(method, target, number):
        if method == at and "uploadId" in target:
            saving.cancel()
        return PASS

    async with world(moto_port) as (proxy, service, undisturbed):
        await undisturbed.save_artifact(SCOPE, "old", b"kept")
        proxy.fault = fault
        data = stream(LARGE, LARGE) if streamed else LARGE * 2
        saving = asyncio.create_task(service.save_artifact(SCOPE, "a", data))
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert await names_of(undisturbed, SCOPE) == ["old"]
    assert unfinished_uploads(moto_port, service) == []


def unfinished_uploads(port, service):
    prefix = service._bucket.where.rpartition("/")[2]
    uploads = client(port).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix)]


async def test_a_cancelled_save_waits_for_what_it_has_sent(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"x")
        saving = asyncio.create_task(service.save_artifact(SCOPE, "a", b"y"))

        def fault(method, target, number):
            if method == "PUT" and "/versions/" in target:
                saving.cancel()
            return PASS

        proxy.fault = fault
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert "/versions/" in proxy.answered[-1], "it had been sent, so its answer is waited for"
        assert len(await versions_of(undisturbed, SCOPE, "a")) == 2


async def test_a_failed_cleaning_is_told_and_finished_by_the_sweep(moto_port):
    async with world(moto_port) as (proxy, service, undisturbed):
        await service.save_artifact(SCOPE, "a", b"secret")
        proxy.always(ERROR_500, "POST")
        with pytest.raises(Unavailable):
            await service.delete_artifact(SCOPE, "a")
        assert await names_of(undisturbed, SCOPE) == []
        proxy.always(PASS)
        prefix = service._bucket.where.rpartition("/")[2]
        assert any("/data/" in key for key in keys_below(moto_port, prefix))
        assert await service.sweep() == 1
        assert not any("/data/" in key for key in keys_below(moto_port, prefix))


# -- what does not get better --------------------------------------------------------------------------------------------


def chain_of(error):
    """All that a traceback or a logger may print of an error."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return "\n".join([*traceback.format_exception(seen[0]), *map(repr, seen), *map(str, seen)])


@pytest.mark.parametrize("wrong", ["secret_access_key", "access_key_id"])
async def test_wrong_credentials_are_told_without_repeating_them(nanio_port, wrong):
    service = service_at(nanio_port, **{wrong: "WRONGSENTINEL"}, token="TOKENSENTINEL")
    for call in (service.load_artifact(SCOPE, "a"), service.save_artifact(SCOPE, "a", b"x"), service.sweep()):
        with pytest.raises(Unavailable) as caught:
            await call
        assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)
        assert "403" in caught.value.message
        assert "credentials" in caught.value.message
        assert "SENTINEL" not in chain_of(caught.value)


async def test_what_a_refusal_repeats_is_not_told(moto_port):
    async with world(moto_port, token="TOKENSENTINEL") as (proxy, service, _):
        proxy.always(FORBIDDEN_403)
        for call in (service.load_artifact(SCOPE, "a"), service.save_artifact(SCOPE, "a", b"x")):
            with pytest.raises(Unavailable, match="403 SignatureDoesNotMatch") as caught:
                await call
            assert not caught.value.retryable
            assert "SENTINEL" not in chain_of(caught.value)


async def test_a_bucket_that_is_missing_is_told(moto_port, nanio_port):
    for port in (moto_port, nanio_port):
        service = service_at(port, bucket="no-such-bucket")
        for call in (
            service.load_artifact(SCOPE, "a"),
            service.save_artifact(SCOPE, "a", b"x"),
            service.list_artifact_names(SCOPE),
        ):
            with pytest.raises(Unavailable) as caught:
                await call
            assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)
            assert "create the bucket" in caught.value.message


async def test_a_host_that_is_not_there_is_unavailable():
    service = service_at("http://127.0.0.1:9", retry_config=ONCE)
    with pytest.raises(Unavailable) as caught:
        await service.load_artifact(SCOPE, "a")
    assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", True)
    assert "SENTINEL" not in chain_of(caught.value)
