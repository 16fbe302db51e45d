"""Memory in a SQLite file, found by words and by meaning."""

from __future__ import annotations

import os
import sqlite3
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sojourn.errors import InvalidInput, Unavailable
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.embedder import Embedder, packed
from sojourn.memory.faults import told_as_memory
from sojourn.memory.kept import check_numpy
from sojourn.memory.lenient import vector_of, vectors_of
from sojourn.memory.pending import Pending, PendingVectors
from sojourn.memory.rules import changes_of, check_owner, check_query, checked, copied, entries_of
from sojourn.memory.sqlite import rows
from sojourn.memory.sqlite.kept import KeptUsers, lengths_of, read_vectors
from sojourn.memory.sqlite.ranking import Tally, WordTally, average_of, rank, terms_of
from sojourn.memory.sqlite.rows import Scope, Writing, index_words
from sojourn.memory.sqlite.schema import prepare
from sojourn.memory.stored import Owner, Prepared, memory_of, prepared
from sojourn.memory.tally import VectorTally
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.page import Page, check_page, page_after, page_token
from sojourn.sqlite.connection import Synchronous, connect
from sojourn.sqlite.scrubbing import scrub
from sojourn.sqlite.worker import Op, Worker
from sojourn.sqlite.writer import Writer

T = TypeVar("T")


class SqliteMemoryService:
    """Keeps memory in a SQLite file, which may be the one of the sessions.

    Entries are found by the words they share with a query, with the same scores as from `InMemoryMemoryService`; with an
    embedder also by what they mean, and the two are fused. Both are exact. Words are in an FTS5 index, vectors beside it; those
    of the users who were searched last are kept in RAM.

    **What survives.** A call that writes returns once its transaction is committed, and writes all or nothing. With
    `synchronous="full"` that is on the disk; with `"normal"` it survives the death of the process, and a loss of power may take
    the newest transactions, each as a whole.

    **Other processes.** Any number may use the same file at once. It must be on a local disk.

    **Embedders.** Entries whose text could not be embedded when they were added are found by their words, and are embedded
    by and by in the background, at growing intervals while that fails. The same happens to all entries if the embedder's name
    changes. If a query cannot be embedded, it finds by words alone, which is logged and told to the span. An embedder whose
    vectors are not what it says is an error of the call, before anything is written. Vectors need numpy.

    Args:
        path: The database file. It is created by the first call if it is missing; its directory must exist.
        embedder: Makes vectors of texts; None finds by words alone.
        synchronous: `full` or `normal`, as above.

    Raises:
        InvalidInput: `memory.invalid_option` if that cannot be a file.
        Unsupported: `embedding.not_installed` with an embedder, without numpy.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, embedder: Embedder | None = None, synchronous: Synchronous = "full"
    ) -> None:
        name = os.fspath(path)
        if not isinstance(name, str) or not name or name == ":memory:" or "\0" in name:
            raise InvalidInput(
                "SqliteMemoryService needs the path of a file; for memory in RAM use InMemoryMemoryService()",
                code="memory.invalid_option",
            )
        if synchronous not in ("full", "normal"):
            raise InvalidInput(f"synchronous is {synchronous!r}; use 'full' or 'normal'", code="memory.invalid_option")
        if embedder is not None:
            check_numpy()
        self.path = os.path.realpath(name)
        self._embedder = embedder
        self._pending = None if embedder is None else PendingVectors(embedder, self._read_pending, self._write_pending)
        self._kept = KeptUsers()
        opened = partial(connect, self.path, prepare, synchronous=synchronous)
        self._writer = Writer("sojourn-memory-writer", self.path, opened)
        self._reader = Worker("sojourn-memory-reader", self.path, partial(opened, read_only=True))
        # For those who never close: the threads would keep the file open for as long as the process lives.
        self._finalizer = weakref.finalize(self, _stop, self._writer, self._reader)

    # -- writing ----------------------------------------------------------------------------------------------------

    async def add_session(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in a session, in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        entries = entries_of(check_id(session_id, "session_id"), events)
        new = [prepared(entry, from_event=True) for entry in entries]

        def replace(writing: Writing) -> None:
            writing.keep_of_session(session_id, (entry.id for entry in entries))
            for one in new:
                writing.put(one)

        await self._write(owner, new, replace)

    async def add_events(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in some events of a session, each in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        changes = changes_of(check_id(session_id, "session_id"), events)
        new = [prepared(entry, from_event=True) for entry in changes.values() if entry is not None]

        def change(writing: Writing) -> None:
            for entry_id, entry in changes.items():
                if entry is None:
                    writing.remove_event(entry_id)
            for one in new:
                writing.put(one)

        await self._write(owner, new, change)

    async def add(self, app_name: str, user_id: str, entries: Sequence[Memory]) -> list[Memory]:
        """Adds entries."""
        owner = check_owner(app_name, user_id)
        stored = [checked(entry) for entry in entries]
        new = [prepared(entry, from_event=False) for entry in {entry.id: entry for entry in stored}.values()]

        def put(writing: Writing) -> None:
            for one in new:
                writing.put(one)

        await self._write(owner, new, put)
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

    async def scrub(self) -> None:
        """Rewrites the file, so that nothing can be read in it of what was removed; who writes waits meanwhile.

        Raises:
            Unavailable: `memory.unavailable` as long as another process reads from before.
        """
        # The index remembers the words of what was removed until its parts are merged.
        await self._called(self._writer, _merge_words, writes=True)
        if not await self._called(self._writer, scrub):
            raise Unavailable(
                f"copies of what was removed are left in {self.path}-wal as long as another process reads from before; "
                "try again when it has ended",
                code="memory.unavailable",
            )

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
        words = index_words(query)
        if not words:
            return []
        vector = await self._vector_of(query)
        return await self._read(lambda conn: self._search(conn, owner, words, vector, limit, min_score, filter))

    async def list_memories(self, app_name: str, user_id: str, *, limit: int = 100, after: str | None = None) -> Page[Memory]:
        """Lists the user's entries, newest first."""
        owner = check_owner(app_name, user_id)
        check_page(limit)
        position = page_after(after)
        entries = await self._read(lambda conn: rows.list_page(conn, owner, limit + 1, position))
        items = entries[:limit]
        return Page(items, page_token(items[-1].timestamp, items[-1].id) if len(entries) > limit else None)

    async def close(self) -> None:
        """Ends the threads and what is under way in the background. Calls afterwards raise `Unavailable`, `memory.closed`."""
        if self._pending is not None:
            await self._pending.stop()
        self._finalizer.detach()
        await self._writer.join()
        await self._reader.join()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _write(self, owner: Owner, new: Sequence[Prepared], change: Callable[[Writing], None]) -> None:
        vectors = await self._vectors_of(owner, new)
        embedder = self._embedder

        def op(conn: sqlite3.Connection) -> int:
            model = rows.model_of(conn, embedder, add=True) if embedder is not None and new else None
            writing = Writing(conn, owner, model, vectors)
            change(writing)
            writing.finish()
            return writing.without_vector

        without_vector = await self._called(self._writer, op, writes=True)
        if self._pending is not None:
            if without_vector:
                self._pending.start()
            else:
                self._pending.look()

    async def _vectors_of(self, owner: Owner, new: Sequence[Prepared]) -> Mapping[str, bytes]:
        """Vectors of those texts that need one; none if they cannot be embedded now."""
        embedder = self._embedder
        if embedder is None or not new:
            return {}
        texts = await self._read(lambda conn: rows.texts_to_embed(conn, owner, rows.model_of(conn, embedder), new))
        return {text: packed(vector) for text, vector in (await vectors_of(embedder, texts)).items()}

    async def _vector_of(self, query: str) -> array[float] | None:
        """The vector of a query; None if there is no embedder, or it fails."""
        if self._embedder is None or self._pending is None:
            return None
        self._pending.look()
        return await vector_of(self._embedder, query)

    def _search(
        self,
        conn: sqlite3.Connection,
        owner: Owner,
        words: Sequence[str],
        vector: array[float] | None,
        limit: int,
        min_score: float | None,
        filter: MemoryFilter | None,
    ) -> list[Memory]:
        scope = rows.scope_of(conn, owner)
        if scope is None or not scope.entries:
            return []
        terms = terms_of(conn, scope, words)
        allowed = None if filter is None else rows.keys_that_meet(conn, scope.number, filter)
        tally = self._tally(conn, scope, vector, sum(term.rarity for term in terms), allowed)
        best = rank(conn, scope, terms, tally, limit, min_score)
        bodies = dict(
            conn.execute(f"SELECT key, body FROM memory_entries WHERE key IN ({','.join(str(one.key) for one in best)})")
        )
        return [memory_of(bodies[one.key]).model_copy(update={"score": -one.negative_score}) for one in best]

    def _tally(
        self, conn: sqlite3.Connection, scope: Scope, vector: array[float] | None, most: float, allowed: set[int] | None
    ) -> Tally:
        average = average_of(scope)
        model = None
        if vector is not None and self._embedder is not None:
            model = rows.model_of(conn, self._embedder)
        if vector is None or model is None:
            return WordTally(lengths_of(conn, self._kept, scope), average, allowed)
        import numpy as np

        vectors = read_vectors(conn, self._kept, scope, model, len(vector))
        keys = None if allowed is None else np.fromiter(allowed, np.int64, len(allowed))
        return VectorTally(vectors, vector, average, most, keys)

    async def _read_pending(self, after: int, limit: int) -> Pending:
        embedder = self._embedder
        assert embedder is not None
        return await self._read(lambda conn: rows.pending(conn, embedder, after, limit))

    async def _write_pending(self, vectors: Mapping[int, bytes]) -> None:
        embedder = self._embedder
        assert embedder is not None
        await self._called(self._writer, lambda conn: rows.add_vectors(conn, embedder, vectors), writes=True)

    async def _read(self, op: Op[T]) -> T:
        return await self._called(self._reader, op)

    async def _called(self, worker: Worker, op: Op[T], *, writes: bool = False) -> T:
        with told_as_memory():
            return await worker.call(op, writes=writes)


def _merge_words(conn: sqlite3.Connection) -> None:
    conn.execute("INSERT INTO memory_words (memory_words) VALUES ('optimize')")


def _stop(*workers: Worker) -> None:
    for worker in workers:
        worker.stop()
