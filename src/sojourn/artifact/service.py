"""The seam for artifacts."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any, Protocol, runtime_checkable

from sojourn.artifact.types import Artifact, ArtifactScope, ArtifactVersion
from sojourn.content import Part
from sojourn.page import Page


@runtime_checkable
class ArtifactService(Protocol):
    """Keeps named, versioned bytes for sessions and users.

    Rules for all methods:

    - Ids are checked first (`InvalidInput`, `id.invalid`), then names (`artifact.invalid_name`), then values; all before
      anything is read or written.
    - What goes in or comes out is a copy: changing an argument afterwards, or a result, changes nothing stored.
    - A version is visible whole or not at all, to everybody at once, and never changes. When `save_artifact` returns,
      the version is as durable as the backend promises.
    - Nobody sees another user's artifacts, and of their own sessions' artifacts only those of the scope's session and
      the `user:` ones.
    - Storage that fails raises `Unavailable`, with the driver's error as `__cause__`: `artifact.unavailable`, or
      `artifact.damaged` if what is stored is not what was saved. It is never reported as `NotFound`.
    - Any task, any number of tasks and, where the backend outlives the process, any number of processes may call any
      method at the same time.
    """

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
        """Saves the next version of an artifact.

        Concurrent saves of one name get different numbers without gaps. Each call saves a version of its own, equal
        data or not. Saving after the name was deleted starts at 0 again.

        Args:
            scope: The session.
            name: A safe relative path; with the prefix `user:` shared by the user's sessions.
            data: A part of bytes or text, bytes, or the pieces of a stream, of which only a few are in memory at once.
                A part comes back from `load_artifact` as it is, but for `thought`.
            mime_type: What the bytes are. Defaults to the part's own, `text/plain` for text, else
                `application/octet-stream`.
            custom_metadata: Anything to keep beside the bytes.
            run_id: The run whose agent saves; kept with the version. After a crash, the run's saves are found by it.

        Returns:
            The version: 0, 1, 2 …

        Raises:
            InvalidInput: `artifact.invalid_data` if it is none of these, `artifact.invalid_mime_type`, `json.invalid`.
            Unavailable: Nothing is saved, unless only the confirmation was lost.

        An error raised by the stream goes to the caller as it is, and nothing is saved. Cancelled before the stream has
        ended, it saves nothing; cancelled later, it saves the whole version or nothing.
        """
        ...

    async def load_artifact(self, scope: ArtifactScope, name: str, version: int | None = None) -> Part:
        """Loads a version whole: a part of text if it was saved as one, else a part of bytes.

        Args:
            scope: The session.
            name: The artifact.
            version: Which one; the newest if omitted.

        Raises:
            NotFound: `artifact.not_found`.
            InvalidInput: `artifact.invalid_version`.
        """
        ...

    async def open_artifact(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, start: int = 0, end: int | None = None
    ) -> Artifact:
        """Opens a version, or a range of its bytes, for reading piece by piece, however large it is.

        What was opened can be read to the end even if it is deleted meanwhile, unless a connection to the storage breaks:
        reading raises `artifact.not_found` then.

        Args:
            scope: The session.
            name: The artifact.
            version: Which one; the newest if omitted.
            start: The first byte to read, counted from 0. There are none from the size on.
            end: The byte to stop before; the size if omitted or larger. With `end=0` no bytes are read, and `Artifact.info`
                tells what is known of the version.

        Raises:
            NotFound: `artifact.not_found`.
            InvalidInput: `artifact.invalid_version`; `artifact.invalid_range` for a bound that is no integer from 0 on, or
                an `end` before `start`.
        """
        ...

    async def presigned_url(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, expires_in: float = 900.0
    ) -> str:
        """A URL from which anybody who has it can download a version for a while, without any other credentials.

        The bytes come as they are, with their MIME type, as a download. A deleted version cannot be downloaded.

        Args:
            scope: The session.
            name: The artifact.
            version: Which one; the newest if omitted.
            expires_in: For how many seconds, 1 to 604,800 (a week). Fractions are dropped.

        Raises:
            NotFound: `artifact.not_found`.
            InvalidInput: `artifact.invalid_version`, `artifact.invalid_expiry`.
            Unsupported: `artifact.no_urls` where the storage has none; told before it is looked whether the artifact exists.
        """
        ...

    async def list_artifact_names(self, scope: ArtifactScope, *, limit: int = 100, after: str | None = None) -> Page[str]:
        """The names of the session's artifacts and of the user's `user:` ones, in the order of their code points.

        A name that comes or goes between two pages neither repeats nor hides another.

        Args:
            scope: The session.
            limit: At most this many, 1 to 1,000.
            after: `Page.next` of the page before.

        Raises:
            InvalidInput: `page.invalid` for a limit or a token that cannot be.
        """
        ...

    async def list_versions(
        self, scope: ArtifactScope, name: str, *, limit: int = 100, after: str | None = None
    ) -> Page[ArtifactVersion]:
        """The versions of an artifact, oldest first.

        Versions saved between two pages are on a later page.

        Args:
            scope: The session.
            name: The artifact.
            limit: At most this many, 1 to 1,000.
            after: `Page.next` of the page before.

        Raises:
            NotFound: `artifact.not_found`, also if it was deleted since the page before.
            InvalidInput: `page.invalid` for a limit or a token that cannot be.
        """
        ...

    async def delete_artifact(self, scope: ArtifactScope, name: str) -> None:
        """Deletes all versions of an artifact at once.

        Raises:
            NotFound: `artifact.not_found`.
        """
        ...

    async def delete_session_artifacts(self, scope: ArtifactScope) -> None:
        """Deletes all artifacts of the session, if there are any; `user:` ones stay."""
        ...

    async def delete_user_artifacts(self, app_name: str, user_id: str) -> None:
        """Deletes all artifacts of the user in the app, if there are any: the `user:` ones and those of all sessions."""
        ...
