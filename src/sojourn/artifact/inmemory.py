"""Artifacts in RAM: those of one process, and the reference for what every other backend does."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

from sojourn.artifact.rules import (
    ByteRange,
    Draft,
    check_expiry,
    check_names_page,
    check_target,
    check_versions_page,
    no_urls,
    not_found,
    page_of_names,
    page_of_versions,
)
from sojourn.artifact.types import USER_PREFIX, Artifact, ArtifactScope, ArtifactVersion
from sojourn.content import Part
from sojourn.ids import check_id
from sojourn.page import Page

_CHUNK_BYTES = 262_144


class _Stored(NamedTuple):
    info: ArtifactVersion
    data: bytes


# The versions of each name, by the uid of the session, or None for what the user's sessions share.
_Owned = dict[str | None, dict[str, list[_Stored]]]


class InMemoryArtifactService:
    """Keeps artifacts in RAM until the object goes away."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], _Owned] = {}

    async def save_artifact(
        self,
        scope: ArtifactScope,
        name: str,
        data: Part | bytes | AsyncIterable[bytes],
        *,
        mime_type: str | None = None,
        custom_metadata: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> int:
        """Saves the next version of an artifact."""
        draft = Draft.of(scope, name, data, mime_type, custom_metadata, run_id)
        async with aclosing(draft.blocks()) as blocks:
            whole = b"".join([block async for block in blocks])
        owned = self._users.setdefault((scope.app_name, scope.user_id), {})
        versions = owned.setdefault(_owner(scope, name), {}).setdefault(name, [])
        versions.append(_Stored(draft.version(len(versions), len(whole)), whole))
        return len(versions) - 1

    async def load_artifact(self, scope: ArtifactScope, name: str, version: int | None = None) -> Part:
        """Loads a version whole."""
        stored = self._find(scope, name, version)
        return stored.info.to_part(stored.data)

    async def open_artifact(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, start: int = 0, end: int | None = None
    ) -> Artifact:
        """Opens a version, or a range of its bytes, for reading piece by piece."""
        check_target(scope, name, version)
        wanted = ByteRange.of(start, end)
        stored = self._find(scope, name, version)
        start, end = wanted.within(stored.info.size)
        return Artifact(stored.info.model_copy(deep=True), _chunks(stored.data, start, end), start, end)

    async def presigned_url(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, expires_in: float = 900.0
    ) -> str:
        """Is not supported."""
        check_target(scope, name, version)
        check_expiry(expires_in)
        raise no_urls("InMemoryArtifactService")

    async def list_artifact_names(self, scope: ArtifactScope, *, limit: int = 100, after: str | None = None) -> Page[str]:
        """The names of the session's artifacts and of the user's."""
        scope.check()
        limit, last = check_names_page(limit, after)
        owned = self._users.get((scope.app_name, scope.user_id), {})
        return page_of_names([*owned.get(None, {}), *owned.get(scope.session_uid, {})], limit, last)

    async def list_versions(
        self, scope: ArtifactScope, name: str, *, limit: int = 100, after: str | None = None
    ) -> Page[ArtifactVersion]:
        """The versions of an artifact, oldest first."""
        check_target(scope, name)
        limit, first = check_versions_page(limit, after)
        versions = self._versions(scope, name)[first : first + limit + 1]
        return page_of_versions([stored.info.model_copy(deep=True) for stored in versions], limit)

    async def delete_artifact(self, scope: ArtifactScope, name: str) -> None:
        """Deletes all versions of an artifact."""
        self._versions(scope, name)
        del self._users[scope.app_name, scope.user_id][_owner(scope, name)][name]

    async def delete_session_artifacts(self, scope: ArtifactScope) -> None:
        """Deletes all artifacts of the session."""
        scope.check()
        self._users.get((scope.app_name, scope.user_id), {}).pop(scope.session_uid, None)

    async def delete_user_artifacts(self, app_name: str, user_id: str) -> None:
        """Deletes all artifacts of the user in the app."""
        self._users.pop((check_id(app_name, "app_name"), check_id(user_id, "user_id")), None)

    def _versions(self, scope: ArtifactScope, name: str, version: int | None = None) -> list[_Stored]:
        check_target(scope, name, version)
        owned = self._users.get((scope.app_name, scope.user_id), {})
        versions = owned.get(_owner(scope, name), {}).get(name)
        if not versions:
            raise not_found(scope, name)
        return versions

    def _find(self, scope: ArtifactScope, name: str, version: int | None) -> _Stored:
        versions = self._versions(scope, name, version)
        if version is None:
            return versions[-1]
        if version >= len(versions):
            raise not_found(scope, name, version)
        return versions[version]


def _owner(scope: ArtifactScope, name: str) -> str | None:
    return None if name.startswith(USER_PREFIX) else scope.session_uid


async def _chunks(data: bytes, start: int, end: int) -> AsyncIterator[bytes]:
    for at in range(start, end, _CHUNK_BYTES):
        yield data[at : min(at + _CHUNK_BYTES, end)]
