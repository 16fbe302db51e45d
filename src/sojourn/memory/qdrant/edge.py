"""The engine in this process: Qdrant's own, on a directory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as qdrant

from sojourn.errors import SojournError, Unavailable
from sojourn.memory.qdrant.engine import KEYWORDS, MEANING, TIME, WORDS, Hit, Payload, Point, Ranking, Where
from sojourn.memory.qdrant.faults import other_dimensions, without_vectors
from sojourn.newfile import partial_file, put_in_place, sync
from sojourn.outcome import outlast

T = TypeVar("T")

_LAYOUT = "collection.json"
"""Tells how the directory beside it is laid out. It is written before that has its name."""

_TIDY_AFTER = 10_000
"""Points that are written until the segments are merged again, which a search gains from and the deleted leave room by."""

_MAX_COUNTS = 10_000
"""Users whose number of points is remembered."""


class EdgeEngine:
    """Keeps points in a directory, for one process at a time.

    One thread does everything, since the engine blocks.

    Args:
        directory: Where. It is made by the first call.
        dimensions: Of the vectors; None if there are none.
        flushes: Whether a call that writes returns only once the disk has it; calls at the same time share the wait.
    """

    def __init__(self, directory: Path, dimensions: int | None, *, flushes: bool) -> None:
        self._directory = directory
        self._dimensions = dimensions
        self._flushes = flushes
        self._executor = ThreadPoolExecutor(1, "sojourn-qdrant")
        self._shard: Any = None
        self._flush: Future[None] | None = None
        self._lock = threading.Lock()
        self._written = 0
        # Each search asks how many points its user has, and nobody else writes to the directory.
        self._counts: dict[Where, int] = {}
        self._closed = False
        self._finalizer = weakref.finalize(self, self._executor.shutdown, wait=False)

    async def upsert(self, points: Sequence[Point]) -> None:
        """Stores points, each in place of the one with its id."""
        await self._write([qdrant.UpdateOperation.upsert_points([_point(point) for point in points])], len(points))

    async def replace(self, points: Mapping[Where, Point]) -> None:
        """Stores points, each in place of the one with its id, if that is there and meets the condition when it is written."""
        await self._write(
            [
                qdrant.UpdateOperation.upsert_points([_point(point)], _filter(where), qdrant.UpdateMode.UpdateOnly)
                for where, point in points.items()
            ],
            len(points),
        )

    async def delete(self, where: Where) -> None:
        """Removes points."""
        await self._write([qdrant.UpdateOperation.delete_points_by_filter(_filter(where))], 1)

    async def rank(self, rankings: Sequence[Ranking]) -> list[list[Hit]]:
        """Answers questions, all in one go."""
        request = qdrant.QueryBatchRequest([_query(ranking) for ranking in rankings])
        found = await self._call(lambda shard: shard.query_batch(request))
        return [[_hit(point) for point in points] for points in found]

    async def count(self, where: Where) -> int:
        """How many points there are."""
        return await self._call(lambda shard: self._count(shard, where))

    async def scroll(self, where: Where, limit: int, fields: Sequence[str]) -> list[Payload]:
        """At most `limit` points, the latest time first."""
        request = qdrant.ScrollRequest(
            limit=limit,
            filter=_filter(where),
            with_payload=list(fields),
            order_by=qdrant.OrderBy(TIME, qdrant.Direction.Desc),
        )
        records, _ = await self._call(lambda shard: shard.scroll(request))
        return [record.payload or {} for record in records]

    async def retrieve(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Payload]:
        """Fields of the points with these ids."""
        if not ids:
            return {}
        records = await self._call(lambda shard: shard.retrieve(list(ids), list(fields), False))
        return {str(record.id): record.payload or {} for record in records}

    async def close(self) -> None:
        """Ends the thread and lets go of the directory."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closing = self._executor.submit(self._close)
        await outlast(_awaited(closing))
        self._executor.shutdown(wait=False)

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._shard is not None:
            return self._shard
        try:
            layout = json.loads((self._directory / _LAYOUT).read_text()) if (self._directory / "shard").is_dir() else None
            if layout is None:
                self._create()
            elif layout["dimensions"] is None and self._dimensions is not None:
                raise without_vectors(str(self._directory))
            elif self._dimensions not in (None, layout["dimensions"]):
                raise other_dimensions(str(self._directory), layout["dimensions"], self._dimensions)
            self._shard = qdrant.EdgeShard.load(str(self._directory / "shard"))
        except SojournError:
            raise
        except Exception as error:
            if "WouldBlock" in str(error):
                raise Unavailable(
                    f"another process, or another service of this one, has the memory in {self._directory} open; share the"
                    " service, or use a Qdrant server",
                    code="memory.in_use",
                    retryable=False,
                ) from error
            raise _unavailable(self._directory, error) from error
        return self._shard

    def _create(self) -> None:
        # What a process left behind that died in between has another name, and is made anew.
        unfinished, layout = self._directory / "unfinished", self._directory / _LAYOUT
        new = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        shard = qdrant.EdgeShard.create(str(unfinished), _config(self._dimensions))
        for field in KEYWORDS:
            shard.update(qdrant.UpdateOperation.create_field_index(field, qdrant.PayloadSchemaType.Keyword))
        shard.update(qdrant.UpdateOperation.create_field_index("owner", qdrant.KeywordIndexParams(is_tenant=True)))
        shard.update(qdrant.UpdateOperation.create_field_index(TIME, qdrant.PayloadSchemaType.Integer))
        shard.flush()
        shard.close()
        with partial_file(os.fspath(layout)) as partial:
            Path(partial).write_text(json.dumps({"version": 1, "dimensions": self._dimensions}))
            put_in_place(partial, os.fspath(layout), overwrite=True)
        os.rename(unfinished, self._directory / "shard")
        for path in (self._directory, *(one.parent for one in new)):
            sync(path)

    def _count(self, shard: Any, where: Where) -> int:
        if where not in self._counts:
            if len(self._counts) == _MAX_COUNTS:
                self._counts.clear()
            self._counts[where] = int(shard.count(qdrant.CountRequest(filter=_filter(where), exact=True)))
        return self._counts[where]

    def _update(self, operations: Sequence[Any], size: int) -> None:
        shard = self._open()
        # Also if this fails: a part of it may be written.
        self._counts.clear()
        try:
            for operation in operations:
                shard.update(operation)
            self._written += size
            if self._written >= _TIDY_AFTER:
                self._written = 0
                shard.optimize()
        except Exception as error:
            # It refuses every other write until it is opened again, which brings back what is in its log.
            self._abandon()
            raise _unavailable(self._directory, error) from error

    def _flushed(self) -> None:
        try:
            self._open().flush()
        except SojournError:
            raise
        except Exception as error:
            raise _unavailable(self._directory, error) from error

    def _do(self, op: Callable[[Any], T]) -> T:
        shard = self._open()
        try:
            return op(shard)
        except Exception as error:
            raise _unavailable(self._directory, error) from error

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _abandon(self) -> None:
        with suppress(Exception):
            self._close()
        self._shard = None

    # -- from the loops ---------------------------------------------------------------------------------------------

    async def _write(self, operations: Sequence[Any], size: int) -> None:
        await outlast(self._written_and_flushed(operations, size))

    async def _written_and_flushed(self, operations: Sequence[Any], size: int) -> None:
        await _awaited(self._submit(lambda: self._update(operations, size)))
        if not self._flushes:
            return
        with self._lock:
            # One that has not begun comes after this write.
            if self._flush is None or self._flush.running() or self._flush.done():
                self._flush = self._submit_locked(self._flushed)
            flush = self._flush
        await _awaited(flush)

    async def _call(self, op: Callable[[Any], T]) -> T:
        return await asyncio.wrap_future(self._submit(lambda: self._do(op)))

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        with self._lock:
            return self._submit_locked(call)

    def _submit_locked(self, call: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise Unavailable(
                f"the memory in {self._directory} has been closed; open it again", code="memory.closed", retryable=False
            )
        return self._executor.submit(call)


async def _awaited(future: Future[T]) -> T:
    # Shielded: others may wait for the same.
    return await asyncio.shield(asyncio.wrap_future(future))


def _unavailable(directory: Path, error: Exception) -> SojournError:
    return Unavailable(f"the memory in {directory} failed: {error}; see whether the disk is full", code="memory.unavailable")


def _config(dimensions: int | None) -> Any:
    return qdrant.EdgeConfig(
        vectors=None if dimensions is None else {MEANING: qdrant.EdgeVectorParams(dimensions, qdrant.Distance.Cosine)},
        sparse_vectors={WORDS: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)},
        # No graph: what belongs to one user is compared as it is, exactly.
        hnsw_config=qdrant.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000, payload_m=0),
    )


def _point(point: Point) -> Any:
    vectors: dict[str, Any] = {WORDS: qdrant.SparseVector(list(point.words), list(point.words.values()))}
    if point.meaning is not None:
        vectors[MEANING] = point.meaning.tolist()
    return qdrant.Point(point.id, vectors, point.payload)


def _filter(where: Where) -> Any:
    must = [_equals("owner", where.owner), *(_equals(field, value) for field, value in where.equal)]
    must_not: list[Any] = []
    if where.since is not None or where.until is not None:
        span = qdrant.RangeFloat(gte=where.since, lte=where.until)
        must.append(qdrant.FieldCondition(TIME, range=span))
    if where.ids is not None:
        must.append(qdrant.HasIdCondition(set(where.ids)))
    if where.except_ids:
        must_not.append(qdrant.HasIdCondition(set(where.except_ids)))
    if where.except_model is not None:
        must_not.append(_equals("model", where.except_model))
    return qdrant.Filter(must=must, must_not=must_not)


def _equals(field: str, value: str) -> Any:
    return qdrant.FieldCondition(field, match=qdrant.MatchValue(value))


def _query(ranking: Ranking) -> Any:
    params = qdrant.SearchParams(exact=True)
    vector: Any
    if isinstance(ranking.vector, dict):
        vector = qdrant.SparseVector(list(ranking.vector), list(ranking.vector.values()))
        params = qdrant.SearchParams(idf=qdrant.IdfParams(_filter(Where(ranking.where.owner))))
    else:
        vector = list(ranking.vector)
    return qdrant.QueryRequest(
        limit=ranking.limit,
        query=qdrant.Query.Nearest(vector, using=ranking.using),
        filter=_filter(ranking.where),
        params=params,
        with_vector=[WORDS] if ranking.with_words else False,
        with_payload=False,
    )


def _hit(point: Any) -> Hit:
    words = (point.vector or {}).get(WORDS)
    return Hit(str(point.id), point.score, {} if words is None else dict(zip(words.indices, words.values, strict=True)))
