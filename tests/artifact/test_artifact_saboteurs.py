"""Services that are broken on purpose: the suite must reject each of them."""

import asyncio
from dataclasses import replace

import pytest

from sojourn.artifact.inmemory import InMemoryArtifactService, _Stored
from sojourn.artifact.rules import Draft
from sojourn.content import Part
from sojourn.errors import NotFound
from sojourn.page import Page
from sojourn.testing.artifact_conformance import ArtifactServiceConformance

pytestmark = pytest.mark.anyio


class CountsBeforeItStores(InMemoryArtifactService):
    async def save_artifact(self, scope, name, data, **options):
        try:
            version = len((await self.list_versions(scope, name)).items)
        except NotFound:
            version = 0
        await asyncio.sleep(0)
        await super().save_artifact(scope, name, data, **options)
        return version


class SharesItsValues(InMemoryArtifactService):
    async def list_versions(self, scope, name, **page):
        return Page([stored.info for stored in self._versions(scope, name)])


class KeepsWhatWasStreamedSoFar(InMemoryArtifactService):
    async def save_artifact(self, scope, name, data, *, mime_type=None, custom_metadata=None):
        draft = Draft.of(scope, name, data, mime_type, custom_metadata)
        whole = b""
        try:
            async for block in draft.blocks():
                whole += block
        finally:
            version = await super().save_artifact(scope, name, whole)
        return version


class ForgetsTheUid(InMemoryArtifactService):
    """Keys by session id, as google-adk does: a recreated session finds the old artifacts."""

    def __getattribute__(self, name):
        method = super().__getattribute__(name)
        if not name.endswith(("_artifact", "_artifacts", "_names", "list_versions")) or name == "delete_user_artifacts":
            return method
        return lambda scope, *args, **options: method(scope._replace(session_uid=scope.session_id), *args, **options)


class SharesUserNamesWithEverybody(InMemoryArtifactService):
    def _everybody(self, scope, name):
        return scope._replace(user_id="everybody") if name.startswith("user:") else scope

    async def save_artifact(self, scope, name, data, **options):
        return await super().save_artifact(self._everybody(scope, name), name, data, **options)

    async def load_artifact(self, scope, name, version=None):
        return await super().load_artifact(self._everybody(scope, name), name, version)


class ListsOnlyTheSession(InMemoryArtifactService):
    async def list_artifact_names(self, scope, **page):
        names = (await super().list_artifact_names(scope, **page)).items
        return Page([name for name in names if not name.startswith("user:")])


class ForgetsTheSecondPage(InMemoryArtifactService):
    async def list_artifact_names(self, scope, **page):
        return Page((await super().list_artifact_names(scope, **page)).items)

    async def list_versions(self, scope, name, **page):
        return Page((await super().list_versions(scope, name, **page)).items)


class CountsPagesByPosition(InMemoryArtifactService):
    """The token is how many names were listed, so that one that goes away hides another."""

    async def list_artifact_names(self, scope, *, limit=100, after=None):
        names = (await super().list_artifact_names(scope, limit=1000)).items
        first = int(after or 0)
        more = first + limit < len(names)
        return Page(names[first : first + limit], str(first + limit) if more else None)


class IncludesTheEnd(InMemoryArtifactService):
    async def open_artifact(self, scope, name, version=None, *, start=0, end=None):
        return await super().open_artifact(scope, name, version, start=start, end=None if end is None else end + 1)


class TellsTheSizeOfTheRange(InMemoryArtifactService):
    async def open_artifact(self, scope, name, version=None, **bounds):
        opened = await super().open_artifact(scope, name, version, **bounds)
        info = opened.info.model_copy(update={"size": opened.end - opened.start})
        return replace(opened, info=info)


class ForgetsTheRun(InMemoryArtifactService):
    async def save_artifact(self, scope, name, data, *, run_id=None, **options):
        return await super().save_artifact(scope, name, data, **options)


class LosesText(InMemoryArtifactService):
    async def load_artifact(self, scope, name, version=None):
        stored = self._find(scope, name, version)
        return stored.info.model_copy(update={"is_text": False}).to_part(stored.data)


class StopsAtNul(InMemoryArtifactService):
    async def load_artifact(self, scope, name, version=None):
        stored = self._find(scope, name, version)
        return stored.info.to_part(stored.data.partition(b"\0")[0])


class GoesOnCountingAfterADeletion(InMemoryArtifactService):
    async def delete_artifact(self, scope, name):
        versions = self._versions(scope, name)
        versions[:] = [_Stored(stored.info, b"") for stored in versions]


class DeletesSilently(InMemoryArtifactService):
    async def delete_artifact(self, scope, name):
        try:
            await super().delete_artifact(scope, name)
        except NotFound as error:
            if error.code != "artifact.not_found":
                raise


class DeletesTheUsersToo(InMemoryArtifactService):
    async def delete_session_artifacts(self, scope):
        await self.delete_user_artifacts(scope.app_name, scope.user_id)


class FailsAsIfAbsent(InMemoryArtifactService):
    """Takes any failure of its storage for "does not exist", as adk-rust does."""

    async def save_artifact(self, scope, name, data, **options):
        raise NotFound("the disk is gone", code="artifact.not_found")


SABOTEURS = [
    (CountsBeforeItStores, "test_50_concurrent_saves_get_50_versions"),
    (SharesItsValues, "test_what_goes_in_and_out_is_a_copy"),
    (KeepsWhatWasStreamedSoFar, "test_an_error_of_the_stream_saves_nothing"),
    (KeepsWhatWasStreamedSoFar, "test_a_save_cancelled_in_its_stream_saves_nothing"),
    (ForgetsTheUid, "test_a_recreated_session_starts_empty"),
    (ForgetsTheUid, "test_other_names_belong_to_the_session"),
    (SharesUserNamesWithEverybody, "test_user_names_are_shared_by_the_users_sessions"),
    (ListsOnlyTheSession, "test_names_are_listed_in_order"),
    (ForgetsTheSecondPage, "test_names_are_listed_in_pages"),
    (ForgetsTheSecondPage, "test_versions_are_listed_in_pages"),
    (CountsPagesByPosition, "test_names_that_come_and_go_between_pages"),
    (IncludesTheEnd, "test_ranges"),
    (TellsTheSizeOfTheRange, "test_ranges"),
    (ForgetsTheRun, "test_a_version_keeps_the_run_that_saved_it"),
    (GoesOnCountingAfterADeletion, "test_after_a_deletion_versions_start_again"),
    (DeletesSilently, "test_missing_is_not_found"),
    (DeletesSilently, "test_of_two_deletions_one_finds_it"),
    (DeletesTheUsersToo, "test_delete_session_artifacts"),
]


@pytest.mark.parametrize(("saboteur", "case"), SABOTEURS, ids=lambda value: getattr(value, "__name__", value))
async def test_the_suite_rejects(saboteur, case):
    suite = ArtifactServiceConformance()
    await getattr(suite, case)(InMemoryArtifactService())
    with pytest.raises((AssertionError, pytest.fail.Exception, NotFound)):
        await getattr(suite, case)(saboteur())


@pytest.mark.parametrize(("saboteur", "data"), [(LosesText, "text"), (StopsAtNul, b"\0x")])
async def test_the_suite_rejects_what_changes_parts(saboteur, data):
    part = Part.from_text(data) if isinstance(data, str) else Part.from_bytes(data)
    suite = ArtifactServiceConformance()
    await suite.test_a_part_comes_back_as_it_was(InMemoryArtifactService(), part)
    with pytest.raises(AssertionError):
        await suite.test_a_part_comes_back_as_it_was(saboteur(), part)


async def test_the_suite_rejects_a_failure_told_as_absence():
    with pytest.raises(NotFound):
        await ArtifactServiceConformance().test_failing_storage_is_unavailable(FailsAsIfAbsent())
