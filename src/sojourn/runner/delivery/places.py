"""Runs that were taken on before: how many users' agents are made ready for them at a time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sojourn.runner.delivery.hub import Job

BUILD_SECONDS = 30.0
"""How long a build that has not ended keeps its user's place."""

UNBOUNDED = 100
"""Places if there is no bound of runs that execute at once."""


class Places:
    """Lets the runs of so many users at a time have their agents made ready; the other users wait for a place.

    What was taken on before must wait as it must, however much there is: after a crash all of it comes at once. A place is kept
    until the last of its user's runs that were let in has ended, so that no more agents are in use than can do something;
    but not by a build that takes its time, which must not keep out all others.

    Args:
        bound: How many users; 0 or less for `UNBOUNDED`.
        is_wanted: Whether a run that has waited is still to start.
        let_in: Has a run's agent made ready.
    """

    def __init__(self, bound: int, is_wanted: Callable[[Job], bool], let_in: Callable[[Job], None]) -> None:
        self._bound = bound if bound > 0 else UNBOUNDED
        self._is_wanted = is_wanted
        self._let_in = let_in
        self._taken: dict[str, _Place] = {}
        self._waiting: dict[str, list[Job]] = {}
        self._filling = False

    def enter(self, job: Job) -> None:
        """Lets a run in that is held in the queue, now or when there is a place."""
        user_id = job.delivery.user_id
        if user_id in self._taken or len(self._taken) < self._bound:
            self._take(user_id, [job])
        else:
            self._waiting.setdefault(user_id, []).append(job)

    def let_in_now(self, user_id: str) -> None:
        """Lets in a user's runs whether or not there is a place: somebody waits for them who may have one of the places."""
        if (jobs := self._waiting.pop(user_id, None)) is not None:
            self._take(user_id, jobs)

    def _take(self, user_id: str, jobs: list[Job]) -> None:
        place = self._taken.get(user_id)
        if place is None:
            place = self._taken[user_id] = _Place()
            place.timer = asyncio.get_running_loop().call_later(
                BUILD_SECONDS, self._built_or_not, user_id, place, jobs, context=contextvars.Context()
            )
        wanted = [job for job in jobs if self._is_wanted(job)]
        place.runs += len(wanted)
        for job in wanted:
            job.delivery.ended = self._leaving(user_id, place, job.delivery.ended)
            self._let_in(job)
        if not place.runs:
            self._give_up(user_id, place)

    def _leaving(self, user_id: str, place: _Place, ended: Callable[[], None] | None) -> Callable[[], None]:
        def leave() -> None:
            if ended is not None:
                ended()
            place.runs -= 1
            if not place.runs:
                self._give_up(user_id, place)

        return leave

    def _built_or_not(self, user_id: str, place: _Place, jobs: list[Job]) -> None:
        if any(job.lease is not None and job.lease.agent is None for job in jobs):
            self._give_up(user_id, place)

    def _give_up(self, user_id: str, place: _Place) -> None:
        place.timer.cancel()
        if self._taken.get(user_id) is not place:
            return
        del self._taken[user_id]
        self._fill()

    def _fill(self) -> None:
        """Gives free places to those who wait."""
        if self._filling:
            # Of those who have waited, any number may want nothing any more, and give up the place at once.
            return
        self._filling = True
        try:
            while self._waiting and len(self._taken) < self._bound:
                user_id = next(iter(self._waiting))
                self._take(user_id, self._waiting.pop(user_id))
        finally:
            self._filling = False


class _Place:
    """A user's place.

    Attributes:
        runs: Those that were let in and have not ended.
        timer: When it is looked whether the agent is built.
    """

    __slots__ = ("runs", "timer")

    timer: asyncio.TimerHandle

    def __init__(self) -> None:
        self.runs = 0
