"""Whether the stores of a server can be read and written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sojourn import platform
from sojourn.errors import SojournError, Unavailable
from sojourn.runner.observe import Observer
from sojourn.runner.runner import Runner

READY_SECONDS = 2.0
"""How long a store may take to answer before the server does not pass for ready."""

FAILED_SECONDS = 10.0
"""For how long a server is not ready after a write has failed, unless another succeeds: without requests, none ever would."""


class Stores:
    """The stores of a server.

    Args:
        runners: Who uses them; several may share one.
    """

    def __init__(self, runners: Iterable[Runner]) -> None:
        self._stores: dict[int, tuple[Runner, _Writes]] = {}
        for runner in runners:
            _, writes = self._stores.setdefault(id(runner.store), (runner, _Writes()))
            runner.add_observer(writes)

    async def check(self) -> None:
        """Asks each store whether it answers; whether it can be written, the runs have shown.

        Raises:
            Unavailable: `store.unavailable`.
        """
        if any(writes.have_just_failed() for _, writes in self._stores.values()):
            raise Unavailable("what was to be stored last could not be; see the server's log")
        try:
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.gather(*(runner.check_store() for runner, _ in self._stores.values()))
        except TimeoutError:
            raise Unavailable(f"the store did not answer within {READY_SECONDS:g} seconds; try again later") from None


class _Writes(Observer):
    """How the newest write to a store went."""

    def __init__(self) -> None:
        self._failed_at: float | None = None

    def have_just_failed(self) -> bool:
        return self._failed_at is not None and platform.monotonic() - self._failed_at < FAILED_SECONDS

    def store_called(self, operation: str, seconds: float, error: BaseException | None) -> None:
        """See `Observer`."""
        if error is None:
            self._failed_at = None
        elif is_failure(error):
            self._failed_at = platform.monotonic()


def is_failure(error: BaseException | None) -> bool:
    """Whether a write has failed: that there is no such session, or an answer comes too late, says a store that is well."""
    refused = isinstance(error, SojournError) and error.http_status < 500
    return isinstance(error, Exception) and not refused
