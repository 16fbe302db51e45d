"""The cases that every artifact service passes: versions that come one after the other, and go all together."""

# A case is told by its name.

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.content import Part
from sojourn.errors import InvalidInput, NotFound
from sojourn.testing.artifact_suite import (
    ALICE,
    ALICE_ELSEWHERE,
    BOB,
    BOB_SAME_UID,
    OTHER_APP_SAME_UID,
    ArtifactSuite,
    assert_absent,
    assert_refused,
    load_bytes,
    names_of,
    stream,
    versions_of,
)


class ArtifactVersionConformance(ArtifactSuite):
    """Versions and deletions."""

    async def test_versions_count_from_zero(self, service: ArtifactService) -> None:
        for number in range(12):
            assert await service.save_artifact(ALICE, "report.pdf", b"v%d" % number) == number
        assert await load_bytes(service, ALICE, "report.pdf") == b"v11"
        for number in range(12):
            assert await load_bytes(service, ALICE, "report.pdf", number) == b"v%d" % number

    async def test_each_name_has_versions_of_its_own(self, service: ArtifactService) -> None:
        assert await service.save_artifact(ALICE, "a", b"1") == 0
        assert await service.save_artifact(ALICE, "b", b"2") == 0
        assert await service.save_artifact(ALICE, "a/b", b"3") == 0
        assert await service.save_artifact(ALICE, "a", b"4") == 1
        assert await load_bytes(service, ALICE, "a/b") == b"3"

    async def test_equal_data_is_saved_again(self, service: ArtifactService) -> None:
        assert [await service.save_artifact(ALICE, "a", b"same") for _ in range(3)] == [0, 1, 2]

    async def test_50_concurrent_saves_get_50_versions(self, service: ArtifactService) -> None:
        async def save(number: int) -> tuple[int, bytes]:
            data = b"%d " % number * (1 + number * 97)
            whole = number % 2 == 0
            return await service.save_artifact(ALICE, "report.pdf", data if whole else stream(data[:5], data[5:])), data

        saved = await asyncio.gather(*(save(n) for n in range(50)))
        assert sorted(version for version, _ in saved) == list(range(50))
        for version, data in saved:
            assert await load_bytes(service, ALICE, "report.pdf", version) == data
        versions = await versions_of(service, ALICE, "report.pdf")
        assert [v.version for v in versions] == list(range(50))
        assert [v.size for v in versions] == [len(data) for _, data in sorted(saved)]

    async def test_list_versions_tells_all_that_is_known(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a.png", b"12345", mime_type="image/png", custom_metadata={"k": 1})
        await service.save_artifact(ALICE, "a.png", Part.from_bytes(b"", "image/jpeg", display_name="Größe"))
        first, second = await versions_of(service, ALICE, "a.png")
        assert (first.name, first.version, first.mime_type, first.size) == ("a.png", 0, "image/png", 5)
        assert (first.custom_metadata, first.display_name, first.is_text) == ({"k": 1}, None, False)
        assert (second.name, second.version, second.mime_type, second.size) == ("a.png", 1, "image/jpeg", 0)
        assert (second.custom_metadata, second.display_name, second.is_text) == ({}, "Größe", False)
        assert 0 < first.created_at <= second.created_at

    async def test_a_version_keeps_the_run_that_saved_it(self, service: ArtifactService) -> None:
        for name in ("a", "user:a"):
            for run_id in ("run 1", None, "é" * 128, "run 1"):
                await service.save_artifact(ALICE, name, b"x", run_id=run_id)
            versions = await versions_of(service, ALICE, name)
            assert [v.run_id for v in versions] == ["run 1", None, "é" * 128, "run 1"]
            assert (await service.open_artifact(ALICE, name, 2)).info.run_id == "é" * 128
        for bad in ("", "a\x00b", "x" * 257, "\ud800"):

            async def save(name: str = "../x", run_id: str = bad) -> None:
                await service.save_artifact(ALICE, name, b"x", run_id=run_id)

            await assert_refused(InvalidInput, "id.invalid", save)
        assert await names_of(service, ALICE) == ["a", "user:a"]

    async def test_missing_is_not_found(self, service: ArtifactService) -> None:
        await assert_absent(service, ALICE, "a")
        await assert_absent(service, ALICE, "a", 0)
        await service.save_artifact(ALICE, "a", b"x")
        await assert_absent(service, ALICE, "a", 1)
        await assert_absent(service, ALICE, "A")
        await assert_absent(service, ALICE, "a/b")
        await assert_absent(service, ALICE, "user:a")
        assert await names_of(service, BOB) == []

    @pytest.mark.parametrize("version", [-1, True, 1.0, "0", 10**18])
    async def test_versions_that_cannot_be_are_refused(self, service: ArtifactService, version: Any) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_version",
            lambda: service.load_artifact(ALICE, "a", version),
            lambda: service.open_artifact(ALICE, "a", version),
        )

    # -- deleting -----------------------------------------------------------------------------------------------------------

    async def test_delete_removes_all_versions_of_the_name_only(self, service: ArtifactService) -> None:
        for name in ("a", "a", "a/b", "user:a"):
            await service.save_artifact(ALICE, name, b"x")
        await service.save_artifact(ALICE_ELSEWHERE, "a", b"x")
        await service.delete_artifact(ALICE, "a")
        await assert_absent(service, ALICE, "a")
        await assert_absent(service, ALICE, "a", 0)
        assert await names_of(service, ALICE) == ["a/b", "user:a"]
        assert await names_of(service, ALICE_ELSEWHERE) == ["a", "user:a"]
        await service.delete_artifact(ALICE, "user:a")
        await assert_absent(service, ALICE_ELSEWHERE, "user:a")

    async def test_after_a_deletion_versions_start_again(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"old")
        await service.save_artifact(ALICE, "a", b"old")
        await service.delete_artifact(ALICE, "a")
        assert await service.save_artifact(ALICE, "a", b"new") == 0
        assert await load_bytes(service, ALICE, "a") == b"new"
        await assert_absent(service, ALICE, "a", 1)

    async def test_delete_session_artifacts(self, service: ArtifactService) -> None:
        for name in ("a", "b/c", "user:a"):
            await service.save_artifact(ALICE, name, b"x")
        for scope in (ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            await service.save_artifact(scope, "a", b"x")
        await service.delete_session_artifacts(ALICE)
        await service.delete_session_artifacts(ALICE)
        assert await names_of(service, ALICE) == ["user:a"]
        for scope in (ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            assert await load_bytes(service, scope, "a") == b"x"
        assert await service.save_artifact(ALICE, "a", b"new") == 0

    async def test_delete_user_artifacts(self, service: ArtifactService) -> None:
        for scope in (ALICE, ALICE_ELSEWHERE, BOB_SAME_UID, OTHER_APP_SAME_UID):
            for name in ("a", "b/c", "user:a"):
                await service.save_artifact(scope, name, b"x")
        await service.delete_user_artifacts("app", "alice")
        await service.delete_user_artifacts("app", "alice")
        await service.delete_user_artifacts("app", "nobody")
        for scope in (ALICE, ALICE_ELSEWHERE):
            assert await names_of(service, scope) == []
            await assert_absent(service, scope, "user:a")
        for scope in (BOB_SAME_UID, OTHER_APP_SAME_UID):
            assert await names_of(service, scope) == ["a", "b/c", "user:a"]
            assert await load_bytes(service, scope, "user:a") == b"x"
        assert await service.save_artifact(ALICE, "a", b"new") == 0

    async def test_ids_that_begin_alike_are_different_owners(self, service: ArtifactService) -> None:
        scopes = [
            ArtifactScope("app", "al", "s", "uid"),
            ArtifactScope("app", "alice", "s", "uid"),
            ArtifactScope("app", "al", "s", "uid-1"),
            ArtifactScope("app-1", "al", "s", "uid"),
        ]
        for scope in scopes:
            for name in ("a", "ab", "a/b", "user:a"):
                await service.save_artifact(scope, name, b"x")
        shorter, longer, other_session, other_app = scopes
        await service.delete_artifact(shorter, "a")
        assert await names_of(service, shorter) == ["a/b", "ab", "user:a"]
        await service.delete_session_artifacts(shorter)
        assert await names_of(service, shorter) == ["user:a"]
        assert await names_of(service, other_session) == ["a", "a/b", "ab", "user:a"]
        await service.delete_user_artifacts("app", "al")
        assert await names_of(service, shorter) == await names_of(service, other_session) == []
        for scope in (longer, other_app):
            assert await names_of(service, scope) == ["a", "a/b", "ab", "user:a"]

    async def test_of_two_deletions_one_finds_it(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        outcomes = await asyncio.gather(*(service.delete_artifact(ALICE, "a") for _ in range(8)), return_exceptions=True)
        assert outcomes.count(None) == 1
        assert all(outcome is None or isinstance(outcome, NotFound) for outcome in outcomes)

    async def test_saves_and_deletions_at_the_same_time(self, service: ArtifactService) -> None:
        async def saves(worker: int) -> None:
            for number in range(8):
                await service.save_artifact(ALICE, "a", stream(b"%d" % worker, b"-%d" % number))

        async def deletes() -> None:
            for call in (service.delete_artifact, None, service.delete_artifact, None) * 3:
                try:
                    await (call(ALICE, "a") if call else service.delete_session_artifacts(ALICE))
                except NotFound:
                    continue

        async def reads() -> None:
            for _ in range(20):
                try:
                    versions = await versions_of(service, ALICE, "a")
                    data = await load_bytes(service, ALICE, "a")
                except NotFound:
                    continue
                assert [v.version for v in versions] == list(range(len(versions)))
                worker, _, number = data.partition(b"-")
                assert worker.isdigit()
                assert number.isdigit()

        await asyncio.gather(*(saves(worker) for worker in range(4)), deletes(), reads(), deletes())
        await service.save_artifact(ALICE, "a", b"last")
        versions = await versions_of(service, ALICE, "a")
        assert [v.version for v in versions] == list(range(len(versions)))
        assert await load_bytes(service, ALICE, "a") == b"last"
