"""Artifacts in a directory."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

from sojourn.artifact.blocking import in_thread
from sojourn.artifact.filetree import FileTree, OpenVersion, PendingVersion, name_path, session_path, shared_path, user_path
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
from sojourn.artifact.types import Artifact, ArtifactScope, ArtifactVersion
from sojourn.content import Part
from sojourn.errors import Unavailable, Unsupported
from sojourn.ids import check_id
from sojourn.page import Page

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK_BYTES = 262_144
"""Of what is read: fits into a processor's cache together with the next one."""
_CHUNKS_AT_ONCE = 8
_WRITE_BYTES = 4 * 1_048_576
"""What a thread writes at once: changing to it and back costs as much as writing a few hundred kilobytes."""

# What does not get better by trying again, and what to do about it.
_LASTING = {
    errno.ENOTDIR: "something there is not a directory; choose another path, or remove what is in the way",
    errno.EEXIST: "something there is not a directory; choose another path, or remove what is in the way",
    errno.ELOOP: "a symbolic link is in the way; links below the directory are not followed",
    errno.EACCES: "this process may not use it; check its owner and mode",
    errno.EPERM: "this process may not use it; check its owner and mode",
    errno.EROFS: "its file system is read-only; choose another path",
    errno.ENAMETOOLONG: "its path is too long; choose a shorter one",
}


class FileArtifactService:
    """Keeps artifacts in a directory, which any number of processes may share.

    A version that `save_artifact` has returned survives the death of the process and of the machine; one whose save was
    cut off at whatever point does not exist. What dead processes leave behind is removed by the next one that writes.
    The bytes lie as they are in a file `data` beside a `meta.json`; the directories are private to the owner.

    Needs a POSIX file system with `flock`, and of network file systems one that keeps POSIX semantics.

    Args:
        path: The directory. It is made when something is first saved. It belongs to the service: symbolic links below
            it are not followed.

    Raises:
        Unsupported: `artifact.unsupported_platform` where the operating system is not POSIX.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.rename not in os.supports_dir_fd:
            raise Unsupported(
                "FileArtifactService needs a POSIX system; use another artifact service here",
                code="artifact.unsupported_platform",
            )
        self._tree = FileTree(os.path.abspath(path))

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
        pending = PendingVersion(self._tree)
        try:
            waiting: list[bytes | bytearray] = []
            async with aclosing(draft.blocks()) as blocks:
                async for block in blocks:
                    # What comes last is written by the thread that publishes.
                    if sum(map(len, waiting)) >= _WRITE_BYTES:
                        await self._run(pending.write, waiting)
                        waiting = []
                    waiting.append(block)
            return await self._run(pending.publish, waiting, draft, name_path(scope, name))
        finally:
            if pending.is_open:
                await self._run(pending.close)

    async def load_artifact(self, scope: ArtifactScope, name: str, version: int | None = None) -> Part:
        """Loads a version whole."""
        opened = await self._open(scope, name, version)
        return opened.info.to_part(await self._run(opened.read_all))

    async def open_artifact(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, start: int = 0, end: int | None = None
    ) -> Artifact:
        """Opens a version, or a range of its bytes, for reading piece by piece."""
        check_target(scope, name, version)
        wanted = ByteRange.of(start, end)
        opened = await self._open(scope, name, version)
        start, end = wanted.within(opened.info.size)
        opened.narrow(start, end)
        chunks = _Chunks(opened, lambda: self._run(opened.peek, _CHUNKS_AT_ONCE, _CHUNK_BYTES))
        return Artifact(opened.info, chunks, start, end)

    async def presigned_url(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, expires_in: float = 900.0
    ) -> str:
        """Is not supported."""
        check_target(scope, name, version)
        check_expiry(expires_in)
        raise no_urls("FileArtifactService")

    async def list_artifact_names(self, scope: ArtifactScope, *, limit: int = 100, after: str | None = None) -> Page[str]:
        """The names of the session's artifacts and of the user's."""
        scope.check()
        limit, last = check_names_page(limit, after)
        owners = (session_path(scope), shared_path(scope))
        found = await self._run(lambda: [self._tree.names(owner, last, limit + 1) for owner in owners])
        return page_of_names((name for names in found for name in names), limit, last)

    async def list_versions(
        self, scope: ArtifactScope, name: str, *, limit: int = 100, after: str | None = None
    ) -> Page[ArtifactVersion]:
        """The versions of an artifact, oldest first."""
        check_target(scope, name)
        limit, first = check_versions_page(limit, after)
        versions = await self._run(self._tree.versions, name_path(scope, name), first, limit + 1)
        if versions is None:
            raise not_found(scope, name)
        return page_of_versions(versions, limit)

    async def delete_artifact(self, scope: ArtifactScope, name: str) -> None:
        """Deletes all versions of an artifact."""
        check_target(scope, name)
        if not await self._run(self._tree.remove_artifact, name_path(scope, name)):
            raise not_found(scope, name)

    async def delete_session_artifacts(self, scope: ArtifactScope) -> None:
        """Deletes all artifacts of the session."""
        await self._run(self._tree.remove, session_path(scope.check()))

    async def delete_user_artifacts(self, app_name: str, user_id: str) -> None:
        """Deletes all artifacts of the user in the app."""
        check_id(app_name, "app_name")
        check_id(user_id, "user_id")
        await self._run(self._tree.remove, user_path(app_name, user_id))
        # Also what another process was about to remove when it died: who has this called counts on it.
        await self._run(self._tree.tidy)

    async def _open(self, scope: ArtifactScope, name: str, version: int | None) -> OpenVersion:
        check_target(scope, name, version)
        opened = await self._run(self._tree.open_version, name_path(scope, name), version)
        if opened is None:
            raise not_found(scope, name, version)
        return opened

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await in_thread(call, *args, **kwargs)
        except OSError as error:
            advice = _LASTING.get(error.errno or 0)
            raise Unavailable(
                f"artifact directory {self._tree.root!r} cannot be used ({error}); {advice or 'try again later'}",
                code="artifact.unavailable",
                retryable=advice is None,
            ) from error


class _Chunks(AsyncIterator[bytes]):
    """Reads until there is nothing more. Not a generator: dropped half-way, it needs no event loop to be cleaned up."""

    def __init__(self, opened: OpenVersion, read: Callable[[], Awaitable[list[bytes]]]) -> None:
        self._opened = opened
        self._read = read
        self._ready: list[bytes] = []

    async def __anext__(self) -> bytes:
        if not self._ready:
            if not self._opened.left:
                raise StopAsyncIteration
            pieces = await self._read()
            # Not before they are here: who is cancelled while waiting gets the same ones the next time.
            self._opened.skip(sum(map(len, pieces)))
            self._ready = pieces[::-1]
        return self._ready.pop()
