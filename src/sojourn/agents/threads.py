"""Where plain functions run: threads that never keep the process from exiting."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

IDLE_SECONDS = 10.0
"""How long an idle thread waits for more work before it ends."""


class DaemonExecutor(Executor):
    """Runs each call at once, in an idle thread or a new one.

    There is no upper bound of its own: the Runner's limits decide how many calls there are. A call that never returns
    costs its thread, and nobody else has to wait for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: deque[_Worker] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Starts the call; see `concurrent.futures.Executor.submit`."""
        future: Future[T] = Future()
        job = (future, fn, args, kwargs)
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            if worker is not None:
                worker.job = job
                worker.wake.set()
        if worker is None:
            worker = _Worker(self, job)
            threading.Thread(target=worker.run, name="sojourn-agent", daemon=True).start()
        return future

    def rest(self, worker: _Worker) -> bool:
        """Offers an idle worker; returns whether it got work before it grew tired."""
        worker.wake.clear()
        with self._lock:
            self._idle.append(worker)
        if worker.wake.wait(IDLE_SECONDS):
            return True
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                return False
        return True


class _Worker:
    def __init__(self, pool: DaemonExecutor, job: Any) -> None:
        self.pool = pool
        self.job = job
        self.wake = threading.Event()

    def run(self) -> None:
        while True:
            future, fn, args, kwargs = self.job
            self.job = None
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
            del future, fn, args, kwargs
            if not self.pool.rest(self):
                return


_EXECUTOR = DaemonExecutor()

_calls: contextvars.ContextVar[set[asyncio.Future[None]] | None] = contextvars.ContextVar("sojourn_thread_calls", default=None)


def track_calls() -> set[asyncio.Future[None]]:
    """Starts to keep account of the calls that the running context makes.

    Returns:
        A set that holds a future for each call whose thread has not come back; kept up to date.
    """
    calls: set[asyncio.Future[None]] = set()
    _calls.set(calls)
    return calls


def in_thread(fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Runs a plain function in a thread, with a copy of the caller's context variables.

    Returns:
        A future. Cancelling it does not stop the thread: nothing can.
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    calls = _calls.get()
    back: asyncio.Future[None] = loop.create_future()
    if calls is not None:
        calls.add(back)
        back.add_done_callback(calls.discard)

    claims = itertools.count()

    def call() -> T:
        if next(claims):
            raise asyncio.CancelledError  # Cancelled before this thread got to it; whoever cancelled it was first.
        try:
            return context.run(fn, *args)
        except StopIteration as error:
            # A future cannot hold it: whoever awaits would wait for ever.
            raise RuntimeError("a plain function raised StopIteration") from error
        finally:
            try:
                loop.call_soon_threadsafe(_done, back)
            except RuntimeError:
                pass  # The loop was closed while the thread ran; nobody is left to tell.

    future = loop.run_in_executor(_EXECUTOR, call)
    future.add_done_callback(lambda done: _done(back) if done.cancelled() and not next(claims) else None)
    return future


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
