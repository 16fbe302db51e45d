"""The tables of memory."""

from __future__ import annotations

from importlib.resources import files

from sojourn.postgres.migrations import Migration

SERVICE = "memory"
VECTORS = "memory vectors"
"""Whose tables they are, among those of a schema. Vectors need an extension, so they are made only for an embedder."""


def _sql(name: str) -> str:
    return (files("sojourn.memory.postgres") / "sql" / name).read_text(encoding="utf-8")


MIGRATIONS: tuple[Migration, ...] = (Migration(1, "entries and their words", _sql("0001_memory.sql")),)
VECTOR_MIGRATIONS: tuple[Migration, ...] = (Migration(1, "vectors of entries", _sql("0001_vectors.sql")),)
