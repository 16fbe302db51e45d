"""The garbage collector of a process that serves."""

import gc

import pytest

from sojourn.server.garbage import YOUNG_OBJECTS, rare_collections


@pytest.fixture(autouse=True)
def as_python_has_it():
    before, enabled = gc.get_threshold(), gc.isenabled()
    gc.set_threshold(700, 10, 10)
    gc.enable()
    gc.unfreeze()
    yield
    gc.set_threshold(*before)
    (gc.enable if enabled else gc.disable)()
    gc.freeze()


def test_it_looks_rarely_and_only_at_what_came_since_and_then_as_before():
    with rare_collections():
        assert gc.get_threshold() == (YOUNG_OBJECTS, 20, 10)
        assert gc.get_freeze_count() > 10_000
        within = len(gc.get_objects())
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0
    assert within < len(gc.get_objects()) / 2


def test_it_is_as_before_after_an_error_too():
    with pytest.raises(ZeroDivisionError), rare_collections():
        _ = 1 / 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == ((700, 10, 10), 0)


def test_several_servers_in_one_process():
    with rare_collections():
        with rare_collections():
            assert gc.get_threshold()[0] == YOUNG_OBJECTS
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        assert gc.get_freeze_count()


@pytest.mark.parametrize("threshold", [(50_000, 50, 1000), (0, 10, 10)])
def test_thresholds_of_the_program_itself_stay(threshold):
    gc.set_threshold(*threshold)
    with rare_collections():
        assert (gc.get_threshold(), gc.get_freeze_count()) == (threshold, 0)
    assert gc.get_threshold() == threshold


def test_a_collector_that_is_switched_off_stays_so():
    gc.disable()
    with rare_collections():
        assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == (False, (700, 10, 10), 0)


def test_what_comes_together_meanwhile_is_collected():
    class Node:
        pass

    with rare_collections():
        seen = []
        gc.callbacks.append(lambda phase, info: seen.append(info["generation"]) if phase == "stop" else None)
        try:
            for _ in range(3 * YOUNG_OBJECTS):
                node = Node()
                node.self = node
        finally:
            gc.callbacks.pop()
    assert 2 <= len(seen) <= 10
