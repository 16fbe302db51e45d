"""The model against itself: proves that the machine runs, and that it finds a difference where there is one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sojourn.run.store import Store
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.saboteurs import (
    AppendsOneByOne,
    GoesOnWhereTheOldBranchWas,
    KeepsEventsOfTheDeleted,
    KeepsWhatCameAfter,
    PutsNothingBack,
    Saboteur,
    ShowsAttemptsTheirWrites,
    SplitsPairs,
    StoresReplaysAgain,
    SupersedesTheWholeRun,
    TakesThePlaceTooSoon,
)
from sojourn.testing.stateful import make_store_machine


async def open_in_memory(directory: Path) -> Store:
    return InMemorySessionService()


TestInMemory = make_store_machine(open_in_memory, durable=False).TestCase
TestInMemory.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    "saboteur",
    [
        AppendsOneByOne, KeepsEventsOfTheDeleted, PutsNothingBack, ShowsAttemptsTheirWrites, SplitsPairs, StoresReplaysAgain,
        SupersedesTheWholeRun, KeepsWhatCameAfter, TakesThePlaceTooSoon, GoesOnWhereTheOldBranchWas,
    ],
)  # fmt: skip
def test_the_machine_finds_a_saboteur(saboteur: type[Saboteur]) -> None:
    async def open_saboteur(directory: Path) -> Store:
        return saboteur()

    machine = make_store_machine(open_saboteur, durable=False)
    # Finding it is enough: shrinking would cost more than all the rest.
    bounded = settings(
        max_examples=300, stateful_step_count=30, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    with pytest.raises(AssertionError, match="something else"):
        run_state_machine_as_test(machine, settings=bounded)
