"""The artifact service that a path or a URL names."""

from __future__ import annotations

from pathlib import Path

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.service import ArtifactService


def artifact_service_at(place: str, directory: Path | None = None) -> ArtifactService:
    """The service that keeps artifacts at a place.

    Args:
        place: `s3://bucket/prefix` or another URL that `S3ArtifactService` takes, or the path of a directory.
        directory: What a relative path is relative to; the working directory if omitted.

    Raises:
        InvalidInput: `artifact.invalid_url`, `artifact.invalid_option`.
        Unsupported: `artifact.unsupported_url`, `artifact.not_installed`, `artifact.unsupported_platform`.
    """
    if "://" in place:
        from sojourn.artifact.s3.service import S3ArtifactService

        return S3ArtifactService(place)
    return FileArtifactService((directory or Path()) / Path(place).expanduser())
