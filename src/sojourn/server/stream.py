"""Responses that stream what a run says, and never wait for a reader who is gone or too slow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sojourn.errors import SojournError
from sojourn.run.status import RunStatus
from sojourn.runner.handle import EventStream, Run
from sojourn.runner.readers import FrameReader
from sojourn.server.config import ServerConfig
from sojourn.server.framing import Framing, JsonLines, ServerSentEvents
from sojourn.server.problems import problem_of
from sojourn.server.sending import Connection, send_while_read
from sojourn.server.telling import internal_error
from sojourn.server.vocabulary import Items, Vocabulary, vocabulary_of

logger = logging.getLogger("sojourn.server")

CHUNK_BYTES = 65_536
"""How much of what there is to send is sent at once, about."""

RUN_ID_HEADER = "X-Run-Id"
"""The header of a stream that names its run."""


def sse(
    source: EventStream | Run,
    *,
    items: Items = "adk",
    after: int | None = None,
    headers: Mapping[str, str] | None = None,
    config: ServerConfig | None = None,
) -> StreamResponse:
    """A response that streams a run as server-sent events, framed as the server's own.

    With `Runner.run(…)` the run is attached: it starts with the response, and is cancelled if the client goes before its end,
    unless it waits for a person. With a `Run` (`await runner.start(…)`) it is detached: the client may go and come back.

    A run that cannot be started (a message that is invalid, a limit, a conflict) is answered by `application/problem+json` with
    the error's status and code.

    Args:
        source: The run, or one that is about to start.
        items: What is streamed: `adk`, events as on google-adk's wire; `frames`, the run's own frames.
        after: Frames up to this `pos` are left out: the `Last-Event-ID` of a client that comes back.
        headers: More headers.
        config: Heartbeat, and the limit for slow readers; the defaults if omitted.
    """
    config = config or ServerConfig()
    framing = ServerSentEvents(config.reconnect_after if isinstance(source, Run) else None)
    return StreamResponse(source, vocabulary_of(items), framing, config, after=after, headers=headers)


def ndjson(
    source: EventStream | Run,
    *,
    items: Items = "adk",
    after: int | None = None,
    headers: Mapping[str, str] | None = None,
    config: ServerConfig | None = None,
) -> StreamResponse:
    """A response that streams a run as lines of JSON; an empty line is a heartbeat. Otherwise as `sse`."""
    return StreamResponse(source, vocabulary_of(items), JsonLines(), config or ServerConfig(), after=after, headers=headers)


class Feed:
    """What a reader of a run is sent, as bytes.

    Args:
        run: The run.
        vocabulary: How its frames are put as JSON.
        framing: How JSON is put on the wire.
        after: Frames up to this `pos` are left out; as `Run.start_pos` has it if None.
        partials: Whether pieces of messages are sent; as the run's streaming mode has it if None.
    """

    __slots__ = ("_ended", "_framing", "_reader", "_ready", "_run", "_vocabulary")

    def __init__(
        self, run: Run, vocabulary: Vocabulary, framing: Framing, *, after: int | None = None, partials: bool | None = None
    ) -> None:
        self._run = run
        self._vocabulary = vocabulary
        self._framing = framing
        self._reader: FrameReader = run.frames(run.start_pos if after is None else after, partials=partials)
        self._ready: list[bytes] = []
        self._ended = False

    async def begin(self) -> bool:
        """Waits for what comes first; returns False if nothing comes.

        Raises:
            SojournError: The run cannot be read.
        """
        while not self._ready:
            try:
                item = self._reader.take() or await self._reader.__anext__()
            except StopAsyncIteration:
                self._ended = True
                return False
            if (said := self._vocabulary.item(item)) is not None:
                self._ready.append(self._framing.frame(*said))
        return True

    async def chunk(self) -> bytes:
        """Waits for something, and gives all there is; nothing at the end.

        Raises:
            SojournError: The run cannot be read any further.
        """
        chunk, self._ready = self._ready, []
        size = 0
        take, tell, frame = self._reader.take, self._vocabulary.item, self._framing.frame
        while not self._ended and size < CHUNK_BYTES:
            item = take()
            if item is None:
                if chunk:
                    break
                try:
                    item = await self._reader.__anext__()
                except StopAsyncIteration:
                    self._ended = True
                    return await self._closing()
            if (said := tell(item)) is not None:
                piece = frame(*said)
                chunk.append(piece)
                size += len(piece)
        return chunk[0] if len(chunk) == 1 else b"".join(chunk)

    async def _closing(self) -> bytes:
        if self._reader.record.status is not RunStatus.WAITING:
            return b""
        text = self._vocabulary.waiting(self._run.id, await self._run.interrupts())
        return self._framing.frame(None, text) if text is not None else b""

    def error(self, error: SojournError) -> bytes:
        """Why the stream ends."""
        return self._framing.frame(None, self._vocabulary.error(error))


class StreamResponse(Response):
    """Streams a run until it ends or waits for a person, the client is gone, or the client takes nothing any more.

    A detached run goes on in each case: it does not live in its reader. The status being told already, an error that comes up
    meanwhile is the last thing sent.

    Args:
        source: The run, or one that starts with the response and ends with its client.
        vocabulary: How frames are put as JSON.
        framing: How JSON is put on the wire.
        config: Heartbeat, and the limit for slow readers.
        after: As for `Feed`.
        partials: As for `Feed`.
        headers: More headers.
        following: Entered while the run is streamed.
    """

    def __init__(
        self,
        source: Run | EventStream,
        vocabulary: Vocabulary,
        framing: Framing,
        config: ServerConfig,
        *,
        after: int | None = None,
        partials: bool | None = None,
        headers: Mapping[str, str] | None = None,
        following: AbstractContextManager[object] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = framing.media_type
        self.init_headers({"cache-control": "no-cache, no-transform", "x-accel-buffering": "no", **(headers or {})})
        self._source = source
        self._vocabulary = vocabulary
        self._framing = framing
        self._config = config
        self._after = after
        self._partials = partials
        self._following = following or nullcontext()
        self._feed = self._open(source) if isinstance(source, Run) else None

    def _open(self, run: Run) -> Feed:
        self.headers[RUN_ID_HEADER] = header_text(run.id)
        return Feed(run, self._vocabulary, self._framing, after=self._after, partials=self._partials)

    async def begin(self) -> bool:
        """Waits for what comes first; returns False if there is nothing to stream. For runs that were started.

        Raises:
            SojournError: The run cannot be read.
        """
        assert self._feed is not None, "a run that starts with the response has something to stream"
        return await self._feed.begin()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        source = self._source
        if isinstance(source, Run):
            assert self._feed is not None
            await self._stream(self._feed, scope, receive, send)
            return
        try:
            feed = self._open(await source.start())
        except SojournError as error:
            if error.http_status >= 500:
                logger.error("a run could not be started: %s", error, exc_info=error)
            await problem_of(error)(scope, receive, send)
            return
        try:
            await self._stream(feed, scope, receive, send)
        finally:
            await source.aclose()

    async def _stream(self, feed: Feed, scope: Scope, receive: Receive, send: Send) -> None:
        async def stream(connection: Connection) -> None:
            with self._following:
                await connection.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _send_all(feed, connection)

        await send_while_read(stream, scope, receive, send, self._config, heartbeat=self._framing.heartbeat)


def header_text(run_id: str) -> str:
    """A run's id as the value of a header: characters that headers cannot hold are percent-encoded, as in an address."""
    return quote(run_id, safe=" :/@!$&'()*+,;=[]|")


async def _send_all(feed: Feed, connection: Connection) -> None:
    last = b""
    while not last:
        try:
            chunk = await feed.chunk()
        except SojournError as error:
            if error.code == "run.suspended":
                logger.info("a stream ends before its run: %s", error)
            elif error.http_status >= 500:
                logger.error("a stream broke off: %s", error)
            last = feed.error(error)
        except Exception:
            logger.exception("a stream failed")
            last = feed.error(internal_error())
        else:
            if not chunk:
                break
            await connection.send({"type": "http.response.body", "body": chunk, "more_body": True})
    connection.finish()
    await connection.send({"type": "http.response.body", "body": last, "more_body": False})
