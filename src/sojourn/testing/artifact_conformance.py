"""What every artifact service must do.

    class TestMyArtifactService(ArtifactServiceConformance):
        @pytest.fixture
        def service(self, tmp_path):
            return MyArtifactService(tmp_path)

The cases run under anyio's pytest plugin. Each needs a service without any artifacts.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import ValidationError

from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope, ArtifactVersion, parse_artifact_uri
from sojourn.content import Part
from sojourn.errors import InvalidInput, NotFound, SojournError, Unavailable, Unsupported
from sojourn.page import Page, each_item

ALICE = ArtifactScope("app", "alice", "session", "uid-1")
ALICE_ELSEWHERE = ArtifactScope("app", "alice", "other session", "uid-2")
ALICE_RECREATED = ArtifactScope("app", "alice", "session", "uid-3")
BOB = ArtifactScope("app", "bob", "session", "uid-4")
BOB_SAME_UID = ArtifactScope("app", "bob", "session", "uid-1")
OTHER_APP = ArtifactScope("other app", "alice", "session", "uid-5")
OTHER_APP_SAME_UID = ArtifactScope("other app", "alice", "session", "uid-1")

NASTY_BYTES = bytes(range(256)) + "\x00é😀\r\n".encode()

UNSAFE_NAMES = [
    "", "/", "/etc/passwd", "..", ".", "../x", "a/../../x", "a/..", "./a", "a/./b", "a//b", "a/", "a\\b", "..\\x", "c:",
    "c:/x", "a\x00b", "a\nb", "user:", "user:/x", "user:../x", "user:a/../../x", "x" * 257,
]  # fmt: skip

ODD_NAMES = [
    "résumé.pdf", "履歴書.pdf", "😀", "a b", "%2e%2e", "%2F", "a%00b", "a/b/c", "...", ".hidden", "a.", "ab:c", "users:x",
    "User:x", "user", "session", "data", "meta.json", "0", "1/0", "con", "~", "a~b", "*?<>|\"'$(x)", "é", "e\u0301",
    "ﬁle", "A", "a", "aA", "Aa", "x" * 256, "é" * 128, "x" * 255 + "y", "user:shared", "user:a/b", "user:user:x",
    "user:" + "ü" * 125,
]  # fmt: skip

ODD_IDS = [
    "../../x", "/abs", "..", ".", "a/b", "a\\b", "%2e", "é", "e\u0301", "A", "a", "x" * 256, "x" * 255 + "y", "~", "user",
    "session", "a b", " ", "😀",
]  # fmt: skip


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    """The pieces, one by one."""
    for piece in pieces:
        yield piece


async def names_of(service: ArtifactService, scope: ArtifactScope, *, limit: int = 1000) -> list[str]:
    """All names, read in pages of this size."""
    return [name async for name in each_item(lambda after: service.list_artifact_names(scope, limit=limit, after=after))]


async def versions_of(service: ArtifactService, scope: ArtifactScope, name: str, *, limit: int = 1000) -> list[ArtifactVersion]:
    """All versions of an artifact, read in pages of this size."""
    pages = each_item(lambda after: service.list_versions(scope, name, limit=limit, after=after))
    return [version async for version in pages]


def _download(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read(), answer.headers


async def load_bytes(service: ArtifactService, scope: ArtifactScope, name: str, version: int | None = None) -> bytes:
    """The bytes of a version that was saved as bytes."""
    part = await service.load_artifact(scope, name, version)
    assert part.inline_data is not None
    return part.inline_data.data


async def assert_refused(error: type[SojournError], code: str, *calls: Callable[[], Awaitable[object]]) -> None:
    """Fails unless each call raises the error with the code."""
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        assert caught.value.code == code


async def assert_absent(service: ArtifactService, scope: ArtifactScope, name: str, version: int | None = None) -> None:
    """Fails unless every way to the artifact says that it does not exist."""
    await assert_refused(
        NotFound,
        "artifact.not_found",
        lambda: service.load_artifact(scope, name, version),
        lambda: service.open_artifact(scope, name, version),
    )
    if version is None:
        assert name not in await names_of(service, scope)
        await assert_refused(
            NotFound,
            "artifact.not_found",
            lambda: service.list_versions(scope, name),
            lambda: service.delete_artifact(scope, name),
        )


class ArtifactServiceConformance:
    """Subclass it and give a `service`; give a `failing_service` too where storage can fail."""

    pytestmark = pytest.mark.anyio

    large_bytes = 8 * 1024 * 1024
    """Size of the large artifacts that the cases save."""

    has_urls = False
    """Whether the service has presigned URLs."""

    @pytest.fixture
    def service(self) -> ArtifactService:
        """A service without artifacts."""
        raise NotImplementedError("override the fixture 'service'")

    @pytest.fixture
    def failing_service(self) -> ArtifactService:
        """A service whose storage fails at every call."""
        pytest.skip("this service has no storage that could fail")

    async def test_is_an_artifact_service(self, service: ArtifactService) -> None:
        assert isinstance(service, ArtifactService)

    # Versions

    async def test_versions_count_from_zero(self, service: ArtifactService) -> None:
        for number in range(12):
            assert await service.save_artifact(ALICE, "report.pdf", b"v%d" % number) == number
        assert await load_bytes(service, ALICE, "report.pdf") == b"v11"
        for number in range(12):
            assert await load_bytes(service, ALICE, "report.pdf", number) == b"v%d" % number

    async def test_each_name_has_versions_of_its_own(self, service: ArtifactService) -> None:
        assert await service.save_artifact(ALICE, "a", b"1") == 0
        assert await service.save_artifact(ALICE, "b", b"2") == 0
        assert await service.save_artifact(ALICE, "a/b", b"3") == 0
        assert await service.save_artifact(ALICE, "a", b"4") == 1
        assert await load_bytes(service, ALICE, "a/b") == b"3"

    async def test_equal_data_is_saved_again(self, service: ArtifactService) -> None:
        assert [await service.save_artifact(ALICE, "a", b"same") for _ in range(3)] == [0, 1, 2]

    async def test_50_concurrent_saves_get_50_versions(self, service: ArtifactService) -> None:
        async def save(number: int) -> tuple[int, bytes]:
            data = b"%d " % number * (1 + number * 97)
            whole = number % 2 == 0
            return await service.save_artifact(ALICE, "report.pdf", data if whole else stream(data[:5], data[5:])), data

        saved = await asyncio.gather(*(save(n) for n in range(50)))
        assert sorted(version for version, _ in saved) == list(range(50))
        for version, data in saved:
            assert await load_bytes(service, ALICE, "report.pdf", version) == data
        versions = await versions_of(service, ALICE, "report.pdf")
        assert [v.version for v in versions] == list(range(50))
        assert [v.size for v in versions] == [len(data) for _, data in sorted(saved)]

    async def test_list_versions_tells_all_that_is_known(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a.png", b"12345", mime_type="image/png", custom_metadata={"k": 1})
        await service.save_artifact(ALICE, "a.png", Part.from_bytes(b"", "image/jpeg", display_name="Größe"))
        first, second = await versions_of(service, ALICE, "a.png")
        assert (first.name, first.version, first.mime_type, first.size) == ("a.png", 0, "image/png", 5)
        assert (first.custom_metadata, first.display_name, first.is_text) == ({"k": 1}, None, False)
        assert (second.name, second.version, second.mime_type, second.size) == ("a.png", 1, "image/jpeg", 0)
        assert (second.custom_metadata, second.display_name, second.is_text) == ({}, "Größe", False)
        assert 0 < first.created_at <= second.created_at

    async def test_a_version_keeps_the_run_that_saved_it(self, service: ArtifactService) -> None:
        for name in ("a", "user:a"):
            for run_id in ("run 1", None, "é" * 128, "run 1"):
                await service.save_artifact(ALICE, name, b"x", run_id=run_id)
            versions = await versions_of(service, ALICE, name)
            assert [v.run_id for v in versions] == ["run 1", None, "é" * 128, "run 1"]
            assert (await service.open_artifact(ALICE, name, 2)).info.run_id == "é" * 128
        for bad in ("", "a\x00b", "x" * 257, "\ud800"):

            async def save(name: str = "../x", run_id: str = bad) -> None:
                await service.save_artifact(ALICE, name, b"x", run_id=run_id)

            await assert_refused(InvalidInput, "id.invalid", save)
        assert await names_of(service, ALICE) == ["a", "user:a"]

    async def test_missing_is_not_found(self, service: ArtifactService) -> None:
        await assert_absent(service, ALICE, "a")
        await assert_absent(service, ALICE, "a", 0)
        await service.save_artifact(ALICE, "a", b"x")
        await assert_absent(service, ALICE, "a", 1)
        await assert_absent(service, ALICE, "A")
        await assert_absent(service, ALICE, "a/b")
        await assert_absent(service, ALICE, "user:a")
        assert await names_of(service, BOB) == []

    @pytest.mark.parametrize("version", [-1, True, 1.0, "0", 10**18])
    async def test_versions_that_cannot_be_are_refused(self, service: ArtifactService, version: Any) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_version",
            lambda: service.load_artifact(ALICE, "a", version),
            lambda: service.open_artifact(ALICE, "a", version),
        )

    # What goes in comes out

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

    # Streams

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

    # Names

    async def test_odd_names_are_names(self, service: ArtifactService) -> None:
        for number, name in enumerate(ODD_NAMES):
            assert await service.save_artifact(ALICE, name, b"%d" % number) == 0, name
        for number, name in enumerate(ODD_NAMES):
            assert await load_bytes(service, ALICE, name) == b"%d" % number
            assert [v.name for v in await versions_of(service, ALICE, name)] == [name]
        assert await names_of(service, ALICE) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            await service.delete_artifact(ALICE, name)
        assert await names_of(service, ALICE) == []

    @pytest.mark.parametrize("name", UNSAFE_NAMES)
    async def test_unsafe_names_are_refused(self, service: ArtifactService, name: str) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_name",
            lambda: service.save_artifact(ALICE, name, b"x"),
            lambda: service.load_artifact(ALICE, name),
            lambda: service.open_artifact(ALICE, name),
            lambda: service.list_versions(ALICE, name),
            lambda: service.delete_artifact(ALICE, name),
        )

    @pytest.mark.parametrize("bad", ["", "a\x00b", "a\nb", "x" * 257, "\ud800", None, 7])
    @pytest.mark.parametrize("field", ArtifactScope._fields)
    async def test_ids_that_are_none_are_refused(self, service: ArtifactService, field: str, bad: Any) -> None:
        scope = ALICE._replace(**{field: bad})
        await assert_refused(
            InvalidInput,
            "id.invalid",
            lambda: service.save_artifact(scope, "../x", b"x"),
            lambda: service.load_artifact(scope, "a"),
            lambda: service.open_artifact(scope, "a"),
            lambda: service.list_artifact_names(scope),
            lambda: service.list_versions(scope, "a"),
            lambda: service.delete_artifact(scope, "a"),
            lambda: service.delete_session_artifacts(scope),
        )
        if field in ("app_name", "user_id"):
            await assert_refused(
                InvalidInput, "id.invalid", lambda: service.delete_user_artifacts(scope.app_name, scope.user_id)
            )

    async def test_odd_ids_are_different_owners(self, service: ArtifactService) -> None:
        scopes = [ArtifactScope("app", "alice", "s", odd) for odd in ODD_IDS]
        scopes += [ArtifactScope("app", odd, "s", "uid") for odd in ODD_IDS]
        scopes += [ArtifactScope(odd, "alice", "s", "uid") for odd in ODD_IDS]
        for number, scope in enumerate(scopes):
            assert await service.save_artifact(scope, "a", b"%d" % number) == 0, scope
        for number, scope in enumerate(scopes):
            assert await names_of(service, scope) == ["a"]
            assert await load_bytes(service, scope, "a") == b"%d" % number

    async def test_the_uri_of_a_version_names_it(self, service: ArtifactService) -> None:
        for name in ("reports/july 1.pdf", "user:é?#%"):
            await service.save_artifact(ALICE, name, b"0")
            await service.save_artifact(ALICE, name, b"1")
            for info in await versions_of(service, ALICE, name):
                ref = parse_artifact_uri(info.uri)
                assert await load_bytes(service, ALICE, ref.name, ref.version) == b"%d" % info.version

    # Scopes

    async def test_user_names_are_shared_by_the_users_sessions(self, service: ArtifactService) -> None:
        assert await service.save_artifact(ALICE, "user:photo", b"0") == 0
        assert await service.save_artifact(ALICE_ELSEWHERE, "user:photo", b"1") == 1
        assert await load_bytes(service, ALICE, "user:photo") == b"1"
        assert await names_of(service, ALICE_RECREATED) == ["user:photo"]
        await assert_absent(service, ALICE, "photo")
        for scope in (BOB, BOB_SAME_UID, OTHER_APP, OTHER_APP_SAME_UID):
            await assert_absent(service, scope, "user:photo")

    async def test_other_names_belong_to_the_session(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        for scope in (ALICE_ELSEWHERE, ALICE_RECREATED, BOB, BOB_SAME_UID, OTHER_APP, OTHER_APP_SAME_UID):
            await assert_absent(service, scope, "a")
            await assert_absent(service, scope, "a", 0)
        assert await service.save_artifact(BOB_SAME_UID, "a", b"bob's") == 0
        assert await load_bytes(service, ALICE, "a") == b"x"

    async def test_a_recreated_session_starts_empty(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"old")
        await assert_absent(service, ALICE_RECREATED, "a")
        assert await service.save_artifact(ALICE_RECREATED, "a", b"new") == 0
        await service.delete_session_artifacts(ALICE)
        assert await load_bytes(service, ALICE_RECREATED, "a") == b"new"

    async def test_names_are_listed_in_order(self, service: ArtifactService) -> None:
        for name in ("b", "user:a", "a", "B", "é", "a/b", "a-b", "z"):
            await service.save_artifact(ALICE, name, b"x")
            await service.save_artifact(ALICE, name, b"x")
        await service.save_artifact(ALICE_ELSEWHERE, "elsewhere", b"x")
        await service.save_artifact(BOB, "user:bob", b"x")
        assert await names_of(service, ALICE) == ["B", "a", "a-b", "a/b", "b", "user:a", "z", "é"]

    async def test_names_are_listed_in_pages(self, service: ArtifactService) -> None:
        names = sorted([f"n{number}" for number in range(7)] + ["user:a", "user:b", "é", "a" * 250, "b" * 250])
        for name in names:
            await service.save_artifact(ALICE, name, b"x")
        first = await service.list_artifact_names(ALICE, limit=5)
        assert (first.items, first.next is None) == (names[:5], False)
        for limit in (1, 2, 5, len(names), 1000):
            assert await names_of(service, ALICE, limit=limit) == names
        assert (await service.list_artifact_names(ALICE, limit=len(names))).next is None
        assert await service.list_artifact_names(BOB) == Page([], None)

    async def test_names_that_come_and_go_between_pages(self, service: ArtifactService) -> None:
        for name in ("b", "c", "d", "e", "user:f"):
            await service.save_artifact(ALICE, name, b"x")
        page = await service.list_artifact_names(ALICE, limit=2)
        await service.delete_artifact(ALICE, "c")
        for name in ("a", "bb", "dd"):
            await service.save_artifact(ALICE, name, b"x")
        rest = await service.list_artifact_names(ALICE, after=page.next)
        assert page.items + rest.items == ["b", "c", "d", "dd", "e", "user:f"]

    async def test_versions_are_listed_in_pages(self, service: ArtifactService) -> None:
        for number in range(12):
            await service.save_artifact(ALICE, "a", b"x" * number)
        for limit in (1, 5, 12, 1000):
            found = await versions_of(service, ALICE, "a", limit=limit)
            assert [(v.version, v.size) for v in found] == [(number, number) for number in range(12)]
        page = await service.list_versions(ALICE, "a", limit=10)
        await service.save_artifact(ALICE, "a", b"new")
        last = await service.list_versions(ALICE, "a", limit=3, after=page.next)
        assert ([v.version for v in last.items], last.next) == ([10, 11, 12], None)
        await service.delete_artifact(ALICE, "a")
        await assert_refused(
            NotFound, "artifact.not_found", lambda: service.list_versions(ALICE, "a", limit=3, after=page.next)
        )

    async def test_pages_that_cannot_be_are_refused(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        bad: list[dict[str, Any]] = [{"limit": limit} for limit in (0, -1, 1001, True, "5", 5.0)]
        for page in (*bad, {"after": 7}, {"after": "../x"}, {"after": ""}):
            await assert_refused(
                InvalidInput,
                "page.invalid",
                lambda page=page: service.list_artifact_names(ALICE, **page),  # type: ignore[misc]
            )
        for page in (*bad, {"after": 7}, {"after": "x"}, {"after": "-1"}, {"after": "01"}, {"after": ""}):
            await assert_refused(
                InvalidInput,
                "page.invalid",
                lambda page=page: service.list_versions(ALICE, "a", **page),  # type: ignore[misc]
            )

    # Deleting

    async def test_delete_removes_all_versions_of_the_name_only(self, service: ArtifactService) -> None:
        for name in ("a", "a", "a/b", "user:a"):
            await service.save_artifact(ALICE, name, b"x")
        await service.save_artifact(ALICE_ELSEWHERE, "a", b"x")
        await service.delete_artifact(ALICE, "a")
        await assert_absent(service, ALICE, "a")
        await assert_absent(service, ALICE, "a", 0)
        assert await names_of(service, ALICE) == ["a/b", "user:a"]
        assert await names_of(service, ALICE_ELSEWHERE) == ["a", "user:a"]
        await service.delete_artifact(ALICE, "user:a")
        await assert_absent(service, ALICE_ELSEWHERE, "user:a")

    async def test_after_a_deletion_versions_start_again(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"old")
        await service.save_artifact(ALICE, "a", b"old")
        await service.delete_artifact(ALICE, "a")
        assert await service.save_artifact(ALICE, "a", b"new") == 0
        assert await load_bytes(service, ALICE, "a") == b"new"
        await assert_absent(service, ALICE, "a", 1)

    async def test_delete_session_artifacts(self, service: ArtifactService) -> None:
        for name in ("a", "b/c", "user:a"):
            await service.save_artifact(ALICE, name, b"x")
        for scope in (ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            await service.save_artifact(scope, "a", b"x")
        await service.delete_session_artifacts(ALICE)
        await service.delete_session_artifacts(ALICE)
        assert await names_of(service, ALICE) == ["user:a"]
        for scope in (ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            assert await load_bytes(service, scope, "a") == b"x"
        assert await service.save_artifact(ALICE, "a", b"new") == 0

    async def test_delete_user_artifacts(self, service: ArtifactService) -> None:
        for scope in (ALICE, ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            for name in ("a", "b/c", "user:a"):
                await service.save_artifact(scope, name, b"x")
        await service.delete_user_artifacts("app", "alice")
        await service.delete_user_artifacts("app", "alice")
        await service.delete_user_artifacts("app", "nobody")
        for scope in (ALICE, ALICE_ELSEWHERE):
            assert await names_of(service, scope) == []
            await assert_absent(service, scope, "user:a")
        for scope in (BOB_SAME_UID, OTHER_APP_SAME_UID):
            assert await names_of(service, scope) == ["a", "b/c", "user:a"]
            assert await load_bytes(service, scope, "user:a") == b"x"
        assert await service.save_artifact(ALICE, "a", b"new") == 0

    async def test_of_two_deletions_one_finds_it(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        outcomes = await asyncio.gather(*(service.delete_artifact(ALICE, "a") for _ in range(8)), return_exceptions=True)
        assert outcomes.count(None) == 1
        assert all(outcome is None or isinstance(outcome, NotFound) for outcome in outcomes)

    async def test_saves_and_deletions_at_the_same_time(self, service: ArtifactService) -> None:
        async def saves(worker: int) -> None:
            for number in range(8):
                await service.save_artifact(ALICE, "a", stream(b"%d" % worker, b"-%d" % number))

        async def deletes() -> None:
            for call in (service.delete_artifact, None, service.delete_artifact, None) * 3:
                try:
                    await (call(ALICE, "a") if call else service.delete_session_artifacts(ALICE))
                except NotFound:
                    continue

        async def reads() -> None:
            for _ in range(20):
                try:
                    versions = await versions_of(service, ALICE, "a")
                    data = await load_bytes(service, ALICE, "a")
                except NotFound:
                    continue
                assert [v.version for v in versions] == list(range(len(versions)))
                worker, _, number = data.partition(b"-")
                assert worker.isdigit()
                assert number.isdigit()

        await asyncio.gather(*(saves(worker) for worker in range(4)), deletes(), reads(), deletes())
        await service.save_artifact(ALICE, "a", b"last")
        versions = await versions_of(service, ALICE, "a")
        assert [v.version for v in versions] == list(range(len(versions)))
        assert await load_bytes(service, ALICE, "a") == b"last"

    # Failing storage

    async def test_failing_storage_is_unavailable(self, failing_service: ArtifactService) -> None:
        await assert_refused(
            Unavailable,
            "artifact.unavailable",
            lambda: failing_service.save_artifact(ALICE, "a", b"x"),
            lambda: failing_service.save_artifact(ALICE, "user:a", stream(b"x")),
            lambda: failing_service.load_artifact(ALICE, "a"),
            lambda: failing_service.load_artifact(ALICE, "user:a", 0),
            lambda: failing_service.open_artifact(ALICE, "a"),
            lambda: failing_service.open_artifact(ALICE, "a", start=1, end=2),
            lambda: failing_service.list_artifact_names(ALICE),
            lambda: failing_service.list_versions(ALICE, "a"),
            lambda: failing_service.delete_artifact(ALICE, "a"),
            lambda: failing_service.delete_session_artifacts(ALICE),
            lambda: failing_service.delete_user_artifacts("app", "alice"),
        )
        with pytest.raises(Unavailable) as caught:
            await failing_service.load_artifact(ALICE, "a")
        assert caught.value.__cause__ is not None
