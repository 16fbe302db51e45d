"""Every backend does what the one in RAM does, whatever it is asked, in whatever order."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from obstore.store import MemoryStore

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.s3.service import S3ArtifactService
from tests.artifact.comparison import CALLS, compare
from tests.artifact.s3_servers import service_at
from tests.artifact.test_artifact_saboteurs import (
    DeletesSilently,
    DeletesTheUsersToo,
    ForgetsTheRun,
    ForgetsTheUid,
    GoesOnCountingAfterADeletion,
    IncludesTheEnd,
    ListsOnlyTheSession,
    LosesText,
    SharesUserNamesWithEverybody,
)


@settings(max_examples=60)
@given(CALLS)
def test_files(calls):
    with tempfile.TemporaryDirectory() as directory:
        services = [FileArtifactService(Path(directory, "artifacts")) for _ in range(2)]
        asyncio.run(compare(services, calls))


@settings(max_examples=60)
@given(CALLS)
def test_an_existing_store(calls):
    store = MemoryStore()
    asyncio.run(compare([S3ArtifactService(store, prefix="p") for _ in range(2)], calls))


@pytest.mark.slow
def test_a_bucket(moto_port):
    @settings(max_examples=8)
    @given(CALLS)
    def compared(calls):
        prefix = platform.new_id()
        asyncio.run(compare([service_at(moto_port, prefix) for _ in range(2)], calls))

    compared()


@pytest.mark.parametrize(
    "saboteur",
    [
        DeletesSilently, DeletesTheUsersToo, ForgetsTheRun, ForgetsTheUid, GoesOnCountingAfterADeletion, IncludesTheEnd,
        ListsOnlyTheSession, LosesText, SharesUserNamesWithEverybody,
    ],
)  # fmt: skip
def test_it_finds_a_saboteur(saboteur):
    # Finding it is enough: shrinking would cost more than all the rest.
    @settings(
        max_examples=400, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(CALLS)
    def compared(calls):
        asyncio.run(compare([saboteur()] * 2, calls))

    with pytest.raises(AssertionError):
        compared()
