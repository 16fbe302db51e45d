import asyncio
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
from qdrant_client import AsyncQdrantClient

from sojourn import Runner, agent
from sojourn.errors import InvalidInput, SojournError, Unavailable, Unsupported
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.types import Memory
from sojourn.runner import retries
from sojourn.testing.memory_conformance import MemoryServiceConformance, everything, said, texts
from tests.memory.embedders import WordEmbedder
from tests.memory.qdrant.double import VERSION, running
from tests.memory.qdrant.under_way import forget_and_replace

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("qdrant")) as double:
        yield double


@pytest.fixture
def double(server):
    """The double, as it is at first, without points."""
    server.answer, server.api_key, server.version = None, None, VERSION
    server.empty()
    server.requests.clear()
    return server


@pytest.fixture
async def opened(double):
    """Opens the double again and again: a function."""
    services = []

    def open_service(embedder=None, **options):
        services.append(QdrantMemoryService(double.url, embedder=embedder, **options))
        return services[-1]

    yield open_service
    for service in services:
        await service.close()


class TestOnTheDouble(MemoryServiceConformance):
    """The client's path, on a double of the server; see there."""

    @pytest.fixture
    def service(self, opened):
        return opened()

    @pytest.fixture
    async def failing_service(self):
        service = QdrantMemoryService("http://127.0.0.1:1")
        yield service
        await service.close()


class TestOnTheDoubleWithAnEmbedder(TestOnTheDouble):
    @pytest.fixture
    def service(self, opened):
        return opened(WordEmbedder(dimensions=512), collection="with_vectors")


class OnAServer(MemoryServiceConformance):
    """The same on a real server, whose collection `sojourn_conformance` is removed before each case."""

    @pytest.fixture
    async def service(self):
        url, key = os.environ["SOJOURN_QDRANT_URL"], os.environ.get("SOJOURN_QDRANT_API_KEY")
        client = AsyncQdrantClient(url=url, api_key=key, check_compatibility=False)
        await client.delete_collection("sojourn_conformance")
        service = QdrantMemoryService(client, collection="sojourn_conformance", embedder=WordEmbedder(dimensions=512))
        yield service
        await client.delete_collection("sojourn_conformance")
        await client.close()


# Not skipped, which would be reported case by case.
if "SOJOURN_QDRANT_URL" in os.environ:
    TestOnAServer = OnAServer


async def refused(call, error, code):
    with pytest.raises(error) as caught:
        await call
    assert caught.value.code == code
    return caught.value


async def test_with_an_embedder_what_means_the_same_is_found(opened):
    service = opened(WordEmbedder(), collection="dense")
    await service.add(APP, ALICE, [Memory("my hound"), Memory("my kettle"), Memory("an automobile")])
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
    assert texts(await service.search(APP, ALICE, "car", limit=1)) == ["an automobile"]


async def test_vectors_of_another_size_are_refused(opened):
    await opened(WordEmbedder(dimensions=16), collection="dense").add(APP, ALICE, [Memory("tea")])
    other = opened(WordEmbedder(dimensions=8), collection="dense")
    for call in (other.add(APP, ALICE, [Memory("cats")]), other.search(APP, ALICE, "tea"), other.list_memories(APP, ALICE)):
        error = await refused(call, InvalidInput, "memory.wrong_dimensions")
        assert "16 numbers" in str(error)
    assert texts(await opened(collection="dense").search(APP, ALICE, "tea")) == ["tea"]


async def test_a_collection_without_vectors_is_refused_to_an_embedder(opened):
    await opened().add(APP, ALICE, [Memory("tea")])
    await refused(opened(WordEmbedder()).search(APP, ALICE, "tea"), InvalidInput, "memory.wrong_dimensions")


@pytest.mark.parametrize("status", [500, 503, 400, 408, 429, None], ids=str)
async def test_a_server_that_fails_is_unavailable(opened, double, status):
    service = opened()
    await service.add(APP, ALICE, [Memory("tea")])
    double.answer = lambda method, path: status
    for call in (service.search(APP, ALICE, "tea"), service.add(APP, ALICE, [Memory("x")]), service.forget(APP, ALICE)):
        error = await refused(call, Unavailable, "memory.unavailable")
        assert error.retryable
        assert error.__cause__ is not None
        assert error.retry_after == (7.0 if status == 429 else None)
    double.answer = None
    assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


async def test_a_server_that_is_slow_is_unavailable(opened, double):
    service = opened(timeout=0.5)
    await service.add(APP, ALICE, [Memory("tea")])
    going = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(method, path):
        asyncio.run_coroutine_threadsafe(going.wait(), loop).result(30)
        return 500

    double.answer = wait
    error = await refused(service.search(APP, ALICE, "tea"), Unavailable, "memory.unavailable")
    assert "within 1 s" in str(error)
    going.set()


async def test_the_key_is_sent_and_a_wrong_one_refused(opened, double):
    double.api_key = "secret"
    error = await refused(opened().search(APP, ALICE, "tea"), Unavailable, "memory.refused")
    assert not error.retryable
    with warnings.catch_warnings():
        # The client warns of a key without TLS, as it should.
        warnings.simplefilter("ignore")
        await refused(opened(api_key="wrong").search(APP, ALICE, "tea"), Unavailable, "memory.refused")
        service = opened(api_key="secret")
        await service.add(APP, ALICE, [Memory("tea")])
        assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


async def test_a_server_that_is_too_old_is_refused(opened, double):
    double.version = "1.18.3"
    error = await refused(opened().search(APP, ALICE, "tea"), Unsupported, "memory.unsupported_server")
    assert "1.18.3" in str(error)
    double.version = "1.19.0-dev"
    assert await opened().search(APP, ALICE, "tea") == []


async def test_a_collection_that_was_removed_is_made_again(opened, double):
    service = opened()
    await service.add(APP, ALICE, [Memory("tea")])
    double.drop("sojourn_memory")
    await refused(service.search(APP, ALICE, "tea"), Unavailable, "memory.unavailable")
    await service.add(APP, ALICE, [Memory("cats")])
    assert texts(await everything(service)) == ["cats"]


async def test_several_make_the_collection_at_once(opened, double):
    services = [opened(collection="raced") for _ in range(5)]
    await asyncio.gather(*(service.add(APP, ALICE, [Memory(f"tea {n}", id=str(n))]) for n, service in enumerate(services)))
    assert len(await everything(services[0])) == 5


async def test_a_client_that_is_given_is_not_closed(double):
    client = AsyncQdrantClient(url=double.url, check_compatibility=False)
    service = QdrantMemoryService(client)
    await service.add(APP, ALICE, [Memory("tea")])
    await service.close()
    await refused(service.search(APP, ALICE, "tea"), Unavailable, "memory.closed")
    assert (await client.count("sojourn_memory")).count == 1
    await client.close()


async def test_a_cancelled_write_has_an_outcome(opened, double):
    """The cancel is raised once the server has answered."""
    service = opened()
    await service.add(APP, ALICE, [Memory("tea")])
    arrived, going = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(method, path):
        if method == "PUT":
            loop.call_soon_threadsafe(arrived.set)
            asyncio.run_coroutine_threadsafe(going.wait(), loop).result(30)
        return 200

    double.answer = wait
    task = asyncio.create_task(service.add(APP, ALICE, [Memory("cats")]))
    await arrived.wait()
    task.cancel()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(texts(await everything(service))) == ["cats", "tea"]


async def test_a_run_goes_on_while_the_server_is_away_and_what_was_said_follows(opened, double, caplog, monkeypatch):
    @agent
    async def friend(ctx):
        return ctx.memories[0].text if ctx.memories else "Never heard of it."

    monkeypatch.setattr(retries, "FIRST_DELAY", 0.0)
    service = opened()
    refused, followed = asyncio.Event(), asyncio.Event()
    add_session = service.add_session

    async def adding(*arguments):
        try:
            await add_session(*arguments)
        except Unavailable:
            refused.set()
            raise
        followed.set()

    service.add_session = adding
    await service.add(APP, ALICE, [Memory("My kettle is blue.")])
    runner = Runner(app_name=APP, agent=friend, memory_service=service, memory_ingest="on_run_end")
    async with runner:
        double.answer = lambda method, path: 503
        assert await (await runner.start(ALICE, "s", "Which kettle?")).result() == "Never heard of it."
        assert "goes on without memories" in caplog.text
        await refused.wait()
        assert "was not added to memory" in caplog.text
        double.answer = None
        await followed.wait()
        assert len(await everything(service)) == 3
        assert await (await runner.start(ALICE, "t", "Which kettle is blue?")).result() == "My kettle is blue."
    assert sorted(texts(await everything(service)))[:2] == ["My kettle is blue.", "My kettle is blue."]


async def test_what_was_forgotten_or_replaced_while_it_was_being_embedded_stays_so(opened):
    embedder = WordEmbedder()
    await forget_and_replace(opened(embedder, collection="dense"), embedder)


async def test_every_request_is_scoped(opened, double, monkeypatch):
    """Whatever is asked for names the owner."""
    bodies = []
    real = double.handle

    def handle(method, target, body, key):
        bodies.append((method, target, body))
        return real(method, target, body, key)

    monkeypatch.setattr(double, "handle", handle)
    service = opened(WordEmbedder(), collection="dense")
    await service.add_session(APP, ALICE, "s", [said("1", "tea"), said("2", "cats")])
    await service.search(APP, ALICE, "tea")
    await service.list_memories(APP, ALICE, limit=1)
    await service.forget(APP, ALICE, session_id="s")
    asked = [body for method, target, body in bodies if "/points" in target and method == "POST"]
    asked = [body for body in asked if b'"filter"' in body]
    assert len(asked) > 5
    owner = QdrantOwner.key.encode()
    assert all(body.count(b'"filter"') <= body.count(owner) for body in asked)


class QdrantOwner:
    from sojourn.memory.qdrant.points import Owner

    key = Owner(APP, ALICE).key


def test_a_program_that_ends_without_closing_prints_nothing(double):
    program = f"""
        import asyncio
        from sojourn.memory.qdrant.service import QdrantMemoryService
        from sojourn.memory.types import Memory

        async def main():
            service = QdrantMemoryService({double.url!r})
            await service.add("app", "alice", [Memory("tea")])
            globals()["kept"] = service
            print((await service.search("app", "alice", "tea"))[0].text)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "tea\n", "")


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("", {}),
        (":memory:", {}),
        ("ftp://host", {}),
        (None, {}),
        (object(), {}),
        ("http://host:6333", {"collection": "a/b"}),
        ("http://host:6333", {"collection": ""}),
        ("http://host:6333", {"timeout": 0}),
        ("directory", {"synchronous": "off"}),
    ],
)
def test_what_cannot_be_is_refused(place, options):
    with pytest.raises(SojournError) as caught:
        QdrantMemoryService(place, **options)
    assert caught.value.code == "memory.invalid_option"
