"""State in its table, one row per key and owner; and what changes of it replaced."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.rows import dump, load
from sojourn.store.rules import MISSING, Owner, Undo, owner_of
from sojourn.store.staging import StagedState

Write = tuple[str, str, str | None]
"""Owner, key, and the JSON to store; None to delete the key."""


def owner_text(owner: Owner, sid: int) -> str:
    """An owner as it stands in the table. Ids hold no control characters, so no two owners have the same text."""
    if not owner:
        return f"s{sid}"
    return f"a{owner[0]}" if len(owner) == 1 else f"u{owner[0]}\x1f{owner[1]}"


def read(conn: sqlite3.Connection, sid: int, app_name: str, user_id: str) -> dict[str, Any]:
    """All keys that a session shows: its own, the user's and the app's."""
    rows = conn.execute(
        "SELECT key, value FROM state WHERE owner IN (?, ?, ?)", (f"s{sid}", f"a{app_name}", f"u{app_name}\x1f{user_id}")
    ).fetchall()
    return {key: load(value) for key, value in rows}


def stage(conn: sqlite3.Connection, sid: int, key: SessionKey, undo: Callable[[], list[Undo]] | None = None) -> StagedState:
    """State to be changed; `undo` as in `StagedState`. A session that is still to be stored has `sid` 0."""

    def stored(owner: Owner, name: str) -> Any:
        row = conn.execute("SELECT value FROM state WHERE owner = ? AND key = ?", (owner_text(owner, sid), name)).fetchone()
        return MISSING if row is None else load(row[0])

    return StagedState(key, stored, undo)


def stage_delta(conn: sqlite3.Connection, sid: int, key: SessionKey, delta: StateDelta | None) -> StagedState:
    """Changes that nobody takes back."""
    staged = stage(conn, sid, key)
    if delta:
        staged.apply(delta, 0)
    return staged


def encode(staged: StagedState, sid: int) -> list[Write]:
    """What is to be written; after this nothing can be wrong with it."""
    return [
        (owner_text(owner, sid), key, None if value is MISSING else dump(value))
        for (owner, key), value in staged.values.items()
    ]


def store(conn: sqlite3.Connection, writes: Iterable[Write]) -> None:
    """Writes what `encode` gave."""
    for owner, key, value in writes:
        if value is None:
            conn.execute("DELETE FROM state WHERE owner = ? AND key = ?", (owner, key))
        else:
            conn.execute(
                "INSERT INTO state (owner, key, value) VALUES (?, ?, ?) "
                "ON CONFLICT (owner, key) DO UPDATE SET value = excluded.value",
                (owner, key, value),
            )


def read_undo(conn: sqlite3.Connection, run_uid: int, key: SessionKey) -> list[Undo]:
    """What the run's changes since the last hand-over replaced, in order."""
    rows = conn.execute("SELECT seq, key, old, new, by FROM undo WHERE run_uid = ? ORDER BY id", (run_uid,)).fetchall()
    return [
        Undo(seq, owner_of(key, name), name, _maybe(old), _maybe(new), None if by is None else load(by))
        for seq, name, old, new, by in rows
    ]


def write_undo(conn: sqlite3.Connection, run_uid: int, undo: Iterable[Undo]) -> None:
    """Adds what changes replace."""
    conn.executemany(
        "INSERT INTO undo (run_uid, seq, key, old, new, by) VALUES (?, ?, ?, ?, ?, ?)",
        [(run_uid, u.seq, u.key, _json(u.old), _json(u.new), None if u.by is None else dump(u.by)) for u in undo],
    )


def drop_undo(conn: sqlite3.Connection, run_uid: int) -> None:
    """Forgets what the run's changes replaced."""
    conn.execute("DELETE FROM undo WHERE run_uid = ?", (run_uid,))


def _maybe(text: str | None) -> Any:
    return MISSING if text is None else load(text)


def _json(value: Any) -> str | None:
    return None if value is MISSING else dump(value)
