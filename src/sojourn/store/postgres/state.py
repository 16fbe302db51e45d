"""State in its table, one row per key and owner; and what changes of it replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sojourn.postgres.tables import Tables
from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.rows import dump, load
from sojourn.store.rules import MISSING, Owner, Undo, owner_of
from sojourn.store.staging import StagedState

Place = tuple[Owner, str]
"""Whose key, and which."""

Write = tuple[str, str, str | None]
"""Owner, key, and the JSON to store; None to delete the key."""


class NotLocked(Exception):
    """A key is asked for that the transaction has not locked.

    Attributes:
        place: The key.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


def owner_text(owner: Owner, sid: int) -> str:
    """An owner as it stands in the table. Ids hold no control characters, so no two owners have the same text."""
    if not owner:
        return f"s{sid}"
    return f"a{owner[0]}" if len(owner) == 1 else f"u{owner[0]}\x1f{owner[1]}"


_READ = "SELECT key, value FROM {schema}.state WHERE owner = ANY ($1::text[])"


async def read(db: Tables, sid: int, app_name: str, user_id: str) -> dict[str, Any]:
    """All keys that a session shows: its own, the user's and the app's."""
    rows = await db.all(_READ, [f"s{sid}", f"a{app_name}", f"u{app_name}\x1f{user_id}"])
    return {key: load(value) for key, value in rows}


_PLACE = """
    INSERT INTO {schema}.state (owner, key)
    SELECT owner, key FROM unnest($1::text[], $2::text[]) AS x (owner, key) ORDER BY owner COLLATE "C", key COLLATE "C"
    ON CONFLICT DO NOTHING
"""
_LOCK = """
    SELECT s.owner, s.key, s.value FROM {schema}.state s
    JOIN unnest($1::text[], $2::text[]) AS x (owner, key) ON s.owner = x.owner AND s.key = x.key
    ORDER BY s.owner, s.key FOR UPDATE OF s
"""


async def lock(db: Tables, sid: int, places: Collection[Place]) -> dict[Place, Any]:
    """Locks keys, also absent ones, and gives their values. All lock them in the same order."""
    if not places:
        return {}
    by_text = {(owner_text(owner, sid), key): (owner, key) for owner, key in places}
    names = sorted(by_text)
    owners, keys = [owner for owner, _ in names], [key for _, key in names]
    while True:
        # A key that is absent gets a row that nobody else sees before it has a value, or is deleted again.
        await db.run(_PLACE, owners, keys)
        rows = await db.all(_LOCK, owners, keys)
        # One that somebody deleted meanwhile is placed again.
        if len(rows) == len(names):
            return {by_text[owner, key]: MISSING if value is None else load(value) for owner, key, value in rows}


def places_of(key: SessionKey, *deltas: StateDelta | None) -> set[Place]:
    """The keys that some changes touch."""
    return {
        (owner_of(key, name), name)
        for delta in deltas
        if delta is not None
        for group in (delta.values, delta.deleted, delta.increments)
        for name in group
    }


def stage(key: SessionKey, locked: dict[Place, Any], undo: Callable[[], list[Undo]] | None = None) -> StagedState:
    """State to be changed, from what `lock` gave; `undo` as in `StagedState`.

    It raises `NotLocked` for any other key.
    """

    def stored(owner: Owner, name: str) -> Any:
        try:
            return locked[owner, name]
        except KeyError:
            raise NotLocked((owner, name)) from None

    return StagedState(key, stored, undo)


async def stage_delta(db: Tables, sid: int, key: SessionKey, delta: StateDelta | None) -> StagedState:
    """Changes that nobody takes back."""
    staged = stage(key, await lock(db, sid, places_of(key, delta)))
    if delta:
        staged.apply(delta, 0)
    return staged


_STORE = "UPDATE {schema}.state SET value = $3 WHERE owner = $1 AND key = $2"
_DELETE = "DELETE FROM {schema}.state WHERE owner = $1 AND key = $2"


async def store(db: Tables, sid: int, staged: StagedState | None, locked: Mapping[Place, Any] | None = None) -> None:
    """Writes changes of keys that are locked; of others that were locked, nothing is left if they are absent."""
    changed = staged.values if staged is not None else {}
    values = [(owner_text(owner, sid), key, dump(value)) for (owner, key), value in changed.items() if value is not MISSING]
    if values:
        await db.run_all(_STORE, values)
    deleted = [(owner_text(owner, sid), key) for (owner, key), value in changed.items() if value is MISSING]
    if deleted:
        await db.run_all(_DELETE, deleted)
    unused = [place for place, value in (locked or {}).items() if value is MISSING and place not in changed]
    if unused:
        await db.run_all(_DELETE, [(owner_text(owner, sid), key) for owner, key in unused])


async def read_undo(db: Tables, run_uid: int, key: SessionKey) -> list[Undo]:
    """What the run's changes since the last hand-over replaced, in order."""
    rows = await db.all("SELECT seq, key, old, new, by FROM {schema}.undo WHERE run_uid = $1 ORDER BY id", run_uid)
    return [
        Undo(seq, owner_of(key, name), name, _maybe(old), _maybe(new), None if by is None else load(by))
        for seq, name, old, new, by in rows
    ]


async def write_undo(db: Tables, run_uid: int, undo: Iterable[Undo]) -> None:
    """Adds what changes replace."""
    await db.run_all(
        "INSERT INTO {schema}.undo (run_uid, seq, key, old, new, by) VALUES ($1, $2, $3, $4, $5, $6)",
        [(run_uid, u.seq, u.key, _json(u.old), _json(u.new), None if u.by is None else dump(u.by)) for u in undo],
    )


async def drop_undo(db: Tables, run_uid: int) -> None:
    """Forgets what the run's changes replaced."""
    await db.run("DELETE FROM {schema}.undo WHERE run_uid = $1", run_uid)


def _maybe(text: str | None) -> Any:
    return MISSING if text is None else load(text)


def _json(value: Any) -> str | None:
    return None if value is MISSING else dump(value)
