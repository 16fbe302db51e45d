"""All that is kept of a user as a ZIP archive, made while it is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

from sojourn import platform
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.data.services import RetainingStore, Services, scope_of, sessions_of, versions_of
from sojourn.errors import Gone, NotFound
from sojourn.event import Event
from sojourn.memory.service import MemoryService
from sojourn.page import each_item
from sojourn.run.types import RunQuery
from sojourn.session.types import Session, SessionKey
from sojourn.wire import interrupt_to_wire, run_to_wire, session_to_wire, step_to_wire

FORMAT = "sojourn.user-export"
VERSION = 1
"""Of the format. Members and files may be added without another one; who reads it must skip what they do not know."""

_PIECE = 65_536
_PAGE = 200
_NOBODY = "-"


class _Archive:
    """A ZIP archive whose bytes are taken away while it is written. One file of it is written at a time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._zip = zipfile.ZipFile(self, "w", zipfile.ZIP_DEFLATED)
        self._time = datetime.fromtimestamp(platform.now(), UTC).timetuple()[:6]

    def write(self, data: bytes) -> int:
        """Takes what the archive's writer writes."""
        self._pieces.append(bytes(data))
        self._size += len(data)
        return len(data)

    def flush(self) -> None:
        """Called by the archive's writer."""

    def open(self, name: str, level: int = 6) -> Any:
        """A file in the archive, to be written and closed."""
        info = zipfile.ZipInfo(name, (max(self._time[0], 1980), *self._time[1:]))
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o600 << 16
        info._compresslevel = level  # type: ignore[attr-defined]
        return self._zip.open(info, "w", force_zip64=True)

    def put(self, name: str, value: Any) -> None:
        """Adds a file of one JSON value."""
        with self.open(name) as file:
            file.write(_encode(value, 2))

    def close(self) -> None:
        """Writes the end of the archive."""
        self._zip.close()

    def take(self, least: int = _PIECE) -> Iterator[bytes]:
        """What was written since the last time, if it is worth the while."""
        if self._size >= least:
            pieces, self._pieces, self._size = self._pieces, [], 0
            yield b"".join(pieces)


async def export(services: Services, user_id: str, apps: list[str]) -> AsyncIterator[bytes]:
    """See `DataCare.export`."""
    archive = _Archive()
    archive.put(
        "manifest.json",
        {"format": FORMAT, "version": VERSION, "userId": user_id, "exportedAt": platform.now(), "apps": apps},
    )
    counts = {"sessions": 0, "events": 0, "runs": 0, "artifacts": 0, "memories": 0}
    for number, app_name in enumerate(apps):
        async for _ in _app(archive, services, app_name, user_id, f"apps/{number}", counts):
            for piece in archive.take():
                yield piece
    # What ends without this, and without the directory that a ZIP archive ends with, was cut off.
    archive.put("end.json", counts)
    archive.close()
    for piece in archive.take(1):
        yield piece


# Each of these yields whenever something was written that may be taken away.
Steps = AsyncIterator[None]


async def _app(archive: _Archive, services: Services, app_name: str, user_id: str, place: str, counts: dict[str, int]) -> Steps:
    store = services.store
    spent = await store.user_usage(app_name, user_id)
    archive.put(
        f"{place}/app.json",
        {
            "appName": app_name,
            "userState": await store.user_state(app_name, user_id),
            "usage": {
                "total": spent.total.model_dump(by_alias=True),
                "hours": [{"hour": bucket.hour, **bucket.usage.model_dump(by_alias=True)} for bucket in spent.buckets],
            },
        },
    )
    yield
    if services.memory is not None:
        async for _ in _memories(archive, services.memory, app_name, user_id, place, counts):
            yield
    if services.artifacts is not None:
        shared = scope_of(SessionKey(app_name, user_id, _NOBODY), _NOBODY)
        async for _ in _artifacts(archive, services.artifacts, shared, place, counts, shared=True):
            yield
    number = 0
    async for listed in sessions_of(store, app_name, user_id):
        try:
            session = await _session(store, listed.key)
        except NotFound:
            continue
        async for _ in _session_files(archive, services, session, f"{place}/sessions/{number}", counts):
            yield
        number += 1
        counts["sessions"] += 1


async def _session(store: RetainingStore, key: SessionKey) -> Session:
    app_name, user_id, session_id = key
    return await store.get_session(app_name=app_name, user_id=user_id, session_id=session_id)


async def _session_files(archive: _Archive, services: Services, session: Session, place: str, counts: dict[str, int]) -> Steps:
    archive.put(f"{place}/session.json", {"session": session_to_wire(session), "state": _own(session.state)})
    with archive.open(f"{place}/events.jsonl") as file:
        async for event in _events(services.store, session):
            _line(file, event.to_wire())
            counts["events"] += 1
            yield
    with archive.open(f"{place}/runs.jsonl") as file:
        async for run in _runs(services.store, session.key):
            _line(file, run)
            counts["runs"] += 1
            yield
    if services.artifacts is not None:
        scope = scope_of(session.key, session.uid)
        async for _ in _artifacts(archive, services.artifacts, scope, place, counts, shared=False):
            yield


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """The keys of the session itself: those of the user are beside it, and those of the app are not the user's."""
    return {key: value for key, value in state.items() if not key.startswith(("user:", "app:"))}


async def _events(store: RetainingStore, session: Session) -> AsyncIterator[Event]:
    app_name, user_id, session_id = session.key
    after = 0
    while True:
        try:
            page = await store.list_events(
                app_name=app_name, user_id=user_id, session_id=session_id, after=after, limit=_PAGE, superseded=True
            )
            for event in page:
                yield event
            if len(page) < _PAGE:
                return
            after = page[-1].seq or 0
        except Gone:
            # Retention has removed what comes next.
            try:
                after = (await _session(store, session.key)).first_seq - 1
            except NotFound:
                return
        except NotFound:
            return


async def _runs(store: RetainingStore, key: SessionKey) -> AsyncIterator[dict[str, Any]]:
    app_name, user_id, session_id = key
    query = RunQuery(app_name, user_id, session_id)
    async for record in each_item(lambda after: store.list_runs(query, limit=_PAGE, after=after)):
        try:
            steps = await store.list_steps(record.uid)
            asked = await store.list_interrupts(app_name, user_id=user_id, run_uid=record.uid, open_only=False)
        except NotFound:
            continue
        yield {
            **run_to_wire(record),
            "steps": [step_to_wire(step) for step in steps],
            "interrupts": [interrupt_to_wire(interrupt) for interrupt in asked],
        }


async def _memories(
    archive: _Archive, memory: MemoryService, app_name: str, user_id: str, place: str, counts: dict[str, int]
) -> Steps:
    entries = each_item(lambda after: memory.list_memories(app_name, user_id, limit=_PAGE, after=after))
    with archive.open(f"{place}/memories.jsonl") as file:
        async for entry in entries:
            _line(file, entry.to_wire())
            counts["memories"] += 1
            yield


async def _artifacts(
    archive: _Archive, artifacts: ArtifactService, scope: ArtifactScope, place: str, counts: dict[str, int], *, shared: bool
) -> Steps:
    number, name = -1, None
    async for version in versions_of(artifacts, scope, shared=shared):
        if version.name != name:
            number, name = number + 1, version.name
        try:
            opened = await artifacts.open_artifact(scope, version.name, version.version)
        except NotFound:
            continue
        directory = f"{place}/artifacts/{number}/{version.version}"
        archive.put(f"{directory}/meta.json", version.model_dump(mode="json", by_alias=True))
        with archive.open(f"{directory}/data", level=1) as file:
            async for chunk in opened.chunks:
                for start in range(0, len(chunk), _PIECE):
                    file.write(chunk[start : start + _PIECE])
                yield
        counts["artifacts"] += 1


def _line(file: Any, value: Any) -> None:
    file.write(_encode(value))


def _encode(value: Any, indent: int | None = None) -> bytes:
    try:
        return f"{json.dumps(value, ensure_ascii=False, indent=indent)}\n".encode()
    except UnicodeEncodeError:
        # What people and libraries say may hold half of a character.
        return f"{json.dumps(value, indent=indent)}\n".encode()
