"""The seam for engines: who brings runs to processes, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sojourn.engine.limiter import Limiter
from sojourn.session.types import SessionKey


@dataclass(slots=True, eq=False)
class Delivery:
    """A run on its way to execution.

    Attributes:
        session: Its session: one delivery at a time, in the order of (`ahead` first, `no`).
        user_id: Whose slot it takes.
        no: Number of the run in its session.
        start: Called once when it is the run's turn and a slot is taken.
        limiter: Hands out the slot.
        needs_slot: False if it shares another's slot (a child run, a session's reserved slot); then those before it in its
            session need none either.
        ahead: It goes before all that wait (an answered run).
        held: It has its place in its session, but must not start yet; see `Engine.end_hold`.
        ended: Called once when the run's code has ended, or will never run.
    """

    session: SessionKey
    user_id: str
    no: int
    start: Callable[[], None]
    limiter: Limiter
    needs_slot: bool = True
    ahead: bool = False
    held: bool = False
    ended: Callable[[], None] | None = None
    started: bool = False
    holds_slot: bool = False


class Engine(Protocol):
    """Brings each run to execution at least once: one at a time and in order per session, under the limits.

    The store is the truth; an engine only delivers. What it forgets by dying is found again in the store and delivered
    anew, so an engine keeps nothing durable of its own.
    """

    def claim(self, delivery: Delivery) -> bool:
        """Takes the session's turn and a slot at once if both are free; `start` is not called then.

        Returns:
            Whether it is the delivery's turn. If not, nothing has changed.
        """
        ...

    def submit(self, delivery: Delivery) -> None:
        """Queues a delivery; `start` is called when its turn comes, possibly before this returns."""
        ...

    def withdraw(self, delivery: Delivery) -> bool:
        """Takes a delivery that has not started out of the queue.

        Returns:
            False if it has started already. If not, `ended` has been called.
        """
        ...

    def end_hold(self, delivery: Delivery) -> None:
        """Lets a delivery start that was submitted as `held`, when its turn comes. Twice is fine."""
        ...

    def share_slot(self, delivery: Delivery) -> None:
        """Lets a submitted delivery start without a slot: it shares that of somebody who waits for it. Twice is fine.

        Those before it in its session need none either then, as whoever holds the slot waits for them as well.
        """
        ...

    def free_turn(self, delivery: Delivery) -> None:
        """Ends the delivery's turn in its session; the next may start. Twice is fine."""
        ...

    def free_slot(self, delivery: Delivery) -> None:
        """Gives the delivery's slot back if it holds one, and calls its `ended`. Twice is fine."""
        ...

    def stop(self) -> None:
        """Starts nothing more; what waits is found again in the store. Twice is fine."""
        ...
