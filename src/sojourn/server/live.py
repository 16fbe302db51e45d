"""`/run_live`: a WebSocket over which a user and an agent speak at the same time.

Text frames in are google-adk's `LiveRequest`, binary frames 16-bit PCM at 16 kHz; text frames out are events. A frame that
cannot be read is answered by an object with `error`, and nothing else happens. See `docs/live.md` for the close codes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from fastapi import APIRouter, WebSocket
from pydantic import Field, ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from sojourn.agents.live import INPUT_MIME_TYPE, LiveRequest
from sojourn.content import Blob, Value
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, NotFound, SojournError, TimedOut, Unavailable
from sojourn.event import USER
from sojourn.run.config import RunConfig
from sojourn.run.types import Frame, RunError
from sojourn.runner.handle import Run
from sojourn.runner.readers import FrameReader
from sojourn.runner.runner import Runner
from sojourn.server.access import Caller, caller_of
from sojourn.server.auth.credentials import subprotocol_of
from sojourn.server.conversations import Conversation
from sojourn.server.jsonbody import check_values
from sojourn.server.serving import Serving, serving_of
from sojourn.server.telling import draining_error, internal_error
from sojourn.server.vocabulary import AdkEvents
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.server")

router = APIRouter()

NORMAL = 1000
POLICY = 1008
INTERNAL = 1011
TRY_AGAIN_LATER = 1013

OWN_CODES = {
    "live.idle_timeout": 4000,
    "live.taken_over": 4001,
    "live.max_duration": 4002,
    "live.slow_reader": 4003,
}
"""Close codes of this protocol's own, by the error that is told before."""

MAX_REASON = 120
"""Bytes that a reason for closing may have, less some; RFC 6455 has 123."""


class LiveQuery(Value):
    """What the query of `/run_live` says.

    Attributes:
        app_name: The app; may be left out if there is only one.
        user_id: The user; the caller if left out.
        session_id: The session, which must exist.
        modalities: What the client wants to get; kept in the run's `custom_metadata` for the agent.
        since: Come back to a conversation: the `pos` of the last event that the client has.
        run_id: The run to come back to; the session's newest if left out.
        save_live_blob: Whether audio is stored.
    """

    app_name: str | None = None
    user_id: str | None = None
    session_id: str
    modalities: tuple[str, ...] = Field(default=(), max_length=8)
    since: int | None = Field(default=None, ge=0)
    run_id: str | None = None
    save_live_blob: bool = False


class Joined(NamedTuple):
    """What a client follows: the run, from where, and the conversation if it goes on."""

    run: Run
    after: int
    conversation: Conversation | None


class _Closing(NamedTuple):
    """How a connection ends: with a close code and a reason, and what is told before."""

    code: int
    reason: str
    error: SojournError | None = None


@router.websocket("/run_live")
async def run_live(websocket: WebSocket) -> None:
    """Begins a conversation with the agent, or comes back to it."""
    serving = serving_of(websocket)
    await websocket.accept(subprotocol=subprotocol_of(websocket))
    line = _Line(websocket, serving)
    try:
        await line.serve(await _join(websocket, serving))
    except SojournError as error:
        await line.close(closing_of(error))
    except WebSocketDisconnect:
        pass
    except Exception:
        logger.exception("a live connection failed")
        await line.close(closing_of(internal_error()))


async def _join(websocket: WebSocket, serving: Serving) -> Joined:
    """Finds out who calls and what about, and begins the run if there is none to come back to.

    Raises:
        SojournError: It may not be, or cannot be.
    """
    caller = await caller_of(websocket)
    query = _query_of(websocket)
    runner = caller.runner(query.app_name)
    user_id = caller.user(None) if query.user_id is None else query.user_id
    key = caller.session(runner.app_name, user_id, query.session_id)
    async with serving.conversations.opening(key):
        conversation = serving.conversations.find(key)
        if conversation is not None and query.run_id in (None, conversation.run.id):
            return Joined(conversation.run, await _since(query, conversation.run), conversation)
        if query.since is not None or query.run_id is not None:
            run = await _former_run(runner, key, query.run_id)
            return Joined(run, await _since(query, run), None)
        return Joined(*await _begin(runner, key, query, caller))


async def _begin(runner: Runner, key: SessionKey, query: LiveQuery, caller: Caller) -> tuple[Run, int, Conversation]:
    serving = caller.serving
    if serving.draining:
        raise draining_error()
    config = RunConfig()
    if query.save_live_blob or query.modalities:
        wanted = {"modalities": list(query.modalities)} if query.modalities else None
        config = RunConfig(save_live_blob=query.save_live_blob, custom_metadata=wanted)
    async with serving.limits.room_for_run(runner, key.user_id):
        conversation = await serving.conversations.begin(runner, key, run_config=config)
    return conversation.run, 0, conversation


async def _former_run(runner: Runner, key: SessionKey, run_id: str | None) -> Run:
    """A live run that has ended, for a client that comes back to hear the end."""
    if run_id is None:
        newest = (await runner.list_runs(user_id=key.user_id, session_id=key.session_id, limit=1)).items
        if not newest or not newest[0].message.is_opening():
            raise NotFound("there is no conversation here to come back to; begin one without `since`", code="live.not_found")
        run_id = newest[0].id
    run = await runner.follow(run_id, user_id=key.user_id)
    if run.record.key != key:
        raise NotFound(f"there is no run {run_id!r} in this session", code="run.not_found")
    return run


async def _since(query: LiveQuery, run: Run) -> int:
    """After which `pos` a client reads on: from here on, if it does not say."""
    last_pos = (await run.refresh()).last_pos
    if query.since is None:
        return last_pos
    if query.since > last_pos:
        raise InvalidInput(f"since is {query.since}; the newest event is {last_pos}", code="cursor.ahead")
    return query.since


def _query_of(websocket: WebSocket) -> LiveQuery:
    params = websocket.query_params
    given = {name: params[name] for name in params if name != "modalities"}
    try:
        return LiveQuery.model_validate({**given, "modalities": params.getlist("modalities")})
    except ValidationError as error:
        raise _unreadable("query", error) from None


def _unreadable(what: str, error: ValidationError) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False)[0]
    place = "/".join(str(step) for step in first["loc"])
    problem = f"{place}: {first['msg']}" if place else first["msg"]
    return InvalidInput(f"the {what} cannot be read: {problem}", code="live.invalid_request")


def closing_of(error: SojournError | RunError) -> _Closing:
    """How a connection is closed after an error."""
    told = error if isinstance(error, SojournError) else None
    if error.code in OWN_CODES:
        code = OWN_CODES[error.code]
    elif isinstance(error, LimitExceeded | Unavailable):
        code = TRY_AGAIN_LATER
    elif isinstance(error, SojournError) and error.http_status < 500:
        code = POLICY
    elif error.code == "run.cancelled":
        code = NORMAL
    else:
        code = INTERNAL
    return _Closing(code, error.code, told)


class _Line:
    """One WebSocket.

    Args:
        websocket: Accepted.
        serving: What it belongs to.
    """

    def __init__(self, websocket: WebSocket, serving: Serving) -> None:
        self._websocket = websocket
        self._config = serving.config
        self._limits = serving.limits
        self._vocabulary = AdkEvents()
        self._sending = asyncio.Lock()
        self._closing: asyncio.Future[_Closing | None] = asyncio.get_running_loop().create_future()
        # Whether the client was told that the agent takes nothing more at the moment.
        self._told_full = False

    def hang_up(self, error: SojournError) -> None:
        """See `Line`."""
        self._end(closing_of(error))

    async def serve(self, joined: Joined) -> None:
        """Sends and receives until one of both has nothing more to say; raises nothing that the client does."""
        conversation = joined.conversation
        frames = joined.run.frames(joined.after)
        if conversation is not None:
            conversation.join(self)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._send_all(frames)), loop.create_task(self._receive_all(conversation))]
        try:
            closing = await self._closing
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if conversation is not None:
                conversation.part(self)
        if closing is not None:
            await self.close(closing)

    async def close(self, closing: _Closing) -> None:
        """Tells the client why, and closes the connection; a client who is gone does not matter."""
        try:
            if closing.error is not None and closing.reason != "live.slow_reader":
                await self._send(self._vocabulary.error(closing.error))
            async with asyncio.timeout(self._config.slow_reader_timeout):
                await self._websocket.close(closing.code, closing.reason[:MAX_REASON])
        except (WebSocketDisconnect, RuntimeError, TimedOut, TimeoutError):
            pass

    def _end(self, closing: _Closing | None) -> None:
        if not self._closing.done():
            self._closing.set_result(closing)

    # -- to the client ----------------------------------------------------------------------------------------------

    async def _send_all(self, frames: FrameReader) -> None:
        closing: _Closing | None = _Closing(NORMAL, "run.completed")
        try:
            async for frame in frames:
                said = self._vocabulary.item(frame)
                if said is not None:
                    await self._send(said[1])
                if isinstance(frame, Frame) and frame.error is not None:
                    closing = closing_of(frame.error)
        except SojournError as error:
            closing = closing_of(error)
        except (WebSocketDisconnect, RuntimeError):
            closing = None
        except Exception:
            logger.exception("a live connection failed")
            closing = closing_of(internal_error())
        self._end(closing)

    async def _send(self, text: str) -> None:
        """Sends a frame.

        Raises:
            TimedOut: `live.slow_reader`.
        """
        try:
            async with self._sending, asyncio.timeout(self._config.slow_reader_timeout):
                await self._websocket.send_text(text)
        except TimeoutError:
            raise TimedOut("the client takes nothing of what it is sent", code="live.slow_reader") from None

    # -- from the client --------------------------------------------------------------------------------------------

    async def _receive_all(self, conversation: Conversation | None) -> None:
        closing: _Closing | None = None
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                try:
                    self._take(message, conversation)
                    self._told_full = False
                except SojournError as error:
                    full = error.code == "live.queue_full"
                    if not (full and self._told_full):
                        await self._send(self._vocabulary.error(error))
                    self._told_full = full
        except SojournError as error:
            closing = closing_of(error)
        except (WebSocketDisconnect, RuntimeError):
            pass
        except Exception:
            logger.exception("a live connection failed")
            closing = closing_of(internal_error())
        self._end(closing)

    def _take(self, message: Message, conversation: Conversation | None) -> None:
        """Gives the agent what a frame says.

        Raises:
            InvalidInput: `live.invalid_request`, `message.invalid`, `message.too_many_parts`, `request.too_many_values`.
            LimitExceeded: `live.queue_full`, `live.frame_too_large`.
            Conflict: `live.closed`.
        """
        text, data = message.get("text"), message.get("bytes")
        size = len(text.encode()) if text is not None else len(data or b"")
        if size > self._config.max_frame_bytes:
            raise LimitExceeded(
                f"a frame of {size} bytes; at most {self._config.max_frame_bytes} are taken at once",
                code="live.frame_too_large",
                retryable=False,
            )
        request = _request_in(text) if text is not None else _sound_in(data or b"")
        if request.content is not None:
            # Whoever calls is the user, whatever role the message gives itself.
            content = self._limits.check_message(request.content).model_copy(update={"role": USER})
            request = request.model_copy(update={"content": content})
        if conversation is None:
            raise Conflict("this conversation is over; begin another one without `since`", code="live.closed")
        conversation.send(request)


def _request_in(text: str) -> LiveRequest:
    check_values(text.encode())
    try:
        return LiveRequest.model_validate_json(text)
    except ValidationError as error:
        raise _unreadable("frame", error) from None


def _sound_in(data: bytes) -> LiveRequest:
    if not data or len(data) % 2:
        raise InvalidInput(
            f"a binary frame of {len(data)} bytes; it holds samples of two bytes each", code="live.invalid_request"
        )
    return LiveRequest(blob=Blob(data=data, mime_type=INPUT_MIME_TYPE))
