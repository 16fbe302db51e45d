"""The cases that every artifact service passes: bytes, text and streams that go in and come out, whole or in part."""

# A case is told by its name.

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import ValidationError

from sojourn.artifact.service import ArtifactService
from sojourn.content import Part
from sojourn.errors import InvalidInput, NotFound, Unsupported
from sojourn.testing.artifact_suite import (
    ALICE,
    ArtifactSuite,
    assert_absent,
    assert_refused,
    load_bytes,
    names_of,
    stream,
    versions_of,
)

NASTY_BYTES = bytes(range(256)) + "\x00é😀\r\n".encode()


def _download(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read(), answer.headers


class ArtifactDataConformance(ArtifactSuite):
    """What goes in comes out."""

    @pytest.mark.parametrize(
        "part",
        [
            Part.from_bytes(NASTY_BYTES, "application/x-nasty"),
            Part.from_bytes(b"", "image/png"),
            Part.from_bytes(b"text", "text/plain"),
            Part.from_bytes(b"named", "image/png", display_name="Größe \x00 😀"),
            Part.from_text("NUL \x00, é, 😀, \r\n"),
            Part.from_text(""),
        ],
        ids=["bytes", "empty-bytes", "text-as-bytes", "display-name", "text", "empty-text"],
    )
    async def test_a_part_comes_back_as_it_was(self, service: ArtifactService, part: Part) -> None:
        await service.save_artifact(ALICE, "a", part)
        assert await service.load_artifact(ALICE, "a") == part
        data = part.inline_data.data if part.inline_data else (part.text or "").encode()
        assert await (await service.open_artifact(ALICE, "a")).read() == data

    @pytest.mark.parametrize("data", [NASTY_BYTES, b"", b"\x00", b"\r\n"])
    async def test_bytes_come_back_as_a_part(self, service: ArtifactService, data: bytes) -> None:
        await service.save_artifact(ALICE, "a", data)
        assert await service.load_artifact(ALICE, "a") == Part.from_bytes(data, "application/octet-stream")

    async def test_the_mime_type_can_be_given(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", Part.from_bytes(b"x", "image/png"), mime_type="image/webp")
        await service.save_artifact(ALICE, "a", Part.from_text("# x"), mime_type="text/markdown; charset=utf-8")
        await service.save_artifact(ALICE, "a", Part.from_text("x"))
        assert await service.load_artifact(ALICE, "a", 0) == Part.from_bytes(b"x", "image/webp")
        assert await service.load_artifact(ALICE, "a", 1) == Part.from_text("# x")
        types = [v.mime_type for v in await versions_of(service, ALICE, "a")]
        assert types == ["image/webp", "text/markdown; charset=utf-8", "text/plain"]

    @pytest.mark.parametrize(
        "mime_type", ["", "png", "image/", "/png", "image/png\r\nX-Evil: 1", "bild/größe", "a/" + "x" * 300]
    )
    async def test_mime_types_that_are_none_are_refused(self, service: ArtifactService, mime_type: str) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_mime_type",
            lambda: service.save_artifact(ALICE, "a", b"x", mime_type=mime_type),
            lambda: service.save_artifact(ALICE, "a", Part.from_bytes(b"x", mime_type)),
        )
        await assert_absent(service, ALICE, "a")

    async def test_metadata_is_any_json(self, service: ArtifactService) -> None:
        metadata = {"nul": "\x00", "big": 2**80, "π": [1, 2.5, None, True, {"": "😀"}], "name": "x", "version": 9, "size": -1}
        await service.save_artifact(ALICE, "a", b"x", custom_metadata=metadata)
        (info,) = await versions_of(service, ALICE, "a")
        assert info.custom_metadata == metadata
        assert (info.name, info.version, info.size) == ("a", 0, 1)

    @pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": object()}, {1: "x"}, {"x": "\ud800"}, ["x"]])
    async def test_metadata_that_is_not_json_is_refused(self, service: ArtifactService, metadata: Any) -> None:
        await assert_refused(
            InvalidInput, "json.invalid", lambda: service.save_artifact(ALICE, "a", b"x", custom_metadata=metadata)
        )
        await assert_absent(service, ALICE, "a")

    @pytest.mark.parametrize(
        "data",
        [
            "text",
            None,
            7,
            ["x"],
            Part(),
            Part.from_uri("https://example.org"),
            Part.from_function_call("f"),
            Part.from_text("x").model_copy(update={"inline_data": Part.from_bytes(b"x").inline_data}),
        ],
        ids=["str", "none", "int", "list", "empty-part", "uri", "call", "two-kinds"],
    )
    async def test_data_that_is_no_data_is_refused(self, service: ArtifactService, data: Any) -> None:
        await assert_refused(InvalidInput, "artifact.invalid_data", lambda: service.save_artifact(ALICE, "a", data))
        await assert_absent(service, ALICE, "a")

    @pytest.mark.parametrize("piece", ["text", None, 7])
    async def test_a_stream_of_anything_but_bytes_is_refused(self, service: ArtifactService, piece: Any) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_data",
            lambda: service.save_artifact(ALICE, "a", stream(bytes(2 * 1024 * 1024), piece)),
        )
        await assert_absent(service, ALICE, "a")

    async def test_what_goes_in_and_out_is_a_copy(self, service: ArtifactService) -> None:
        data: Any = bytearray(b"before")
        metadata = {"list": [1]}
        await service.save_artifact(ALICE, "a", data, custom_metadata=metadata)
        data[:] = b"after!"
        metadata["list"].append(2)
        opened = await service.open_artifact(ALICE, "a")
        for info in (*await versions_of(service, ALICE, "a"), opened.info):
            info.custom_metadata["list"].append(3)
            with pytest.raises((FrozenInstanceError, ValidationError)):
                info.size = 7  # type: ignore[misc]
        assert await load_bytes(service, ALICE, "a") == b"before"
        assert (await versions_of(service, ALICE, "a"))[0].custom_metadata == {"list": [1]}

    async def test_a_buffer_that_is_used_again_is_copied(self, service: ArtifactService) -> None:
        buffer = bytearray(4)

        async def pieces() -> AsyncIterator[Any]:
            for number in range(3):
                buffer[:] = b"%04d" % number
                yield memoryview(buffer)

        await service.save_artifact(ALICE, "a", pieces())
        buffer[:] = b"gone"
        assert await load_bytes(service, ALICE, "a") == b"000000010002"

    # -- streams ------------------------------------------------------------------------------------------------------------

    async def test_large_bytes_stream(self, service: ArtifactService) -> None:
        piece = bytes(range(256)) * 256
        count = self.large_bytes // len(piece)
        await service.save_artifact(ALICE, "large", stream(*[piece] * count, b"end"), mime_type="video/mp4")
        opened = await service.open_artifact(ALICE, "large")
        assert (opened.info.size, opened.info.mime_type) == (count * len(piece) + 3, "video/mp4")
        chunks = [chunk async for chunk in opened.chunks]
        assert all(chunks)
        assert max(map(len, chunks)) < opened.info.size
        assert b"".join(chunks) == piece * count + b"end"

    async def test_large_bytes_at_once(self, service: ArtifactService) -> None:
        data = bytes(range(256)) * (self.large_bytes // 256)
        await service.save_artifact(ALICE, "large", data)
        assert await load_bytes(service, ALICE, "large") == data

    @pytest.mark.parametrize("pieces", [(), (b"",), (b"", b"a", b"", b"b", b"")])
    async def test_empty_pieces_and_streams(self, service: ArtifactService, pieces: tuple[bytes, ...]) -> None:
        await service.save_artifact(ALICE, "a", stream(*pieces))
        assert await load_bytes(service, ALICE, "a") == b"".join(pieces)
        assert all([chunk async for chunk in (await service.open_artifact(ALICE, "a")).chunks])

    async def test_open_takes_a_version(self, service: ArtifactService) -> None:
        for data in (b"first", b"second"):
            await service.save_artifact(ALICE, "a", data)
        opened = await service.open_artifact(ALICE, "a", 0)
        assert (opened.info.version, await opened.read()) == (0, b"first")
        assert (await service.open_artifact(ALICE, "a")).info.version == 1

    async def test_a_reader_may_leave(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "large", bytes(self.large_bytes))
        unread = await service.open_artifact(ALICE, "large")
        async for _ in (await service.open_artifact(ALICE, "large")).chunks:
            break
        del unread
        await service.delete_artifact(ALICE, "large")
        await assert_absent(service, ALICE, "large")

    async def test_what_was_opened_can_be_read_after_its_deletion(self, service: ArtifactService) -> None:
        data = bytes(range(256)) * (self.large_bytes // 256)
        await service.save_artifact(ALICE, "a", data)
        unread, begun = [await service.open_artifact(ALICE, "a") for _ in range(2)]
        start = await anext(aiter(begun.chunks))
        await service.delete_artifact(ALICE, "a")
        await service.save_artifact(ALICE, "a", b"anew")
        assert start + await begun.read() == data
        assert await unread.read() == data
        assert await load_bytes(service, ALICE, "a") == b"anew"

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 100])
    async def test_a_cancelled_read_loses_nothing(self, service: ArtifactService, turns: int) -> None:
        data = bytes(range(256)) * (self.large_bytes // 256)
        await service.save_artifact(ALICE, "a", data)
        chunks = (await service.open_artifact(ALICE, "a")).chunks
        found = []

        async def read() -> None:
            found.append(await anext(chunks))

        for _ in range(4):
            reading = asyncio.create_task(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        found += [chunk async for chunk in chunks]
        assert b"".join(found) == data

    async def test_ranges(self, service: ArtifactService) -> None:
        data = bytes(range(256)) * (self.large_bytes // 256)
        size = len(data)
        for name, saved in (("small", data[:300]), ("large", stream(data[:1_000_000], data[1_000_000:])), ("empty", b"")):
            await service.save_artifact(ALICE, name, saved)
        await service.save_artifact(ALICE, "small", b"newer")
        bounds: list[tuple[int, int | None]] = [(0, None), (0, 1), (1, None), (299, 300), (5, 5), (0, 0), (10, 20), (250, 999)]
        beyond: list[tuple[int, int | None]] = [(300, None), (301, 302), (10**12, None), (0, 10**12)]
        for start, end in bounds + beyond:
            opened = await service.open_artifact(ALICE, "small", 0, start=start, end=end)
            assert await opened.read() == data[:300][start:end], (start, end)
            assert (opened.start, opened.end) == slice(start, end).indices(300)[:2]
            assert (opened.info.size, opened.info.version) == (300, 0)
        for start, end in ((size - 7, None), (262_143, 262_145), (1, size - 1), (1_048_575, 6 * 1_048_577)):
            opened = await service.open_artifact(ALICE, "large", start=start, end=end)
            chunks = [chunk async for chunk in opened.chunks]
            assert all(chunks)
            assert b"".join(chunks) == data[start:end]
        opened = await service.open_artifact(ALICE, "empty", start=0, end=5)
        assert (await opened.read(), opened.start, opened.end) == (b"", 0, 0)

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (0, -1), (3, 2), (True, None), (0.0, 1), (0, "1"), (None, 1)])
    async def test_ranges_that_cannot_be_are_refused(self, service: ArtifactService, start: Any, end: Any) -> None:
        await assert_refused(
            InvalidInput, "artifact.invalid_range", lambda: service.open_artifact(ALICE, "a", start=start, end=end)
        )

    async def test_a_range_can_be_read_after_its_deletion(self, service: ArtifactService) -> None:
        data = bytes(range(256)) * (self.large_bytes // 256)
        await service.save_artifact(ALICE, "a", data)
        opened = await service.open_artifact(ALICE, "a", start=100, end=len(data) - 100)
        begun = await anext(aiter(opened.chunks))
        await service.delete_artifact(ALICE, "a")
        assert begun + await opened.read() == data[100:-100]

    async def test_presigned_urls(self, service: ArtifactService) -> None:
        for seconds in (0, 0.5, -1, 604_801, True, "60", float("nan")):
            bad: Any = seconds
            await assert_refused(
                InvalidInput,
                "artifact.invalid_expiry",
                lambda bad=bad: service.presigned_url(ALICE, "a", expires_in=bad),  # type: ignore[misc]
            )
        if not self.has_urls:
            await service.save_artifact(ALICE, "a", b"x")
            await assert_refused(Unsupported, "artifact.no_urls", lambda: service.presigned_url(ALICE, "a"))
            return
        await assert_refused(NotFound, "artifact.not_found", lambda: service.presigned_url(ALICE, "a/ä.html"))
        for data in (b"0", b"1"):
            await service.save_artifact(ALICE, "a/ä.html", data, mime_type="text/html")
        for version, expected in ((0, b"0"), (1, b"1"), (None, b"1")):
            url = await service.presigned_url(ALICE, "a/ä.html", version, expires_in=60.5)
            body, headers = await asyncio.to_thread(_download, url)
            assert (body, headers["content-type"]) == (expected, "text/html")
            # So that no browser shows somebody's page as one of the storage's.
            assert headers["content-disposition"].startswith("attachment")
        await assert_refused(NotFound, "artifact.not_found", lambda: service.presigned_url(ALICE, "a/ä.html", 2))
        await service.delete_artifact(ALICE, "a/ä.html")
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(_download, url)
        caught.value.close()

    async def test_an_error_of_the_stream_saves_nothing(self, service: ArtifactService) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield bytes(2 * 1024 * 1024)
            raise OSError("the source broke")

        with pytest.raises(OSError, match="the source broke"):
            await service.save_artifact(ALICE, "a", broken())
        await assert_absent(service, ALICE, "a")
        assert await service.save_artifact(ALICE, "a", b"x") == 0

    async def test_a_save_cancelled_in_its_stream_saves_nothing(self, service: ArtifactService) -> None:
        waiting = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield bytes(2 * 1024 * 1024)
            waiting.set()
            await asyncio.Event().wait()

        await service.save_artifact(ALICE, "old", b"kept")
        for name in ("new", "old"):
            waiting.clear()
            task = asyncio.create_task(service.save_artifact(ALICE, name, endless()))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await assert_absent(service, ALICE, "new")
        assert [v.version for v in await versions_of(service, ALICE, "old")] == [0]
        assert await service.save_artifact(ALICE, "new", b"x") == 0
        assert await service.save_artifact(ALICE, "old", b"x") == 1

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 100, 1000])
    async def test_a_save_cancelled_after_its_stream_saves_all_or_nothing(self, service: ArtifactService, turns: int) -> None:
        ended = asyncio.Event()

        async def ending() -> AsyncIterator[bytes]:
            yield bytes(3_000_000)
            ended.set()

        task = asyncio.create_task(service.save_artifact(ALICE, "a", ending()))
        await ended.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        names = await names_of(service, ALICE)
        sizes = [v.size for v in await versions_of(service, ALICE, "a")] if names else []
        assert sizes in ([], [3_000_000])
        assert task.cancelled() or (task.result(), sizes) == (0, [3_000_000])
        assert await service.save_artifact(ALICE, "a", b"x") == len(sizes)

    async def test_a_stream_is_not_visible_before_its_end(self, service: ArtifactService) -> None:
        async def looking() -> AsyncIterator[bytes]:
            yield bytes(2 * 1024 * 1024)
            await assert_absent(service, ALICE, "a")
            assert await service.save_artifact(ALICE, "a", b"overtakes") == 0
            yield b"end"

        assert await service.save_artifact(ALICE, "a", looking()) == 1
        assert (await load_bytes(service, ALICE, "a")).endswith(b"\x00end")
