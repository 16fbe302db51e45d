"""Writing the log of a session: events, and the index of the function calls in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sojourn.event import Event
from sojourn.session.state import StateDelta
from sojourn.store.sqlite.rows import MAX_INTEGER, Link, event_body, links_of, message_of, path_of


class Entry(NamedTuple):
    """An event ready to be stored: encoded and checked."""

    event: Event
    body: str
    path: str
    links: Sequence[Link]
    delta: StateDelta | None
    summary_until: int | None


def entry_of(event: Event, *, identity: bool = True) -> Entry:
    """Encodes and checks an event.

    Args:
        event: The event.
        identity: Whether its ordinal is its identity, as with all events but answers.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    actions = event.actions
    delta = StateDelta.of(actions) if actions.changes_state else None
    until = actions.summary_until
    return Entry(
        event,
        event_body(event, identity=identity),
        path_of(event.branch),
        links_of(event.content),
        delta,
        None if until is None else max(0, min(until, MAX_INTEGER)),
    )


_INSERT = """
    INSERT INTO events (sid, seq, run_uid, pos, ordinal, path, attempt, supersedes, summary_until, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def write(
    conn: sqlite3.Connection,
    sid: int,
    seq: int,
    run_uid: int,
    entry: Entry,
    *,
    pos: int | None,
    ordinal: int | None,
    attempt: int,
    supersedes: int | None = None,
) -> None:
    """Stores an event and keeps the index of calls."""
    _, body, path, links, _, summary_until = entry
    conn.execute(_INSERT, (sid, seq, run_uid, pos, ordinal, path, attempt, supersedes, summary_until, body))
    for is_call, call_id in links:
        conn.execute(
            "UPDATE calls SET closed_by = ? WHERE sid = ? AND call_id = ? AND seq < ? AND closed_by IS NULL"
            if is_call
            else "UPDATE calls SET closed_by = ? WHERE sid = ? AND call_id = ? AND seq <= ? AND closed_by IS NULL",
            (seq, sid, call_id, seq),
        )
        if is_call:
            conn.execute("INSERT OR IGNORE INTO calls (sid, call_id, seq) VALUES (?, ?, ?)", (sid, call_id, seq))


def supersede(conn: sqlite3.Connection, sid: int, seqs: Iterable[int]) -> None:
    """Takes events out of what counts: the calls in them are forgotten, those they answered are open again."""
    links: list[tuple[int, bool, str]] = []
    for seq in seqs:
        conn.execute("UPDATE events SET superseded = 1 WHERE sid = ? AND seq = ?", (sid, seq))
        (body,) = conn.execute("SELECT body FROM events WHERE sid = ? AND seq = ?", (sid, seq)).fetchone()
        if '"functionCall"' in body or '"functionResponse"' in body:
            links.extend((seq, *link) for link in links_of(message_of(body).content))
    for seq, is_call, call_id in links:
        if is_call:
            conn.execute("DELETE FROM calls WHERE sid = ? AND call_id = ? AND seq = ?", (sid, call_id, seq))
    for seq, _, call_id in links:
        conn.execute("UPDATE calls SET closed_by = NULL WHERE sid = ? AND call_id = ? AND closed_by = ?", (sid, call_id, seq))
