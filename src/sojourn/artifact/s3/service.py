"""Artifacts in object storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from weakref import WeakValueDictionary

from sojourn import platform
from sojourn.artifact.rules import (
    ByteRange,
    Draft,
    check_expiry,
    check_names_page,
    check_target,
    check_versions_page,
    damaged,
    no_urls,
    not_found,
    page_of_names,
    page_of_versions,
)
from sojourn.artifact.s3.address import open_store, open_url
from sojourn.artifact.s3.bucket import Entry, Wanted, together
from sojourn.artifact.s3.keys import PROBE, Place, is_shortened, name_place, session_place, shared_place, text_of, user_place
from sojourn.artifact.s3.log import Claim, Log, claim, new_mark, read_log, read_versions
from sojourn.artifact.s3.sweep import ORPHAN_SECONDS, clean
from sojourn.artifact.s3.version import StoredVersion
from sojourn.artifact.types import Artifact, ArtifactScope, ArtifactVersion
from sojourn.content import Part
from sojourn.errors import InvalidInput, Unavailable, Unsupported
from sojourn.ids import check_id
from sojourn.outcome import outlast
from sojourn.page import Page

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_ATTEMPTS = 20
"""How often an operation starts again because what it works on was deleted under it."""


class S3ArtifactService:
    """Keeps artifacts in a bucket, which any number of processes on any number of machines may share.

    Bytes are uploaded under a key of their own; then an entry, created on the condition that there is none, gives them the
    next version. A version that `save_artifact` has returned is as durable as the store keeps objects; one whose save was cut
    off does not exist. What dead processes leave behind costs storage and nothing else; `sweep` removes it.

    Needs the extra `sojourn[s3]`, and a store that honours `If-None-Match: *` and lists what was written: S3, Google Cloud
    Storage, Azure Blob Storage, MinIO, R2 and others do. One that ignores the condition is noticed before the first write.

    Args:
        store: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix?account=name`. An S3 URL may have the
            options `endpoint` and `region`, as in `s3://bucket?endpoint=http://127.0.0.1:9000`. Or an `S3Store`, `GCSStore`,
            `AzureStore` or `MemoryStore` of obstore, which stays yours.
        prefix: Where in an existing store. In a URL, the path says it.
        endpoint: The address of what speaks S3's protocol; `http://` is allowed here. Amazon's if omitted.
        region: The region of an S3 bucket; taken from the environment if omitted, else `us-east-1`.
        options: What else obstore takes for this kind of store by name, such as `access_key_id` and `secret_access_key`,
            `client_options` and `retry_config`. Credentials that are omitted come from the environment or from the machine.
        timeout: Seconds without an answer after which a request is given up, and for which it is tried again.

    Raises:
        InvalidInput: `artifact.invalid_url`, `artifact.invalid_option`.
        Unsupported: `artifact.unsupported_url`; `artifact.not_installed` without the extra.
    """

    def __init__(
        self,
        store: str | ObjectStore,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if isinstance(store, str):
            if prefix:
                raise InvalidInput("the prefix belongs into the URL: 's3://bucket/prefix'", code="artifact.invalid_option")
            self._bucket = open_url(store, endpoint=endpoint, region=region, options=options, timeout=timeout)
            self._root = ""
        else:
            if endpoint is not None or region is not None or options:
                raise InvalidInput(
                    "an existing store has its options already; give endpoint, region and options with a URL",
                    code="artifact.invalid_option",
                )
            self._bucket, self._root = open_store(store, prefix)
        self._conditional = False
        # Tasks of this process wait for each other, rather than ask the store again and again for the same position.
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

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
        await self._require_conditions()
        place, data_id = self._at(name_place(scope, name)), platform.new_id()
        filename = quote(name.rpartition("/")[2], safe="")
        attributes = {
            # Stores compute the signature of a request with one space for several.
            "Content-Type": " ".join(draft.mime_type.split()),
            "Content-Disposition": f"attachment; filename*=UTF-8''{filename}",
        }
        async with aclosing(draft.blocks()) as blocks:
            size = await self._bucket.upload(f"{place.data}/{data_id}", blocks, attributes)
        return await outlast(self._publish(place, draft, size, data_id))

    async def load_artifact(self, scope: ArtifactScope, name: str, version: int | None = None) -> Part:
        """Loads a version whole."""
        opened = await self.open_artifact(scope, name, version)
        return opened.info.to_part(await opened.read())

    async def open_artifact(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, start: int = 0, end: int | None = None
    ) -> Artifact:
        """Opens a version, or a range of its bytes, for reading piece by piece."""
        check_target(scope, name, version)
        wanted = ByteRange.of(start, end)
        place = self._at(name_place(scope, name))
        for _ in range(_ATTEMPTS):
            position, found = await self._find(scope, name, place, version)
            start, end = wanted.within(found.info.size)
            download = await self._bucket.open(self._wanted(scope, place, found), start, end)
            if download is not None:
                return Artifact(found.info, download, start, end)
            log = await read_log(self._bucket, place)
            if log.first <= position < log.end:
                raise damaged(name, found.info.version, "its bytes are missing")
        raise self._contended(place)

    async def presigned_url(
        self, scope: ArtifactScope, name: str, version: int | None = None, *, expires_in: float = 900.0
    ) -> str:
        """A URL from which anybody who has it can download a version for a while."""
        check_target(scope, name, version)
        seconds = check_expiry(expires_in)
        if not self._bucket.signs:
            raise no_urls(f"a {self._bucket.where}")
        place = self._at(name_place(scope, name))
        _, found = await self._find(scope, name, place, version)
        return await self._bucket.sign(found.key(place), seconds)

    async def list_artifact_names(self, scope: ArtifactScope, *, limit: int = 100, after: str | None = None) -> Page[str]:
        """The names of the session's artifacts and of the user's."""
        scope.check()
        limit, last = check_names_page(limit, after)
        owners = (self._at(session_place(scope)), self._at(shared_place(scope)))
        found = await together(self._logs, owners)
        names = await self._names({place: log for logs in found for place, log in logs.items() if log.versions})
        return page_of_names(names, limit, last)

    async def list_versions(
        self, scope: ArtifactScope, name: str, *, limit: int = 100, after: str | None = None
    ) -> Page[ArtifactVersion]:
        """The versions of an artifact, oldest first."""
        check_target(scope, name)
        limit, first = check_versions_page(limit, after)
        place = self._at(name_place(scope, name))
        for _ in range(_ATTEMPTS):
            log = await read_log(self._bucket, place)
            if not log.versions:
                raise not_found(scope, name)
            numbers = range(first, min(first + limit + 1, log.versions))
            bodies = await read_versions(self._bucket, (place.at(log.first + number) for number in numbers))
            if None not in bodies:
                found = [StoredVersion.read(body or b"", n, name) for n, body in zip(numbers, bodies, strict=True)]
                return page_of_versions([version.info for version in found], limit)
        raise self._contended(place)

    async def delete_artifact(self, scope: ArtifactScope, name: str) -> None:
        """Deletes all versions of an artifact.

        It is hidden at once, and its bytes are removed before this returns. If that fails, `Unavailable` is raised, and
        `sweep` removes them.
        """
        check_target(scope, name)
        await self._require_conditions()
        place = self._at(name_place(scope, name))
        if not await outlast(self._mark(place)):
            raise not_found(scope, name)
        await clean(self._bucket, place, ORPHAN_SECONDS)

    async def delete_session_artifacts(self, scope: ArtifactScope) -> None:
        """Deletes all artifacts of the session."""
        await self._delete_all(self._at(session_place(scope.check())))

    async def delete_user_artifacts(self, app_name: str, user_id: str) -> None:
        """Deletes all artifacts of the user in the app."""
        await self._delete_all(self._at(user_place(check_id(app_name, "app_name"), check_id(user_id, "user_id"))))

    async def sweep(self, *, older_than: float = ORPHAN_SECONDS) -> int:
        """Removes what nobody can reach any more: bytes of saves that did not finish, and what deletions left behind.

        Run it now and then, from one process; anybody may save, load and delete meanwhile. It lists everything that there is
        below the prefix.

        Args:
            older_than: Only bytes, and marks of deletions, that are older, in seconds. It must be longer than any save takes
                from the end of its upload to its return.

        Returns:
            How many objects were removed.

        Raises:
            InvalidInput: `artifact.invalid_option` for less than 60 seconds.
        """
        if not isinstance(older_than, int | float) or isinstance(older_than, bool) or not older_than >= 60:
            raise InvalidInput(f"older_than is {older_than!r}; give at least 60 seconds", code="artifact.invalid_option")
        removed = 0
        for app in await self._bucket.children(self._root or None):
            for user in await self._bucket.children(app):
                removed += await clean(self._bucket, Place(user), older_than, marks=True)
        return removed

    @staticmethod
    def _wanted(scope: ArtifactScope, place: Place, found: StoredVersion) -> Wanted:
        info = found.info
        return Wanted(
            found.key(place),
            info.size,
            gone=lambda: not_found(scope, info.name, info.version),
            damaged=lambda: damaged(info.name, info.version, f"its bytes are not {info.size}"),
        )

    async def _publish(self, place: Place, draft: Draft, size: int, data_id: str) -> int:
        async with self._lock(place):
            for _ in range(_ATTEMPTS):
                log = await read_log(self._bucket, place)
                position, version = log.end, log.versions
                while True:
                    body = StoredVersion(draft.version(version, size), data_id).body()
                    outcome = await claim(self._bucket, place.at(position), body)
                    if outcome is Claim.MADE and await self._follows(place, position, log):
                        return version
                    if outcome in (Claim.MADE, Claim.GONE):
                        break
                    position += 1
                    version = 0 if outcome is Claim.MARK else version + 1
        raise self._contended(place)

    async def _follows(self, place: Place, position: int, seen: Log) -> bool:
        """Whether an entry has the number that it was given; if not, it is taken back.

        Only a mark so old that it was swept in this very moment, while somebody else began the log anew, makes a difference.
        """
        if seen.marked_at is None:
            return True
        log = await read_log(self._bucket, place)
        if position < log.first or log.first >= seen.end:
            return True
        await self._bucket.delete([place.at(position)])
        return False

    async def _mark(self, place: Place) -> bool:
        """Hides all versions of an artifact; returns whether there were any."""
        body = new_mark()
        async with self._lock(place):
            for _ in range(_ATTEMPTS):
                log = await read_log(self._bucket, place)
                if not log.versions:
                    return False
                position, outcome = log.end, Claim.VERSION
                while outcome is Claim.VERSION:
                    outcome = await claim(self._bucket, place.at(position), body)
                    position += 1
                if outcome is not Claim.GONE:
                    return outcome is Claim.MADE
        raise self._contended(place)

    async def _delete_all(self, owner: Place) -> None:
        await self._require_conditions()
        logs = await self._logs(owner)
        await together(lambda place: outlast(self._mark(place)), [place for place, log in logs.items() if log.versions])
        await clean(self._bucket, owner, ORPHAN_SECONDS)

    async def _find(self, scope: ArtifactScope, name: str, place: Place, version: int | None) -> tuple[int, StoredVersion]:
        """A version, and the position of its entry."""
        for _ in range(_ATTEMPTS):
            log = await read_log(self._bucket, place)
            number = log.versions - 1 if version is None else version
            if not 0 <= number < log.versions:
                raise not_found(scope, name, version)
            (body,) = await read_versions(self._bucket, [place.at(log.first + number)])
            if body is not None:
                return log.first + number, StoredVersion.read(body, number, name)
        raise self._contended(place)

    async def _logs(self, owner: Place) -> dict[Place, Log]:
        """The entries of all artifacts of an owner."""
        entries: dict[Place, list[Entry]] = {}
        for entry in await self._bucket.entries(owner.versions):
            place = owner.of(entry.key)
            if place is not None:
                entries.setdefault(place, []).append(entry)
        return {place: Log.of(found) for place, found in entries.items()}

    async def _names(self, logs: dict[Place, Log]) -> list[str]:
        plain = {place: text_of(place.below[-1]) for place in logs}
        shortened = [place for place, name in plain.items() if name is None and is_shortened(place.below[-1])]
        bodies = await read_versions(self._bucket, (place.at(logs[place].end - 1) for place in shortened))
        long = [
            StoredVersion.read(body, 0, "/".join(p.below)).info.name for p, body in zip(shortened, bodies, strict=True) if body
        ]
        return [name for name in plain.values() if name is not None] + long

    def _at(self, place: Place) -> Place:
        return place._replace(user=f"{self._root}/{place.user}") if self._root else place

    def _lock(self, place: Place) -> asyncio.Lock:
        # A lock belongs to one event loop, a service to any number of them.
        key = id(asyncio.get_running_loop()), place.versions
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _require_conditions(self) -> None:
        """Finds out, once, whether the store honours conditions: one that ignores them would overwrite versions.

        Raises:
            Unsupported: `artifact.unconditional_store`.
        """
        async with self._lock(Place(PROBE)):
            if self._conditional:
                return
            key = f"{self._root}/{PROBE}" if self._root else PROBE
            if await self._bucket.honours_conditions(key):
                self._conditional = True
                return
        raise Unsupported(
            f"artifact store {self._bucket.where} ignores If-None-Match, so that saves could overwrite each other; "
            "use a store that honours it",
            code="artifact.unconditional_store",
        )

    def _contended(self, place: Place) -> Unavailable:
        return Unavailable(
            f"artifact {'/'.join(place.below)} in {self._bucket.where} was deleted again and again meanwhile; try again",
            code="artifact.unavailable",
        )
