"""Virtual time and seeded order: an event loop for tests that owns the clock and decides what runs next.

    def test_answers_before_the_timeout():
        assert simulate(scenario, seed=7) == "done"

    @for_seeds(50)
    async def test_answers_in_every_order():
        ...

**Time** stands still while anything can run, and jumps to the next timer when nothing can: `sleep(3600)` takes none.

**Order** is drawn from the seed, one callback at a time. What asyncio leaves open is shuffled:

- the step of each task that can go on is a choice of its own, so tasks overtake each other, also at their first step;
- timers that are due at the same time are choices of their own;
- work given to `run_in_executor` (`asyncio.to_thread` included) is a choice of its own. It runs inside the loop, in one
  piece, at a moment of the seed's choosing; cancelled before that moment, it does not run.

Everything else (callbacks of futures, `call_soon`) runs in the order in which it was scheduled, because protocols are
built on that. Cancellation, timeouts, locks and task groups are asyncio's own.

**Threads** have no place in a simulation: `call_soon_threadsafe` from another thread raises in that thread and ends the
simulation with the same error. From the loop's own thread it is `call_soon`. A function in the "executor" that blocks
until the loop does something blocks for ever.

**Sockets, subprocesses and signals** raise `NotImplementedError`.

**Stuck** is a failure, not a hang: nothing ready and no timer, time going on beyond a limit, or work without end at one
moment raise `Stuck`, which names every waiting task and where it waits.

The same seed gives the same run as long as the code does not draw on anything else: `sojourn.platform` is the loop's while it
runs, and the cyclic garbage collector rests. The order of a set of objects, for example, follows their addresses.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import heapq
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sojourn import platform

P = ParamSpec("P")
T = TypeVar("T")

EPOCH = 1_767_225_600.0
"""`platform.now()` at the start of a simulation: 2026-01-01T00:00:00Z."""

DAY = 86_400.0

MAX_STEPS_AT_ONE_MOMENT = 1_000_000
"""Callbacks without any passing of time after which a simulation counts as stuck."""

ONLY_SEED = "SOJOURN_SIM_SEED"
"""Environment variable: `for_seeds` runs this seed alone."""

SEED_COUNT = "SOJOURN_SIM_SEEDS"
"""Environment variable: `for_seeds` runs at least this many seeds."""


class Stuck(Exception):
    """A simulation that cannot end; the message lists the tasks that wait and where."""


class SimLoop(asyncio.BaseEventLoop):
    """An event loop with virtual time and seeded order; see the module's text.

    Args:
        seed: Decides the order.
        time_limit: Virtual seconds after which the simulation counts as stuck.
    """

    def __init__(self, seed: int, *, time_limit: float = DAY) -> None:
        super().__init__()
        self._time = 0.0
        self._time_limit = time_limit
        self._choose = random.Random(f"{seed}/order").randrange
        self._choices: list[asyncio.Handle] = []
        self._in_order: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_no = 0
        self._task_no = 0
        self._steps = 0
        self._owner = threading.get_ident()
        self._foreign: RuntimeError | None = None
        self.unhandled: list[BaseException] = []
        self.set_exception_handler(_keep_unhandled)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._time

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str | None = None, **options: Any) -> asyncio.Task[T]:  # type: ignore[override]
        """As on every loop; a task without a name is called by its number in this simulation, which repeats with the seed."""
        self._task_no += 1
        return super().create_task(coro, name=name or f"sim-{self._task_no}", **options)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Schedules a callback: a task's step among the choices, any other behind those scheduled before it."""
        self._refuse_if_closed()
        handle = asyncio.Handle(callback, args, self, context)
        if isinstance(getattr(callback, "__self__", None), asyncio.Task):
            self._choices.append(handle)
        else:
            self._in_order.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedules a callback at a virtual time."""
        self._refuse_if_closed()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_no += 1
        heapq.heappush(self._timers, (when, self._timer_no, timer))
        return timer

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """`call_soon` for the loop's own thread; an error for any other, here and in the simulation."""
        if threading.get_ident() != self._owner:
            self._foreign = RuntimeError(
                f"the thread {threading.current_thread().name!r} called into a simulation; its order cannot be owned. "
                "Use run_in_executor, or a part without threads"
            )
            raise self._foreign
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Runs a blocking function inside the loop, at a moment that the seed decides; the executor is not used."""
        self._refuse_if_closed()
        future: asyncio.Future[T] = self.create_future()
        # An executor's threads do not see the caller's context variables.
        self._choices.append(asyncio.Handle(_call_blocking, (future, func, args), self, contextvars.Context()))
        return future

    def _run_once(self) -> None:
        # The one hook of BaseEventLoop that a loop fills in; run_forever calls it until it is stopped.
        if self._foreign is not None:
            foreign, self._foreign = self._foreign, None
            raise foreign
        if not (self._choices or self._in_order):
            if self._stopping:  # type: ignore[attr-defined]
                return
            self._advance()
        self._steps += 1
        if self._steps > MAX_STEPS_AT_ONE_MOMENT:
            self._steps = 0
            raise self._stuck(f"busy: {MAX_STEPS_AT_ONE_MOMENT:,} callbacks at {self._time} s without any passing of time")
        handle = self._next()
        if not handle.cancelled():
            handle._run()

    def _next(self) -> asyncio.Handle:
        choices = self._choices
        index = self._choose(len(choices) + len(self._in_order))
        if index >= len(choices):
            return self._in_order.popleft()
        choices[index], choices[-1] = choices[-1], choices[index]
        return choices.pop()

    def _advance(self) -> None:
        """Moves time to the next timer, and all timers of that time among the choices."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise self._stuck(f"nothing is ready and no timer is set at {self._time} s")
        if timers[0][0] > self._time_limit:
            raise self._stuck(f"still not done after {self._time_limit} virtual seconds")
        if timers[0][0] > self._time:
            self._time = timers[0][0]
            self._steps = 0
        while timers and timers[0][0] <= self._time:
            self._choices.append(heapq.heappop(timers)[2])

    def _refuse_if_closed(self) -> None:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")

    def _stuck(self, reason: str) -> Stuck:
        return Stuck("\n".join([reason, *(f"  {task.get_name()}: {_where(task)}" for task in _tasks(self))]))


def _keep_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimLoop)
    loop.unhandled.append(context.get("exception") or RuntimeError(context["message"]))


def _call_blocking(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _where(task: asyncio.Task[Any]) -> str:
    """The innermost line that a suspended task waits in."""
    awaited: Any = task.get_coro()
    place = repr(awaited)
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        awaited = (
            getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None) or getattr(awaited, "gi_yieldfrom", None)
        )
    return place


class SimPlatform(platform.Platform):
    """Clock, ids and randomness of a simulation: time is the loop's, chance is the seed's.

    Args:
        loop: Whose time it is.
        seed: Decides ids and randomness.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self._loop = loop
        self._random = random.Random(f"{seed}/platform")

    def now(self) -> float:
        """`EPOCH` plus the virtual time."""
        return EPOCH + self._loop.time()

    def monotonic(self) -> float:
        """The virtual time."""
        return self._loop.time()

    def random(self) -> float:
        """The seed's next number in [0, 1)."""
        return self._random.random()

    def random_bytes(self, n: int) -> bytes:
        """The seed's next `n` bytes."""
        return self._random.randbytes(n)


def simulate(main: Callable[[], Coroutine[Any, Any, T]], *, seed: int, time_limit: float = DAY) -> T:
    """Runs `main()` to its end on a loop of its own, under the seed's order and virtual time.

    Like `asyncio.run`, it cancels the tasks that are left and closes async generators. Call it where no loop runs: from a
    plain test function, not from an async one.

    Args:
        main: An async function without arguments.
        seed: Decides order, ids and randomness.
        time_limit: Virtual seconds after which the simulation counts as stuck.

    Returns:
        What `main()` returned.

    Raises:
        Stuck: `main` waits for something that cannot happen.
        ExceptionGroup: `main` returned, but a callback failed, or a task failed and nobody looked at it.
        BaseException: Whatever `main` raised.
    """
    loop = SimLoop(seed, time_limit=time_limit)
    with _gc_at_rest(), platform.use(SimPlatform(loop, seed)):
        try:
            result = loop.run_until_complete(main())
        finally:
            _wind_up(loop)
    if loop.unhandled:
        raise BaseExceptionGroup("errors that nobody handled in the simulation", loop.unhandled)
    return result


def _wind_up(loop: SimLoop) -> None:
    try:
        for task in _tasks(loop):
            task.cancel()
        _await_leftovers(loop)
        # Lost tasks and generators speak up when they are collected: everything since the start is in this generation.
        gc.collect(0)
        # Callbacks run in order: after one more, what the finalizers of generators scheduled are tasks.
        loop.run_until_complete(asyncio.sleep(0))
        _await_leftovers(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
    except Stuck as stuck:
        loop.unhandled.append(stuck)
    finally:
        loop.close()


def _await_leftovers(loop: SimLoop) -> None:
    left = _tasks(loop)
    if not left:
        return
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    for task in left:
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.unhandled.append(error)


def _tasks(loop: SimLoop) -> list[asyncio.Task[Any]]:
    return sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)


@contextmanager
def _gc_at_rest() -> Iterator[None]:
    # The collector runs when counters say so that depend on everything before; it would finalize generators at moments
    # that the seed does not know.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def for_seeds(
    count: int, *, time_limit: float = DAY
) -> Callable[[Callable[P, Coroutine[Any, Any, object]]], Callable[P, None]]:
    """Turns an async test into a plain one that simulates it under the seeds 0 to `count - 1`.

    A failure carries a note with its seed. With `SOJOURN_SIM_SEED=17` in the environment, only that seed runs; with
    `SOJOURN_SIM_SEEDS=5000`, at least so many do. Plain pytest fixtures and parameters work; async ones belong to another loop.

    Args:
        count: How many seeds.
        time_limit: As for `simulate`.
    """

    def decorate(test: Callable[P, Coroutine[Any, Any, object]]) -> Callable[P, None]:
        @functools.wraps(test)
        def under_all_seeds(*args: P.args, **kwargs: P.kwargs) -> None:
            for seed in _seeds(count):
                try:
                    simulate(functools.partial(test, *args, **kwargs), seed=seed, time_limit=time_limit)
                except BaseException as error:
                    error.add_note(f"simulated with seed {seed}; run it alone with {ONLY_SEED}={seed}")
                    raise

        return under_all_seeds

    return decorate


def _seeds(count: int) -> range:
    only = os.environ.get(ONLY_SEED)
    if only is not None:
        return range(int(only), int(only) + 1)
    return range(max(count, int(os.environ.get(SEED_COUNT, "0"))))
