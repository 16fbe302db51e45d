"""What other processes do to the runs that this one executes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from sojourn.postgres.tables import Record, Tables
from sojourn.run.store import Change
from sojourn.run.types import RunRecord
from sojourn.store.postgres import records
from sojourn.store.watching import Active, Watching

K = TypeVar("K")

_ACTIVE = """
    SELECT uid, status, attempt, cancel_requested IS NOT NULL, id FROM {schema}.runs
    WHERE finished_at IS NULL AND status IN ('queued', 'running')
"""


class Watch(Watching):
    """Compares the runs as they are stored with what this process did to them.

    What this process writes while a look is under way may or may not be seen by it: the runs that are touched meanwhile are
    left to the next look.

    Attributes:
        looking: Whether a look is under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looking = False
        # By a write that is under way, and by those that ended since the look under way began.
        self._writing: dict[int, int] = {}
        self._submitting: dict[str, int] = {}
        self._touched: set[int] = set()
        self._submitted: set[str] = set()

    def writing(self, uid: int) -> _Meanwhile[int]:
        """While this process writes to a run."""
        return _Meanwhile(self, self._writing, self._touched, uid)

    def submitting(self, run_id: str) -> _Meanwhile[str]:
        """While this process records a run."""
        return _Meanwhile(self, self._submitting, self._submitted, run_id)

    async def start(self, db: Tables) -> None:
        """Takes what is queued as known."""
        if not self.started:
            self.start_with(_active(await db.all(_ACTIVE)))

    async def look(self, db: Tables) -> list[Change]:
        """What others did since the last look; nothing while another look is under way, which tells it."""
        if self.looking:
            return []
        self.looking = True
        try:
            return await self._look(db)
        finally:
            self.looking = False
            self._touched.clear()
            self._submitted.clear()

    async def _look(self, db: Tables) -> list[Change]:
        rows = await db.all(_ACTIVE)
        stored = _active(rows)
        uids = [uid for _, some in self.news(stored, self._ours(rows)) for uid in some]
        found = await records.get_all(db, uids) if uids else {}
        # From here on nothing is waited for: all of it is told and noted, but for what was touched while we waited.
        ours = self._ours(rows)
        changes = [Change(kind, uid, found.get(uid)) for kind, some in self.news(stored, ours) for uid in some]
        self.told(stored, ours)
        return changes

    def _ours(self, rows: Sequence[Record]) -> set[int]:
        """The runs that this process writes to, or has written to since the look under way began."""
        new = self._submitted | self._submitting.keys()
        return {row[0] for row in rows if row[4] in new} | self._touched | self._writing.keys()

    def saw(self, record: RunRecord) -> None:
        super().saw(record)
        self._touch(record.uid)

    def forget(self, uids: Iterable[int]) -> None:
        gone = set(uids)
        super().forget(gone)
        for uid in gone:
            self._touch(uid)

    def _touch(self, uid: int) -> None:
        if self.looking:
            self._touched.add(uid)


def _active(rows: Sequence[Record]) -> Active:
    return Active.of(row[:4] for row in rows)


class _Meanwhile(Generic[K]):
    """While a block runs, and until the look under way at its end is over: what is found of a run may be old or new."""

    __slots__ = ("_ended", "_key", "_under_way", "_watch")

    def __init__(self, watch: Watch, under_way: dict[K, int], ended: set[K], key: K) -> None:
        self._watch = watch
        self._under_way = under_way
        self._ended = ended
        self._key = key

    def __enter__(self) -> None:
        self._under_way[self._key] = self._under_way.get(self._key, 0) + 1

    def __exit__(self, *exc: object) -> None:
        if self._watch.looking:
            self._ended.add(self._key)
        left = self._under_way.pop(self._key) - 1
        if left:
            self._under_way[self._key] = left
