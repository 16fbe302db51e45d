"""Objects in a bucket: what the service asks of a store, with its errors and second tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sojourn.artifact.s3.faults import Fault, unavailable
from sojourn.artifact.s3.feed import Block, Feed
from sojourn.errors import SojournError, Unavailable
from sojourn.outcome import outlast

if TYPE_CHECKING:
    from obstore import Attributes, BytesStream
    from obstore.store import ObjectStore

S = TypeVar("S")
T = TypeVar("T")

PART_BYTES = 8 * 1024 * 1024
"""Larger objects are uploaded in parts of this size. S3 takes 10,000 parts: 78 GiB."""

_PARTS_AT_ONCE = 4
_CHUNK_BYTES = 1_048_576
_MAX_CHUNK_BYTES = 4 * _CHUNK_BYTES
_TRIES = 2
"""Of what the driver does not try again by itself, such as a listing that broke off."""

_NO_OBJECT = frozenset({"NoSuchKey", "BlobNotFound"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})

_DELETES_AT_ONCE = 1000
_CALLS_AT_ONCE = 16


class Entry(NamedTuple):
    """An object in a listing.

    Attributes:
        key: Its key.
        size: Its size in bytes.
        modified: When it was written, by the store's clock, in seconds since the epoch.
    """

    key: str
    size: int
    modified: float


class Bucket:
    """A bucket, or the part of one below a prefix.

    All methods raise `Unavailable`, `artifact.unavailable`, for what the store does not do.

    Args:
        store: The driver's store.
        where: What it is called in messages.
    """

    def __init__(self, store: ObjectStore, where: str) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        self._obstore = obstore
        self._store = store
        self._taken = AlreadyExistsError
        self._errors = (BaseError, OSError, ValueError, NotImplementedError)
        self.where = where

    async def upload(self, key: str, blocks: AsyncIterator[Block], attributes: dict[str, str]) -> int:
        """Writes an object under a fresh key, with a few parts of it in memory at once; returns its size.

        An error of the blocks' iterator is raised as it is, and nothing is written then.
        """
        head, whole = await _take(blocks, PART_BYTES)
        if whole:
            data = head[0] if len(head) == 1 else b"".join(head)
            await self._again(lambda: self._put(key, data, attributes))
            return len(data)
        feed = Feed()
        uploading = asyncio.ensure_future(self._put(key, feed, attributes))
        uploading.add_done_callback(lambda _: feed.abandon())
        size = 0
        try:
            async for block in _chain(head, blocks):
                if uploading.done():
                    break
                size += len(block)
                await feed.give(block)
            await feed.end()
            await self.once(lambda: asyncio.shield(uploading))
        except BaseException:
            feed.fail(_Broken())
            # The driver tells the store to forget the parts, or has them put together.
            with suppress(Exception):
                await outlast(_ended(uploading))
            raise
        return size

    def _put(self, key: str, data: Any, attributes: dict[str, str]) -> Awaitable[Any]:
        given: Attributes = dict(attributes)
        return self._obstore.put_async(
            self._store, key, data, attributes=given, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE
        )

    async def create(self, key: str, body: bytes) -> bool:
        """Writes an object unless there is one; returns whether it did.

        After a lost answer it may be told that there is one, and that one be its own.
        """
        try:
            await self.once(lambda: self._create(key, body))
        except _Taken:
            return False
        return True

    def _create(self, key: str, body: bytes) -> Awaitable[Any]:
        return self._obstore.put_async(self._store, key, body, mode="create")

    async def replace(self, key: str, body: bytes) -> None:
        """Writes a small object, whatever there was."""
        await self._again(lambda: self._obstore.put_async(self._store, key, body, use_multipart=False))

    async def honours_conditions(self, key: str) -> bool:
        """Whether the store refuses to create an object that there is; leaves one behind."""
        for _ in range(2):
            try:
                # The first one may be the first ever; the second one must be refused.
                await self._again(lambda: self._create(key, b"This store honours If-None-Match.\n"))
            except _Taken:
                return True
        return False

    async def get(self, key: str) -> bytes | None:
        """Reads a small object; None if there is none."""

        async def read() -> bytes:
            return bytes(await (await self._obstore.get_async(self._store, key)).bytes_async())

        try:
            return await self._again(read)
        except _Missing:
            return None

    async def get_all(self, keys: Iterable[str]) -> list[bytes | None]:
        """Reads many small objects, a few at the same time."""
        return await together(self.get, keys)

    async def open(self, wanted: Wanted, start: int, end: int) -> Download | None:
        """Begins to read bytes of an object; None if there is none."""
        download = Download(self, wanted, start, end)
        return download if await download.connect() else None

    async def entries(self, prefix: str) -> list[Entry]:
        """All objects below a prefix, in any order."""

        async def read() -> list[Entry]:
            found: list[Entry] = []
            async for batch in self._obstore.list(self._store, prefix, chunk_size=1000):
                found.extend(Entry(item["path"], item["size"], item["last_modified"].timestamp()) for item in batch)
            return found

        return await self._again(read)

    async def children(self, prefix: str | None) -> list[str]:
        """The prefixes directly below a prefix."""
        listed = await self._again(lambda: self._obstore.list_with_delimiter_async(self._store, prefix))
        return [child.rstrip("/") for child in listed["common_prefixes"]]

    async def delete(self, keys: list[str]) -> None:
        """Deletes objects; what is not there is not missed."""
        for first in range(0, len(keys), _DELETES_AT_ONCE):
            batch = keys[first : first + _DELETES_AT_ONCE]
            try:
                await self._again(lambda batch=batch: self._obstore.delete_async(self._store, batch))  # type: ignore[misc]
            except _Missing:
                # Some stores refuse the rest with what is missing.
                for key in batch:
                    with suppress(_Missing):
                        await self._again(lambda key=key: self._obstore.delete_async(self._store, [key]))  # type: ignore[misc]

    @property
    def signs(self) -> bool:
        """Whether the store has presigned URLs."""
        from obstore.store import AzureStore, GCSStore, S3Store

        return isinstance(self._store, AzureStore | GCSStore | S3Store)

    async def sign(self, key: str, seconds: int) -> str:
        """A URL from which the object can be read for a while."""
        store: Any = self._store
        return await self.once(lambda: self._obstore.sign_async(store, "GET", key, timedelta(seconds=seconds)))

    async def read(self, key: str, start: int, end: int) -> tuple[BytesStream, int] | None:
        """A stream of bytes of an object, and the size of all of it; None if there is none."""

        async def ask() -> tuple[BytesStream, int]:
            result = await self._obstore.get_async(self._store, key, options={"range": (start, end)})
            return result.stream(min_chunk_size=_CHUNK_BYTES), result.meta["size"]

        try:
            return await self.once(ask)
        except _Missing:
            return None

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """What may be repeated, tried again if that may help."""
        for _ in range(_TRIES - 1):
            try:
                return await self.once(call)
            except Unavailable as error:
                if not error.retryable:
                    raise
        return await self.once(call)

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call to the driver; its errors become ours."""
        try:
            return await call()
        except self._taken:
            # Told outside of the block: what the driver says may hold secrets, and must not become the context.
            error: Exception = _Taken()
        except self._errors as raised:
            error = self._fault(raised)
        raise error

    def _fault(self, raised: Exception) -> Exception:
        code = Fault.of(raised).code
        if code in _NO_OBJECT or (isinstance(raised, FileNotFoundError) and code not in _NO_BUCKET):
            return _Missing()
        return unavailable(self.where, raised)


class Wanted(NamedTuple):
    """An object that somebody wants to read.

    Attributes:
        key: Its key.
        size: How many bytes it has.
        gone: Gives what to raise if it goes away while it is read.
        damaged: Gives what to raise if it has another size.
    """

    key: str
    size: int
    gone: Callable[[], SojournError]
    damaged: Callable[[], SojournError]


class Download(AsyncIterator[bytes]):
    """Bytes of an object, piece by piece. A connection that breaks is made again, and goes on where it broke."""

    def __init__(self, bucket: Bucket, wanted: Wanted, start: int, end: int) -> None:
        self._bucket = bucket
        self._wanted = wanted
        self._at = start
        self._end = end
        self._stream: BytesStream | None = None
        self._read_ahead = b""

    async def connect(self) -> bool:
        """Asks for the bytes that are left; returns whether the object exists."""
        if self._at < self._end:
            found = await self._bucket.read(self._wanted.key, self._at, self._end)
            if found is None:
                return False
            self._stream, size = found
            if size != self._wanted.size:
                raise self._wanted.damaged()
        return True

    async def __anext__(self) -> bytes:
        """The next bytes."""
        failures = 0
        while self._at < self._end:
            try:
                if self._stream is None and not await self.connect():
                    raise self._wanted.gone()
                chunk = await self._bucket.once(self._next)
            except _Missing:
                # The driver asked again by itself.
                raise self._wanted.gone() from None
            except asyncio.CancelledError:
                # What was on its way is lost: who reads on asks for it again.
                self._stream = None
                raise
            except Unavailable as error:
                self._stream = None
                failures += 1
                if failures == _TRIES or not error.retryable:
                    raise
                continue
            self._at += len(chunk)
            return chunk
        self._stream = None
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        # A store in memory gives everything at once.
        chunk = self._read_ahead or await self._receive()
        self._read_ahead = chunk[_MAX_CHUNK_BYTES:]
        return chunk[:_MAX_CHUNK_BYTES]

    async def _receive(self) -> bytes:
        assert self._stream is not None
        async for chunk in self._stream:
            if chunk:
                return bytes(chunk[: self._end - self._at])
        raise ConnectionError("the answer ended early")


async def together(call: Callable[[S], Awaitable[T]], things: Iterable[S]) -> list[T]:
    """What a call gives for each thing, a few at the same time; if one fails, the others are cancelled and it is raised."""
    free = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def one(thing: S) -> T:
        async with free:
            return await call(thing)

    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(one(thing)) for thing in things]
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise error


class _Missing(Exception):
    """There is no such object."""


class _Taken(Exception):
    """There is such an object."""


class _Broken(Exception):
    """What was to be uploaded does not come."""


async def _take(blocks: AsyncIterator[Block], limit: int) -> tuple[list[Block], bool]:
    """The blocks up to the one that exceeds a size; and whether that is all, and none does."""
    taken: list[Block] = []
    size = 0
    async for block in blocks:
        taken.append(block)
        size += len(block)
        if size > limit:
            return taken, False
    return taken, True


async def _chain(head: list[Block], rest: AsyncIterator[Block]) -> AsyncIterator[Block]:
    """The blocks, larger ones in slices, so that each of them is on its way before the next."""
    while head:
        block = head.pop(0)
        for start in range(0, len(block), PART_BYTES):
            yield memoryview(block)[start : start + PART_BYTES]
    async for block in rest:
        yield block


async def _ended(future: asyncio.Future[Any]) -> None:
    await asyncio.wait([future])
    if not future.cancelled():
        # Looked at, so that asyncio does not report it as never retrieved.
        future.exception()
