"""The executor role: which process may execute the runs of a schema."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sojourn import platform
from sojourn.errors import Conflict, Unavailable, Unsupported
from sojourn.outcome import outlast
from sojourn.postgres.faults import DRIVEN, fault, is_disconnect
from sojourn.postgres.migrations import lock_key
from sojourn.postgres.pool import Held
from sojourn.postgres.tables import Tables
from sojourn.processes import is_alive
from sojourn.store.postgres.connection import Base

T = TypeVar("T")

HEARTBEAT_TIMEOUT = 5.0
"""Seconds after which the connection that holds the role counts as lost if nothing comes back on it."""

_RETRIES = 50
_RETRY_DELAY = 0.02

_NAME = re.compile(r"sojourn executor (\d+)@(.*) (\w{8})", re.DOTALL)

_TAKE = "SELECT pg_try_advisory_lock($1)"
_HOLDER = """
    SELECT l.pid, coalesce(a.application_name, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.mode = 'ExclusiveLock'
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.classid = (($1::bigint >> 32) & 4294967295)::oid AND l.objid = ($1::bigint & 4294967295)::oid
"""


class ExecutorRole:
    """An advisory lock of the server, held on a connection of its own for as long as the process executes runs.

    The server releases it when the connection ends, however the process dies, so nothing has to be cleaned up. A connection
    that breaks is made again, and the role is taken again if nobody else has taken it meanwhile.

    Args:
        base: The tables.
        schema: Their schema.
        direct_url: Another URL of the same database, past a pooler that stands in front of the server.
    """

    def __init__(self, base: Base, schema: str, direct_url: str | None) -> None:
        self._base = base
        self._schema = schema
        self._direct_url = direct_url
        self._key = lock_key("execute", schema)
        self._token = platform.random_bytes(4).hex()
        self._held: Held | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.claimed = False
        """Whether this object has had the role, and has not given it up."""

    @property
    def held(self) -> bool:
        """Whether this object has the role, as far as is known here."""
        return self._held is not None and self._held.is_alive and self._loop is not None and not self._loop.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether this object has the role, by a connection of the running event loop."""
        return self.held and self._loop is asyncio.get_running_loop()

    async def claim(self) -> None:
        """Takes the role; does nothing if this object has it.

        Raises:
            Conflict: `store.in_use` if another process, or another object of this one, has it.
            Unsupported: `store.pooled` behind a pooler that gives each transaction another connection.
            Unavailable: The server cannot be reached.
        """
        if not self.held:
            # To its end, also for a caller that is cancelled: nobody else would give the connection back.
            await outlast(self._claim())

    def _turn(self) -> asyncio.Lock:
        # Who waits for a lock binds it to the event loop, and one that has ended may never give it back.
        return self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _claim(self) -> None:
        database = self._base.database
        if database.pools_transactions and self._direct_url is None:
            raise Unsupported(
                "the executor holds a lock on a connection, which a pooler of transactions would share out; give the server's "
                "own address, too, as direct_url, or open the store with role='client'",
                code="store.pooled",
            )
        async with self._turn():
            if self.held:
                return
            await self._drop()
            held = await database.hold(f"sojourn executor {os.getpid()}@{_host()} {self._token}", self._direct_url)
            try:
                await self._lock(held)
            except BaseException as error:
                await held.close()
                if isinstance(error, DRIVEN):
                    raise fault(error, database.name) from error
                raise
            self._held, self._loop, self.claimed = held, asyncio.get_running_loop(), True

    async def _lock(self, held: Held) -> None:
        conn, timeout = held.conn, HEARTBEAT_TIMEOUT
        holder = None
        for _ in range(_RETRIES):
            if await conn.fetchval(_TAKE, self._key, timeout=timeout):
                return
            # Whoever has the lock may be a client that looks whether there is an executor, which takes no time; or the server
            # has not noticed yet that a process died, or that a connection of our own broke.
            holder = await conn.fetchrow(_HOLDER, self._key, timeout=timeout)
            if holder is not None and (found := _NAME.fullmatch(holder[1])):
                if found[3] == self._token:
                    with suppress(*DRIVEN):
                        await conn.fetchval("SELECT pg_terminate_backend($1)", holder[0], timeout=timeout)
                elif found[2] == _host() and is_alive(int(found[1])):
                    break
            await asyncio.sleep(_RETRY_DELAY)
        where = f"schema {self._schema!r} of {self._base.database.name}"
        raise Conflict(
            f"{_who(holder)} executes the runs of {where} already; stop it, or use another database (--db)", code="store.in_use"
        )

    async def run(self, op: Callable[[Tables], Awaitable[T]]) -> T:
        """Runs something on the connection that holds the role, so that it is noticed when that has gone without a word.

        Raises:
            Unavailable: The connection is gone.
        """
        held, database = self._held, self._base.database
        if held is None or not held.is_alive:
            raise Unavailable(f"the connection to {database.name} that holds the executor's role is gone")
        async with self._turn():
            try:
                async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                    return await op(self._base.tables(held.conn))
            except DRIVEN as error:
                if isinstance(error, TimeoutError) or is_disconnect(error):
                    await held.abort()
                raise fault(error, database.name) from error

    async def release(self) -> None:
        """Gives the role up, if this object has it."""
        self.claimed = False
        async with self._turn():
            held = self._held
            if held is not None and self.is_here:
                try:
                    await held.conn.fetchval("SELECT pg_advisory_unlock($1)", self._key, timeout=HEARTBEAT_TIMEOUT)
                except DRIVEN:
                    # Its pool may not do so before it lends the connection to others.
                    await held.abort()
            await self._drop()

    async def _drop(self) -> None:
        held, self._held = self._held, None
        # Of another event loop's connection, the server is told when the lock is taken again.
        if held is not None and self._loop is asyncio.get_running_loop():
            await held.close()

    async def vacant(self, db: Tables) -> bool:
        """Whether nobody has the role; nobody can take it until the transaction ends."""
        return bool(await db.value("SELECT pg_try_advisory_xact_lock($1)", self._key))


def _host() -> str:
    # What the server calls a connection has at most 63 bytes.
    return socket.gethostname().encode("ascii", "replace").decode()[:24]


def _who(holder: Any) -> str:
    found = None if holder is None else _NAME.fullmatch(holder[1])
    if found is None:
        return "another process"
    pid, host = int(found[1]), found[2]
    if host != _host():
        return f"process {pid} on {host}"
    return "this process" if pid == os.getpid() else f"process {pid}"
