"""The handle of a run: what a caller holds of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from sojourn.errors import InvalidInput, RunWaiting, SojournError
from sojourn.event import SPILLED, Event, Partial
from sojourn.run.live import LiveRun
from sojourn.run.status import RunStatus
from sojourn.run.types import Frame, Interrupt, RunRecord
from sojourn.runner.answers import answers
from sojourn.runner.attempt import spill
from sojourn.runner.lending import before_waiting
from sojourn.runner.readers import FrameReader
from sojourn.session.types import Session

if TYPE_CHECKING:
    from sojourn.runner.runner import Runner

T = TypeVar("T")


class Run:
    """A run, from the outside. It goes on whether or not anybody holds this."""

    __slots__ = ("__weakref__", "_live", "_record", "_runner", "start_pos")

    def __init__(self, runner: Runner, record: RunRecord, live: LiveRun | None, *, start_pos: int = 0) -> None:
        self._runner = runner
        self._record = record
        self._live = live
        self.start_pos = start_pos

    @property
    def id(self) -> str:
        """Its id."""
        return self._record.id

    @property
    def user_id(self) -> str:
        """The user."""
        return self._record.user_id

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._record.session_id

    @property
    def record(self) -> RunRecord:
        """The record as last known here; `await refresh()` reads it again."""
        return self._live.record if self._live is not None else self._record

    @property
    def status(self) -> RunStatus:
        """The status as last known here."""
        return self.record.status

    async def refresh(self) -> RunRecord:
        """Reads the record from the store."""
        record = await self._runner.store.get_run(self._record.app_name, self.id, self.user_id)
        self._record = record
        self._follow()
        return record

    def _follow(self) -> LiveRun | None:
        """The live run, a later one if the run has gone on since it waited; None if it is not live here."""
        live = self._live
        if live is None or (live.ended and live.failure is None and not live.record.status.terminal):
            if live is not None and live.record.attempt >= self._record.attempt:
                self._record = live.record
            live = self._live = self._runner.hub.live.get(self._record.uid)
        return live

    def frames(self, after: int = 0, *, partials: bool | None = True) -> FrameReader:
        """Follows the run: its frames after a `pos`, and the pieces of messages between them.

        It ends after the terminal frame, or when the run waits for a person. Leaving it never cancels the run.

        Args:
            after: Frames up to this `pos` are skipped.
            partials: Whether to give the pieces of messages; as the run's streaming mode has it if None.

        Raises:
            Gone: While it is read: `cursor.trimmed` if retention has removed what the run has said.
        """
        if partials is None:
            partials = self._runner.streams(self.record)
        return FrameReader(self._runner.hub, self.record, after=after, partials=partials)

    def events(self, after: int = 0, *, partials: bool | None = None) -> EventReader:
        """Follows what the run's agents say: events, and the pieces of messages between them.

        Events that an earlier attempt said and that do not count any more are left out. At the end, the coded error of a
        failed or cancelled run is raised.

        Args:
            after: Events up to this `pos` are skipped.
            partials: Whether to give the pieces of messages; as the run's streaming mode has it if omitted.
        """
        return EventReader(self, self.frames(after, partials=partials))

    async def result_stream(self) -> AsyncIterator[str]:
        """Follows the text of the run's messages, piece by piece, without thoughts.

        Raises:
            SojournError: At the end, if the run failed or was cancelled.
            RunWaiting: At the end, if it waits for a person.
        """
        async for item in self.events(partials=True):
            if item.delta and not item.thought:
                yield item.delta
        if (await self._ended()).status is RunStatus.WAITING:
            raise RunWaiting(await self.interrupts(), run_id=self.id)

    @overload
    async def result(self) -> Any: ...
    @overload
    async def result(self, *, to_type: type[T]) -> T: ...
    async def result(self, *, to_type: type[Any] | None = None) -> Any:
        """Waits for the end and returns the last final response: text, structured output, or None if there was none.

        Cancelling this wait does not cancel the run.

        Args:
            to_type: Converts the response: structured output is validated, text is parsed as JSON unless the type is `str`.

        Raises:
            SojournError: The coded error of a failed or cancelled run.
            RunWaiting: The run waits for a person.
            Gone: `cursor.trimmed` if retention has removed what the run has said.
            InvalidInput: `result.type_mismatch` if the response cannot be converted.
        """
        record = await self._ended()
        if record.status is RunStatus.WAITING:
            raise RunWaiting(await self.interrupts(), run_id=self.id)
        if record.error is not None:
            raise self.raised(record.error.to_exception())
        event = self._live.final if self._live is not None else None
        if event is None or record.attempt > 1:
            event = await self._final(record)
        value = await self._value(event, record)
        return value if to_type is None else _convert(value, to_type)

    async def wait(self) -> RunRecord:
        """Waits until the run ends or waits for a person.

        Returns:
            Its record then.
        """
        return await self._ended()

    async def settled(self) -> None:
        """Waits until the run has ended, waits for a person, or has left this process; never raises its error."""
        if self._live is not None:
            await self._live.wait_ended()

    async def cancel(self, reason: str = "cancelled by its caller") -> RunRecord:
        """Asks for the run's end; see `Runner.cancel`."""
        record = await self._runner.cancel(self.id, user_id=self.user_id, reason=reason)
        if self._follow() is None:
            self._record = record
        return record

    async def interrupts(self) -> list[Interrupt]:
        """The questions that the run waits for."""
        record = self._record
        return await self._runner.store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid)

    # -- parts ------------------------------------------------------------------------------------------------------

    async def _ended(self) -> RunRecord:
        live = self._follow()
        if live is not None:
            while not live.ended:
                before_waiting(self._runner.hub, live)
                await live.waiter()
            if live.failure is not None and not live.record.status.terminal:
                raise live.failure
            return live.record
        reader = FrameReader(self._runner.hub, self._record, after=self._record.last_pos, partials=False)
        async for _ in reader:
            pass
        return reader.record

    async def _final(self, record: RunRecord) -> Event | None:
        """The last final response in the store."""
        found: Event | None = None
        after = 0
        while True:
            events = await self._runner.store.run_events(record.uid, after=after)
            if not events:
                return found
            for event in events:
                if answers(event):
                    found = event
            after = events[-1].pos or 0

    async def _value(self, event: Event | None, record: RunRecord) -> Any:
        if event is None:
            return None
        if event.custom_metadata and SPILLED in event.custom_metadata and self._runner.artifacts is not None:
            session = Session(app_name=record.app_name, user_id=record.user_id, id=record.session_id, uid=record.session_uid)
            event = await spill.restore(event, self._runner.artifacts, session)
        if event.output is not None:
            return event.snapshot().output
        return event.text or None

    def raised(self, error: SojournError) -> SojournError:
        """The error to raise, with the exception behind it where this process knows it."""
        live = self._live or self._runner.hub.live.get(self._record.uid)
        if live is not None and live.cause is not None and live.cause is not error:
            error.__cause__ = live.cause
        return error

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, status={self.status.value!r})"


def _convert(value: Any, to_type: type[Any]) -> Any:
    try:
        adapter = TypeAdapter(to_type)
        if isinstance(value, str) and to_type is not str:
            return adapter.validate_json(value)
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(
            f"the result is not a {getattr(to_type, '__name__', to_type)}: {error.errors()[0]['msg']}",
            code="result.type_mismatch",
        ) from error


class EventReader(AsyncIterator[Event | Partial]):
    """What a run's agents say, as `Run.events` gives it."""

    def __init__(self, run: Run, frames: FrameReader) -> None:
        self._run = run
        self._frames = frames

    def __aiter__(self) -> Self:
        return self

    def take(self) -> Event | Partial | None:
        """What there is to read without waiting, if anything."""
        take = self._frames.take
        while (item := take()) is not None:
            if (said := self._said(item)) is not None:
                return said
        return None

    async def __anext__(self) -> Event | Partial:
        while True:
            if (said := self.take() or self._said(await self._frames.__anext__())) is not None:
                return said

    def _said(self, item: Frame | Partial) -> Event | Partial | None:
        if isinstance(item, Partial):
            return item
        event = item.event
        if event is not None:
            return None if event.superseded else event
        if item.error is not None:
            raise self._run.raised(item.error.to_exception())
        return None


class EventStream(AsyncIterator[Event | Partial]):
    """What an attached run's agents say. The run starts with the first item; leaving the loop cancels it.

    Args:
        start: Starts the run.
        leave: Called if the stream is left before its end.
    """

    def __init__(self, start: Callable[[], Awaitable[Run]], leave: Callable[[Run], None]) -> None:
        self._start = start
        self._leave = leave
        self._run: Run | None = None
        self._items: EventReader | None = None
        self._over = False
        self._owner: asyncio.Task[Any] | None = None

    @property
    def run(self) -> Run | None:
        """The run; None before it was started."""
        return self._run

    async def start(self) -> Run:
        """Starts the run, as asking for the first item does; a run that has been started is given again.

        What `Runner.run` raises of a run that cannot be started is raised here. Whoever starts it so has to read to its end, or
        leave it by `aclose`.

        Raises:
            RuntimeError: The stream was closed before.
        """
        if self._run is None:
            if self._over:
                raise RuntimeError("the stream was closed before its run was started")
            self._owner = asyncio.current_task()
            self._run = await self._start()
        return self._run

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event | Partial:
        if self._over:
            raise StopAsyncIteration
        if self._items is None:
            run = await self.start()
            self._items = run.events(run.start_pos)
        try:
            return self._items.take() or await self._items.__anext__()
        except StopAsyncIteration:
            self._over = True
            raise
        except SojournError:
            self._over = True
            if self._run is not None:
                self._leave(self._run)
            raise
        except asyncio.CancelledError:
            # A timeout around one item is not the end; the end of the task that reads is, even if its traceback is kept.
            if self._owner is not None and not self._owner.done():
                self._owner.add_done_callback(self._reader_ended)
            raise

    def _reader_ended(self, _: object) -> None:
        if not self._over and self._run is not None:
            self._over = True
            self._leave(self._run)

    async def aclose(self) -> None:
        """Leaves the run: cancels it unless it has ended or waits for a person, and waits for its end."""
        run = self._run
        if not self._over and run is not None:
            self._leave(run)
        self._over = True
        if run is not None and run.record.attached:
            await run.settled()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._over and self._run is not None:
            self._leave(self._run)
