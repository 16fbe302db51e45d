"""Artifacts of a session, and of its user.

Names may hold `/`, so that the routes that end in something else than the name stand before those that end in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from sojourn.agents.context import not_configured
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope, ArtifactVersion
from sojourn.content import Part, Value
from sojourn.jsonvalue import JsonValue
from sojourn.page import MAX_PAGE, each_item
from sojourn.server.access import Caller, CallerDep
from sojourn.server.adk.bodies import NewArtifact
from sojourn.server.adk.media import RESPONSES, WantedDep
from sojourn.server.adk.sessions import session_of
from sojourn.server.jsonbody import JsonRoute

router = APIRouter(
    prefix="/apps/{app_name}/users/{user_id}/sessions/{session_id}/artifacts", tags=["adk"], route_class=JsonRoute
)

_MAX_VERSION = 10**18 - 1

Name = Annotated[str, Path(description="A relative path; `user:` in front for one shared by the user's sessions.")]
VersionId = Annotated[Literal["latest"] | int, Path(description="0, 1, 2 …, or `latest`.")]


class AdkArtifactVersion(Value):
    """A version on google-adk's wire.

    Attributes:
        version: 0, 1, 2 …
        canonical_uri: How events of the session refer to it.
        custom_metadata: What was saved with it.
        create_time: Seconds since the epoch.
        mime_type: What the bytes are.
    """

    version: int
    canonical_uri: str
    custom_metadata: dict[str, JsonValue] = Field(default_factory=dict)
    create_time: float
    mime_type: str | None = None


async def _artifacts(caller: Caller, app_name: str, user_id: str, session_id: str) -> tuple[ArtifactService, ArtifactScope]:
    """The service, and the session whose artifacts a request is about.

    Raises:
        NotFound: `session.not_found`.
        Unsupported: `artifact.not_configured`.
    """
    runner, key = session_of(caller, app_name, user_id, session_id)
    session = await runner.get_session(key.user_id, key.session_id)
    if runner.artifacts is None:
        raise not_configured("artifact")
    return runner.artifacts, ArtifactScope(session.app_name, session.user_id, session.id, session.uid)


@router.get("", summary="List artifacts")
async def list_artifacts(app_name: str, user_id: str, session_id: str, caller: CallerDep) -> list[str]:
    """The names of the session's artifacts and of the user's."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    return [name async for name in each_item(lambda after: service.list_artifact_names(scope, limit=MAX_PAGE, after=after))]


@router.post("", summary="Save an artifact")
async def save_artifact(
    app_name: str, user_id: str, session_id: str, caller: CallerDep, new: NewArtifact
) -> AdkArtifactVersion:
    """Saves the next version of an artifact."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    version = await service.save_artifact(scope, new.filename, new.artifact, custom_metadata=new.custom_metadata)
    opened = await service.open_artifact(scope, new.filename, version, end=0)
    return _version(opened.info)


@router.head("/{name:path}/versions/{version}/metadata", include_in_schema=False)
@router.get("/{name:path}/versions/{version}/metadata", summary="Get a version's metadata")
async def get_version_metadata(
    app_name: str, user_id: str, session_id: str, name: Name, version: VersionId, caller: CallerDep
) -> AdkArtifactVersion:
    """What is known of a version, without its bytes."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    opened = await service.open_artifact(scope, name, None if version == "latest" else version, end=0)
    return _version(opened.info)


@router.head("/{name:path}/versions/metadata", include_in_schema=False)
@router.get("/{name:path}/versions/metadata", summary="List versions with their metadata")
async def list_versions_metadata(
    app_name: str, user_id: str, session_id: str, name: Name, caller: CallerDep
) -> list[AdkArtifactVersion]:
    """All versions of an artifact, oldest first."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    return [_version(version) async for version in _versions(service, scope, name)]


@router.head("/{name:path}/versions/{version}", include_in_schema=False)
@router.get("/{name:path}/versions/{version}", summary="Load a version", response_model=Part, responses=RESPONSES)
async def load_version(
    app_name: str, user_id: str, session_id: str, name: Name, version: VersionId, caller: CallerDep, wanted: WantedDep
) -> Response:
    """A version."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    return await wanted.load(service, scope, name, None if version == "latest" else version, caller.serving.config)


@router.head("/{name:path}/versions", include_in_schema=False)
@router.get("/{name:path}/versions", summary="List versions")
async def list_versions(app_name: str, user_id: str, session_id: str, name: Name, caller: CallerDep) -> list[int]:
    """The numbers of an artifact's versions."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    return [version.version async for version in _versions(service, scope, name)]


@router.head("/{name:path}", include_in_schema=False)
@router.get("/{name:path}", summary="Load an artifact", response_model=Part, responses=RESPONSES)
async def load_artifact(
    app_name: str,
    user_id: str,
    session_id: str,
    name: Name,
    caller: CallerDep,
    wanted: WantedDep,
    version: Annotated[int | None, Query(ge=0, le=_MAX_VERSION, description="Which one; the newest if omitted.")] = None,
) -> Response:
    """The newest version, or another one."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    return await wanted.load(service, scope, name, version, caller.serving.config)


@router.delete("/{name:path}", summary="Delete an artifact")
async def delete_artifact(app_name: str, user_id: str, session_id: str, name: Name, caller: CallerDep) -> None:
    """Deletes all versions of an artifact."""
    service, scope = await _artifacts(caller, app_name, user_id, session_id)
    await service.delete_artifact(scope, name)


def _versions(service: ArtifactService, scope: ArtifactScope, name: str) -> AsyncIterator[ArtifactVersion]:
    return each_item(lambda after: service.list_versions(scope, name, limit=MAX_PAGE, after=after))


def _version(version: ArtifactVersion) -> AdkArtifactVersion:
    return AdkArtifactVersion(
        version=version.version,
        canonical_uri=version.uri,
        custom_metadata=version.custom_metadata,
        create_time=version.created_at,
        mime_type=version.mime_type,
    )
