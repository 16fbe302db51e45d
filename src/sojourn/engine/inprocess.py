"""The engine of a single process."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from sojourn.engine.limiter import Ticket
from sojourn.engine.protocol import Delivery
from sojourn.session.types import SessionKey


class _Lane:
    """The deliveries of one session: at most one has its turn, the others are in order."""

    __slots__ = ("active", "queue", "sharing", "ticket")

    def __init__(self) -> None:
        self.active: Delivery | None = None
        self.queue: list[Delivery] = []
        # How many of the queue need no slot.
        self.sharing = 0
        # The lane, not a delivery, waits for a slot: whoever is first when the slot comes, gets it.
        self.ticket: Ticket | None = None


def _order(delivery: Delivery) -> tuple[bool, int]:
    return (not delivery.ahead, delivery.no)


class InProcessEngine:
    """Delivers runs within one event loop; see `Engine`. Nothing in it awaits."""

    def __init__(self) -> None:
        self._lanes: dict[SessionKey, _Lane] = {}
        self._stopped = False

    def claim(self, delivery: Delivery) -> bool:
        if delivery.session in self._lanes:
            return False
        if delivery.needs_slot:
            if not delivery.limiter.try_acquire(delivery.user_id):
                return False
            delivery.holds_slot = True
        lane = self._lanes[delivery.session] = _Lane()
        lane.active = delivery
        delivery.started = True
        return True

    def submit(self, delivery: Delivery) -> None:
        lane = self._lanes.get(delivery.session)
        if lane is None:
            lane = self._lanes[delivery.session] = _Lane()
        insort(lane.queue, delivery, key=_order)
        lane.sharing += not delivery.needs_slot
        self._advance(delivery.session, lane)

    def withdraw(self, delivery: Delivery) -> bool:
        if delivery.started:
            return False
        lane = self._lanes.get(delivery.session)
        if lane is not None and delivery in lane.queue:
            lane.queue.remove(delivery)
            lane.sharing -= not delivery.needs_slot
            self._advance(delivery.session, lane)
        self.free_slot(delivery)
        return True

    def share_slot(self, delivery: Delivery) -> None:
        if delivery.started or not delivery.needs_slot:
            return
        delivery.needs_slot = False
        lane = self._lanes.get(delivery.session)
        if lane is not None and delivery in lane.queue:
            lane.sharing += 1
            self._advance(delivery.session, lane)

    def end_hold(self, delivery: Delivery) -> None:
        delivery.held = False
        lane = self._lanes.get(delivery.session)
        if lane is not None:
            self._advance(delivery.session, lane)

    def free_turn(self, delivery: Delivery) -> None:
        lane = self._lanes.get(delivery.session)
        if lane is not None and lane.active is delivery:
            lane.active = None
            self._advance(delivery.session, lane)

    def free_slot(self, delivery: Delivery) -> None:
        if delivery.holds_slot:
            delivery.holds_slot = False
            delivery.limiter.release(delivery.user_id)
        if delivery.ended is not None:
            ended, delivery.ended = delivery.ended, None
            ended()

    def stop(self) -> None:
        self._stopped = True

    def _advance(self, key: SessionKey, lane: _Lane) -> None:
        """Starts what can be started and forgets the lane if nothing is left in it."""
        if lane.active is not None or self._stopped:
            return
        if not lane.queue:
            if lane.ticket is not None and lane.ticket.waiting:
                self._give_up(lane)
            del self._lanes[key]
            return
        head = lane.queue[0]
        if head.held:
            return
        if lane.sharing:
            # Whoever waits for the one that shares a slot holds it, and so waits for all those before it.
            self._start(lane)
        elif lane.ticket is None or not lane.ticket.waiting:
            if head.limiter.try_acquire(head.user_id):
                head.holds_slot = True
                self._start(lane)
            else:
                lane.ticket = head.limiter.wait(head.user_id, self._granted(key, lane))

    def _granted(self, key: SessionKey, lane: _Lane) -> Callable[[], bool]:
        def grant() -> bool:
            lane.ticket = None
            if self._stopped or lane.active is not None or not lane.queue:
                return False
            head = lane.queue[0]
            if head.held or lane.sharing:
                return False
            head.holds_slot = True
            self._start(lane)
            return True

        return grant

    def _give_up(self, lane: _Lane) -> None:
        if lane.ticket is not None:
            lane.ticket.waiting = False
            lane.ticket = None

    def _start(self, lane: _Lane) -> None:
        delivery = lane.queue.pop(0)
        lane.sharing -= not delivery.needs_slot
        lane.active = delivery
        delivery.started = True
        delivery.start()
