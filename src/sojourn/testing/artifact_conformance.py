"""What every artifact service must do.

    class TestMyArtifactService(ArtifactServiceConformance):
        @pytest.fixture
        def service(self, tmp_path):
            return MyArtifactService(tmp_path)

The cases run under anyio's pytest plugin. Each needs a service without any artifacts.
"""

from __future__ import annotations

import pytest

from sojourn.artifact.service import ArtifactService
from sojourn.errors import Unavailable
from sojourn.testing.artifact_data_conformance import ArtifactDataConformance
from sojourn.testing.artifact_name_conformance import ArtifactNameConformance
from sojourn.testing.artifact_suite import (
    ALICE,
    assert_refused,
    load_bytes,
    names_of,
    stream,
    versions_of,
)
from sojourn.testing.artifact_version_conformance import ArtifactVersionConformance

__all__ = ["ALICE", "ArtifactServiceConformance", "load_bytes", "names_of", "stream", "versions_of"]


class ArtifactServiceConformance(ArtifactVersionConformance, ArtifactDataConformance, ArtifactNameConformance):
    """Subclass it and give a `service`; give a `failing_service` too where storage can fail."""

    async def test_is_an_artifact_service(self, service: ArtifactService) -> None:
        assert isinstance(service, ArtifactService)

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
