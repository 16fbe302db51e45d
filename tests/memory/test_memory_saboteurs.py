"""Services that are broken on purpose: the suite must reject each of them."""

import asyncio

import pytest

from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.rules import marks_of, meets
from sojourn.memory.types import Memory
from sojourn.page import Page
from sojourn.testing.memory_conformance import MemoryServiceConformance

pytestmark = pytest.mark.anyio


class IsBoundToOneUser(InMemoryMemoryService):
    """All share one memory, as adk-rust's do when it is bound at the start of the process."""

    async def add(self, app_name, user_id, entries):
        return await super().add(app_name, "everybody", entries)

    async def search(self, app_name, user_id, query, **options):
        return await super().search(app_name, "everybody", query, **options)

    async def list_memories(self, app_name, user_id, **options):
        return await super().list_memories(app_name, "everybody", **options)


class IgnoresTheApp(InMemoryMemoryService):
    async def search(self, app_name, user_id, query, **options):
        found = []
        for app, user in self._users:
            if user == user_id:
                found += await super().search(app, user, query, **options)
        return found


class AddsTwice(InMemoryMemoryService):
    async def add_session(self, app_name, user_id, session_id, events):
        await super().add_session(app_name, user_id, session_id, events)
        user = self._users[app_name, user_id]
        user.from_events.clear()
        for entry in list(user.entries.values()):
            user.put(entry.model_copy(update={"id": f"{entry.id} {len(user.entries)}"}), from_events=False)


class RemovesFirst(InMemoryMemoryService):
    async def add_session(self, app_name, user_id, session_id, events):
        await super().add_session(app_name, user_id, session_id, [])
        await asyncio.sleep(0)
        await super().add_session(app_name, user_id, session_id, events)


class ReplacesWhatWasAddedByHand(InMemoryMemoryService):
    async def add_session(self, app_name, user_id, session_id, events):
        await self.forget(app_name, user_id, session_id=session_id)
        await super().add_session(app_name, user_id, session_id, events)


class TakesEventsForAll(InMemoryMemoryService):
    async def add_events(self, app_name, user_id, session_id, events):
        await super().add_session(app_name, user_id, session_id, events)


class OnlyAdds(InMemoryMemoryService):
    async def add_events(self, app_name, user_id, session_id, events):
        counting = [event for event in events if not (event.superseded or event.partial or event.content is None)]
        await super().add_events(app_name, user_id, session_id, counting)


class RemovesByEventAlone(InMemoryMemoryService):
    """Takes an event that counts no more out of all sessions."""

    async def add_events(self, app_name, user_id, session_id, events):
        for known in list(self._users[app_name, user_id].by_session):
            await super().add_events(app_name, user_id, known, [event for event in events if event.superseded])
        await super().add_events(app_name, user_id, session_id, events)


class AddsEventsAsTheirOwn(InMemoryMemoryService):
    """What `add_events` makes is not what `add_session` makes of the same event."""

    async def add_events(self, app_name, user_id, session_id, events):
        await super().add_events(app_name, user_id, session_id, [e.evolve(id=f"event {e.id}" if e.id else "") for e in events])


class NumbersWhatHasNoId(InMemoryMemoryService):
    async def add_events(self, app_name, user_id, session_id, events):
        numbered = [event.evolve(id=event.id or f"#{n}") for n, event in enumerate(events)]
        await super().add_events(app_name, user_id, session_id, numbered)


class WorstFirst(InMemoryMemoryService):
    async def search(self, app_name, user_id, query, **options):
        return (await super().search(app_name, user_id, query, **options))[::-1]


class IgnoresTheLimit(InMemoryMemoryService):
    async def search(self, app_name, user_id, query, *, limit=5, **options):
        return await super().search(app_name, user_id, query, limit=1000, **options)


class IgnoresTheScore(InMemoryMemoryService):
    async def search(self, app_name, user_id, query, *, min_score=None, **options):
        return await super().search(app_name, user_id, query, **options)


class FiltersWhatItHasFound(InMemoryMemoryService):
    """The filter is applied to the best entries, so that it may leave fewer than there are."""

    async def search(self, app_name, user_id, query, *, filter=None, **options):
        found = await super().search(app_name, user_id, query, **options)
        return [entry for entry in found if filter is None or meets(entry, filter, marks_of(filter.metadata))]


class ScoresWhatItHasFiltered(InMemoryMemoryService):
    """What does not meet the filter is no part of the statistics."""

    async def search(self, app_name, user_id, query, *, filter=None, **options):
        found = await super().search(app_name, user_id, query, filter=filter, **options)
        best = found[0].score if found and filter else 1
        return [entry.model_copy(update={"score": entry.score / best}) for entry in found]


class SharesItsValues(InMemoryMemoryService):
    async def list_memories(self, app_name, user_id, **options):
        page = await super().list_memories(app_name, user_id, **options)
        user = self._users[app_name, user_id]
        return Page([user.entries[entry.id] for entry in page.items], page.next)


class TakesNoIdsForAll(InMemoryMemoryService):
    async def forget(self, app_name, user_id, *, session_id=None, ids=None):
        await super().forget(app_name, user_id, session_id=session_id, ids=ids or None)


class ForgetsOnlySessions(InMemoryMemoryService):
    async def forget(self, app_name, user_id, *, session_id=None, ids=None):
        if session_id is None and ids is None:
            for known in list(self._users[app_name, user_id].by_session):
                await super().forget(app_name, user_id, session_id=known)
        else:
            await super().forget(app_name, user_id, session_id=session_id, ids=ids)


class PagesByNumber(InMemoryMemoryService):
    async def list_memories(self, app_name, user_id, *, limit=100, after=None):
        start = int(after or 0)
        page = await super().list_memories(app_name, user_id, limit=1000)
        return Page(page.items[start : start + limit], str(start + limit) if len(page.items) > start + limit else None)


class AddsUpToTheFirstBadOne(InMemoryMemoryService):
    async def add(self, app_name, user_id, entries):
        stored = []
        for entry in entries:
            stored += await super().add(app_name, user_id, [entry])
        return stored


SABOTEURS = [
    (IsBoundToOneUser, "test_nobody_elses_entries_are_found_or_listed"),
    (IgnoresTheApp, "test_nobody_elses_entries_are_found_or_listed"),
    (AddsTwice, "test_adding_a_session_twice_adds_it_once"),
    (RemovesFirst, "test_what_is_in_both_sets_is_never_missing"),
    (ReplacesWhatWasAddedByHand, "test_what_was_added_by_hand_stays_when_its_session_is_added"),
    (TakesEventsForAll, "test_events_are_added_beside_the_others_of_their_session"),
    (TakesEventsForAll, "test_concurrent_adds_are_all_there"),
    (OnlyAdds, "test_what_was_added_of_an_event_that_counts_no_more_is_removed"),
    (RemovesByEventAlone, "test_what_was_added_of_an_event_that_counts_no_more_is_removed"),
    (AddsEventsAsTheirOwn, "test_an_event_is_one_entry_however_it_was_added"),
    (NumbersWhatHasNoId, "test_events_with_one_that_has_no_id_are_refused"),
    (WorstFirst, "test_more_shared_words_are_a_better_match"),
    (WorstFirst, "test_scores_are_from_0_to_1_and_fall"),
    (WorstFirst, "test_equally_good_ones_come_newest_first_then_by_id"),
    (IgnoresTheLimit, "test_limit"),
    (IgnoresTheScore, "test_min_score"),
    (FiltersWhatItHasFound, "test_what_does_not_meet_a_filter_does_not_count_for_the_limit"),
    (ScoresWhatItHasFiltered, "test_a_filter_changes_no_score"),
    (SharesItsValues, "test_what_goes_in_and_out_is_a_copy"),
    (TakesNoIdsForAll, "test_forgetting_no_ids_forgets_nothing"),
    (ForgetsOnlySessions, "test_forgetting_a_user_removes_everything"),
    (PagesByNumber, "test_a_listing_goes_on_where_it_was"),
]


@pytest.mark.parametrize(("saboteur", "case"), SABOTEURS, ids=lambda value: getattr(value, "__name__", value))
async def test_the_suite_rejects(saboteur, case):
    suite = MemoryServiceConformance()
    await getattr(suite, case)(InMemoryMemoryService())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(suite, case)(saboteur())


async def test_the_suite_rejects_half_an_addition():
    bad = Memory("")
    case = MemoryServiceConformance().test_of_entries_with_a_bad_one_none_is_added
    await case(InMemoryMemoryService(), bad, "memory.empty")
    with pytest.raises(AssertionError):
        await case(AddsUpToTheFirstBadOne(), bad, "memory.empty")
