"""Writing the log of a session: events, and the index of the function calls in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from sojourn.store.numbering import Numbered
from sojourn.store.rows import BY_ATTEMPT, links_of, message_of

_INSERT = """
    INSERT INTO events (sid, seq, run_uid, pos, ordinal, path, attempt, supersedes, summary_until, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def write(conn: sqlite3.Connection, sid: int, run_uid: int, event: Numbered) -> None:
    """Stores an event and keeps the index of calls."""
    (_, body, path, links, _, summary_until), seq, attempt, pos, ordinal, supersedes = event
    conn.execute(_INSERT, (sid, seq, run_uid, pos, ordinal, path, attempt, supersedes, summary_until, body))
    for is_call, call_id in links:
        if not is_call:
            conn.execute("UPDATE calls SET open = 0 WHERE sid = ? AND call_id = ? AND is_call = 1 AND open = 1", (sid, call_id))
        conn.execute(
            "INSERT OR IGNORE INTO calls (sid, call_id, seq, is_call, open) VALUES (?, ?, ?, ?, ?)",
            (sid, call_id, seq, is_call, is_call),
        )


def supersede(conn: sqlite3.Connection, sid: int, seqs: Collection[int], by: int = BY_ATTEMPT) -> None:
    """Takes events out of what counts, and their calls and responses out of the index; `by` is `BY_ATTEMPT` or `BY_RUN`."""
    touched: set[str] = set()
    for seq in seqs:
        conn.execute("UPDATE events SET superseded = ? WHERE sid = ? AND seq = ?", (by, sid, seq))
        (body,) = conn.execute("SELECT body FROM events WHERE sid = ? AND seq = ?", (sid, seq)).fetchone()
        if '"functionCall"' in body or '"functionResponse"' in body:
            for is_call, call_id in links_of(message_of(body).content):
                touched.add(call_id)
                conn.execute(
                    "DELETE FROM calls WHERE sid = ? AND call_id = ? AND is_call = ? AND seq = ?", (sid, call_id, is_call, seq)
                )
    for call_id in touched:
        (answered,) = conn.execute(
            "SELECT coalesce(max(seq), 0) FROM calls WHERE sid = ? AND call_id = ? AND is_call = 0", (sid, call_id)
        ).fetchone()
        conn.execute("UPDATE calls SET open = seq > ? WHERE sid = ? AND call_id = ? AND is_call = 1", (answered, sid, call_id))
