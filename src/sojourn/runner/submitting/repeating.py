"""What is asked before a run is repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sojourn.content import Content
from sojourn.errors import Conflict, Gone, InvalidInput, Unsupported
from sojourn.event import USER
from sojourn.run.status import RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunQuery, RunRecord
from sojourn.store.rules import run_not_finished, run_superseded

UNFINISHED = tuple(status for status in RunStatus if not status.terminal)


def repeated_message(record: RunRecord, new_message: str | Content | None) -> str | Content:
    """What the user says when a run is repeated: the new message, or the stored one if that is None.

    Raises:
        Unsupported: `live.not_repeatable` for a live run without a new message.
        InvalidInput: `message.invalid` for one that answers a question: that is no message of its own to be repeated.
    """
    if new_message is None:
        if record.trimmed:
            raise Gone(f"retention has removed the message of run {record.id!r}; repeat it with a new one", code="run.trimmed")
        if record.message.is_opening():
            raise Unsupported(
                f"run {record.id!r} was live: it has no message to be repeated with; give one", code="live.not_repeatable"
            )
        return record.message.content or Content(USER)
    if isinstance(new_message, Content) and new_message.get_function_responses():
        raise InvalidInput(
            f"the new message for run {record.id!r} holds function responses; answer a question with Runner.answer",
            code="message.invalid",
        )
    return new_message


async def check_repeatable(store: Store, repeated: RunRecord) -> None:
    """Refuses what the store would refuse to repeat, before anything else is done for it.

    Raises:
        Conflict: `run.not_finished`, `run.superseded`.
    """
    going_on = [record async for record in _from(store, repeated, UNFINISHED)]
    if going_on:
        raise run_not_finished(repeated.id, going_on[-1])
    if repeated.superseded_by is not None:
        raise run_superseded(repeated)


async def check_last(store: Store, repeated: RunRecord) -> None:
    """Refuses to repeat a run that others have come after, which would cease to count.

    Raises:
        Conflict: `run.not_finished` if it, or one after it, is queued, running or waiting; `run.has_later`.
    """
    if not repeated.status.terminal:
        raise run_not_finished(repeated.id, repeated)
    later: RunRecord | None = None
    async for record in _from(store, repeated):
        # The very repetition may have been asked for before.
        if record.uid == repeated.uid or record.retry_of == repeated.id:
            continue
        if not record.status.terminal:
            raise run_not_finished(repeated.id, record)
        # One that was cancelled in the queue has said nothing.
        if record.attempt and record.superseded_by is None:
            later = later or record
    if later is not None:
        raise Conflict(
            f"run {later.id!r} came after run {repeated.id!r} in session {repeated.key}, and would not count any more; say so "
            "with drop_later=True, or send the message again as a new run",
            code="run.has_later",
        )


async def _from(store: Store, run: RunRecord, status: tuple[RunStatus, ...] = ()) -> AsyncIterator[RunRecord]:
    """A run and those submitted to its session after it, newest first; of any status if none is given."""
    app, user, session = run.key
    after: str | None = None
    while True:
        page = await store.list_runs(RunQuery(app, user, session, status), after=after)
        for record in page.items:
            if record.no < run.no:
                return
            yield record
        after = page.next
        if after is None:
            return
