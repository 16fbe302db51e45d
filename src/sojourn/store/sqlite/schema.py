"""The tables of sessions and runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from sojourn.sqlite.schema import Migration, Schema

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        "sessions and runs",
        (
            # AUTOINCREMENT: a deleted key must never come back, or a stale fence would fit a stranger's run.
            """
            CREATE TABLE sessions (
                sid INTEGER PRIMARY KEY AUTOINCREMENT,
                uid TEXT NOT NULL,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                id TEXT NOT NULL,
                active_agent TEXT,
                event_count INTEGER NOT NULL,
                run_no INTEGER NOT NULL,
                created_at REAL NOT NULL,
                updated_at REAL NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX sessions_by_key ON sessions (app_name, user_id, id)",
            "CREATE INDEX sessions_by_app ON sessions (app_name)",
            # `message` is there until the first attempt begins; from then on it is the event `first_seq`.
            # `top` is the highest ordinal of the run's events: what lies above it cannot be stored yet.
            """
            CREATE TABLE runs (
                uid INTEGER PRIMARY KEY AUTOINCREMENT,
                sid INTEGER NOT NULL,
                id TEXT NOT NULL,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                no INTEGER NOT NULL,
                status TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                deaths INTEGER NOT NULL DEFAULT 0,
                agent TEXT,
                base_ordinal INTEGER NOT NULL DEFAULT 0,
                base_seq INTEGER NOT NULL DEFAULT 0,
                transfers INTEGER NOT NULL DEFAULT 0,
                first_seq INTEGER,
                message TEXT,
                config TEXT NOT NULL,
                attached INTEGER NOT NULL,
                cancel_requested TEXT,
                error TEXT,
                last_pos INTEGER NOT NULL,
                top INTEGER NOT NULL DEFAULT 0,
                retry_of TEXT,
                usage TEXT,
                custom_metadata TEXT,
                answered INTEGER NOT NULL DEFAULT 0,
                has_undo INTEGER NOT NULL DEFAULT 0,
                has_asked INTEGER NOT NULL DEFAULT 0,
                created_at REAL NOT NULL,
                started_at REAL,
                finished_at REAL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX runs_by_id ON runs (app_name, id, user_id)",
            "CREATE INDEX runs_by_session ON runs (app_name, user_id, sid)",
            "CREATE INDEX runs_by_app ON runs (app_name)",
            "CREATE INDEX runs_unfinished ON runs (app_name, sid) WHERE finished_at IS NULL",
            # `ordinal` is null for an event without identity. `path` is the branch behind a dot, or empty.
            # `superseded` is 0, or says by what: `rows.BY_ATTEMPT`, `rows.BY_RUN`.
            """
            CREATE TABLE events (
                sid INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                run_uid INTEGER NOT NULL,
                pos INTEGER,
                ordinal INTEGER,
                path TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                supersedes INTEGER,
                superseded INTEGER NOT NULL DEFAULT 0,
                summary_until INTEGER,
                body TEXT NOT NULL,
                PRIMARY KEY (sid, seq)
            ) STRICT, WITHOUT ROWID
            """,
            "CREATE INDEX events_by_run ON events (run_uid, pos)",
            "CREATE UNIQUE INDEX events_by_identity ON events (run_uid, ordinal, path) WHERE superseded = 0",
            "CREATE INDEX events_summaries ON events (sid, seq) WHERE summary_until IS NOT NULL AND superseded = 0",
            # The function calls and responses of events that count. `open`: a call that no response came after.
            """
            CREATE TABLE calls (
                sid INTEGER NOT NULL,
                call_id TEXT NOT NULL,
                seq INTEGER NOT NULL,
                is_call INTEGER NOT NULL,
                open INTEGER NOT NULL,
                PRIMARY KEY (sid, call_id, is_call, seq)
            ) STRICT, WITHOUT ROWID
            """,
            "CREATE INDEX calls_open ON calls (sid, seq) WHERE open = 1",
            "CREATE TABLE state (owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (owner, key))"
            " STRICT, WITHOUT ROWID",
            # Values are JSON; null stands for a key that did not exist.
            """
            CREATE TABLE undo (
                id INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                key TEXT NOT NULL,
                old TEXT,
                new TEXT,
                by TEXT
            ) STRICT
            """,
            "CREATE INDEX undo_by_run ON undo (run_uid)",
            """
            CREATE TABLE steps (
                id INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                key TEXT NOT NULL,
                status TEXT NOT NULL,
                result TEXT NOT NULL,
                error TEXT,
                attempt INTEGER NOT NULL,
                started_at REAL NOT NULL,
                finished_at REAL NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX steps_by_key ON steps (run_uid, key)",
            """
            CREATE TABLE interrupts (
                n INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                id TEXT NOT NULL,
                key TEXT NOT NULL,
                digest TEXT NOT NULL,
                prompt TEXT NOT NULL,
                schema TEXT,
                status TEXT NOT NULL,
                answer TEXT,
                created_at REAL NOT NULL,
                expires_at REAL,
                answered_at REAL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX interrupts_by_id ON interrupts (run_uid, id)",
            "CREATE INDEX interrupts_open ON interrupts (run_uid) WHERE status = 'open'",
        ),
    ),
    Migration(
        2,
        "questions about function calls; runs that take the place of others; what users have spent",
        (
            "ALTER TABLE interrupts ADD COLUMN kind TEXT NOT NULL DEFAULT 'input'",
            "ALTER TABLE interrupts ADD COLUMN call_id TEXT",
            "ALTER TABLE runs ADD COLUMN start_agent TEXT",
            "ALTER TABLE runs ADD COLUMN superseded_by TEXT",
            # Whoever began a run that was handed over is not known; the root agent stands for it.
            "UPDATE runs SET start_agent = agent WHERE transfers = 0",
            "UPDATE runs SET superseded_by = r.id FROM runs r WHERE r.retry_of = runs.id AND r.app_name = runs.app_name "
            "AND r.user_id = runs.user_id",
            # The columns after `hour` are the fields of `Usage`. Deleting a session leaves its user's rows alone.
            """
            CREATE TABLE user_usage (
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                hour INTEGER NOT NULL,
                prompt_token_count INTEGER NOT NULL,
                candidates_token_count INTEGER NOT NULL,
                total_token_count INTEGER NOT NULL,
                cached_content_token_count INTEGER NOT NULL,
                thoughts_token_count INTEGER NOT NULL,
                PRIMARY KEY (app_name, user_id, hour)
            ) STRICT, WITHOUT ROWID
            """,
            # Of runs before, it is known what they spent, and until when they ran.
            """
            INSERT INTO user_usage
            SELECT app_name, user_id, CAST(coalesce(finished_at, started_at, created_at) / 3600 AS INTEGER) * 3600,
                max(0, CAST(total(json_extract(usage, '$.prompt_token_count')) AS INTEGER)),
                max(0, CAST(total(json_extract(usage, '$.candidates_token_count')) AS INTEGER)),
                max(0, CAST(total(json_extract(usage, '$.total_token_count')) AS INTEGER)),
                max(0, CAST(total(json_extract(usage, '$.cached_content_token_count')) AS INTEGER)),
                max(0, CAST(total(json_extract(usage, '$.thoughts_token_count')) AS INTEGER))
            FROM runs WHERE usage IS NOT NULL GROUP BY 1, 2, 3
            """,
            "DELETE FROM user_usage WHERE max(prompt_token_count, candidates_token_count, total_token_count, "
            "cached_content_token_count, thoughts_token_count) = 0",
        ),
    ),
    Migration(
        3,
        "runs and sessions that retention has removed",
        (
            # The highest `seq` that was removed; 0 for none.
            "ALTER TABLE sessions ADD COLUMN trimmed_seq INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE runs ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0",
            "CREATE INDEX runs_whole ON runs (sid, uid) WHERE finished_at IS NOT NULL AND trimmed = 0",
            # Sessions that are gone and whose artifacts may not be.
            """
            CREATE TABLE dropped_sessions (
                n INTEGER PRIMARY KEY,
                uid TEXT NOT NULL,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                id TEXT NOT NULL
            ) STRICT
            """,
            "CREATE UNIQUE INDEX dropped_sessions_by_uid ON dropped_sessions (uid)",
        ),
    ),
)


def prepare(conn: sqlite3.Connection, path: str, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Makes sure that a database file is ours and has the newest tables of sessions and runs; see `Schema.prepare`.

    Args:
        conn: A connection in autocommit mode.
        path: The file, for messages.
        migrations: All steps, oldest first.
    """
    Schema(migrations, _version, _set_version).prepare(conn, path)


def _version(conn: sqlite3.Connection) -> int:
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    return int(version)


def _set_version(conn: sqlite3.Connection, version: int) -> None:
    conn.execute(f"PRAGMA user_version = {version}")
