"""Everything that a store holds, read through its public methods: what two stores, or two moments, are compared by."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from sojourn.event import Event
from sojourn.run.store import Store
from sojourn.run.types import Interrupt, RunQuery, RunRecord
from sojourn.session.types import Session

World = dict[str, Any]

_PAGE = 1000
_WINDOWS = (0, 1, 3, None)


async def read_world(store: Store, app_names: Iterable[str]) -> World:
    """Reads sessions, state, events, windows, runs, steps, interrupts and what the users have spent, of some apps.

    Keys that a store makes for itself (`uid`s) are left out, so that the worlds of two stores can be equal.
    """
    return {app_name: await _read_app(store, app_name) for app_name in app_names}


def assert_same_world(world: World, expected: World, *, but: Container[str] = ()) -> None:
    """Raises `AssertionError` that names every place where two worlds differ.

    Args:
        world: What is.
        expected: What is to be.
        but: Names of fields that may differ.
    """
    found = list(_differences(world, expected, "world", but))
    if found:
        raise AssertionError("\n".join(["the store holds something else than expected:", *found[:20]]))


def _differences(a: Any, b: Any, where: str, but: Container[str]) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in [*a, *(n for n in b if n not in a)]:
            if name not in but:
                yield from _differences(a.get(name, _ABSENT), b.get(name, _ABSENT), f"{where}[{name!r}]", but)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{where}[{n}]", but)
    elif type(a) is not type(b) or a != b:
        # Python takes True, 1 and 1.0 for equal; as JSON they are three values.
        yield f"{where} is {a!r}, expected {b!r}"


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


async def all_sessions(store: Store, app_name: str, user_id: str | None = None, *, limit: int = _PAGE) -> list[Session]:
    """All pages of `list_sessions`."""
    found: list[Session] = []
    after = None
    while True:
        page = await store.list_sessions(app_name=app_name, user_id=user_id, limit=limit, after=after)
        found += page.items
        after = page.next
        if after is None:
            return found


async def all_runs(store: Store, query: RunQuery, *, limit: int = _PAGE) -> list[RunRecord]:
    """All pages of `list_runs`."""
    found: list[RunRecord] = []
    after = None
    while True:
        page = await store.list_runs(query, limit=limit, after=after)
        found += page.items
        after = page.next
        if after is None:
            return found


async def all_events(store: Store, session: Session) -> list[Event]:
    """All events of a session, superseded ones included."""
    found: list[Event] = []
    while True:
        page = await store.list_events(
            app_name=session.app_name,
            user_id=session.user_id,
            session_id=session.id,
            after=found[-1].seq or 0 if found else 0,
            limit=_PAGE,
            superseded=True,
        )
        found += page
        if len(page) < _PAGE:
            return found


async def _read_app(store: Store, app_name: str) -> World:
    runs = await all_runs(store, RunQuery(app_name))
    unfinished = await store.unfinished(app_name)
    interrupts = await store.list_interrupts(app_name, open_only=False)
    open_ones = await store.list_interrupts(app_name)
    sessions = await all_sessions(store, app_name)
    return {
        "sessions": [await _read_session(store, s) for s in sessions],
        "runs": [await _read_run(store, r) for r in runs],
        "unfinished": [(r.key, r.no, r.status) for r in unfinished],
        "interrupts": sorted((_interrupt(i) for i in interrupts), key=str),
        "open": sorted((i.user_id, i.run_id, i.id) for i in open_ones),
        "usage": {user: await read_usage(store, app_name, user) for user in sorted({s.user_id for s in sessions})},
    }


async def read_usage(store: Store, app_name: str, user_id: str) -> World:
    """The ledger of a user, with or without sessions."""
    usage = await store.user_usage(app_name, user_id)
    return {
        "total": usage.total.model_dump(),
        "hours": [(bucket.hour, bucket.usage.model_dump()) for bucket in usage.buckets],
    }


async def _read_session(store: Store, listed: Session) -> World:
    app, user, id_ = listed.key
    session = await store.get_session(app_name=app, user_id=user, session_id=id_, events=3)
    windows = {}
    for limit in _WINDOWS:
        history = await store.history(listed.key, limit)
        windows[str(limit)] = [e.seq for e in history.events], [e.seq for e in history.pinned]
    return {
        "listed": listed.model_dump(exclude={"uid"}),
        "session": session.model_dump(exclude={"uid"}),
        "events": [_event(e) for e in await all_events(store, listed)],
        "counting": [e.seq for e in await store.list_events(app_name=app, user_id=user, session_id=id_, limit=_PAGE)],
        "history": windows,
    }


async def _read_run(store: Store, run: RunRecord) -> World:
    events = await store.run_events(run.uid, after=run.last_pos if run.trimmed else 0, limit=_PAGE)
    record = {**asdict(run), "message": _event(run.message), "usage": {k: n for k, n in run.usage.items() if n}}
    del record["uid"], record["session_uid"]
    return {
        "record": record,
        "events": [(e.pos, e.seq, e.superseded) for e in events],
        "steps": [asdict(s) for s in await store.list_steps(run.uid)],
        "interrupts": sorted(i.id for i in await store.list_interrupts(run.app_name, run_uid=run.uid, open_only=False)),
    }


def _event(event: Event) -> World:
    return event.model_dump(mode="json")


def _interrupt(interrupt: Interrupt) -> World:
    return asdict(interrupt)
