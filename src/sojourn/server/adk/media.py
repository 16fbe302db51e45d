"""An artifact as an answer: google-adk's `Part`, or the bytes themselves, all or some of them."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import Artifact, ArtifactScope, ArtifactVersion
from sojourn.server.adk.responses import json_response
from sojourn.server.config import ServerConfig
from sojourn.server.download import Download
from sojourn.server.ranges import Conditions, ConditionsDep, unsatisfiable

Alt = Annotated[
    Literal["json", "media"], Query(description="`media` for the bytes themselves, as a download; else google-adk's `Part`.")
]

_BYTES = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_ETAG = {"ETag": {"description": "With `alt=media`: of these bytes and no others.", "schema": {"type": "string"}}}
_HEADERS = {**_ETAG, "Accept-Ranges": {"description": "With `alt=media`: `bytes`.", "schema": {"type": "string"}}}
_CONTENT_RANGE = {"Content-Range": {"description": "Which bytes these are, and of how many.", "schema": {"type": "string"}}}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The artifact.", "content": _BYTES, "headers": _HEADERS},
    206: {"description": "The bytes of the range.", "content": _BYTES, "headers": {**_HEADERS, **_CONTENT_RANGE}},
    304: {"description": "The client has these bytes.", "headers": _ETAG},
}
"""What the OpenAPI document says of the answers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """In what form a request wants a version.

    Attributes:
        alt: As a part or as bytes.
        bodiless: Whether it wants to know of them only.
        conditions: Which bytes, and whether at all.
    """

    alt: str
    bodiless: bool
    conditions: Conditions

    async def load(
        self, service: ArtifactService, scope: ArtifactScope, name: str, version: int | None, config: ServerConfig
    ) -> Response:
        """The answer.

        Raises:
            NotFound: `artifact.not_found`.
        """
        if self.alt == "json":
            return json_response((await service.load_artifact(scope, name, version)).to_json())
        if not self.bodiless and not self.conditions:
            return _download(await service.open_artifact(scope, name, version), config)
        while True:
            info = (await service.open_artifact(scope, name, version, end=0)).info
            etag = _etag(info)
            if self.conditions.met_by(etag):
                return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
            if self.bodiless:
                return Response(headers=_headers(info, info.size), media_type=info.mime_type)
            start, end = self.conditions.span(etag, info.size) or (0, None)
            if end is not None and start >= info.size:
                return unsatisfiable(info.size)
            opened = await service.open_artifact(scope, name, info.version, start=start, end=end)
            # If not, it was deleted and saved anew meanwhile.
            if _etag(opened.info) == etag:
                return _download(opened, config, ranged=end is not None)


async def _wanted(request: Request, conditions: ConditionsDep, alt: Alt = "json") -> Wanted:
    return Wanted(alt, request.method == "HEAD", conditions)


WantedDep = Annotated[Wanted, Depends(_wanted)]
"""In what form the request wants a version."""


def _download(artifact: Artifact, config: ServerConfig, *, ranged: bool = False) -> Response:
    headers = _headers(artifact.info, artifact.end - artifact.start)
    status = HTTPStatus.OK
    if ranged:
        headers["Content-Range"] = f"bytes {artifact.start}-{artifact.end - 1}/{artifact.info.size}"
        status = HTTPStatus.PARTIAL_CONTENT
    return Download(artifact.chunks, config, status=status, headers=headers, media_type=artifact.info.mime_type)


def _headers(info: ArtifactVersion, length: int) -> dict[str, str]:
    """Of the bytes of an artifact, which no browser shows as a page of this server's."""
    return {
        "Content-Length": str(length),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(info.name.rpartition('/')[2], safe='')}",
        "Content-Security-Policy": "sandbox",
        "Accept-Ranges": "bytes",
        "ETag": _etag(info),
    }


def _etag(info: ArtifactVersion) -> str:
    # A version never changes. One that is saved after a deletion may have the same number, and not the same time.
    return f'"{info.version}-{info.created_at!r}-{info.size}"'
