"""The PostgreSQL server that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sojourn.testing.postgresql import Server

_schemas = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running server that all tests share: they do not stop it, and keep to a schema or a database of their own."""
    # Not before the topmost conftest has said how assertions in there are shown.
    from sojourn.testing.postgresql import Server

    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.delete()


@pytest.fixture
def schema() -> str:
    """The name of a schema that no other test uses."""
    return f"test_{next(_schemas)}"
