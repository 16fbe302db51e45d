"""How many runs may execute at once, and who is next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sojourn.errors import InvalidInput, LimitExceeded


@dataclass(slots=True, frozen=True)
class Limits:
    """Bounds of a `Limiter`.

    Attributes:
        max_concurrency: Runs executing at once; 0 or less for no bound.
        max_concurrency_per_user: Of these, how many of one user; None for no bound.
        max_queue: How many may wait; None for no bound.
        queue_timeout: Seconds one may wait; None for no bound.
    """

    max_concurrency: int = 100
    max_concurrency_per_user: int | None = None
    max_queue: int | None = 10_000
    queue_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.max_concurrency_per_user is not None and self.max_concurrency_per_user < 1:
            raise InvalidInput("max_concurrency_per_user must be at least 1, or None for no bound", code="limit.invalid")
        if self.max_queue is not None and self.max_queue < 0:
            raise InvalidInput("max_queue must be at least 0, or None for no bound", code="limit.invalid")
        if self.queue_timeout is not None and self.queue_timeout <= 0:
            raise InvalidInput("queue_timeout must be positive, or None for no bound", code="limit.invalid")


class Ticket:
    """A place in the queue for a slot."""

    __slots__ = ("grant", "user_id", "waiting")

    def __init__(self, user_id: str, grant: Callable[[], bool]) -> None:
        self.user_id = user_id
        self.grant = grant
        self.waiting = True


class Limiter:
    """Hands out slots: first come first served within a user, in turn between users.

    All calls are made from one event loop and never wait, but for `acquire`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.active = 0
        self.abandoned = 0
        self.queued = 0
        self._per_user: dict[str, int] = {}
        # Users with tickets, in the order of their turns; those at their own bound wait outside of the ring.
        self._ring: deque[str] = deque()
        self._tickets: dict[str, deque[Ticket]] = {}
        self._held_back: set[str] = set()

    @property
    def _full(self) -> bool:
        bound = self.limits.max_concurrency
        return 0 < bound <= self.active

    def _user_full(self, user_id: str) -> bool:
        bound = self.limits.max_concurrency_per_user
        return bound is not None and self._per_user.get(user_id, 0) >= bound

    def try_acquire(self, user_id: str) -> bool:
        """Takes a slot if one is free and nobody of this user waits for one."""
        if not self.has_room(user_id):
            return False
        self._take(user_id)
        return True

    def has_room(self, user_id: str) -> bool:
        """Whether a slot could be taken at once."""
        return not (self._full or user_id in self._tickets or self._user_full(user_id))

    def free_slots(self, user_id: str) -> int | None:
        """How many slots are free if this user could take one at once, else 0; None for no bound."""
        if not self.has_room(user_id):
            return 0
        bound = self.limits.max_concurrency
        return bound - self.active if bound > 0 else None

    def _take(self, user_id: str) -> None:
        self.active += 1
        self._per_user[user_id] = self._per_user.get(user_id, 0) + 1

    def release(self, user_id: str) -> None:
        """Gives a slot back; the next in turn gets it before this returns."""
        self._put_back(user_id)
        if self._ring:
            self._hand_out()

    def _put_back(self, user_id: str) -> None:
        self.active -= 1
        left = self._per_user[user_id] - 1
        if left:
            self._per_user[user_id] = left
        else:
            del self._per_user[user_id]
        if user_id in self._held_back:
            self._held_back.discard(user_id)
            self._ring.append(user_id)

    def enter_queue(self, *, beyond: int | None = 0) -> None:
        """Counts one that waits, before anything of it is recorded.

        Args:
            beyond: How many may wait beyond `max_queue`; None for no bound. See `free_slots`.

        Raises:
            LimitExceeded: `limit.queue_full`.
        """
        bound = self.limits.max_queue
        if bound is not None and beyond is not None and self.queued >= bound + beyond:
            raise LimitExceeded(
                f"{self.active} runs are executing and {self.queued} are waiting, which is the limit; try again later",
                code="limit.queue_full",
                retry_after=max(1.0, self.queued / max(1, self.limits.max_concurrency)),
            )
        self.queued += 1

    def leave_queue(self) -> None:
        """Counts one less that waits."""
        self.queued -= 1

    def wait(self, user_id: str, grant: Callable[[], bool]) -> Ticket:
        """Queues for a slot.

        Args:
            user_id: Whose turn it takes.
            grant: Called once with the slot taken; returns False to pass the slot on.
        """
        ticket = Ticket(user_id, grant)
        tickets = self._tickets.get(user_id)
        if tickets is None:
            tickets = self._tickets[user_id] = deque()
            self._ring.append(user_id)
        tickets.append(ticket)
        self._hand_out()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Gives up a place in the queue; twice is fine."""
        ticket.waiting = False

    def _hand_out(self) -> None:
        while self._ring and not self._full:
            user_id = self._ring.popleft()
            tickets = self._tickets[user_id]
            while tickets and not tickets[0].waiting:
                tickets.popleft()
            if not tickets:
                del self._tickets[user_id]
                continue
            if self._user_full(user_id):
                self._held_back.add(user_id)
                continue
            ticket = tickets.popleft()
            ticket.waiting = False
            if tickets:
                self._ring.append(user_id)
            else:
                del self._tickets[user_id]
            self._take(user_id)
            if not ticket.grant():
                self._put_back(user_id)

    async def acquire(self, user_id: str, *, counted: bool = False) -> None:
        """Waits for a slot.

        Args:
            user_id: Whose slot it is.
            counted: It has entered the queue already, and leaves it only when it has its slot or has given up.

        Raises:
            LimitExceeded: `limit.queue_full` at once, `limit.queue_timeout` after `queue_timeout` seconds.
        """
        if self.try_acquire(user_id):
            return
        if not counted:
            self.enter_queue()
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> bool:
            if granted.done():
                return False
            granted.set_result(None)
            return True

        ticket = self.wait(user_id, grant)
        try:
            async with asyncio.timeout(self.limits.queue_timeout):
                await granted
        except BaseException as error:
            self.withdraw(ticket)
            if granted.done() and not granted.cancelled():
                self.release(user_id)
            if isinstance(error, TimeoutError):
                raise queue_timeout(self.limits.queue_timeout or 0.0) from None
            raise
        finally:
            if not counted:
                self.leave_queue()


def queue_timeout(seconds: float, why: str = "no slot was free") -> LimitExceeded:
    """The error of one that waited too long."""
    return LimitExceeded(f"{why} for {seconds:g} seconds; try again later", code="limit.queue_timeout", retry_after=1.0)
