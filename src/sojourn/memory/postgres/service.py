"""Memory in a PostgreSQL database, found by words and by meaning."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from sojourn.errors import Unsupported
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.embedder import Embedder
from sojourn.memory.faults import told_as_memory
from sojourn.memory.kept import check_numpy
from sojourn.memory.lenient import vector_of, vectors_of
from sojourn.memory.pending import Pending, PendingVectors
from sojourn.memory.postgres import rows
from sojourn.memory.postgres.meaning import Meaning
from sojourn.memory.postgres.ranking import Question, best_by_words
from sojourn.memory.postgres.rows import Writing
from sojourn.memory.postgres.schema import MIGRATIONS, SERVICE, VECTOR_MIGRATIONS, VECTORS
from sojourn.memory.rules import changes_of, check_owner, check_query, checked, copied, entries_of
from sojourn.memory.stored import Owner, Prepared, prepared
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of
from sojourn.page import Page, check_page, page_after, page_token
from sojourn.postgres.migrations import Place, check_schema, migrate
from sojourn.postgres.pool import Database
from sojourn.postgres.tables import Tables, Texts

if TYPE_CHECKING:
    from asyncpg import Pool

T = TypeVar("T")

Op = Callable[[Tables], Awaitable[T]]
"""Work on the tables."""

_MISSING_EXTENSION = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.UndefinedFileError,
    asyncpg.UndefinedObjectError,
    asyncpg.InsufficientPrivilegeError,
)


class PostgresMemoryService:
    """Keeps memory in a PostgreSQL database, which may be that of the sessions.

    Entries are found by the words they share with a query, with the same scores as from `InMemoryMemoryService`; with an
    embedder also by what they mean, and the two are fused. Both are exact, among the entries of one user. Vectors are kept in
    half precision, in the type of the extension pgvector, 0.7 or newer, which is created in the database if the server has it.
    They are compared in this process, with numpy: those of the users who were searched last are kept in RAM.

    **What survives.** A call that writes is one transaction, all or nothing, and returns once that is committed, as durable as
    the server makes it. Those for one user wait for each other.

    **Other processes.** Any number may use the same schema at once.

    **Embedders.** Entries whose text could not be embedded when they were added are found by their words, and are embedded
    by and by in the background, at growing intervals while that fails. The same happens to all entries if the embedder's name
    changes. If a query cannot be embedded, it finds by words alone, which is logged and told to the span. An embedder whose
    vectors are not what it says is an error of the call, before anything is written.

    Args:
        source: A URL, `postgresql://user:password@host:port/database`, with what libpq takes behind a `?`; or an
            `asyncpg.Pool`, which is never closed.
        embedder: Makes vectors of texts; None finds by words alone.
        schema: Where the tables are; it is created if missing, and may be that of the sessions.
        pool_size: How many connections at most; of a given pool, it has its own.
        acquire_timeout: Seconds to wait for a free connection.
        statement_timeout: Seconds that a statement may take.
        statement_cache_size: How many prepared statements a connection keeps. Behind a pooler that gives each transaction
            another connection, 0.

    Raises:
        InvalidInput: `store.invalid_url`, `store.invalid_option`.
        Unsupported: `embedding.not_installed` with an embedder, without numpy.
    """

    def __init__(
        self,
        source: str | Pool,
        *,
        embedder: Embedder | None = None,
        schema: str = "sojourn",
        pool_size: int = 10,
        acquire_timeout: float = 30.0,
        statement_timeout: float = 30.0,
        statement_cache_size: int = 256,
    ) -> None:
        self.schema = check_schema(schema)
        if embedder is not None:
            check_numpy()
        self._embedder = embedder
        self._meaning = None if embedder is None else Meaning()
        self._known_model: int | None = None
        self._texts = Texts(schema)
        self._database = Database(
            source,
            prepare=self._prepare,
            pool_size=pool_size,
            acquire_timeout=acquire_timeout,
            statement_timeout=statement_timeout,
            statement_cache_size=statement_cache_size,
        )
        self._pending = None if embedder is None else PendingVectors(embedder, self._read_pending, self._write_pending)

    async def _prepare(self, conn: Any) -> None:
        await migrate(conn, Place(self.schema, SERVICE, self._database.name), MIGRATIONS)
        if self._embedder is None:
            return
        try:
            await migrate(conn, Place(self.schema, VECTORS, self._database.name), VECTOR_MIGRATIONS)
        except _MISSING_EXTENSION as error:
            raise Unsupported(
                f"{self._database.name} has no extension pgvector, 0.7 or newer, and this user cannot create it: install it on"
                " the server and run CREATE EXTENSION vector as the database's owner, or give no embedder to find by words",
                code="memory.no_pgvector",
            ) from error

    # -- writing ----------------------------------------------------------------------------------------------------

    async def add_session(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in a session, in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        entries = entries_of(check_id(session_id, "session_id"), events)
        new = [prepared(entry, from_event=True) for entry in entries]

        async def replace(writing: Writing) -> None:
            await writing.keep_of_session(session_id, [entry.id for entry in entries])
            await writing.put(new)

        await self._write(owner, new, replace)

    async def add_events(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in some events of a session, each in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        changes = changes_of(check_id(session_id, "session_id"), events)
        new = [prepared(entry, from_event=True) for entry in changes.values() if entry is not None]

        async def change(writing: Writing) -> None:
            await writing.remove_events([entry_id for entry_id, entry in changes.items() if entry is None])
            await writing.put(new)

        await self._write(owner, new, change)

    async def add(self, app_name: str, user_id: str, entries: Sequence[Memory]) -> list[Memory]:
        """Adds entries."""
        owner = check_owner(app_name, user_id)
        stored = [checked(entry) for entry in entries]
        new = [prepared(entry, from_event=False) for entry in {entry.id: entry for entry in stored}.values()]
        await self._write(owner, new, lambda writing: writing.put(new))
        return [copied(entry) for entry in stored]

    async def forget(
        self, app_name: str, user_id: str, *, session_id: str | None = None, ids: Sequence[str] | None = None
    ) -> None:
        """Removes entries."""
        owner = check_owner(app_name, user_id)
        if session_id is not None:
            check_id(session_id, "session_id")
        named = None if ids is None else [check_id(entry_id, "memory id") for entry_id in ids]
        await self._write(owner, (), lambda writing: writing.forget(session_id, named))

    # -- reading ----------------------------------------------------------------------------------------------------

    async def search(
        self,
        app_name: str,
        user_id: str,
        query: str,
        *,
        limit: int = 5,
        min_score: float | None = None,
        filter: MemoryFilter | None = None,
    ) -> list[Memory]:
        """Finds entries that fit a query, best first."""
        owner = check_owner(app_name, user_id)
        check_query(query, limit, min_score, filter)
        words = list(dict.fromkeys(words_of(query)))
        if not words:
            return []
        question = Question(words, limit, min_score, filter)
        vector = await self._vector_of(query)
        model = None if vector is None else await self._model()
        if vector is None or model is None:
            return await self._called(self._database.read, lambda db: best_by_words(db, owner, question))
        return await self._search_by_both(owner, question, vector, model)

    async def list_memories(self, app_name: str, user_id: str, *, limit: int = 100, after: str | None = None) -> Page[Memory]:
        """Lists the user's entries, newest first."""
        owner = check_owner(app_name, user_id)
        check_page(limit)
        position = page_after(after)
        entries = await self._called(self._database.read, lambda db: rows.list_page(db, owner, limit + 1, position))
        items = entries[:limit]
        return Page(items, page_token(items[-1].timestamp, items[-1].id) if len(entries) > limit else None)

    async def close(self) -> None:
        """Ends what is under way in the background, and closes the connections that were opened here."""
        if self._pending is not None:
            await self._pending.stop()
        await self._database.close()
        if self._meaning is not None:
            self._meaning.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _write(self, owner: Owner, new: Sequence[Prepared], change: Callable[[Writing], Awaitable[None]]) -> None:
        vectors = await self._vectors_of(owner, new)
        embedder = self._embedder

        async def op(db: Tables) -> int:
            model = await rows.model_of(db, embedder, add=True) if embedder is not None and new else None
            writing = Writing(db, owner, model, vectors)
            await writing.begin()
            await change(writing)
            return writing.without_vector

        without_vector = await self._called(self._database.transact, op)
        if self._pending is not None:
            if without_vector:
                self._pending.start()
            else:
                self._pending.look()

    async def _vectors_of(self, owner: Owner, new: Sequence[Prepared]) -> Mapping[str, str]:
        """Vectors of those texts that need one; none if they cannot be embedded now."""
        embedder = self._embedder
        if embedder is None or not new:
            return {}

        async def find(db: Tables) -> list[str]:
            return await rows.texts_to_embed(db, owner, await rows.model_of(db, embedder), new)

        texts = await self._called(self._database.snapshot, find)
        return {text: text_of(vector) for text, vector in (await vectors_of(embedder, texts)).items()}

    async def _vector_of(self, query: str) -> array[float] | None:
        """The vector of a query; None if there is no embedder, or it fails."""
        if self._embedder is None or self._pending is None:
            return None
        self._pending.look()
        return await vector_of(self._embedder, query)

    async def _model(self) -> int | None:
        """The number of the embedder's model, which never changes; None as long as no vector of it was written."""
        embedder = self._embedder
        assert embedder is not None
        if self._known_model is None:
            self._known_model = await self._called(self._database.read, lambda db: rows.model_of(db, embedder))
        return self._known_model

    async def _search_by_both(self, owner: Owner, question: Question, vector: array[float], model: int) -> list[Memory]:
        """Finds by words and vectors; who waits for another search of the user to read these does so once."""
        meaning = self._meaning
        assert meaning is not None
        ask = partial(meaning.best, owner=owner, question=question, query=vector, model=model)
        for patient in (True, False):
            found = await self._called(self._database.snapshot, partial(ask, patient=patient))
            if not isinstance(found, asyncio.Event):
                return found
            await found.wait()
        raise AssertionError

    async def _read_pending(self, after: int, limit: int) -> Pending:
        embedder = self._embedder
        assert embedder is not None
        return await self._called(self._database.snapshot, lambda db: rows.pending(db, embedder, after, limit))

    async def _write_pending(self, vectors: Mapping[int, bytes]) -> None:
        embedder = self._embedder
        assert embedder is not None
        texts = {entry: text_of(array("f", vector)) for entry, vector in vectors.items()}
        await self._called(self._database.transact, lambda db: rows.add_vectors(db, embedder, texts))

    async def _called(self, way: Callable[[Callable[[Any], Awaitable[T]]], Awaitable[T]], op: Op[T]) -> T:
        with told_as_memory():
            return await way(lambda conn: op(Tables(conn, self._texts)))


def text_of(vector: array[float]) -> str:
    """A vector as pgvector reads it."""
    return "[" + ",".join(map(repr, vector)) + "]"
