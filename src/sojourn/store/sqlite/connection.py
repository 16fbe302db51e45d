"""Opening a database file of sessions and runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from sojourn.sqlite import connection
from sojourn.sqlite.connection import Synchronous
from sojourn.sqlite.schema import Migration
from sojourn.store.sqlite.schema import MIGRATIONS, prepare


def connect(
    path: str,
    *,
    synchronous: Synchronous = "full",
    read_only: bool = False,
    migrations: Sequence[Migration] = MIGRATIONS,
) -> sqlite3.Connection:
    """Opens a database file and brings the tables of sessions and runs up to date; see `sojourn.sqlite.connection`."""
    return connection.connect(
        path, lambda conn, name: prepare(conn, name, migrations), synchronous=synchronous, read_only=read_only
    )
