"""The engine of a single process: one delivery at a time and in order per session, under the limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.engine.inprocess import InProcessEngine
from sojourn.engine.limiter import Limiter, Limits
from sojourn.engine.protocol import Delivery, Engine
from sojourn.session.types import SessionKey


class Bench:
    """An engine, and what it has started."""

    def __init__(self, bound=1):
        self.engine: Engine = InProcessEngine()
        self.limiter = Limiter(Limits(max_concurrency=bound))
        self.started = []
        self.number = 0

    def delivery(self, session="s", user="u", **fields):
        self.number += 1
        made = Delivery(
            SessionKey("app", user, session), user, self.number, lambda: self.started.append(made), self.limiter, **fields
        )
        return made

    def submit(self, *args, **fields):
        made = self.delivery(*args, **fields)
        self.engine.submit(made)
        return made

    def end(self, delivery):
        self.engine.free_turn(delivery)
        self.engine.free_slot(delivery)

    def at_rest(self):
        return self.engine._lanes == {} and self.limiter.active == 0


def test_one_at_a_time_in_the_order_of_their_numbers():
    bench = Bench(bound=5)
    first, second, third = (bench.submit() for _ in range(3))
    assert bench.started == [first]
    bench.end(first)
    assert bench.started == [first, second]
    bench.end(second)
    bench.end(third)
    assert bench.started == [first, second, third]
    assert bench.at_rest()


def test_one_that_was_numbered_earlier_goes_first_even_if_it_comes_later():
    bench = Bench()
    first, second, third = (bench.delivery() for _ in range(3))
    for delivery in (first, third, second):
        bench.engine.submit(delivery)
    bench.end(first)
    assert bench.started == [first, second]


def test_what_goes_ahead_comes_before_all_that_wait_but_preempts_nobody():
    bench = Bench()
    running = bench.submit()
    waiting = bench.submit()
    ahead = bench.submit(ahead=True)
    assert bench.started == [running]
    bench.end(running)
    bench.end(ahead)
    assert bench.started == [running, ahead, waiting]


def test_a_claim_takes_turn_and_slot_or_changes_nothing():
    bench = Bench()
    claimed = bench.delivery()
    assert bench.engine.claim(claimed)
    assert bench.started == []
    assert (claimed.holds_slot, bench.limiter.active) == (True, 1)
    for other in (bench.delivery(), bench.delivery("other")):
        assert not bench.engine.claim(other)
        assert not other.holds_slot
    bench.end(claimed)
    assert bench.at_rest()
    assert bench.engine.claim(bench.delivery())


def test_a_delivery_that_needs_no_slot_starts_without_one():
    bench = Bench()
    holder = bench.submit("a")
    child = bench.submit("b", needs_slot=False)
    assert bench.started == [holder, child]
    assert bench.limiter.active == 1
    bench.end(child)
    assert bench.limiter.active == 1


def test_those_before_one_that_shares_a_slot_need_none_either():
    bench = Bench()
    holder = bench.submit("a")
    before, sharing, after = (bench.submit("b") for _ in range(3))
    bench.engine.share_slot(sharing)
    bench.engine.share_slot(sharing)
    assert bench.started == [holder, before]
    bench.end(before)
    assert bench.started == [holder, before, sharing]
    bench.end(sharing)
    assert bench.started == [holder, before, sharing], "what comes after it waits for a slot"
    bench.end(holder)
    bench.end(after)
    assert bench.started == [holder, before, sharing, after]
    assert bench.at_rest()


def test_a_withdrawn_delivery_never_starts_and_one_that_started_cannot_be_withdrawn():
    bench = Bench()
    running, gone, next_one = (bench.submit() for _ in range(3))
    assert bench.engine.withdraw(gone)
    assert bench.engine.withdraw(gone)
    assert not bench.engine.withdraw(running)
    bench.end(running)
    assert bench.started == [running, next_one]


def test_the_last_one_withdrawn_leaves_nothing_behind():
    bench = Bench()
    holder = bench.submit("a")
    waiting = bench.submit("b")
    bench.engine.withdraw(waiting)
    bench.end(holder)
    assert bench.started == [holder]
    assert bench.at_rest()


def test_a_slot_goes_to_whoever_is_first_in_the_session_when_it_comes():
    bench = Bench()
    holder = bench.submit("a")
    first, second = bench.submit("b"), bench.submit("b")
    bench.engine.withdraw(first)
    bench.end(holder)
    assert bench.started == [holder, second]
    bench.end(second)
    assert bench.at_rest()


def test_a_turn_may_end_before_its_slot_is_given_back():
    bench = Bench(bound=1)
    abandoned = bench.submit()
    waiting = bench.submit()
    bench.engine.free_turn(abandoned)
    bench.engine.free_turn(abandoned)
    assert bench.started == [abandoned]
    bench.engine.free_slot(abandoned)
    bench.engine.free_slot(abandoned)
    assert bench.started == [abandoned, waiting]
    assert bench.limiter.active == 1


def test_whoever_lends_a_slot_is_told_once_when_it_is_free():
    bench = Bench()
    told = []
    lent = bench.submit(needs_slot=False, ended=lambda: told.append(True))
    bench.end(lent)
    bench.end(lent)
    assert told == [True]


def test_whoever_lends_a_slot_is_told_once_if_it_is_never_used():
    bench = Bench()
    told = []
    first = bench.submit()
    lent = bench.submit(needs_slot=False, ended=lambda: told.append(True))
    assert bench.engine.withdraw(lent)
    assert bench.engine.withdraw(lent)
    assert told == [True]
    bench.end(first)
    assert bench.at_rest()


def test_one_that_is_held_keeps_its_place_and_takes_no_slot():
    bench = Bench(bound=1)
    held = bench.submit("a", held=True)
    behind = bench.submit("a")
    elsewhere = bench.submit("b")
    assert bench.started == [elsewhere]
    bench.engine.end_hold(held)
    bench.engine.end_hold(held)
    assert bench.started == [elsewhere]
    bench.end(elsewhere)
    assert bench.started == [elsewhere, held]
    bench.end(held)
    bench.end(behind)
    assert bench.started == [elsewhere, held, behind]
    assert bench.at_rest()


def test_a_slot_passes_by_one_that_is_held():
    bench = Bench(bound=1)
    holder = bench.submit("a")
    waits = bench.submit("b", user="v")
    held = bench.submit("b", user="v", ahead=True, held=True)
    other = bench.submit("c")
    bench.end(holder)
    assert bench.started == [holder, other]
    bench.engine.end_hold(held)
    bench.end(other)
    bench.end(held)
    assert bench.started == [holder, other, held, waits]
    bench.end(waits)
    assert bench.at_rest()


def test_one_that_is_held_can_be_withdrawn():
    bench = Bench()
    held = bench.submit(held=True)
    assert bench.engine.withdraw(held)
    bench.engine.end_hold(held)
    assert bench.started == []
    assert bench.at_rest()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "ahead", "free", "held", "hold over", "share", "claim", "end", "turn", "slot", "withdraw"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=50,
)


@settings(max_examples=300)
@given(actions=ACTIONS, bound=st.integers(1, 3))
def test_whatever_comes_in_whatever_order(actions, bound):
    bench = Bench(bound)
    known, ended, withdrawn = [], [], []
    for action, session, which in actions:
        where = {"session": f"s{session}", "user": f"u{session % 2}"}
        picked = known[which % len(known)] if known else None
        if action in ("submit", "ahead", "free", "held"):
            known.append(bench.submit(**where, ahead=action == "ahead", needs_slot=action != "free", held=action == "held"))
        elif picked is not None and action == "hold over":
            bench.engine.end_hold(picked)
        elif picked is not None and action == "share":
            bench.engine.share_slot(picked)
        elif action == "claim":
            delivery = bench.delivery(**where)
            if bench.engine.claim(delivery):
                known.append(delivery)
        elif picked is not None and action == "withdraw":
            if bench.engine.withdraw(picked):
                withdrawn.append(picked)
        elif picked is not None and picked.started:
            if action in ("end", "turn"):
                bench.engine.free_turn(picked)
                ended.append(picked)
            if action in ("end", "slot"):
                bench.engine.free_slot(picked)
        running = [d for d in known if d.started and d not in ended]
        assert len({d.session for d in running}) == len(running), "two have their turn in one session"
        assert bench.limiter.active == sum(d.holds_slot for d in known) <= bound
        assert not any(d.started for d in withdrawn)
        assert not any(d.started and d.held for d in known)
    for delivery in known:
        bench.engine.end_hold(delivery)
    for _ in range(len(known)):
        for delivery in known:
            if delivery.started:
                bench.end(delivery)
    assert all(d.started or d in withdrawn for d in known), "somebody was forgotten"
    assert bench.at_rest()


@pytest.mark.parametrize("sessions", [1, 7])
def test_deliveries_of_one_session_start_in_order(sessions):
    bench = Bench(bound=2)
    for n in range(50):
        bench.submit(f"s{n % sessions}")
    for n in range(50):
        bench.end(bench.started[n])
    for session in range(sessions):
        numbers = [d.no for d in bench.started if d.session.session_id == f"s{session}"]
        assert numbers == sorted(numbers)
    assert bench.at_rest()
