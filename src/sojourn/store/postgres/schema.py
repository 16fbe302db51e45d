"""The tables of sessions and runs."""

from __future__ import annotations

from importlib.resources import files

from sojourn.postgres.migrations import Migration

SERVICE = "sessions"
"""Whose tables they are, among those of a schema."""


def _sql(name: str) -> str:
    return (files("sojourn.store.postgres") / "sql" / name).read_text(encoding="utf-8")


MIGRATIONS: tuple[Migration, ...] = (Migration(1, "sessions and runs", _sql("0001_sessions_and_runs.sql")),)
