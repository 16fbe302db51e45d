"""The tables of memory in a SQLite file. They may be in the file of the sessions, which have a version of their own."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sojourn.errors import Unsupported
from sojourn.sqlite.faults import BUSY_TIMEOUT, fault
from sojourn.sqlite.schema import Migration, Schema

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        "entries, their words and their vectors",
        (
            "CREATE TABLE memory_schema (version INTEGER NOT NULL) STRICT",
            "INSERT INTO memory_schema VALUES (0)",
            # One for each user of an app. `length` counts the words of all entries; `changes` goes up with each transaction
            # that changes any. AUTOINCREMENT, here and below: who has kept something by a number must not find another there.
            """
            CREATE TABLE memory_scopes (
                scope INTEGER PRIMARY KEY AUTOINCREMENT,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                entries INTEGER NOT NULL,
                length INTEGER NOT NULL,
                changes INTEGER NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX memory_scopes_by_owner ON memory_scopes (app_name, user_id)",
            # A row is never changed in what is searched: an entry in place of another has a new key. `words` is what the index
            # was given, without the scope, since it wants to be told again what it is to remove.
            """
            CREATE TABLE memory_entries (
                key INTEGER PRIMARY KEY AUTOINCREMENT,
                scope INTEGER NOT NULL,
                id TEXT NOT NULL,
                session_id TEXT,
                from_event INTEGER NOT NULL,
                author TEXT,
                timestamp REAL NOT NULL,
                marks TEXT NOT NULL,
                words TEXT NOT NULL,
                length INTEGER NOT NULL,
                body TEXT NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX memory_entries_by_id ON memory_entries (scope, id)",
            "CREATE INDEX memory_entries_by_time ON memory_entries (scope, timestamp DESC, id)",
            "CREATE INDEX memory_entries_by_session ON memory_entries (scope, session_id) WHERE session_id IS NOT NULL",
            "CREATE INDEX memory_entries_lengths ON memory_entries (scope, key, length)",
            # `ascii` splits at spaces what is split already, and leaves all other characters alone.
            "CREATE VIRTUAL TABLE memory_words USING fts5 (words, content = '', columnsize = 0, tokenize = 'ascii')",
            """
            CREATE TABLE memory_models (
                model INTEGER PRIMARY KEY,
                name TEXT NOT NULL UNIQUE,
                dimensions INTEGER NOT NULL
            ) STRICT
            """,
            # float32, little-endian, of length 1.
            """
            CREATE TABLE memory_vectors (
                key INTEGER PRIMARY KEY,
                scope INTEGER NOT NULL,
                model INTEGER NOT NULL,
                vector BLOB NOT NULL
            ) STRICT
            """,
            "CREATE INDEX memory_vectors_by_scope ON memory_vectors (scope, model)",
        ),
    ),
)


def prepare(conn: sqlite3.Connection, path: str) -> None:
    """Makes sure that a database file is ours and has the newest tables, and gives the connection a view of the index.

    Raises:
        Unsupported: `memory.no_full_text` if this Python's SQLite cannot do full text; `store.foreign`, `store.schema_newer`.
    """
    if not conn.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        raise Unsupported(
            f"SQLite {sqlite3.sqlite_version} of this Python was built without FTS5, which memory in a SQLite file needs; "
            "use a Python with a complete SQLite, or another memory service",
            code="memory.no_full_text",
        )
    Schema(MIGRATIONS, _version, _set_version).prepare(conn, path)
    # Which entries have a word, how often, and how many do.
    conn.execute("CREATE VIRTUAL TABLE temp.memory_places USING fts5vocab (main, memory_words, instance)")
    conn.execute("CREATE VIRTUAL TABLE temp.memory_terms USING fts5vocab (main, memory_words, row)")


def has_tables(path: str) -> bool:
    """Whether a SQLite file has tables of memory; nothing is made there.

    Raises:
        Unsupported: `store.foreign` if it is no database.
        Unavailable: It cannot be read.
    """
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as conn:
            return _is_there(conn)
    except sqlite3.Error as error:
        raise fault(error, path) from error


def _is_there(conn: sqlite3.Connection) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'memory_schema'").fetchone() is not None


def _version(conn: sqlite3.Connection) -> int:
    if not _is_there(conn):
        return 0
    (version,) = conn.execute("SELECT version FROM memory_schema").fetchone()
    return int(version)


def _set_version(conn: sqlite3.Connection, version: int) -> None:
    conn.execute("UPDATE memory_schema SET version = ?", (version,))
