import pytest

from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.testing.artifact_conformance import ArtifactServiceConformance


class TestInMemoryArtifactService(ArtifactServiceConformance):
    @pytest.fixture
    def service(self):
        return InMemoryArtifactService()
