"""The suite of retention finds out stores that are wrong on purpose."""

from typing import ClassVar

import pytest

from sojourn.store import inmemory
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.ramcare import TrimmableSession
from sojourn.testing.retention_conformance import RetentionConformance
from sojourn.testing.saboteurs import cases, outcomes


class Saboteur(InMemorySessionService):
    """A store in RAM that chooses wrongly what to remove.

    Attributes:
        choice: What it takes for the session whose runs it chooses from.
        caught_by: Cases that fail on it.
    """

    choice: ClassVar[type[TrimmableSession]] = TrimmableSession
    caught_by: ClassVar[tuple[str, ...]] = ()

    async def trim_session(self, key, **bounds):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inmemory, "TrimmableSession", self.choice)
            return await super().trim_session(key, **bounds)


class SplitsPairs(Saboteur):
    """Calls go without their responses."""

    caught_by = ("test_calls_and_responses_are_never_split", "test_pairs_hold_on_to_each_other_along_a_chain")

    class choice(TrimmableSession):
        def partners(self, run_uid):
            return ()


class PinsNothing(Saboteur):
    """Neither the newest summary nor an open call keeps its run."""

    caught_by = ("test_the_newest_summary_stays", "test_open_calls_stay")

    class choice(TrimmableSession):
        def __init__(self, *args):
            super().__init__(*args)
            self._pinned = set()


class KeepsTooFew(Saboteur):
    """One event fewer stays than was asked for."""

    caught_by = ("test_at_least_so_many_events_stay",)

    class choice(TrimmableSession):
        def __init__(self, session, keep_events, ended_before):
            super().__init__(session, keep_events, ended_before)
            self._floor += 1


class CountsFromOne(Saboteur):
    """What was removed is not remembered."""

    caught_by = ("test_first_seq_is_remembered", "test_trimmed_positions_cannot_be_read")

    async def trim_session(self, key, **bounds):
        trimmed = await super().trim_session(key, **bounds)
        if key in self._sessions:
            self._sessions[key].trimmed_seq = 0
        return trimmed


class ForgetsRecords(Saboteur):
    """Records go with their runs."""

    caught_by = ("test_of_a_trimmed_run_the_record_is_left", "test_a_known_id_of_a_trimmed_run_is_known")

    async def trim_session(self, key, **bounds):
        trimmed = await super().trim_session(key, **bounds)
        for ids in self._run_ids.values():
            for user, run in list(ids.items()):
                if run.record.trimmed:
                    del ids[user]
        return trimmed


class ReadsWhatIsGone(Saboteur):
    """Who reads a trimmed run finds that it said nothing."""

    caught_by = ("test_a_trimmed_run_cannot_be_read", "test_a_reader_in_the_middle_is_told")

    async def run_events(self, run_uid, **which):
        run = self._run(run_uid)
        return [] if run.record.trimmed else await super().run_events(run_uid, **which)


class TakesAllAtOnce(Saboteur):
    """Batches have no limit."""

    caught_by = ("test_a_batch_is_about_so_many_events", "test_a_large_run_is_a_batch")

    async def trim_session(self, key, *, limit=500, **bounds):
        return await super().trim_session(key, limit=100_000, **bounds)


class DropsTheBusy(Saboteur):
    """Sessions go whether somebody uses them or not."""

    caught_by = ("test_drop_of_idle_sessions_alone", "test_sessions_with_unfinished_runs_are_not_idle")

    async def drop_session(self, key, *, idle_since=None, limit=500):
        return await super().drop_session(key, limit=limit)


class NotesNothing(Saboteur):
    """Nobody will find the artifacts of dropped sessions."""

    caught_by = ("test_drop_removes_a_session", "test_dropped_sessions_are_settled")

    async def drop_session(self, key, **which):
        dropped = await super().drop_session(key, **which)
        self._dropped.clear()
        return dropped


class ErasesHalf(Saboteur):
    """What was spent survives its user."""

    caught_by = ("test_erasing_leaves_nothing_of_a_user",)

    async def erase_user(self, app_name, user_id):
        ledger, self._ledger = self._ledger, inmemory.RamLedger()
        await super().erase_user(app_name, user_id)
        self._ledger = ledger


SABOTEURS = Saboteur.__subclasses__()


@pytest.mark.parametrize("saboteur", SABOTEURS)
def test_every_saboteur_is_found_out(saboteur):
    assert saboteur.caught_by
    for case in saboteur.caught_by:
        assert [f for f in outcomes(RetentionConformance, saboteur, [case]).values() if f is not None], f"{case} lets it pass"


def test_a_healthy_store_passes_every_case():
    found = outcomes(RetentionConformance, InMemorySessionService, cases(RetentionConformance))
    assert {name: failure for name, failure in found.items() if failure is not None} == {}
    assert len(found) > 45
