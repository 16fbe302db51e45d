"""Tells when something blocks the event loop, and what."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback

logger = logging.getLogger("sojourn.watchdog")


PARKED_SECONDS = 60.0
"""How often a thread that has nothing to watch looks whether it is still wanted."""


class Watchdog:
    """Logs the stack of the event loop's thread when the loop has not come round for a while.

    An agent that computes, sleeps or does blocking I/O in an `async` function stops every other run of the process;
    nothing inside the loop can tell, so a thread does. It runs only while it is `watching`.

    Args:
        loop: The loop to watch.
        seconds: How long the loop may take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._thread_id = threading.get_ident()
        # A plain flag, as it changes with every run; the event is only for a thread that has parked.
        self._watching = False
        self._parked = False
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._beat = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Starts watching; twice is fine."""
        if self._watching:
            return
        self._watching = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sojourn-watchdog", daemon=True)
            self._thread.start()
        if self._parked:
            self._wanted.set()

    def rest(self) -> None:
        """Stops watching until `watch` is called again."""
        self._watching = False

    def close(self) -> None:
        """Ends the thread; twice is fine."""
        self._closed.set()
        self._wanted.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            if not self._watching:
                self._parked = True
                # Looked at again after saying so: whoever starts to watch in between has set the flag by now.
                if not self._watching:
                    self._wanted.wait(PARKED_SECONDS)
                self._parked = False
                self._wanted.clear()
                continue
            self._beat.clear()
            try:
                self._loop.call_soon_threadsafe(self._beat.set)
            except RuntimeError:
                return  # The loop is closed: nothing is left to watch.
            if not self._beat.wait(self._seconds):
                if self._watching and not self._closed.is_set():
                    self._report()
                self._beat.wait()
            self._closed.wait(self._seconds)

    def _report(self) -> None:
        frame = sys._current_frames().get(self._thread_id)
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame is not None else "(no stack)"
        logger.warning(
            "the event loop has been blocked for more than %g seconds; every run waits. Use await, or a plain function agent, "
            "which runs in a thread. It is here:\n%s",
            self._seconds,
            stack,
        )
