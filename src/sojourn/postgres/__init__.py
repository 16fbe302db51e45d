"""What the services on PostgreSQL share. Its modules need the extra `sojourn[postgres]`."""

from __future__ import annotations

from sojourn.errors import Unsupported


def not_installed(error: ModuleNotFoundError) -> Exception:
    """The error to raise in place of one that misses the driver."""
    if error.name != "asyncpg":
        return error
    return Unsupported('PostgreSQL needs asyncpg: pip install "sojourn[postgres]"', code="postgres.not_installed")
