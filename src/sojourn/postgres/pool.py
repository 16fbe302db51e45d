"""A database on a PostgreSQL server: its connections, and what is run on them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg

from sojourn import platform
from sojourn.errors import InvalidInput, Unavailable
from sojourn.outcome import outlast
from sojourn.postgres.connections import CLOSE_TIMEOUT, Connections, Exhausted, GivenConnections, OwnConnections
from sojourn.postgres.faults import DRIVEN, fault, is_contention, is_disconnect

if TYPE_CHECKING:
    from asyncpg import Connection, Pool

T = TypeVar("T")

Op = Callable[[Any], Awaitable[T]]
"""Work on a connection."""

CONNECT_TIMEOUT = 10.0
"""Seconds that making a connection may take."""

REPLY_SECONDS = 1.0
"""Seconds after which a server that should have ended a statement by itself is not waited for any longer."""

MAX_TRIES = 12
"""How often a transaction is tried that others' locks roll back."""

_FORMS = (
    "use 'postgresql://user:password@host:5432/database', and write '@', '/', '#', '?' and '%' in a password as %40, %2F, %23, "
    "%3F and %25"
)
_SCHEMES = ("postgresql", "postgres")


def name_of(url: str) -> str:
    """What to call the database of a URL in messages: host, port and name, and nothing secret.

    Raises:
        InvalidInput: `store.invalid_url`.
    """
    try:
        parts = urlsplit(url)
        # Raises where the port is none.
        port = f":{parts.port}" if parts.port is not None else ""
        host = parts.hostname or ""
    except ValueError:
        # What it says may hold a part of the password.
        raise invalid_url() from None
    if parts.scheme not in _SCHEMES:
        raise invalid_url()
    # What comes before an "@" that stands for itself would be taken for a host: asked for by its name, and shown.
    if set("@/#") & set(url.partition("://")[2].partition("?")[0].rpartition("@")[0]):
        raise invalid_url()
    path = unquote(parts.path.lstrip("/"))
    return f"PostgreSQL database {path or '(default)'}" + (f" at {host}{port}" if host else "")


def _normal(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme.lower()}{separator}{rest}"


def invalid_url() -> InvalidInput:
    """The URL cannot be used; what it holds is not repeated, for it may hold a password."""
    return InvalidInput(f"the database URL cannot be used; {_FORMS}", code="store.invalid_url")


def _refused_option(name: str, said: str, remedy: str) -> InvalidInput:
    return InvalidInput(
        f"the URL of {name} asks for what cannot be had: {said}; change what stands behind its '?': {remedy}",
        code="store.invalid_url",
    )


class Database:
    """A database, by its URL or through a pool that somebody else has opened.

    A pool is opened by the first call, in the event loop of that call; another event loop gets a pool of its own. Connections
    that break are replaced. What is given is never closed.

    Calls are done to their end also if their caller is cancelled: it gets its `CancelledError` once the outcome is known.
    Transactions that others' locks roll back (deadlocks, serialisation failures) are repeated.

    Args:
        source: A URL, or an `asyncpg.Pool`, which belongs to the event loop that opened it.
        prepare: Called once with the first connection of each pool, before anything else is run.
        pool_size: How many connections at most; of a given pool, it has its own.
        acquire_timeout: Seconds to wait for a free connection.
        statement_timeout: Seconds that a statement may take. The server ends it then; if it does not even say so, its outcome
            is not known.
        statement_cache_size: How many prepared statements a connection keeps; 0 keeps none, which a pooler in front of the
            server that gives each transaction another connection needs.

    Attributes:
        name: What to call it in messages; it holds no password.

    Raises:
        InvalidInput: `store.invalid_url`, `store.invalid_option`.
    """

    def __init__(
        self,
        source: str | Pool,
        *,
        prepare: Op[None] | None = None,
        pool_size: int = 10,
        acquire_timeout: float = 30.0,
        statement_timeout: float = 30.0,
        statement_cache_size: int = 256,
    ) -> None:
        self._url = _normal(source) if isinstance(source, str) else None
        self._given = None if isinstance(source, str) else source
        if self._given is not None and not isinstance(self._given, asyncpg.Pool):
            raise InvalidInput(
                f"a database is named by a URL or an asyncpg pool, not by a {type(source).__name__}", code="store.invalid_url"
            )
        self.name = "the PostgreSQL database of the given pool" if self._url is None else name_of(self._url)
        for option, value, least in (
            ("pool_size", pool_size, 1), ("statement_cache_size", statement_cache_size, 0),
        ):  # fmt: skip
            if not isinstance(value, int) or value < least:
                raise InvalidInput(f"{option} is {value!r}; use a number from {least}", code="store.invalid_option")
        for option, seconds in (("acquire_timeout", acquire_timeout), ("statement_timeout", statement_timeout)):
            if not isinstance(seconds, int | float) or not seconds > 0:
                raise InvalidInput(f"{option} is {seconds!r}; use seconds greater than 0", code="store.invalid_option")
        self._prepare = prepare
        self._pool_size = pool_size
        self._acquire_timeout = acquire_timeout
        self._statement_timeout = statement_timeout
        self.pools_transactions = statement_cache_size == 0
        """Whether each transaction may get another connection of the server, so that nothing can be kept on one."""
        self._cache_size = statement_cache_size
        self._connections: dict[asyncio.AbstractEventLoop, Connections] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._pid: int | None = None
        self._closed = False

    # -- running ----------------------------------------------------------------------------------------------------

    def read(self, op: Op[T]) -> Awaitable[T]:
        """Runs one statement that only reads, again if its connection breaks or others' writes get in its way.

        Raises:
            SojournError: In place of what the driver raises.
        """
        # A connection that is cancelled while it is made is never closed, and to cancel a statement takes another connection.
        return outlast(self._read(op))

    async def _read(self, op: Op[T]) -> T:
        for left in (1, 0):
            try:
                return await self._use(op)
            except DRIVEN as error:
                if left and (is_disconnect(error) or is_contention(error)):
                    continue
                raise fault(error, self.name) from error
        raise AssertionError

    def snapshot(self, op: Op[T]) -> Awaitable[T]:
        """Runs statements that only read and see the same state of the database."""

        async def reading(conn: Any) -> T:
            async with conn.transaction(isolation="repeatable_read", readonly=True):
                return await op(conn)

        return self.read(reading)

    def write(self, op: Op[T]) -> Awaitable[T]:
        """Runs one statement that writes; it is a transaction of its own."""
        return outlast(self._write(op))

    def transact(self, op: Op[T]) -> Awaitable[T]:
        """Runs statements in one transaction; it is repeated from its start if others' locks roll it back."""

        async def transaction(conn: Any) -> T:
            async with conn.transaction(isolation="read_committed"):
                return await op(conn)

        return outlast(self._write(transaction))

    async def _write(self, op: Op[T]) -> T:
        for left in range(MAX_TRIES - 1, -1, -1):
            try:
                return await self._use(op)
            except DRIVEN as error:
                if not (left and is_contention(error)):
                    raise fault(error, self.name) from error
            await asyncio.sleep(platform.random() * 0.02 * (MAX_TRIES - left))
        raise AssertionError

    # -- connections ------------------------------------------------------------------------------------------------

    async def _use(self, op: Op[T]) -> T:
        connections = self._connections.get(asyncio.get_running_loop())
        if connections is None or self._closed or self._pid != os.getpid():
            connections = await self._open()
        conn = await self._acquired(connections)
        late = False
        try:
            return await op(conn)
        except TimeoutError:
            late = True
            raise
        finally:
            await connections.release(conn, late=late)

    async def _acquired(self, connections: Connections) -> Connection:
        try:
            return await connections.acquire()
        except Exhausted as error:
            raise Unavailable(
                f"all {error.size} connections to {self.name} were in use for {self._acquire_timeout:g} s; "
                "try again, or raise pool_size",
                code="store.pool_exhausted",
            ) from None
        except TimeoutError as error:
            raise fault(ConnectionError("no connection in time"), self.name) from error

    async def open(self) -> None:
        """Connects, if that has not been done in the running event loop.

        Raises:
            SojournError: In place of what the driver raises.
        """
        await self._open()

    async def _open(self) -> Connections:
        self._check_open()
        # To its end, also for a caller that is cancelled: what was opened has to be noted, or nobody would close it.
        return await outlast(self._opened())

    async def _opened(self) -> Connections:
        loop = asyncio.get_running_loop()
        async with self._opening.setdefault(loop, asyncio.Lock()):
            connections = self._connections.get(loop)
            if connections is None:
                self._check_open()
                for other in [other for other in self._connections if other.is_closed()]:
                    del self._connections[other], self._opening[other]
                connections = self._made()
                await self._prepared(connections)
                if self._closed:
                    await connections.close()
                    self._check_open()
                self._connections[loop] = connections
            return connections

    def _made(self) -> Connections:
        if self._given is not None:
            return GivenConnections(self._given, self._acquire_timeout)
        return OwnConnections(partial(self._connect, "sojourn"), self._pool_size, self._acquire_timeout)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"{self.name} has been closed; open it again", code="store.closed", retryable=False)
        if self._pid not in (None, os.getpid()):
            raise Unavailable(
                f"{self.name} was opened before this process was forked; open it again after forking",
                code="store.forked",
                retryable=False,
            )
        self._pid = os.getpid()

    async def _prepared(self, connections: Connections) -> None:
        try:
            conn = await self._acquired(connections)
            try:
                if self._prepare is not None:
                    await self._prepare(conn)
            finally:
                await connections.release(conn)
        except BaseException as error:
            connections.terminate()
            if isinstance(error, DRIVEN):
                raise fault(error, self.name) from error
            raise

    async def _connect(self, application_name: str, url: str | None = None, **settings: str) -> Connection:
        settings |= self._settings()
        try:
            conn = await asyncpg.connect(
                url or self._url,
                timeout=CONNECT_TIMEOUT,
                command_timeout=self._statement_timeout + (0.0 if self.pools_transactions else REPLY_SECONDS),
                statement_cache_size=self._cache_size or (0 if url is None else 100),
                server_settings={"application_name": application_name},
            )
        except asyncpg.ClientConfigurationError as error:
            remedy = "name a file with sslrootcert=…" if "root certificate" in str(error) else "see the driver's documentation"
            raise _refused_option(self.name, str(error.args[0]), remedy) from None
        except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError) as error:
            raise _refused_option(
                self.name, str(error.args[0]), "leave out what neither the driver nor the server knows"
            ) from error
        except ValueError as error:
            if isinstance(error, asyncpg.DataError | UnicodeError):
                raise
            # What it says may hold a part of the password.
            raise invalid_url() from None
        if settings:
            # Not as the connection is made: a pooler refuses settings that it does not know there.
            try:
                await conn.execute(";".join(f"SET {name} = '{value}'" for name, value in settings.items()))
            except BaseException:
                conn.terminate()
                raise
        return conn

    @property
    def max_size(self) -> int:
        """How many connections there are at most."""
        return self._pool_size if self._given is None else int(self._given.get_max_size())

    async def hold(self, application_name: str, url: str | None = None) -> Held:
        """Takes a connection for as long as the caller wants: one of its own, or one of the given pool's.

        Args:
            application_name: What the server is to call it.
            url: Another URL of the same database.

        Raises:
            SojournError: In place of what the driver raises.
        """
        self._check_open()
        return await outlast(self._hold(application_name, url))

    async def _hold(self, application_name: str, url: str | None) -> Held:
        try:
            if url is None and self._given is not None:
                held = Held(await self._acquired(GivenConnections(self._given, self._acquire_timeout)), self._given)
                try:
                    await held.rename(application_name)
                except BaseException:
                    await held.abort()
                    raise
                return held
            return Held(await self._connect(application_name, url, **KEEPALIVES))
        except DRIVEN as error:
            raise fault(error, self.name) from error

    def _settings(self) -> dict[str, str]:
        if self.pools_transactions:
            return {}
        return {
            "jit": "off",
            "default_transaction_isolation": "read committed",
            "statement_timeout": str(max(1, int(self._statement_timeout * 1000))),
        }

    async def close(self) -> None:
        """Lets calls under way end and closes the connections that were opened here. Closing twice is fine."""
        self._closed = True
        here = self._connections.pop(asyncio.get_running_loop(), None)
        others = [connections for loop, connections in self._connections.items() if not loop.is_closed()]
        self._connections.clear()
        if self._pid not in (None, os.getpid()):
            return
        for other in others:
            other.terminate()
        if here is not None:
            await here.close()


KEEPALIVES = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
"""Lets the server notice within seconds that the process at the other end of a connection has gone without a word."""


_RENAME = "SELECT set_config('application_name', $1, false)"


class Held:
    """A connection that is kept.

    Attributes:
        conn: The connection.
    """

    def __init__(self, conn: Connection, pool: Pool | None = None) -> None:
        self.conn = conn
        self._pool = pool
        self._name_before: str | None = None

    async def rename(self, application_name: str) -> None:
        """Tells the server another name of the connection, until it is given back."""
        self._name_before = await self.conn.fetchval("SELECT current_setting('application_name')")
        await self.conn.execute(_RENAME, application_name)

    @property
    def is_alive(self) -> bool:
        """Whether it has not been closed, as far as is known here."""
        try:
            return not self.conn.is_closed()
        except asyncpg.InterfaceError:
            # A pool takes back what breaks.
            return False

    async def close(self) -> None:
        """Gives the connection back, or closes it."""
        if self._name_before is not None and self.is_alive:
            with suppress(*DRIVEN):
                await self.conn.execute(_RENAME, self._name_before, timeout=CLOSE_TIMEOUT)
        with suppress(*DRIVEN):
            if self._pool is not None:
                await self._pool.release(self.conn, timeout=CLOSE_TIMEOUT)
            else:
                await self.conn.close(timeout=CLOSE_TIMEOUT)

    async def abort(self) -> None:
        """Closes the connection without a word to the server, which may not hear it."""
        if self.is_alive:
            self.conn.terminate()
        await self.close()
