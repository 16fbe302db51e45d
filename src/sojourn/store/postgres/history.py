"""Reading the log: windows of it, and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sojourn.event import Event
from sojourn.postgres.tables import Record, Tables
from sojourn.session.types import History, SessionKey
from sojourn.store.postgres import records
from sojourn.store.postgres.text import indexed
from sojourn.store.rows import EVENT, EVENT_OF_RUN, MAX_INTEGER, event_of
from sojourn.store.rules import events_trimmed, run_not_found, run_trimmed, session_not_found

_NEWEST = (
    f"SELECT {EVENT} FROM {{schema}}.events WHERE sid = $1 AND seq > $2 AND superseded = 0 ORDER BY seq DESC LIMIT $3::bigint"
)
_PAGE = f"""
    SELECT {EVENT} FROM {{schema}}.events
    WHERE sid = $1 AND seq > $2 AND (superseded = 0 OR $3) ORDER BY seq LIMIT $4::bigint
"""
_OF_RUN = f"SELECT {EVENT_OF_RUN} FROM {{schema}}.events WHERE run_uid = $1 AND pos > $2 ORDER BY pos LIMIT $3::bigint"
_TRIMMED = "SELECT sid, trimmed_seq FROM {schema}.sessions WHERE app_name = $1 AND user_id = $2 AND id = $3"
_SOME = f"SELECT {EVENT} FROM {{schema}}.events WHERE sid = $1 AND seq = ANY ($2::bigint[])"

# One statement sees one state of the tables. The first row tells of the session; those of the window follow.
_WINDOW = f"""
    WITH session AS (
        SELECT sid, event_count FROM {{schema}}.sessions WHERE app_name = $1 AND user_id = $2 AND id = $3
    ), summary AS (
        SELECT x.seq, x.summary_until FROM session s CROSS JOIN LATERAL (
            SELECT e.seq, e.summary_until FROM {{schema}}.events e
            WHERE e.sid = s.sid AND e.summary_until IS NOT NULL AND e.superseded = 0 ORDER BY e.seq DESC LIMIT 1
        ) x
    ), newest AS (
        SELECT x.* FROM session s CROSS JOIN LATERAL (
            SELECT {EVENT} FROM {{schema}}.events e
            WHERE e.sid = s.sid AND e.seq > coalesce((SELECT summary_until FROM summary), 0) AND e.superseded = 0
            ORDER BY e.seq DESC LIMIT $4::bigint
        ) x
    ), edge AS (
        SELECT s.sid, s.event_count, coalesce((SELECT min(seq) FROM newest), s.event_count + 1) AS start FROM session s
    )
    SELECT
        e.sid AS seq, e.start AS pos, (SELECT seq FROM summary) AS ordinal, 0::bigint AS attempt, NULL::bigint AS supersedes,
        0::smallint AS superseded, NULL::text AS body,
        (SELECT array_agg(c.seq) FROM {{schema}}.calls c WHERE c.sid = e.sid AND c.seq < e.start AND c.open) AS waiting
    FROM edge e
    UNION ALL
    (SELECT n.*, NULL::bigint[] FROM newest n)
"""
_CALLS_BEFORE = """
    SELECT max(c.seq) FROM unnest($2::text[], $3::bigint[]) AS x (call_id, seq)
    JOIN {schema}.calls c ON c.sid = $1 AND c.call_id = x.call_id AND c.is_call AND c.seq < x.seq
    GROUP BY x.call_id, x.seq
"""
_RESPONSES = """
    SELECT r.seq FROM unnest($2::text[], $3::bigint[]) AS x (call_id, seq)
    CROSS JOIN LATERAL (
        SELECT min(c.seq) AS until FROM {schema}.calls c
        WHERE c.sid = $1 AND c.call_id = x.call_id AND c.is_call AND c.seq > x.seq
    ) n
    JOIN {schema}.calls r ON r.sid = $1 AND r.call_id = x.call_id AND NOT r.is_call AND r.seq > x.seq
        AND (n.until IS NULL OR r.seq <= n.until)
"""


class Window(NamedTuple):
    """A window, and what it takes to find what is pinned to it.

    Attributes:
        sid: The session.
        start: Where the window begins.
        todo: Events before it that are pinned.
        answered: Calls that the window's responses answer and that do not stand in it before them.
        events: Its events.
    """

    sid: int
    start: int
    todo: list[int]
    answered: list[tuple[str, int]]
    events: list[Event]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is pinned."""
        return not (self.todo or self.answered)


async def newest(db: Tables, sid: int, limit: int) -> list[Event]:
    """The newest events that count, oldest first."""
    rows = await db.all(_NEWEST, sid, 0, min(limit, MAX_INTEGER))
    rows.reverse()
    return [event_of(row) for row in rows]


async def window(db: Tables, key: SessionKey, limit: int | None) -> Window:
    """The window of a session."""
    rows = await db.all(_WINDOW, *key, MAX_INTEGER if limit is None else min(limit, MAX_INTEGER))
    head: Record | None = None
    events: list[Event] = []
    for row in rows:
        if row["body"] is None:
            head = row
        else:
            events.append(event_of(tuple(row)[:-1]))
    if head is None:
        raise session_not_found(key)
    sid, start, summary, *_, waiting = head
    events.sort(key=lambda event: event.seq or 0)
    todo = [seq for seq in (*(waiting or ()), *(() if summary is None else (summary,))) if seq < start]
    return Window(sid, start, todo, _answered(events), events)


def _answered(events: Sequence[Event]) -> list[tuple[str, int]]:
    called: set[str | None] = set()
    answered: list[tuple[str, int]] = []
    for event in events:
        answered.extend(
            (response.id, event.seq or 0)
            for response in event.get_function_responses()
            if response.id and response.id not in called
        )
        called.update(call.id for call in event.get_function_calls())
    return answered


async def pinned(db: Tables, window: Window) -> History:
    """A window with the events before it that hold the other halves of its calls and responses, and theirs."""
    sid, start = window.sid, window.start
    found: dict[int, Event] = {}
    todo = {*window.todo, *await _calls_before(db, sid, window.answered)}
    while todo := {seq for seq in todo if seq < start and seq not in found}:
        events = [event_of(row) for row in await db.all(_SOME, sid, list(todo))]
        found.update((event.seq or 0, event) for event in events)
        answers = [(r.id, e.seq or 0) for e in events for r in e.get_function_responses() if r.id]
        calls = [(c.id, e.seq or 0) for e in events for c in e.get_function_calls() if c.id]
        todo = {*await _calls_before(db, sid, answers), *await _of_calls(db, _RESPONSES, sid, calls)}
    return History(window.events, [found[seq] for seq in sorted(found)])


async def _calls_before(db: Tables, sid: int, responses: Sequence[tuple[str, int]]) -> list[int]:
    return await _of_calls(db, _CALLS_BEFORE, sid, responses)


async def _of_calls(db: Tables, sql: str, sid: int, places: Sequence[tuple[str, int]]) -> list[int]:
    if not places:
        return []
    return [seq for (seq,) in await db.all(sql, sid, [indexed(name) for name, _ in places], [seq for _, seq in places])]


async def page(db: Tables, key: SessionKey, after: int, limit: int, superseded: bool) -> list[Event]:
    """What `list_events` gives."""
    session = await db.one(_TRIMMED, *key)
    if session is None:
        raise session_not_found(key)
    sid, trimmed_seq = session
    if 0 < after < trimmed_seq and not await db.all(_SOME, sid, [after]):
        raise events_trimmed(key, after, trimmed_seq + 1)
    return [event_of(row) for row in await db.all(_PAGE, sid, _bounded(after), superseded, limit)]


async def of_run(db: Tables, run_uid: int, after: int, limit: int) -> list[Event]:
    """What `run_events` gives."""
    rows = await db.all(_OF_RUN, run_uid, _bounded(after), limit)
    if not rows:
        run = await db.one("SELECT trimmed, last_pos FROM {schema}.runs WHERE uid = $1", run_uid)
        if run is None:
            raise run_not_found(str(run_uid))
        if run["trimmed"] and after < run["last_pos"] - 1:
            raise run_trimmed(await records.get(db, run_uid))
    return [event_of(row) for row in rows]


def _bounded(number: int) -> int:
    return max(0, min(number, MAX_INTEGER))
