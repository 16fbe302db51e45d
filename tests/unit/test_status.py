"""The table of moves of a run."""

import itertools
import pickle

import pytest

from sojourn.errors import Conflict
from sojourn.run.status import TERMINAL, TRANSITIONS, Move, RunStatus, move

LEGAL = {
    ("queued", "begin"): "running",
    ("queued", "cancel"): "cancelled",
    ("queued", "fail"): "failed",
    ("running", "wait"): "waiting",
    ("running", "requeue"): "queued",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelled",
    ("waiting", "answer"): "queued",
    ("waiting", "cancel"): "cancelled",
    ("waiting", "expire"): "failed",
}
"""Written out once more by hand: a change of the table is a change of what runs promise."""


@pytest.mark.parametrize(("status", "by"), list(itertools.product(RunStatus, Move)))
def test_every_pair_of_status_and_move(status, by):
    if (status.value, by.value) in LEGAL:
        assert move(status, by) is RunStatus(LEGAL[status.value, by.value])
        return
    with pytest.raises(Conflict) as caught:
        move(status, by, run_id="run-7")
    assert caught.value.code == "run.illegal_move"
    for part in ("run-7", status.value, by.value):
        assert part in caught.value.message


def test_the_table_has_one_row_per_move_with_a_reason():
    assert len({(t.source, t.move) for t in TRANSITIONS}) == len(TRANSITIONS) == len(LEGAL)
    assert all(t.why for t in TRANSITIONS)


def test_terminal_states_are_those_without_a_way_out():
    sources = {t.source for t in TRANSITIONS}
    assert {s for s in RunStatus if s not in sources} == TERMINAL
    assert {s for s in RunStatus if s.terminal} == TERMINAL


def test_every_status_is_reached_from_queued_and_reaches_an_end():
    ways: dict[RunStatus, set[RunStatus]] = {s: {t.target for t in TRANSITIONS if t.source is s} for s in RunStatus}

    def reach(start: RunStatus) -> set[RunStatus]:
        seen, left = {start}, [start]
        while left:
            for target in ways[left.pop()] - seen:
                seen.add(target)
                left.append(target)
        return seen

    assert reach(RunStatus.QUEUED) == set(RunStatus)
    assert all(reach(s) & TERMINAL for s in RunStatus)


def test_statuses_are_text_and_pickle_to_themselves():
    assert RunStatus("running") is RunStatus.RUNNING == "running"
    assert pickle.loads(pickle.dumps(RunStatus.WAITING)) is RunStatus.WAITING
