"""A store that fails on demand: before or after it has written, or only when the test lets it go on.

store = FaultyStore(inner, [fail_after("append", 2)])     # the second append is written, and its reply is lost
store.plan.append(fail_before("begin"))                   # from here on, each begin fails and writes nothing
held = hold("answer")
store.plan.append(held)
...
await held.reached.wait()                                 # an answer has arrived and waits
held.go.set()                                             # it goes on
assert store.calls["append"] == 2
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sojourn.data.services import RetainingStore
from sojourn.errors import Unavailable
from sojourn.event import Event
from sojourn.page import Page
from sojourn.run.retention import BATCH, Dropped, DroppedSession, SessionSize, Trimmed
from sojourn.run.status import Move
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Store, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.run.usage import UserUsage
from sojourn.session.types import History, Session, SessionKey

T = TypeVar("T")

ANY = "*"
"""In place of a method's name: every method but `close`."""


@dataclass(slots=True, eq=False)
class Fault:
    """What happens to some calls of a store; made by `fail_before`, `fail_after` and `hold`.

    Attributes:
        kind: `fail` or `hold`.
        method: The method's name, or `ANY`.
        calls: Which calls, counted from 1 per method since the store was made; empty for each.
        after: Whether it strikes after the store has written, instead of before.
        reached: Set when it has struck.
        go: A held call waits for this.
    """

    kind: Literal["fail", "hold"]
    method: str
    calls: frozenset[int]
    after: bool
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, method: str, call: int, *, after: bool) -> bool:
        """Whether it strikes at this moment of the `call`-th call of `method`."""
        return (
            self.after is after
            and (self.method == method or (self.method == ANY and method != "close"))
            and (not self.calls or call in self.calls)
        )

    async def strike(self, method: str) -> None:
        """Fails, or waits to be let go.

        Raises:
            Unavailable: `store.unavailable`.
        """
        self.reached.set()
        if self.kind == "hold":
            await self.go.wait()
        else:
            moment = "after" if self.after else "before"
            raise Unavailable(f"the store failed on demand, {moment} {method}; try again")


def fail_before(method: str = ANY, *calls: int) -> Fault:
    """`Unavailable`, and nothing is written.

    Args:
        method: The method's name; each if omitted.
        calls: Which calls of it, counted from 1; each if omitted.
    """
    return Fault("fail", method, frozenset(calls), after=False)


def fail_after(method: str = ANY, *calls: int) -> Fault:
    """A lost reply: all is written, and the caller gets `Unavailable`; takes what `fail_before` takes."""
    return Fault("fail", method, frozenset(calls), after=True)


def hold(method: str = ANY, *calls: int, after: bool = False, until: asyncio.Event | None = None) -> Fault:
    """Keeps a call waiting.

    Args:
        method: The method's name; each if omitted.
        calls: Which calls of it, counted from 1; each if omitted.
        after: Whether to keep the reply back instead of the call.
        until: Set it to let the calls go on; the fault's own `go` if omitted.
    """
    return Fault("hold", method, frozenset(calls), after=after, go=until or asyncio.Event())


class FaultyStore:
    """A store that passes all calls on to another one, as long as nothing in its plan strikes.

    It does not support retention, whatever the other one does: see `FaultyRetainingStore`.

    Args:
        inner: The store that does the work.
        plan: What strikes, in this order. The list is read at each call: add to `plan` and take away from it at will.

    Attributes:
        calls: How often each method was called, those that failed included.
    """

    def __init__(self, inner: Store, plan: Iterable[Fault] = ()) -> None:
        self.inner = inner
        self.plan: list[Fault] = list(plan)
        self.calls: Counter[str] = Counter()

    @property
    def shared(self) -> bool:
        """As the other store's."""
        return self.inner.shared

    async def _call(self, method: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls[method] += 1
        call = self.calls[method]
        await self._strike(method, call, after=False)
        result = await work()
        await self._strike(method, call, after=True)
        return result

    async def _strike(self, method: str, call: int, *, after: bool) -> None:
        for fault in list(self.plan):
            if fault.strikes(method, call, after=after):
                await fault.strike(method)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        """As `SessionService.create_session`."""
        return await self._call(
            "create_session",
            lambda: self.inner.create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state),
        )

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        """As `SessionService.get_session`."""
        return await self._call(
            "get_session",
            lambda: self.inner.get_session(app_name=app_name, user_id=user_id, session_id=session_id, events=events),
        )

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        """As `SessionService.list_sessions`."""
        return await self._call(
            "list_sessions",
            lambda: self.inner.list_sessions(app_name=app_name, user_id=user_id, limit=limit, after=after),
        )

    async def list_apps(self) -> list[str]:
        """As `SessionService.list_apps`."""
        return await self._call("list_apps", self.inner.list_apps)

    async def patch_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:
        """As `SessionService.patch_session`."""
        return await self._call(
            "patch_session",
            lambda: self.inner.patch_session(
                app_name=app_name,
                user_id=user_id,
                session_id=session_id,
                state_delta=state_delta,
                state_deleted=state_deleted,
            ),
        )

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        """As `SessionService.delete_session`."""
        return await self._call(
            "delete_session", lambda: self.inner.delete_session(app_name=app_name, user_id=user_id, session_id=session_id)
        )

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        """As `SessionService.list_events`."""
        return await self._call(
            "list_events",
            lambda: self.inner.list_events(
                app_name=app_name, user_id=user_id, session_id=session_id, after=after, limit=limit, superseded=superseded
            ),
        )

    async def history(self, key: SessionKey, limit: int | None) -> History:
        """As `SessionService.history`."""
        return await self._call("history", lambda: self.inner.history(key, limit))

    # -- runs -------------------------------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        """As `RunStore.submit`."""
        return await self._call("submit", lambda: self.inner.submit(run, begin=begin))

    async def begin(self, run_uid: int) -> Begun:
        """As `RunStore.begin`."""
        return await self._call("begin", lambda: self.inner.begin(run_uid))

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        """As `RunStore.append`."""
        return await self._call("append", lambda: self.inner.append(fence, batch))

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        """As `RunStore.take_over`."""
        return await self._call("take_over", lambda: self.inner.take_over(run_uid, error, move=move))

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        """As `RunStore.request_cancel`."""
        return await self._call("request_cancel", lambda: self.inner.request_cancel(run_uid, reason))

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        """As `RunStore.close_run`."""
        return await self._call("close_run", lambda: self.inner.close_run(run_uid, error, move=move))

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        """As `RunStore.answer`."""
        return await self._call("answer", lambda: self.inner.answer(run_uid, interrupt_id, answer, event))

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        """As `RunStore.get_run`."""
        return await self._call("get_run", lambda: self.inner.get_run(app_name, run_id, user_id))

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        """As `RunStore.list_runs`."""
        return await self._call("list_runs", lambda: self.inner.list_runs(query, limit=limit, after=after))

    async def list_interrupts(
        self,
        app_name: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        run_uid: int | None = None,
        open_only: bool = True,
    ) -> list[Interrupt]:
        """As `RunStore.list_interrupts`."""
        return await self._call(
            "list_interrupts",
            lambda: self.inner.list_interrupts(
                app_name, user_id=user_id, session_id=session_id, run_uid=run_uid, open_only=open_only
            ),
        )

    async def list_steps(self, run_uid: int) -> list[Step]:
        """As `RunStore.list_steps`."""
        return await self._call("list_steps", lambda: self.inner.list_steps(run_uid))

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        """As `RunStore.run_events`."""
        return await self._call("run_events", lambda: self.inner.run_events(run_uid, after=after, limit=limit))

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        """As `RunStore.user_usage`."""
        return await self._call("user_usage", lambda: self.inner.user_usage(app_name, user_id, since))

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        """As `RunStore.unfinished`."""
        return await self._call("unfinished", lambda: self.inner.unfinished(app_name))

    async def requeue_lost(self, run_uid: int, *, ends: Callable[[RunRecord], bool] | None = None) -> RunRecord:
        """As `RunStore.requeue_lost`."""
        return await self._call("requeue_lost", lambda: self.inner.requeue_lost(run_uid, ends=ends))

    async def become_executor(self) -> None:
        """As `RunStore.become_executor`."""
        await self._call("become_executor", self.inner.become_executor)

    async def changes(self) -> list[Change]:
        """As `RunStore.changes`."""
        return await self._call("changes", self.inner.changes)

    async def close(self) -> None:
        """As `RunStore.close`."""
        await self._call("close", self.inner.close)


class FaultyRetainingStore(FaultyStore):
    """The same for a store that supports retention: what strikes also strikes the care of data.

    Args:
        inner: The store that does the work.
        plan: What strikes, as for `FaultyStore`.
    """

    inner: RetainingStore

    def __init__(self, inner: RetainingStore, plan: Iterable[Fault] = ()) -> None:
        super().__init__(inner, plan)

    async def trim_session(
        self, key: SessionKey, *, keep_events: int | None = None, ended_before: float | None = None, limit: int = BATCH
    ) -> Trimmed:
        """As `SupportsRetention.trim_session`."""
        return await self._call(
            "trim_session",
            lambda: self.inner.trim_session(key, keep_events=keep_events, ended_before=ended_before, limit=limit),
        )

    async def drop_session(self, key: SessionKey, *, idle_since: float | None = None, limit: int = BATCH) -> Dropped:
        """As `SupportsRetention.drop_session`."""
        return await self._call("drop_session", lambda: self.inner.drop_session(key, idle_since=idle_since, limit=limit))

    async def dropped_sessions(self, app_name: str, *, user_id: str | None = None, limit: int = 100) -> list[DroppedSession]:
        """As `SupportsRetention.dropped_sessions`."""
        return await self._call("dropped_sessions", lambda: self.inner.dropped_sessions(app_name, user_id=user_id, limit=limit))

    async def settle_dropped(self, uid: str) -> None:
        """As `SupportsRetention.settle_dropped`."""
        await self._call("settle_dropped", lambda: self.inner.settle_dropped(uid))

    async def session_sizes(
        self, app_name: str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[SessionSize]:
        """As `SupportsRetention.session_sizes`."""
        return await self._call(
            "session_sizes",
            lambda: self.inner.session_sizes(app_name, user_id=user_id, limit=limit, after=after),
        )

    async def apps_of_user(self, user_id: str) -> list[str]:
        """As `SupportsRetention.apps_of_user`."""
        return await self._call("apps_of_user", lambda: self.inner.apps_of_user(user_id))

    async def user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """As `SupportsRetention.user_state`."""
        return await self._call("user_state", lambda: self.inner.user_state(app_name, user_id))

    async def erase_user(self, app_name: str, user_id: str) -> None:
        """As `SupportsRetention.erase_user`."""
        await self._call("erase_user", lambda: self.inner.erase_user(app_name, user_id))

    async def scrub(self) -> None:
        """As `SupportsRetention.scrub`."""
        await self._call("scrub", self.inner.scrub)
