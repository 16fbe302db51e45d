"""What the conformance suites of artifact services share: how a backend plugs in, and how to look at what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope, ArtifactVersion
from sojourn.errors import NotFound, SojournError
from sojourn.page import each_item

ALICE = ArtifactScope("app", "alice", "session", "uid-1")
ALICE_ELSEWHERE = ArtifactScope("app", "alice", "other session", "uid-2")
ALICE_RECREATED = ArtifactScope("app", "alice", "session", "uid-3")
BOB = ArtifactScope("app", "bob", "session", "uid-4")
BOB_SAME_UID = ArtifactScope("app", "bob", "session", "uid-1")
OTHER_APP = ArtifactScope("other app", "alice", "session", "uid-5")
OTHER_APP_SAME_UID = ArtifactScope("other app", "alice", "session", "uid-1")


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


@pytest.mark.anyio
class ArtifactSuite:
    """Base of the suites: subclass it and give a `service`; give a `failing_service` too where storage can fail."""

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
