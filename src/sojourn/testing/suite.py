"""What the conformance suites of stores share: how a backend plugs in, and how a case says what it expects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import ClassVar

import pytest

from sojourn import platform
from sojourn.errors import SojournError
from sojourn.run.store import Store
from sojourn.testing.builders import APP_NAME
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.world import assert_same_world, read_world


@pytest.mark.anyio
class StoreSuite:
    """Base of the suites; a backend subclasses and gives one fixture, `store`: an open, empty store.

    Attributes:
        durable: Whether `reopen` gives an object that has nothing but what was written down.
        can_fail: Whether `failing` is supplied.
    """

    durable: ClassVar[bool] = False
    can_fail: ClassVar[bool] = False

    async def reopen(self, store: Store) -> Store:
        """Closes a store and opens the same data again; whoever opens it sees to it that it is closed in the end."""
        return store

    def failing(self, store: Store) -> AbstractAsyncContextManager[None]:
        """Makes the database behind a store fail while the block runs: each call is to raise `Unavailable`."""
        raise NotImplementedError("supply it along with can_fail = True")


@contextmanager
def raises(category: type[SojournError], code: str) -> Iterator[None]:
    """Expects an error of a category with this very code."""
    with pytest.raises(category) as caught:
        yield
    assert caught.value.code == code, f"expected {code}, got {caught.value!r}"


@asynccontextmanager
async def unchanged(store: Store, *app_names: str, but: Container[str] = ()) -> AsyncIterator[None]:
    """Expects that the block leaves everything in the store as it is.

    Args:
        store: The store.
        app_names: The apps to compare; the builders' app if omitted.
        but: Fields that may change.
    """
    names = app_names or (APP_NAME,)
    before = await read_world(store, names)
    yield
    assert_same_world(await read_world(store, names), before, but=but)


@contextmanager
def manual_clock() -> Iterator[ManualPlatform]:
    """Gives a case the clock: it stands still until it is moved."""
    clock = ManualPlatform()
    with platform.use(clock):
        yield clock
