"""Who gets a slot, and when."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.engine.limiter import Limiter, Limits
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises


def waiting(limiter, granted, *users):
    """Tickets of users, which note in `granted` when they get a slot."""

    def ticket(name):
        def grant():
            granted.append(name)
            return True

        return limiter.wait(name[0], grant)

    return [ticket(name) for name in users]


def full(bound=1, **limits):
    limiter = Limiter(Limits(max_concurrency=bound, **limits))
    for _ in range(bound):
        assert limiter.try_acquire("x")
    return limiter


def test_slots_are_handed_out_until_there_are_none():
    limiter = Limiter(Limits(max_concurrency=2))
    assert limiter.try_acquire("a")
    assert limiter.try_acquire("b")
    assert not limiter.try_acquire("c")
    limiter.release("a")
    assert limiter.try_acquire("c")
    assert limiter.active == 2


def test_users_take_turns_and_each_is_served_in_order():
    limiter, granted = full(), []
    waiting(limiter, granted, "a1", "a2", "a3", "b1", "c1", "c2")
    for user in "xabcac":
        limiter.release(user)
    assert granted == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_ticket_that_was_given_up_is_passed_over():
    limiter, granted = full(), []
    tickets = waiting(limiter, granted, "a1", "a2", "b1")
    limiter.withdraw(tickets[0])
    limiter.withdraw(tickets[0])
    limiter.withdraw(tickets[2])
    limiter.release("x")
    assert granted == ["a2"]
    limiter.release("a")
    assert (limiter.active, granted) == (0, ["a2"])
    assert limiter.try_acquire("b")


def test_a_slot_that_is_refused_goes_to_the_next():
    limiter, granted = full(), []
    limiter.wait("a", lambda: False)
    waiting(limiter, granted, "b1")
    limiter.release("x")
    assert granted == ["b1"]
    assert limiter.active == 1


def test_any_number_of_slots_that_are_refused_go_to_the_next():
    limiter = Limiter(Limits(max_concurrency=1))
    assert limiter.try_acquire("ann")
    granted = []
    for number in range(2000):
        limiter.wait(f"u{number}", lambda: False)
    limiter.wait("bob", lambda: granted.append("bob") or True)
    limiter.release("ann")
    assert (granted, limiter.active) == (["bob"], 1)


def test_a_user_at_their_bound_does_not_hold_up_others():
    limiter, granted = Limiter(Limits(max_concurrency=3, max_concurrency_per_user=1)), []
    assert limiter.try_acquire("a")
    assert not limiter.try_acquire("a")
    waiting(limiter, granted, "a1", "a2", "b1")
    assert granted == ["b1"]
    assert limiter.try_acquire("c")
    limiter.release("a")
    assert granted == ["b1", "a1"]
    limiter.release("b")
    limiter.release("a")
    assert granted == ["b1", "a1", "a2"]


def test_nobody_overtakes_those_of_their_own_that_wait():
    limiter, granted = full(2), []
    waiting(limiter, granted, "a1")
    assert not limiter.try_acquire("a")
    limiter.release("x")
    assert granted == ["a1"]


def test_a_grant_may_give_the_slot_back_at_once():
    limiter, granted = full(), []

    def grant():
        granted.append("a1")
        limiter.release("a")
        return True

    limiter.wait("a", grant)
    waiting(limiter, granted, "b1")
    limiter.release("x")
    assert granted == ["a1", "b1"]
    assert limiter.active == 1


def test_the_queue_has_a_bound():
    limiter = full(max_queue=2)
    limiter.enter_queue()
    limiter.enter_queue()
    with pytest.raises(LimitExceeded) as caught:
        limiter.enter_queue()
    assert (caught.value.code, caught.value.retryable, caught.value.http_status) == ("limit.queue_full", True, 429)
    assert caught.value.retry_after >= 1
    limiter.leave_queue()
    limiter.enter_queue()


@pytest.mark.parametrize(
    "fields", [{"max_concurrency_per_user": 0}, {"max_queue": -1}, {"queue_timeout": 0}, {"queue_timeout": -1}]
)
def test_limits_that_cannot_be(fields):
    with raises(InvalidInput, "limit.invalid"):
        Limits(**fields)


@for_seeds(10)
async def test_waiting_for_a_slot():
    limiter = full(queue_timeout=5)
    order = []

    async def use(name):
        await limiter.acquire(name[0])
        order.append(name)
        await asyncio.sleep(1)
        limiter.release(name[0])

    users = asyncio.gather(*(use(n) for n in ("a1", "a2", "b1")))
    await asyncio.sleep(1)
    assert limiter.queued == 3
    limiter.release("x")
    await users
    assert sorted(order) == ["a1", "a2", "b1"]
    assert (limiter.active, limiter.queued) == (0, 0)


@for_seeds(10)
async def test_waiting_too_long():
    limiter = full(queue_timeout=5)
    with raises(LimitExceeded, "limit.queue_timeout"):
        await limiter.acquire("a")
    assert asyncio.get_running_loop().time() == 5
    assert (limiter.active, limiter.queued) == (1, 0)
    limiter.release("x")
    await limiter.acquire("a")
    assert limiter.active == 1


@for_seeds(30)
async def test_a_wait_that_is_cancelled_loses_no_slot():
    limiter = full()
    tasks = [asyncio.ensure_future(limiter.acquire(u)) for u in "abc"]
    await asyncio.sleep(0)
    limiter.release("x")
    tasks[0].cancel()
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    got = [r for r in results if r is None]
    assert limiter.active == len(got)
    for user, result in zip("abc", results, strict=True):
        if result is None:
            limiter.release(user)
    assert (limiter.active, limiter.queued) == (0, 0)
    assert limiter.try_acquire("d")


@for_seeds(30)
async def test_a_slot_that_comes_at_the_moment_of_the_timeout_is_not_lost():
    limiter = full(queue_timeout=5)
    asyncio.get_running_loop().call_later(5, limiter.release, "x")
    try:
        await limiter.acquire("a")
    except LimitExceeded:
        pass
    else:
        limiter.release("a")
    await asyncio.sleep(1)
    assert (limiter.active, limiter.queued) == (0, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["wait", "take", "release", "withdraw"]), st.sampled_from("abcd"), st.integers(0, 5)), max_size=60
)


@settings(max_examples=300)
@given(steps=STEPS, bound=st.integers(0, 3), per_user=st.none() | st.integers(1, 2))
def test_no_bound_is_passed_nobody_is_forgotten_and_each_users_order_is_kept(steps, bound, per_user):
    limiter = Limiter(Limits(max_concurrency=bound, max_concurrency_per_user=per_user))
    held, granted, tickets, number = Counter(), [], {}, 0

    def has_room(user):
        return not (0 < bound <= sum(held.values())) and (per_user is None or held[user] < per_user)

    for action, user, which in steps:
        if action == "take":
            if limiter.try_acquire(user):
                assert has_room(user)
                held[user] += 1
            else:
                assert not has_room(user) or any(u == user for u, _ in tickets)
        elif action == "wait":
            number += 1
            mine = (user, number)

            def grant(mine=mine):
                assert has_room(mine[0])
                held[mine[0]] += 1
                granted.append(mine)
                del tickets[mine]
                return True

            tickets[mine] = None
            ticket = limiter.wait(user, grant)
            if mine in tickets:
                tickets[mine] = ticket
        elif action == "release" and held[user]:
            held[user] -= 1
            limiter.release(user)
        elif action == "withdraw" and tickets:
            gone = sorted(tickets)[which % len(tickets)]
            limiter.withdraw(tickets.pop(gone))
        assert limiter.active == sum(held.values())
        assert not any(has_room(u) for u, _ in tickets), "a slot is free and somebody waits for it"
    for user in "abcd":
        numbers = [n for u, n in granted if u == user]
        assert numbers == sorted(numbers)
