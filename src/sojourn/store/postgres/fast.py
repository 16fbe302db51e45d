"""The append as one statement: a first attempt that goes on where it left off, which is nearly every append there is."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg

from sojourn import platform
from sojourn.event import Event
from sojourn.postgres.tables import Tables
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Appended, Fence
from sojourn.run.usage import hour_of
from sojourn.store.heads import Head
from sojourn.store.planning import add_counts, countable, counts_of
from sojourn.store.postgres import ledger, state
from sojourn.store.postgres.appends import Outcome
from sojourn.store.postgres.text import column, indexed
from sojourn.store.prepared import Prepared
from sojourn.store.rows import dump, dump_error
from sojourn.store.rules import owner_of

Columns = tuple[list[Any] | None, ...]
"""Rows column by column; None for none at all."""

_SMALL = 10**15
"""Beyond, the sum of two numbers is left to Python."""

_MOVES = frozenset({None, Move.COMPLETE, Move.FAIL, Move.CANCEL})

APPEND = f"SELECT * FROM {{schema}}.append({', '.join(f'${n}' for n in range(1, 33))})"
"""The statement."""

OTHERWISE = (asyncpg.RaiseError, asyncpg.UniqueViolationError)
"""What the statement raises, and leaves everything as it is, where there is more to it than it can do."""


class Statement(NamedTuple):
    """An append ready to be made as one statement.

    Attributes:
        args: Of the statement.
        status: Of the run, afterwards.
        usage: The run's, afterwards.
        top: Its highest ordinal, afterwards.
        now: When it is made.
    """

    args: tuple[Any, ...]
    status: RunStatus
    usage: dict[str, int]
    top: int
    now: float


def statement_of(head: Head, fence: Fence, new: Prepared) -> Statement | None:
    """An append as one statement; None if it may have to be compared with what is stored."""
    batch = new.batch
    if fence.attempt != 1 or head.attempt != 1 or head.status != "running":
        return None
    if batch.interrupts or batch.agent is not None or batch.move not in _MOVES:
        return None
    changes = _changes(head, new)
    steps = _steps(new)
    if changes is None or steps is None or any(e.attempt != 1 or e.ordinal is None for e in batch.events):
        return None
    status = head.status_after(batch)
    usage, spent = head.usage, None
    if counts := counts_of(batch.events):
        usage, spent = add_counts(usage, counts), countable(counts)
    now = platform.now()
    top = head.top_after(batch)
    links = [(n, *link) for n, entry in enumerate(new.entries, 1) for link in entry.links]
    linked = _NO_LINKS
    if links:
        linked = [n for n, _, _ in links], [is_call for _, is_call, _ in links], [indexed(call_id) for _, _, call_id in links]
    since = batch.usage_since
    args = (
        head.sid, fence.run_uid, fence.attempt, head.version, now, top,
        [e.body for e in new.entries], [indexed(e.path) for e in new.entries], [e.ordinal for e in batch.events],
        [e.summary_until for e in new.entries],
        *linked, *changes, *steps, status.value, dump(usage) if usage else None,
        dump_error(batch.error) if status.terminal else None,
        hour_of(now) if spent else None, ledger.row_of(spent) if spent else None,
        None if since is None else ledger.floor_of(since),
    )  # fmt: skip
    return Statement(args, status, usage, top, now)


# The driver takes its time for lists, be they as empty as they may.
_NO_CHANGES: Columns = (None,) * 5
_NO_STEPS: Columns = (None,) * 8
_NO_LINKS: Columns = (None,) * 3


def _changes(head: Head, new: Prepared) -> Columns | None:
    """The changes of state in the order of their keys; None if one key is changed twice, or by what is no small number."""
    deltas = [(n, entry.delta) for n, entry in enumerate(new.entries, 1) if entry.delta]
    if new.state:
        if not deltas and not new.entries and new.batch.move is None:
            # They go with an event that is stored already.
            return None
        deltas.append((len(new.entries), new.state))
    if not deltas:
        return _NO_CHANGES
    found: dict[tuple[str, str], tuple[int, str | None, int | None]] = {}
    count = 0
    for n, delta in deltas:
        count += len(delta.values) + len(delta.deleted) + len(delta.increments)
        for key, value in delta.values.items():
            found[_place(head, key)] = n, dump(value), None
        for key in delta.deleted:
            found[_place(head, key)] = n, None, None
        for key, by in delta.increments.items():
            if type(by) is not int or abs(by) >= _SMALL:
                return None
            found[_place(head, key)] = n, None, by
    if len(found) < count:
        return None
    places = sorted(found)
    return (
        [found[place][0] for place in places], [owner for owner, _ in places], [key for _, key in places],
        [found[place][1] for place in places], [found[place][2] for place in places],
    )  # fmt: skip


def _place(head: Head, key: str) -> tuple[str, str]:
    return state.owner_text(owner_of(head.key, key), head.sid), key


def _steps(new: Prepared) -> Columns | None:
    """The steps, column by column; None if there are two of one key."""
    if not new.steps:
        return _NO_STEPS
    keys = [row[0] for row in new.steps]
    if len(set(keys)) < len(keys):
        return None
    columns = [list(values) for values in zip(*(row[1:] for row in new.steps), strict=True)]
    return [indexed(key) for key in keys], [column(key) for key in keys], *columns


async def append(db: Tables, head: Head, fence: Fence, new: Prepared, statement: Statement) -> Outcome:
    """Makes the append.

    Raises:
        asyncpg.RaiseError, asyncpg.UniqueViolationError: Nothing was done: there is more to it than one statement can do.
    """
    row = await db.one(APPEND, *statement.args)
    assert row is not None
    event_count, cancel_requested, deaths, attached, spent = row
    batch, status = new.batch, statement.status
    seq, pos = event_count - len(batch.events), head.last_pos
    events: list[Event | None] = [
        event.evolve(seq=seq + n, pos=pos + n, ordinal=event.ordinal) for n, event in enumerate(batch.events, 1)
    ]
    left = head._replace(
        event_count=event_count, status=status.value, version=head.version + 1, deaths=deaths, attached=attached,
        cancel_requested=cancel_requested, last_pos=pos + len(events) + status.terminal, top=statement.top,
        usage=statement.usage,
    )  # fmt: skip
    error, finished_at = (batch.error, statement.now) if status.terminal else (None, None)
    usage = None if batch.usage_since is None else ledger.usage_of(spent or ())
    record = left.record(fence.run_uid, status, error=error, finished_at=finished_at)
    return Outcome(Appended(events, record, usage), left)
