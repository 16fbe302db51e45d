"""The seam for the care of data: what a store that can remove, measure and erase what it keeps does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sojourn.page import Page
from sojourn.session.types import SessionKey

BATCH = 250
"""Events that one transaction removes unless it is told otherwise: a few milliseconds of what appends wait for."""


class Trimmed(NamedTuple):
    """What one call of `trim_session` has removed.

    Attributes:
        runs: Runs of which only the record is left.
        events: Events.
        more: Whether the same call again may remove something.
    """

    runs: int
    events: int
    more: bool


class Dropped(NamedTuple):
    """What one call of `drop_session` has done.

    Attributes:
        state: `gone`: there is no such session any more; `more`: part of it is removed, the same call again goes on; `kept`:
            it is not idle, and what is left of it stays.
        runs: Runs removed with their records.
        events: Events removed.
        unfinished: How many of these runs had not ended: a process may be at work for them until it notices.
    """

    state: Literal["gone", "more", "kept"]
    runs: int = 0
    events: int = 0
    unfinished: int = 0


class DroppedSession(NamedTuple):
    """A session that `drop_session` has removed, and whose artifacts are still to be removed.

    Attributes:
        key: What it was called.
        uid: `Session.uid`, by which its artifacts are kept.
    """

    key: SessionKey
    uid: str


@dataclass(slots=True, frozen=True)
class SessionSize:
    """How much a session takes up.

    Attributes:
        key: The session.
        uid: `Session.uid`.
        events: Events that are stored, those that do not count any more included.
        runs: Records of runs.
        bytes: What is stored of it, as far as the store counts it: events, records, steps, questions and its own state, without
            indexes.
        created_at: Seconds since the epoch.
        updated_at: Seconds since the epoch.
    """

    key: SessionKey
    uid: str
    events: int
    runs: int
    bytes: int
    created_at: float
    updated_at: float


@runtime_checkable
class SupportsRetention(Protocol):
    """Removes, measures and erases what a store keeps; a store of sessions and runs may do this besides.

    The rules of `SessionService` hold here too. Every method is one transaction, or reads one moment. Any process may call it
    at any time, also while another one executes runs, and several may at once. In addition:

    - **Whole runs**: `trim_session` removes what a run consisted of as a whole or not at all: its events, superseded ones
      included, its steps, its questions, and of its record the content of the message and `custom_metadata`. The rest of the
      record stays, with `RunRecord.trimmed` set. Nothing else changes: state, the ledger, `event_count`, and the windows of
      history as far as the events in them are left.
    - **What stays** whatever its age: a run that has not ended, and thereby what an open question needs; the run that holds
      the newest summary; a run with a function call that has no response. A function call and the responses to it
      (`SessionService.history` says which) go in one transaction: where they are in several runs, all of these go or none.
    - **What was removed is remembered**: `seq` goes on as if nothing had been removed. `Session.first_seq` is the `seq` after
      the highest one that was removed. `list_events` from the beginning (`after=0`) gives what is left; after a position before
      `first_seq - 1` at which there is no event any more it raises `Gone`, `cursor.trimmed`. `run_events` of a trimmed run
      raises `Gone`, `cursor.trimmed`, unless `after` is at or beyond its last event.
    - A trimmed run is not repeated with its own words: a run with `retry_of` gives its message itself. A run id that is known
      by a trimmed run of the same session and `retry_of` is known, whatever the message.
    """

    async def trim_session(
        self, key: SessionKey, *, keep_events: int | None = None, ended_before: float | None = None, limit: int = BATCH
    ) -> Trimmed:
        """Removes the oldest runs of a session that may go, as many as have about `limit` events, and at least one.

        A run may go if either bound says so and nothing under "What stays" keeps it.

        Args:
            key: The session.
            keep_events: Runs may go whose events all are older than this many newest ones of the session; runs without events
                that were submitted before the run of the oldest of these. None for no such bound.
            ended_before: Runs may go that ended before this time (seconds since the epoch). None for no such bound.
            limit: Events, 1 to 100,000.

        Returns:
            What was removed; nothing if the session does not exist.

        Raises:
            InvalidInput: `id.invalid`; `retention.invalid` for a bound that cannot be.
        """
        ...

    async def drop_session(self, key: SessionKey, *, idle_since: float | None = None, limit: int = BATCH) -> Dropped:
        """Removes a session as `delete_session` does, a part with each call: about `limit` events, and at least one run.

        Runs that have not ended go first: what their attempts write from then on raises `Fenced`. The call that
        removes the session itself notes it in `dropped_sessions`.

        Args:
            key: The session.
            idle_since: Only if it was last changed (`Session.updated_at`) before this time and has no unfinished run; checked
                anew in each call. None to remove it in any case.
            limit: Events, 1 to 100,000.

        Raises:
            InvalidInput: `id.invalid`; `retention.invalid` for a limit that cannot be.
        """
        ...

    async def dropped_sessions(self, app_name: str, *, user_id: str | None = None, limit: int = 100) -> list[DroppedSession]:
        """Lists sessions whose artifacts are still to be removed, oldest first.

        Raises:
            InvalidInput: `id.invalid`, `page.invalid`.
        """
        ...

    async def settle_dropped(self, uid: str) -> None:
        """Notes that the artifacts of a dropped session were removed, or that there are none; twice is fine."""
        ...

    async def session_sizes(
        self, app_name: str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[SessionSize]:
        """Measures sessions, in the order and the pages of `list_sessions`. The cost grows with what they hold.

        Raises:
            InvalidInput: `id.invalid`, `page.invalid`.
        """
        ...

    async def apps_of_user(self, user_id: str) -> list[str]:
        """Lists the apps in which anything of a user is kept: sessions, state, usage, dropped sessions; by code points.

        Raises:
            InvalidInput: `id.invalid`.
        """
        ...

    async def user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """Reads the user's `user:` keys, whether or not there is a session.

        Raises:
            InvalidInput: `id.invalid`.
        """
        ...

    async def erase_user(self, app_name: str, user_id: str) -> None:
        """Removes what is kept of a user beside sessions: `user:` keys, what was spent, notes of dropped sessions.

        Raises:
            InvalidInput: `id.invalid`.
            Conflict: `data.user_active` if the user has a session: drop it first.
        """
        ...

    async def scrub(self) -> None:
        """Sees to it that what was removed cannot be read in the store's files any more; writers may have to wait meanwhile.

        A store that leaves no such traces, or whose server sees to that, does nothing.

        Raises:
            Unavailable: It could not be done now.
        """
        ...
