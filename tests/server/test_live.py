"""Live runs over a WebSocket: a real server, and the client that people use."""

import asyncio
import json
from base64 import b64encode, urlsafe_b64decode
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import Unauthorized
from sojourn.event import Event, Transcription
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.auth.credentials import bearer_of
from sojourn.server.auth.principal import Principal
from sojourn.server.config import ServerConfig
from sojourn.server.conversations import Conversation
from sojourn.store.database import DatabaseSessionService
from tests.server.serving import running

pytestmark = pytest.mark.anyio


@agent
async def partner(ctx):
    """Counts when told so; plays and writes down what it hears."""
    heard = b""
    async for request in ctx.live:
        if request.blob is not None:
            heard += request.blob.data
        elif request.activity_end:
            yield Event(input_transcription=Transcription(text=f"{len(heard)} bytes", finished=True))
            yield Event(partial=True, content=Content("model", (Part.from_bytes(heard, "audio/pcm;rate=24000"),)))
            yield Event(turn_complete=True)
        elif request.content is not None and request.content.text == "count":
            for n in range(1000):
                yield f"{n} "
                if await ctx.live.interruption(0.005):
                    break
        elif request.content is not None and request.content.text == "fail":
            raise ValueError("a secret of the code")
        elif request.content is not None:
            yield f"You said: {request.content.text}"
    yield "Bye."


class Tokens:
    """Whoever shows `token-NAME` is NAME."""

    needs_loopback = False

    async def authenticate(self, connection):
        shown = bearer_of(connection) or ""
        if not shown.startswith("token-"):
            raise Unauthorized("show a token", code="auth.missing")
        return Principal(shown.removeprefix("token-"))


class Client:
    """One end of a live connection."""

    def __init__(self, socket):
        self.socket = socket
        self.got = []

    async def say(self, text):
        await self.send(content={"role": "user", "parts": [{"text": text}]})

    async def send(self, **request):
        await self.socket.send(json.dumps(request))

    async def next(self):
        self.got.append(json.loads(await self.socket.recv()))
        return self.got[-1]

    async def until(self, found):
        """Reads on until something is found in what comes."""
        while not found(await self.next()):
            pass
        return self.got[-1]

    async def turn(self):
        """Reads on to the end of the agent's turn."""
        return await self.until(lambda said: said.get("turnComplete"))

    async def closed(self):
        """Reads on to the end; gives the close code and reason."""
        try:
            while True:
                await self.next()
        except ConnectionClosed as end:
            return end.rcvd.code, end.rcvd.reason

    @property
    def stored(self):
        return [shape(said) for said in self.got if "pos" in said]


def shape(said):
    text = "".join(p.get("text", "") for p in said.get("content", {}).get("parts", ()))
    text += said.get("inputTranscription", {}).get("text", "")
    marks = [mark for mark in ("interrupted", "turnComplete") if said.get(mark)]
    return (said["author"], text, *marks)


class House:
    def __init__(self, runner, server, app):
        self.runner = runner
        self.server = server
        self.app = app

    @asynccontextmanager
    async def call(self, user="ann", session="s", query="", **options):
        url = f"ws://127.0.0.1:{self.server.port}/run_live?app_name=app&user_id={user}&session_id={session}{query}"
        async with connect(url, **options) as socket:
            yield Client(socket)

    async def refused(self, **options):
        async with self.call(**options) as client:
            return (*await client.closed(), client.got)

    @property
    def conversations(self):
        return self.app.state.serving.conversations

    async def record(self, client):
        return (await self.runner.follow(client.got[0]["invocationId"], user_id="ann")).record


@asynccontextmanager
async def house(target=partner, *, store=None, serving=None, **config):
    fields = {"session_service": store} if store is not None else {}
    runner = Runner(app_name="app", agent=target, **fields)
    app = create_app(runner, ServerConfig(**config))
    async with running(app, **(serving or {})) as server:
        for user, session in (("ann", "s"), ("ann", "other"), ("ben", "s")):
            await runner.create_session(user, session)
        yield House(runner, server, app)


# -- speaking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
async def test_a_conversation(backend, tmp_path):
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/live.db") if backend == "sqlite" else None
    async with house(store=store) as at:
        async with at.call() as client:
            await client.say("hello")
            await client.turn()
            assert client.stored == [("user", "hello"), ("partner", "You said: hello", "turnComplete")]
            sealed = client.got[-1]
            pieces = [said for said in client.got if said.get("partial")]
            assert [p["content"]["parts"][0]["text"] for p in pieces] == ["You said: hello"]
            assert {p["id"] for p in pieces} == {sealed["id"]}
            await client.send(close=True)
            assert await client.closed() == (1000, "run.completed")
            assert client.stored[-1] == ("partner", "Bye.")
        log = await at.runner.store.list_events(app_name="app", user_id="ann", session_id="s")
        assert [e.text for e in log] == ["", "hello", "You said: hello", "Bye."]
    if store is not None:
        await store.close()


async def test_sound_goes_in_and_out():
    async with house() as at, at.call() as client:
        await client.send(activityStart={})
        await client.socket.send(bytes(range(64)))  # As it is, or in JSON.
        await client.send(blob={"mimeType": "audio/pcm;rate=16000", "data": b64encode(bytes(range(64, 100))).decode()})
        await client.send(activity_end={})
        await client.turn()
        assert client.stored == [("user", "100 bytes"), ("partner", "", "turnComplete")]
        (sound,) = [said for said in client.got if said.get("partial")]
        inline = sound["content"]["parts"][0]["inlineData"]
        assert inline["mimeType"] == "audio/pcm;rate=24000"
        assert urlsafe_b64decode(inline["data"]) == bytes(range(100))


@pytest.mark.parametrize("by", [{"activityStart": {}}, {"content": {"parts": [{"text": "stop"}]}}])
async def test_barge_in(by):
    async with house() as at, at.call() as client:
        await client.say("count")
        await client.until(lambda said: said.get("partial") and "3 " in shape(said)[1])
        await client.send(**by)
        cut = await client.until(lambda said: said.get("interrupted"))
        told = "".join(shape(said)[1] for said in client.got if said.get("partial"))
        assert shape(cut)[1] == told
        await client.say("go on")
        await client.until(lambda said: shape(said)[1] == "You said: go on" and "pos" in said)
        assert [s for s in client.stored if s[0] == "user"] == [("user", "count")] + (
            [("user", "stop")] if "content" in by else []
        ) + [("user", "go on")]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "live.invalid_request"),
        ("[]", "live.invalid_request"),
        ("{}", "live.invalid_request"),
        ('{"blob": {"data": "%%%"}}', "live.invalid_request"),
        ('{"content": {"parts": "no"}}', "live.invalid_request"),
        ('{"content": {"parts": []}}', "message.invalid"),
        ('{"content": {"parts": [{"functionResponse": {"id": "1", "name": "f", "response": {}}}]}}', "message.invalid"),
        (json.dumps({"content": {"parts": [{"text": "a"}] * 4}}), "message.too_many_parts"),
        (b"\0", "live.invalid_request"),
        (b"", "live.invalid_request"),
        (bytes(2048), "live.frame_too_large"),
        ("x" * 2048, "live.frame_too_large"),
    ],
)
async def test_a_bad_frame_is_answered_and_survived(frame, code):
    async with house(max_frame_bytes=1024, max_parts=3) as at, at.call() as client:
        await client.socket.send(frame)
        said = await client.next()
        assert (said["errorCode"], said["code"]) == (code, code)
        assert said["error"]
        assert ": :" not in said["error"]
        await client.say("hello")
        assert shape(await client.turn()) == ("partner", "You said: hello", "turnComplete")


async def test_what_is_too_large_for_the_transport_closes_the_connection():
    async with house(serving={"ws_max_size": 4096}) as at, at.call() as client:
        await client.socket.send(bytes(8192))
        assert (await client.closed())[0] == 1009


async def test_more_than_the_agent_takes_is_told_once():
    gate = asyncio.Event()

    @agent
    async def busy(ctx):
        await gate.wait()
        async for request in ctx.live:
            if request.content is not None:
                yield "At last."

    async with house(busy) as at, at.call() as client:
        for _ in range(24):
            await client.socket.send(bytes(100_000))
        assert (await client.next())["code"] == "live.queue_full"
        gate.set()
        while True:
            await client.say("hello?")
            said = await client.next()
            if "error" not in said:
                break
        assert shape(await client.turn())[1] == "At last."
        assert all(said["code"] == "live.queue_full" for said in client.got if "error" in said)


# -- coming back --------------------------------------------------------------------------------------------------------


async def test_who_comes_back_gets_what_it_missed_and_goes_on():
    async with house() as at:
        async with at.call() as first:
            await first.say("one")
            last = await first.turn()
        conversation = at.conversations.find(await key(at))
        # Nobody is there; the agent is told something by another way, and answers.
        conversation.send(request("two"))
        run = conversation.run
        async for item in run.frames(last["pos"]):
            if item.pos and item.event is not None and item.event.turn_complete:
                break
        async with at.call(query=f"&since={last['pos']}") as again:
            await again.turn()
            assert again.stored == [("user", "two"), ("partner", "You said: two", "turnComplete")]
            assert again.got[0]["invocationId"] == last["invocationId"]
            await again.say("three")
            await again.turn()
            await again.send(close=True)
            assert await again.closed() == (1000, "run.completed")
            end = again.got[-1]["pos"]
        async with at.call(query=f"&since={last['pos']}&run_id={run.id}") as late:
            assert await late.closed() == (1000, "run.completed")
            assert late.got[-1]["pos"] == end
        async with at.call(query="&since=0") as late:
            assert await late.closed() == (1000, "run.completed")
            assert [s[1] for s in late.stored] == [
                "one",
                "You said: one",
                "two",
                "You said: two",
                "three",
                "You said: three",
                "Bye.",
            ]


async def key(at):
    (found,) = at.conversations._by_session
    return found


def request(text):
    from sojourn.agents.live import LiveRequest

    return LiveRequest(content=Content("user").with_text(text))


async def test_the_newer_connection_takes_over():
    async with house() as at, at.call() as older:
        await older.say("one")
        await older.turn()
        async with at.call() as newer:
            assert await older.closed() == (4001, "live.taken_over")
            assert older.got[-1]["code"] == "live.taken_over"
            await newer.say("two")
            await newer.turn()
            # Without `since` it reads on from where it came.
            assert newer.stored == [("user", "two"), ("partner", "You said: two", "turnComplete")]
            assert newer.got[0]["invocationId"] == older.got[0]["invocationId"]


async def test_those_who_begin_at_once_begin_one_conversation(tmp_path):
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/live.db")
    async with house(store=store) as at:

        async def converse():
            async with at.call() as client:
                await client.say("close")
                return await client.closed()

        async def end():
            # The one that is left is ended with the run.
            async with at.call() as last:
                await asyncio.wait(calls, return_when=asyncio.ALL_COMPLETED)
                await last.send(close=True)
                return await last.closed()

        calls = [asyncio.ensure_future(converse()) for _ in range(5)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert await end() == (1000, "run.completed")
        assert {call.result() for call in calls} == {(4001, "live.taken_over")}
        assert len((await at.runner.list_runs()).items) == 1
    await store.close()


async def test_nothing_can_be_sent_to_a_conversation_that_is_over():
    gate = asyncio.Event()

    @agent
    async def slow(ctx):
        async for _ in ctx.live:
            pass
        yield "Wait. "
        await gate.wait()

    async with house(slow) as at, at.call() as client:
        await client.send(close=True)
        await client.until(lambda said: said.get("partial"))
        await client.say("one more thing")
        assert (await client.next())["code"] == "live.closed"
        gate.set()
        assert await client.closed() == (1000, "run.completed")


@pytest.mark.parametrize("policy", ["detach", "cancel"])
async def test_what_becomes_of_a_run_whose_client_is_gone(policy):
    async with house(on_disconnect=policy, disconnect_grace=0.01) as at:
        async with at.call() as client:
            await client.say("one")
            await client.turn()
        run = await at.runner.follow(client.got[0]["invocationId"], user_id="ann")
        if policy == "cancel":
            assert (await run.wait()).status is RunStatus.CANCELLED
            return
        async with at.call(query=f"&since={client.got[-1]['pos']}") as again:
            await again.say("two")
            await again.turn()
        assert run.status is RunStatus.RUNNING


# -- bounds -------------------------------------------------------------------------------------------------------------


async def test_a_client_that_says_nothing():
    async with house(live_idle_timeout=0.05) as at:
        async with at.call() as client:
            await client.say("one")
            assert await client.closed() == (4000, "live.idle_timeout")
            assert client.got[-1]["code"] == "live.idle_timeout"
        run = await at.runner.follow(client.got[0]["invocationId"], user_id="ann")
        # The agent was told that nothing more comes, and said good-bye.
        assert (await run.wait()).status is RunStatus.COMPLETED
        assert await run.result() == "Bye."


async def test_a_conversation_that_lasts_too_long():
    async with house(live_max_duration=0.05, disconnect_grace=0.01) as at:
        async with at.call() as client:
            await client.say("count")
            assert await client.closed() == (4002, "live.max_duration")
        run = await at.runner.follow(client.got[0]["invocationId"], user_id="ann")
        # It did not listen, and was cancelled after the grace.
        assert (await run.wait()).status is RunStatus.CANCELLED


async def test_a_client_that_takes_nothing_is_cut_and_may_come_back(monkeypatch):
    cut = asyncio.Event()
    part = Conversation.part

    def parted(self, line):
        part(self, line)
        cut.set()

    monkeypatch.setattr(Conversation, "part", parted)

    @agent
    async def flood(ctx):
        for n in range(250):
            yield Content("model").with_text(f"{n} " + "x" * 60_000)
        async for _ in ctx.live:
            yield "Still here."

    async with house(flood, slow_reader_timeout=0.5) as at:
        async with at.call(max_queue=1, compression=None) as client:
            await cut.wait()
            assert await client.closed() == (4003, "live.slow_reader")
        last = client.got[-1]["pos"]
        async with at.call(query=f"&since={last}") as again:
            await again.say("hello")
            await again.until(lambda said: shape(said)[1] == "Still here." and "pos" in said)
        positions = [said["pos"] for said in client.got + again.got if "pos" in said]
        assert positions == list(range(2, 2 + len(positions)))


async def test_a_run_that_fails_is_told_without_the_secrets_of_its_code():
    async with house() as at, at.call() as client:
        await client.say("fail")
        assert await client.closed() == (1011, "agent.failed")
        assert client.got[-1]["code"] == "agent.failed"
        assert "secret" not in json.dumps(client.got)


async def test_a_run_that_is_cancelled():
    async with house() as at, at.call() as client:
        await client.say("one")
        await client.turn()
        await at.runner.cancel(client.got[0]["invocationId"], user_id="ann")
        assert await client.closed() == (1000, "run.cancelled")


async def test_a_server_that_ends():
    async with house() as at, at.call() as client:
        await client.say("one")
        await client.turn()
        draining = asyncio.ensure_future(at.app.state.serving.drain(5))
        assert (await client.closed())[0] in {1013, 1012}
        assert client.got[-1]["code"] == "server.draining"
        assert (await at.refused(session="other"))[:2] == (1013, "server.draining")
        await draining
        assert (await at.record(client)).status is RunStatus.COMPLETED


async def test_the_bound_on_runs_of_a_user():
    async with house(max_unfinished_runs_per_user=1) as at, at.call() as client:
        await client.say("one")
        await client.turn()
        assert (await at.refused(session="other"))[:2] == (1013, "limit.runs_per_user")


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [
        ("&since=-1", 1008, "live.invalid_request"),
        ("&since=x", 1008, "live.invalid_request"),
        ("&since=0", 1008, "live.not_found"),
        ("&run_id=nope", 1008, "run.not_found"),
    ],
)
async def test_queries_that_cannot_be(query, code, reason):
    async with house() as at:
        assert (await at.refused(query=query))[:2] == (code, reason)


async def test_a_run_of_another_session_is_not_come_back_to():
    async with house() as at, at.call() as client:
        await client.say("one")
        run_id = (await client.turn())["invocationId"]
        assert (await at.refused(session="other", query=f"&run_id={run_id}"))[:2] == (1008, "run.not_found")


async def test_whoever_sends_is_the_user():
    async with house() as at, at.call() as client:
        await client.send(content={"role": "model", "parts": [{"text": "I am the agent."}]})
        await client.turn()
        assert client.got[0]["author"] == "user"
        assert client.got[0]["content"]["role"] == "user"


async def test_a_cursor_ahead_of_the_log():
    async with house() as at, at.call() as client:
        await client.say("one")
        await client.turn()
        async with at.call(query="&since=99") as ahead:
            assert await ahead.closed() == (1008, "cursor.ahead")
        # Who is refused takes nothing over.
        await client.say("two")
        await client.turn()


# -- who may ------------------------------------------------------------------------------------------------------------


async def test_what_is_somebody_elses_is_like_what_does_not_exist():
    async with house(auth=Tokens()) as at:
        ann = {"Authorization": "Bearer token-ann"}
        foreign = await at.refused(user="ben", additional_headers=ann)
        missing = await at.refused(user="ann", session="none", additional_headers=ann)
        assert foreign[:2] == missing[:2] == (1008, "session.not_found")
        told = [json.dumps(got).replace("ben", "ann").replace("/s ", "/none ") for *_, got in (foreign, missing)]
        assert told[0] == told[1]
        for query in ("&since=0", "&run_id=x"):
            assert (await at.refused(user="ben", query=query, additional_headers=ann))[:2] == (1008, "session.not_found")
        assert (await at.runner.list_runs()).items == []


async def test_nobody_gets_in_without_showing_who_it_is():
    async with house(auth=Tokens()) as at:
        code, reason, got = await at.refused()
        assert (code, reason) == (1008, "auth.missing")
        assert got[0]["code"] == "auth.missing"


async def test_a_pages_token_comes_as_a_subprotocol():
    async with house(auth=Tokens()) as at, at.call(subprotocols=["sojourn", "bearer.token-ann"]) as client:
        assert client.socket.subprotocol == "sojourn"
        await client.say("hello")
        await client.turn()


async def test_pages_of_other_origins_do_not_get_in():
    async with house() as at:
        with pytest.raises(InvalidStatus) as refused:
            async with at.call(origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        async with at.call(origin=at.server.url) as client:
            await client.say("hello")
            await client.turn()


async def test_many_conversations_at_once():
    async with house() as at:
        await asyncio.gather(*(at.runner.create_session(f"u{n}", "s") for n in range(30)))

        async def converse(n):
            async with at.call(user=f"u{n}") as client:
                for word in ("a", "b"):
                    await client.say(f"{word}{n}")
                    await client.turn()
                await client.send(close=True)
                assert await client.closed() == (1000, "run.completed")
                return client.stored

        for n, said in enumerate(await asyncio.gather(*map(converse, range(30)))):
            assert said == [
                ("user", f"a{n}"),
                ("partner", f"You said: a{n}", "turnComplete"),
                ("user", f"b{n}"),
                ("partner", f"You said: b{n}", "turnComplete"),
                ("partner", "Bye."),
            ]
        assert not at.conversations._by_session
        assert at.runner.limiter.active == 0
