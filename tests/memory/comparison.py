"""Random calls to a memory service and to the one in memory, and whether the two are the same afterwards."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.testing.memory_conformance import APP, everything, said

USERS = ("alice", "bob")
SESSIONS = ("s", "t")

WORDS = st.lists(st.sampled_from(["tea", "red", "lamps", "Cats", "the", "of"]), max_size=6).map(" ".join)
_TIMES = st.sampled_from([1.0, 2.0, 2.5])
_ENTRIES = st.lists(
    st.builds(
        lambda id, text, timestamp, author, session_id, kind: Memory(
            text or "tea", id=id, timestamp=timestamp, author=author, session_id=session_id, metadata={"kind": kind}
        ),
        st.sampled_from("1234"),
        WORDS,
        _TIMES,
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, *SESSIONS]),
        st.sampled_from([1, True, "1"]),
    ),
    max_size=6,
)
_EVENTS = st.lists(
    st.builds(
        lambda id, text, timestamp, superseded: said(id, text, timestamp=timestamp).evolve(superseded=superseded),
        st.sampled_from("1234"),
        WORDS,
        _TIMES,
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda event: event.id,
)
_CALL = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(USERS), _ENTRIES),
    st.tuples(st.sampled_from(["add_session", "add_events"]), st.sampled_from(USERS), st.sampled_from(SESSIONS), _EVENTS),
    st.tuples(
        st.just("forget"),
        st.sampled_from(USERS),
        st.sampled_from([None, *SESSIONS]),
        st.none() | st.lists(st.sampled_from("12345"), max_size=3),
    ),
)
CALLS = st.lists(_CALL, max_size=8)
QUERIES = st.lists(
    st.tuples(
        WORDS,
        st.integers(1, 8),
        st.none()
        | st.builds(
            lambda author, session_id, since, metadata: MemoryFilter(
                author=author, session_id=session_id, since=since, metadata=metadata
            ),
            st.sampled_from([None, "a", "user"]),
            st.sampled_from([None, "s"]),
            st.sampled_from([None, 2.0]),
            st.sampled_from([{}, {"kind": 1}, {"kind": True}]),
        ),
    ),
    max_size=3,
)


async def exactly(service, user, query, limit, filter):
    """What is found."""
    return await service.search(APP, user, query, limit=limit, filter=filter)


async def nearly(service, user, query, limit, filter):
    """What is found, where the parts of a score are added up in another order."""
    found = await exactly(service, user, query, limit, filter)
    return [entry.model_copy(update={"score": round(entry.score, 9)}) for entry in found]


async def which(service, user, query, limit, filter):
    """All that is found, where scores are others."""
    return {entry.id: entry.text for entry in await exactly(service, user, query, 100, filter)}


async def compare(service, calls, queries, found_by=exactly) -> None:
    """Makes the calls to the service and to one in memory, and fails if the two differ after any of them.

    Args:
        service: Has nothing of the users.
        calls: What is called.
        queries: What is searched for after each call.
        found_by: What of a search has to be the same.
    """
    ram = InMemoryMemoryService()
    for name, *arguments in calls:
        for one in (service, ram):
            if name == "forget":
                user, session_id, ids = arguments
                await one.forget(APP, user, session_id=session_id, ids=ids)
            else:
                await getattr(one, name)(APP, *arguments)
        for user in USERS:
            assert await everything(service, APP, user) == await everything(ram, APP, user)
            for query in queries:
                assert await found_by(service, user, *query) == await found_by(ram, user, *query)


def compare_on_one(open_service, found_by, *, max_examples) -> None:
    """Makes comparisons of drawn calls on one service, which is opened by a coroutine function and empty at first."""
    with asyncio.Runner() as runner:
        service = runner.run(open_service())

        async def compare_anew(calls, queries):
            for user in USERS:
                await service.forget(APP, user)
            await compare(service, calls, queries, found_by)

        @settings(max_examples=max_examples)
        @given(CALLS, QUERIES)
        def compared(calls, queries):
            runner.run(compare_anew(calls, queries))

        try:
            compared()
        finally:
            runner.run(service.close())
