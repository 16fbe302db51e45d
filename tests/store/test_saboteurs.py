"""The conformance suite finds out every saboteur, and nothing but saboteurs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sojourn.run.store import Store
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_before
from sojourn.testing.saboteurs import SABOTEURS, FailureIsAbsence, Saboteur, cases, outcomes
from sojourn.testing.store_conformance import StoreConformance


class Suite(StoreConformance):
    """The suite, for stores that can be made to fail."""

    can_fail = True

    @asynccontextmanager
    async def failing(self, store: Store) -> AsyncIterator[None]:
        assert isinstance(store, FaultyStore)
        fault = fail_before()
        store.plan.append(fault)
        try:
            yield
        finally:
            store.plan.remove(fault)


def healthy() -> Store:
    return FaultyStore(InMemorySessionService())


def test_a_healthy_store_passes_every_case() -> None:
    found = outcomes(Suite, healthy, cases(Suite))
    assert {name: failure for name, failure in found.items() if failure is not None} == {}
    assert len(found) > 350


def broken(saboteur: type[Saboteur]) -> Callable[[], Store]:
    return lambda: FaultyStore(saboteur())


MAKERS: dict[str, tuple[Callable[[], Store], tuple[str, ...]]] = {
    **{s.__name__: (broken(s), s.caught_by) for s in SABOTEURS},
    "FailureIsAbsence": (lambda: FailureIsAbsence(InMemorySessionService()), FailureIsAbsence.caught_by),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_saboteur_is_found_out(name: str) -> None:
    make_store, caught_by = MAKERS[name]
    assert caught_by
    for case in caught_by:
        failures = [f for f in outcomes(Suite, make_store, [case]).values() if f is not None]
        assert failures, f"{case} lets {name} pass"


@pytest.mark.parametrize("name", MAKERS)
def test_every_saboteur_passes_for_a_store(name: str) -> None:
    """One that fails in everything would prove nothing about the cases it names."""
    make_store, _ = MAKERS[name]
    plain = ["test_create_then_get", "test_patch_sets_and_deletes", "test_submit_can_begin_in_the_same_write"]
    assert outcomes(Suite, make_store, plain) == dict.fromkeys(plain)
