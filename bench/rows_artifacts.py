"""What artifacts cost on their way to files and to a bucket, beside writing the file, and the driver alone."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import obstore
from obstore.store import S3Store

from bench.measure import Budget, Cost, Row, Sample, Scale, Stopwatch
from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.s3.service import S3ArtifactService
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.errors import NotFound
from sojourn.testing.s3 import ANY_CREDENTIALS, s3_server

MIB = 1_048_576
SIZES = (8, 64)
"""MiB of an artifact."""

SCOPE = ArtifactScope("bench", "user", "session", "uid")
_PIECE = platform.random_bytes(MIB)
_PER_MIB = "ms/MiB"
_AT_LEAST_80_PERCENT = (Budget(1.25, "ratio"),)


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield _PIECE


class Way(Protocol):
    """How bytes are kept; each method takes a number of MiB."""

    async def save(self, size: int) -> None: ...
    async def load(self, size: int) -> None: ...
    async def forget(self) -> None:
        """Deletes what was saved."""

    def cool(self) -> None:
        """Makes the next one to load wait for the disk."""


class Service:
    """By an artifact service."""

    def __init__(self, service: ArtifactService, directory: Path | None = None) -> None:
        self._service = service
        self._directory = directory

    def cool(self) -> None:
        if self._directory is not None:
            _leave_the_cache(*self._directory.rglob("data"))

    async def save(self, size: int) -> None:
        await self._service.save_artifact(SCOPE, "large", _pieces(size))

    async def load(self, size: int) -> None:
        opened = await self._service.open_artifact(SCOPE, "large")
        assert sum([len(chunk) async for chunk in opened.chunks]) == size * MIB

    async def forget(self) -> None:
        with suppress(NotFound):
            await self._service.delete_artifact(SCOPE, "large")


class File:
    """In a file of its own, as durable as an artifact."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def save(self, size: int) -> None:
        with self._path.open("xb") as file:
            for _ in range(size):
                file.write(_PIECE)
            file.flush()
            os.fsync(file.fileno())
        # Without it, a power failure may take the file away again.
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def load(self, size: int) -> None:
        with self._path.open("rb") as file:
            assert sum(map(len, iter(lambda: file.read(MIB), b""))) == size * MIB

    async def forget(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()

    def cool(self) -> None:
        _leave_the_cache(self._path)


class Driver:
    """By obstore as it comes."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    async def save(self, size: int) -> None:
        await obstore.put_async(self._store, "raw", _pieces(size))

    async def load(self, size: int) -> None:
        stream = (await obstore.get_async(self._store, "raw")).stream()
        assert sum([len(chunk) async for chunk in stream]) == size * MIB

    async def forget(self) -> None:
        await obstore.delete_async(self._store, "raw")

    def cool(self) -> None:
        pass


def _leave_the_cache(*paths: Path) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@asynccontextmanager
async def _files() -> AsyncIterator[tuple[Way, Way]]:
    with tempfile.TemporaryDirectory() as directory:
        artifacts = Path(directory, "artifacts")
        yield Service(FileArtifactService(artifacts), artifacts), File(Path(directory, "raw"))


@asynccontextmanager
async def _bucket() -> AsyncIterator[tuple[Way, Way]]:
    with s3_server("bucket") as endpoint:
        service = S3ArtifactService("s3://bucket/artifacts", endpoint=endpoint, options=ANY_CREDENTIALS)
        store = S3Store("bucket", endpoint=endpoint, client_options={"allow_http": True}, **ANY_CREDENTIALS)
        yield Service(service), Driver(store)


async def _throughput(scale: Scale, place: str) -> list[Sample]:
    samples: list[Sample] = []
    async with _files() if place == "files" else _bucket() as ways:
        await _round(ways, 1)
        for size in SIZES:
            rounds = [await _round(ways, size) for _ in range(scale.of(7, 1))]
            for verb, column in (("save", 0), ("load", 1)):
                ours, floor = (min((r[way][column] for r in rounds), key=lambda cost: cost.wall) for way in (0, 1))
                note = f"{ours.rate:,.0f} MiB/s, beside {floor.rate:,.0f}; CPU {ours.cpu / floor.cpu:.2f}×"
                samples.append(Sample(f"{verb} {size} MiB", ours.wall * 1e3, _PER_MIB, floor.wall * 1e3, note=note))
    return samples


async def _round(ways: Sequence[Way], size: int) -> list[tuple[Cost, Cost]]:
    """The cost of a MiB saved and one loaded, of each way right beside the other."""
    costs = []
    for way in ways:
        await way.forget()
        with Stopwatch() as saving:
            await way.save(size)
        way.cool()
        with Stopwatch() as loading:
            await way.load(size)
        costs.append((saving.per(size), loading.per(size)))
    return costs


def _peak() -> float:
    """The most memory that this process has had so far, in MiB; kilobytes are Linux's unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _growth(way: Way, warm_up: int, size: int) -> float:
    for _ in range(2):
        await way.save(warm_up)
        await way.load(warm_up)
    before = _peak()
    await way.save(size)
    await way.load(size)
    return _peak() - before


async def _memory_of_files(scale: Scale) -> list[Sample]:
    size = scale.of(2048, 16)
    async with _files() as (ours, _):
        return [Sample(f"files, {size:,} MiB saved and loaded", await _growth(ours, 8, size), "MiB")]


async def _memory_of_bucket(scale: Scale) -> list[Sample]:
    size = scale.of(64, 32)
    async with _bucket() as (ours, _):
        return [Sample(f"bucket, {size:,} MiB saved and loaded", await _growth(ours, 32, size), "MiB")]


def _rows() -> Iterator[Row]:
    budgets = {f"{verb} {size} MiB": _AT_LEAST_80_PERCENT for size in SIZES for verb in ("save", "load")}
    floors = {"files": "a file written with fsync, its directory too, and read from the disk", "bucket": "obstore alone"}
    for place, floor in floors.items():
        yield Row(
            f"artifacts-{place}",
            f"artifacts in {'a ' * (place == 'bucket')}{place}, streamed, by the clock",
            (lambda scale, place=place: asyncio.run(_throughput(scale, place)),),
            floor=floor,
            repeats=3,
            budgets=budgets,
        )
    yield Row(
        "artifacts-memory",
        "what large artifacts add to the memory of a process that has streamed small ones",
        (lambda scale: asyncio.run(_memory_of_files(scale)), lambda scale: asyncio.run(_memory_of_bucket(scale))),
        repeats=1,
    )


ROWS = tuple(_rows())
