"""The engine on a server, through its own client."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from sojourn.errors import SojournError, Unavailable, Unsupported
from sojourn.memory.qdrant.engine import KEYWORDS, MEANING, TIME, WORDS, Hit, Payload, Point, Ranking, Where
from sojourn.memory.qdrant.faults import other_dimensions, without_vectors
from sojourn.outcome import outlast

T = TypeVar("T")

_OLDEST = (1, 19)
"""The oldest server that weighs words by how rare they are among the entries of one user."""

_DRIVEN = (ApiException, QdrantException, OSError, ValidationError)


def is_client(value: object) -> bool:
    """Whether it is a client that can be used."""
    return isinstance(value, AsyncQdrantClient)


class ServerEngine:
    """Keeps points in a collection of a server.

    Each event loop has a client of its own, unless one was given.

    Args:
        source: A URL or a client.
        collection: Which collection. It is made by the first call, if it is missing.
        dimensions: Of the vectors; None if there are none.
        api_key: The key of the server.
        timeout: Seconds that it may take to answer.
    """

    def __init__(
        self,
        source: str | AsyncQdrantClient,
        collection: str,
        dimensions: int | None,
        *,
        api_key: str | None = None,
        timeout: float,
    ) -> None:
        self._source = source
        self._collection = collection
        self._dimensions = dimensions
        self._api_key = api_key
        self._timeout = math.ceil(timeout)
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncQdrantClient] = weakref.WeakKeyDictionary()
        self._is_ready = False
        self._closed = False

    async def upsert(self, points: Sequence[Point]) -> None:
        """Stores points, each in place of the one with its id."""
        if points:
            await self._write(lambda client: client.upsert(self._collection, [_point(point) for point in points], wait=True))

    async def replace(self, points: Mapping[Where, Point]) -> None:
        """Stores points, each in place of the one with its id, if that is there and meets the condition when it is written."""
        operations = [
            models.UpsertOperation(
                upsert=models.PointsList(
                    points=[_point(point)], update_filter=_filter(where), update_mode=models.UpdateMode.UPDATE_ONLY
                )
            )
            for where, point in points.items()
        ]
        await self._write(lambda client: client.batch_update_points(self._collection, operations, wait=True))

    async def delete(self, where: Where) -> None:
        """Removes points."""
        chosen = models.FilterSelector(filter=_filter(where))
        await self._write(lambda client: client.delete(self._collection, chosen, wait=True))

    async def rank(self, rankings: Sequence[Ranking]) -> list[list[Hit]]:
        """Answers questions, all in one go."""
        requests = [_query(ranking) for ranking in rankings]
        found = await self._read(lambda client: client.query_batch_points(self._collection, requests, timeout=self._timeout))
        return [[_hit(point) for point in response.points] for response in found]

    async def count(self, where: Where) -> int:
        """How many points there are."""
        result = await self._read(
            lambda client: client.count(self._collection, count_filter=_filter(where), exact=True, timeout=self._timeout)
        )
        return int(result.count)

    async def scroll(self, where: Where, limit: int, fields: Sequence[str]) -> list[Payload]:
        """At most `limit` points, the latest time first."""
        records, _ = await self._read(
            lambda client: client.scroll(
                self._collection,
                scroll_filter=_filter(where),
                limit=limit,
                order_by=models.OrderBy(key=TIME, direction=models.Direction.DESC),
                with_payload=list(fields),
                timeout=self._timeout,
            )
        )
        return [record.payload or {} for record in records]

    async def retrieve(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Payload]:
        """Fields of the points with these ids."""
        if not ids:
            return {}
        records = await self._read(
            lambda client: client.retrieve(self._collection, list(ids), with_payload=list(fields), timeout=self._timeout)
        )
        return {str(record.id): record.payload or {} for record in records}

    async def close(self) -> None:
        """Closes the client of this event loop, if it was opened here."""
        self._closed = True
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    # -- calling ----------------------------------------------------------------------------------------------------

    async def _write(self, call: Callable[[AsyncQdrantClient], Awaitable[T]]) -> T:
        return await outlast(self._read(call))

    async def _read(self, call: Callable[[AsyncQdrantClient], Awaitable[T]]) -> T:
        client = self._client()
        if not self._is_ready:
            await self._make_ready(client)
        try:
            return await call(client)
        except _DRIVEN as error:
            if isinstance(error, UnexpectedResponse) and error.status_code == 404:
                # Somebody removed the collection: the next call makes it again.
                self._is_ready = False
            raise self._fault(error) from error

    def _client(self) -> AsyncQdrantClient:
        if self._closed:
            raise Unavailable(
                f"the memory in {self._place} has been closed; open it again", code="memory.closed", retryable=False
            )
        if not isinstance(self._source, str):
            return self._source
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = AsyncQdrantClient(
                url=self._source, api_key=self._api_key, timeout=self._timeout, check_compatibility=False
            )
        return client

    # -- the collection ---------------------------------------------------------------------------------------------

    async def _make_ready(self, client: AsyncQdrantClient) -> None:
        try:
            await self._check_server(client)
            if not await client.collection_exists(self._collection):
                await self._create(client)
            await self._index(client)
            info = await client.get_collection(self._collection)
        except _DRIVEN as error:
            raise self._fault(error) from error
        self._check_dimensions(info)
        self._is_ready = True

    async def _check_server(self, client: AsyncQdrantClient) -> None:
        version = str((await client.info()).version)
        numbers = version.split(".")[:2]
        if all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) < _OLDEST:
            raise Unsupported(
                f"{self._place} runs Qdrant {version}; use {_OLDEST[0]}.{_OLDEST[1]} or newer", code="memory.unsupported_server"
            )

    async def _create(self, client: AsyncQdrantClient) -> None:
        meaning = None if self._dimensions is None else models.VectorParams(
            size=self._dimensions, distance=models.Distance.COSINE
        )  # fmt: skip
        try:
            await client.create_collection(
                self._collection,
                vectors_config={} if meaning is None else {MEANING: meaning},
                sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                # No graph: what belongs to one user is compared as it is, exactly.
                hnsw_config=models.HnswConfigDiff(m=0, payload_m=0),
                timeout=self._timeout,
            )
        except UnexpectedResponse as error:
            # Another process was faster.
            if error.status_code not in (400, 409) or not await client.collection_exists(self._collection):
                raise

    async def _index(self, client: AsyncQdrantClient) -> None:
        """Makes the indexes that are missing; those that are there stay."""
        there = (await client.get_collection(self._collection)).payload_schema
        schemas: dict[str, Any] = dict.fromkeys(KEYWORDS, models.PayloadSchemaType.KEYWORD)
        schemas["owner"] = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        schemas[TIME] = models.PayloadSchemaType.INTEGER
        for field, schema in schemas.items():
            if field not in there:
                await client.create_payload_index(self._collection, field, schema, wait=True)

    def _check_dimensions(self, info: models.CollectionInfo) -> None:
        vectors = info.config.params.vectors
        meaning = vectors.get(MEANING) if isinstance(vectors, dict) else None
        if self._dimensions is None:
            return
        if meaning is None:
            raise without_vectors(self._place)
        if meaning.size != self._dimensions:
            raise other_dimensions(self._place, meaning.size, self._dimensions)

    # -- errors -----------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"collection {self._collection!r} of Qdrant"

    def _fault(self, error: Exception) -> SojournError:
        """The error to raise in place of the client's."""
        if isinstance(error, ResourceExhaustedResponse):
            return Unavailable(
                f"{self._place} is too busy; try again", code="memory.unavailable", retry_after=float(error.retry_after_s)
            )
        if isinstance(error, UnexpectedResponse):
            return self._refusal(error)
        source = error.source if isinstance(error, ResponseHandlingException) else error
        if "Timeout" in type(source).__name__:
            return Unavailable(
                f"{self._place} did not answer within {self._timeout} s; try again, or raise timeout", code="memory.unavailable"
            )
        return Unavailable(
            f"{self._place} cannot be reached: {str(source) or type(source).__name__}; is the server running, and the URL"
            " right?",
            code="memory.unavailable",
        )

    def _refusal(self, error: UnexpectedResponse) -> SojournError:
        if error.status_code in (401, 403):
            return Unavailable(
                f"{self._place} refuses the API key; give one that may read and write the collection",
                code="memory.refused",
                retryable=False,
            )
        return Unavailable(
            f"{self._place} answered {error.status_code} {error.reason_phrase}".rstrip() + "; see the server's log",
            code="memory.unavailable",
        )


def _point(point: Point) -> models.PointStruct:
    vectors: dict[str, Any] = {
        WORDS: models.SparseVector(indices=list(point.words), values=list(point.words.values())),
    }
    if point.meaning is not None:
        vectors[MEANING] = point.meaning.tolist()
    return models.PointStruct(id=point.id, vector=vectors, payload=point.payload)


def _filter(where: Where) -> models.Filter:
    must: list[Any] = [_equals("owner", where.owner), *(_equals(field, value) for field, value in where.equal)]
    must_not: list[Any] = []
    if where.since is not None or where.until is not None:
        span = models.Range(gte=where.since, lte=where.until)
        must.append(models.FieldCondition(key=TIME, range=span))
    if where.ids is not None:
        must.append(models.HasIdCondition(has_id=list(where.ids)))
    if where.except_ids:
        must_not.append(models.HasIdCondition(has_id=list(where.except_ids)))
    if where.except_model is not None:
        must_not.append(_equals("model", where.except_model))
    return models.Filter(must=must, must_not=must_not or None)


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _query(ranking: Ranking) -> models.QueryRequest:
    params = models.SearchParams(exact=True)
    vector: Any
    if isinstance(ranking.vector, dict):
        vector = models.SparseVector(indices=list(ranking.vector), values=list(ranking.vector.values()))
        params = models.SearchParams(idf=models.IdfCorpusParams(corpus=_filter(Where(ranking.where.owner))))
    else:
        vector = list(ranking.vector)
    return models.QueryRequest(
        query=models.NearestQuery(nearest=vector),
        using=ranking.using,
        filter=_filter(ranking.where),
        params=params,
        limit=ranking.limit,
        with_vector=[WORDS] if ranking.with_words else False,
        with_payload=False,
    )


def _hit(point: models.ScoredPoint) -> Hit:
    vectors = point.vector if isinstance(point.vector, dict) else {}
    words = cast("models.SparseVector | None", vectors.get(WORDS))
    return Hit(str(point.id), point.score, {} if words is None else dict(zip(words.indices, words.values, strict=True)))
