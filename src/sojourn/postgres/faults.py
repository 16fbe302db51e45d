"""What PostgreSQL's errors mean to a caller."""

from __future__ import annotations

import asyncpg

from sojourn.errors import InvalidInput, SojournError, Unavailable, Unsupported

DRIVEN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the server, its driver and the operating system raise; a `TimeoutError` is an `OSError`."""

_RESTART = "; the call is refused until it answers again"
_UNAVAILABLE = {
    "25006": "takes no writes: it is a standby or set to read only; connect to the primary",
    "40001": "is too busy: the same rows are written again and again by others; try again",
    "40P01": "is too busy: the same rows are locked again and again by others; try again",
    "53100": "cannot grow: the disk of the server is full; make room and try again",
    "53200": "is out of memory; try again, or give the server more",
    "53300": "has no connection left; raise max_connections of the server, or lower pool_size",
    "57P01": f"was shut down{_RESTART}",
    "57P02": f"was shut down{_RESTART}",
    "57P03": f"is starting up or shutting down{_RESTART}",
}
_TIMEOUTS = {"57014", "55P03", "25P03", "25P04"}
_RESTARTED = {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"}
_REFUSED = {"3D000", "3F000", "42501"}
_GONE = {"42P01", "42883", "42703"}
_RETRIED = {"40001", "40P01"}
_POOLED = {"26000", "42P05"}


def is_contention(error: BaseException) -> bool:
    """Whether a transaction was rolled back only because of others: a deadlock, a serialisation failure, an altered table."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _RETRIED


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection broke, so that another one may do better."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith("08") or error.sqlstate in _RESTARTED
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, asyncpg.DataError)
    return isinstance(error, ConnectionError | asyncpg.InternalClientError)


def fault(error: Exception, name: str) -> SojournError:
    """The error to raise in place of a driver's; the driver's is its `__cause__`.

    Args:
        error: What the server, its driver or the operating system said.
        name: What to call the database in messages; it holds no password.
    """
    result = _fault(error, name)
    result.__cause__ = error
    return result


def _fault(error: Exception, name: str) -> SojournError:
    if isinstance(error, TimeoutError):
        return _timeout(name)
    if isinstance(error, OSError):
        return Unavailable(f"{name} cannot be reached: {error.strerror or error}; is the server running, and the URL right?")
    if isinstance(error, asyncpg.DataError):
        return _refused_argument(error)
    if isinstance(error, asyncpg.PostgresError):
        return _fault_of_server(error, str(error.sqlstate), name)
    return Unavailable(f"the connection to {name} failed: {_first_line(error)}")


def _fault_of_server(error: asyncpg.PostgresError, state: str, name: str) -> SojournError:
    if state in _TIMEOUTS:
        return _timeout(name)
    if state.startswith("28") or state in _REFUSED:
        return Unavailable(f"{name} refuses: {_first_line(error)}", code="store.refused", retryable=False)
    if state.startswith("54") or state == "22003":
        return InvalidInput(f"a value is too large for {name}", code="store.too_big")
    if state in ("22021", "22P05"):
        return InvalidInput("a name holds what is not text", code="id.invalid")
    if state in _GONE:
        return Unavailable(
            f"the tables in {name} were removed or replaced under this process; restore them, or restart the process",
            code="store.gone",
            retryable=False,
        )
    if state in _POOLED:
        return Unsupported(
            f"{name} is behind a pooler that gives each transaction another connection, so none keeps prepared statements; "
            "set statement_cache_size=0",
            code="store.pooled",
        )
    if state in ("XX001", "XX002"):
        return Unavailable(
            f"{name} is damaged ({_first_line(error)}); restore it from a backup", code="store.corrupt", retryable=False
        )
    return Unavailable(f"{name} {_UNAVAILABLE.get(state, f'failed: {_first_line(error)}')}")


def _timeout(name: str) -> Unavailable:
    return Unavailable(
        f"{name} did not answer in time; find out what keeps it busy, try again, or raise statement_timeout",
        code="store.timeout",
    )


def _refused_argument(error: asyncpg.DataError) -> InvalidInput:
    cause = error.__cause__
    if isinstance(cause, UnicodeEncodeError):
        return InvalidInput("a name holds a lone surrogate, which is not text", code="id.invalid")
    return InvalidInput("a number is beyond what a column of 64 bits holds", code="store.too_big")


def _first_line(error: BaseException) -> str:
    # What follows tells of rows and parameters: it belongs into `__cause__`, not into a message.
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.partition("\n")[0]
