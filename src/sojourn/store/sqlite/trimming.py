"""Removing what runs consisted of, a few at a time: what `SupportsRetention` says of `trim_session` and `drop_session`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from sojourn.run.retention import Dropped, Trimmed
from sojourn.session.types import SessionKey
from sojourn.store.rows import MAX_INTEGER, Row, message_body, message_of
from sojourn.store.rules import without_words
from sojourn.store.sqlite import state
from sojourn.store.trimming import Candidate, choose

_SESSION = "SELECT sid, uid, event_count, updated_at FROM sessions WHERE app_name = ? AND user_id = ? AND id = ?"

# -- which ------------------------------------------------------------------------------------------------------------

_WHOLE = """
    SELECT uid, first_seq, finished_at FROM runs INDEXED BY runs_whole
    WHERE sid = ? AND finished_at IS NOT NULL AND trimmed = 0
"""
_OLDEST_FIRST = f"{_WHOLE} ORDER BY uid"
_ONE = f"{_WHOLE} AND uid = ?"
_COUNT = "SELECT count(*), max(seq) FROM events INDEXED BY events_by_run WHERE run_uid = ?"
_AT = "SELECT run_uid FROM events WHERE sid = ? AND seq = ?"
_NEXT = "SELECT run_uid FROM events WHERE sid = ? AND seq > ? ORDER BY seq LIMIT 1"
_SUMMARY = """
    SELECT run_uid FROM events INDEXED BY events_summaries
    WHERE sid = ? AND summary_until IS NOT NULL AND superseded = 0 ORDER BY seq DESC LIMIT 1
"""
_OPEN = """
    SELECT DISTINCT e.run_uid FROM calls c INDEXED BY calls_open JOIN events e ON e.sid = c.sid AND e.seq = c.seq
    WHERE c.sid = ? AND c.open = 1
"""
# Bodies are only looked into where they may hold any; a link is whether it is a call, its id and its place.
_LINKS = """
    SELECT json_extract(p.value, '$.functionCall.id') IS NOT NULL,
        coalesce(json_extract(p.value, '$.functionCall.id'), json_extract(p.value, '$.functionResponse.id')), e.seq
    FROM events e INDEXED BY events_by_run, json_each(e.body, '$.content.parts') p
    WHERE e.run_uid = ? AND e.superseded = 0
        AND (instr(e.body, '"functionCall"') OR instr(e.body, '"functionResponse"'))
        AND coalesce(json_extract(p.value, '$.functionCall.id'), json_extract(p.value, '$.functionResponse.id')) IS NOT NULL
"""
_CALL_BEFORE = "SELECT max(seq) FROM calls WHERE sid = ? AND call_id = ? AND is_call = 1 AND seq < ?"
_CALL_AFTER = "SELECT min(seq) FROM calls WHERE sid = ? AND call_id = ? AND is_call = 1 AND seq > ?"
_RESPONSES = "SELECT seq FROM calls WHERE sid = ? AND call_id = ? AND is_call = 0 AND seq > ? AND seq <= ?"

Link = tuple[int, str, int]


class _Session:
    """A session, for who chooses what of it is removed."""

    def __init__(
        self, conn: sqlite3.Connection, sid: int, event_count: int, keep_events: int | None, ended_before: float | None
    ) -> None:
        self._conn = conn
        self._sid = sid
        self._floor = -1 if keep_events is None else event_count - keep_events
        self._ended_before = float("-inf") if ended_before is None else ended_before
        # Runs without events are older than what is kept if they were submitted before this one.
        self._oldest_kept = 0
        if keep_events is not None:
            kept = conn.execute(_NEXT, (sid, self._floor)).fetchone()
            self._oldest_kept = MAX_INTEGER if kept is None else kept[0]
        self._pinned = {uid for (uid,) in conn.execute(_SUMMARY, (sid,))} | {uid for (uid,) in conn.execute(_OPEN, (sid,))}
        self.links: dict[int, Sequence[Link]] = {}

    def candidates(self) -> Iterator[Candidate]:
        for row in self._conn.execute(_OLDEST_FIRST, (self._sid,)):
            found = self._checked(row)
            if found is not None:
                yield found

    def candidate(self, run_uid: int) -> Candidate | None:
        row = self._conn.execute(_ONE, (self._sid, run_uid)).fetchone()
        return None if row is None else self._checked(row)

    def partners(self, run_uid: int) -> Iterable[int]:
        places: set[int] = set()
        links = self.links[run_uid] = self._conn.execute(_LINKS, (run_uid,)).fetchall()
        for is_call, call_id, seq in links:
            places.update(self._answers_to(call_id, seq) if is_call else self._call_of(call_id, seq))
        places.difference_update(seq for _, _, seq in links)
        found = {self._conn.execute(_AT, (self._sid, seq)).fetchone() for seq in places}
        return [row[0] for row in found if row is not None]

    def _checked(self, row: Row) -> Candidate | None:
        uid, first_seq, finished_at = row
        if uid in self._pinned:
            return None
        aged = finished_at < self._ended_before
        if not aged and (first_seq > self._floor if first_seq is not None else uid >= self._oldest_kept):
            return None
        events, newest = self._conn.execute(_COUNT, (uid,)).fetchone()
        return Candidate(uid, events) if aged or (newest or 0) <= self._floor else None

    def _answers_to(self, call_id: str, seq: int) -> Iterator[int]:
        (until,) = self._conn.execute(_CALL_AFTER, (self._sid, call_id, seq)).fetchone()
        rows = self._conn.execute(_RESPONSES, (self._sid, call_id, seq, MAX_INTEGER if until is None else until))
        return (answer for (answer,) in rows)

    def _call_of(self, call_id: str, seq: int) -> Iterator[int]:
        (call,) = self._conn.execute(_CALL_BEFORE, (self._sid, call_id, seq)).fetchone()
        if call is not None:
            yield call


# -- trimming ---------------------------------------------------------------------------------------------------------

_LAST_SEQ = "SELECT max(seq) FROM events INDEXED BY events_by_run WHERE run_uid = ?"
_REMEMBER = "UPDATE sessions SET trimmed_seq = max(trimmed_seq, ?) WHERE sid = ?"
_MESSAGE = """
    SELECT coalesce(r.message, m.body) FROM runs r LEFT JOIN events m ON m.sid = r.sid AND m.seq = r.first_seq WHERE r.uid = ?
"""
_EMPTY = "UPDATE runs SET message = ?, custom_metadata = NULL, trimmed = 1, has_asked = 0, has_undo = 0 WHERE uid = ?"


def may_trim(conn: sqlite3.Connection, key: SessionKey, keep_events: int | None, ended_before: float | None) -> bool:
    """Whether `trim` with these bounds would remove anything."""
    found = conn.execute(_SESSION, key).fetchone()
    if found is None:
        return False
    sid, _, event_count, _ = found
    chosen, _ = choose(_Session(conn, sid, event_count, keep_events, ended_before), 1)
    return bool(chosen)


def trim(conn: sqlite3.Connection, key: SessionKey, keep_events: int | None, ended_before: float | None, limit: int) -> Trimmed:
    """What `trim_session` does."""
    found = conn.execute(_SESSION, key).fetchone()
    if found is None:
        return Trimmed(0, 0, False)
    sid, _, event_count, _ = found
    session = _Session(conn, sid, event_count, keep_events, ended_before)
    chosen, more = choose(session, limit)
    uids = [one.uid for one in chosen]
    bodies = [(message_body(without_words(message_of(_only(conn, _MESSAGE, uid)))), uid) for uid in uids]
    events = _remove_events(conn, sid, uids, [link for uid in uids for link in session.links[uid]])
    conn.executemany(_EMPTY, bodies)
    return Trimmed(len(uids), events, more)


def _remove_events(conn: sqlite3.Connection, sid: int, uids: Collection[int], links: Iterable[Link]) -> int:
    """Removes what runs consisted of, and remembers it; how many events that were."""
    newest = max((_only(conn, _LAST_SEQ, uid) or 0 for uid in uids), default=0)
    if newest:
        conn.execute(_REMEMBER, (newest, sid))
    conn.executemany(
        "DELETE FROM calls WHERE sid = ? AND call_id = ? AND is_call = ? AND seq = ?",
        [(sid, call_id, is_call, seq) for is_call, call_id, seq in links],
    )
    before = conn.total_changes
    for uid in uids:
        # By the key of the table: a run's events are mostly one after the other.
        places = conn.execute("SELECT seq FROM events INDEXED BY events_by_run WHERE run_uid = ?", (uid,)).fetchall()
        conn.executemany("DELETE FROM events WHERE sid = ? AND seq = ?", [(sid, seq) for (seq,) in places])
    events = conn.total_changes - before
    for table in ("undo", "steps", "interrupts"):
        conn.executemany(f"DELETE FROM {table} WHERE run_uid = ?", [(uid,) for uid in uids])
    return events


def _only(conn: sqlite3.Connection, query: str, *params: Any) -> Any:
    """The only value that a query gives."""
    (value,) = conn.execute(query, params).fetchone()
    return value


# -- dropping ---------------------------------------------------------------------------------------------------------

_UNFINISHED = """
    SELECT uid FROM runs INDEXED BY runs_unfinished WHERE app_name = ? AND sid = ? AND finished_at IS NULL ORDER BY uid
"""
_OF_SESSION = """
    SELECT r.uid, (SELECT count(*) FROM events INDEXED BY events_by_run WHERE run_uid = r.uid)
    FROM runs r INDEXED BY runs_by_session WHERE r.app_name = ? AND r.user_id = ? AND r.sid = ? ORDER BY r.uid
"""
_NOTE = "INSERT INTO dropped_sessions (uid, app_name, user_id, id) VALUES (?, ?, ?, ?)"


def drop(conn: sqlite3.Connection, key: SessionKey, idle_since: float | None, limit: int) -> tuple[Dropped, list[int]]:
    """What `drop_session` does; also gives the runs that are removed."""
    found = conn.execute(_SESSION, key).fetchone()
    if found is None:
        return Dropped("gone"), []
    sid, session_uid, _, updated_at = found
    unfinished = [uid for (uid,) in conn.execute(_UNFINISHED, (key.app_name, sid)).fetchall()]
    if idle_since is not None and (unfinished or updated_at >= idle_since):
        return Dropped("kept"), []
    uids, more = _next_runs(conn, key, sid, unfinished, limit)
    links = [link for uid in uids for link in conn.execute(_LINKS, (uid,)).fetchall()]
    events = _remove_events(conn, sid, uids, links)
    conn.executemany("DELETE FROM runs WHERE uid = ?", [(uid,) for uid in uids])
    if more:
        return Dropped("more", len(uids), events, len(unfinished)), uids
    for table in ("calls", "events"):
        conn.execute(f"DELETE FROM {table} WHERE sid = ?", (sid,))
    conn.execute("DELETE FROM state WHERE owner = ?", (state.owner_text((), sid),))
    conn.execute("DELETE FROM sessions WHERE sid = ?", (sid,))
    conn.execute(_NOTE, (session_uid, *key))
    return Dropped("gone", len(uids), events, len(unfinished)), uids


def _next_runs(
    conn: sqlite3.Connection, key: SessionKey, sid: int, unfinished: Sequence[int], limit: int
) -> tuple[list[int], bool]:
    """The runs to be removed next, all unfinished ones first; and whether there are more."""
    chosen = dict.fromkeys(unfinished)
    events = 0
    for uid, count in conn.execute(_OF_SESSION, (key.app_name, key.user_id, sid)):
        if uid in chosen:
            continue
        if chosen and events >= limit:
            return list(chosen), True
        chosen[uid] = None
        events += max(count, 1)
    return list(chosen), False
