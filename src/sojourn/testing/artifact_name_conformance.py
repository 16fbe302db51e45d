"""The cases that every artifact service passes: what names and ids may be, whose they are, and how they are listed."""

# A case is told by its name.

from __future__ import annotations

from typing import Any

import pytest

from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope, parse_artifact_uri
from sojourn.errors import InvalidInput, NotFound
from sojourn.page import Page
from sojourn.testing.artifact_suite import (
    ALICE,
    ALICE_ELSEWHERE,
    ALICE_RECREATED,
    BOB,
    BOB_SAME_UID,
    OTHER_APP,
    OTHER_APP_SAME_UID,
    ArtifactSuite,
    assert_absent,
    assert_refused,
    load_bytes,
    names_of,
    versions_of,
)

UNSAFE_NAMES = [
    "", "/", "/etc/passwd", "..", ".", "../x", "a/../../x", "a/..", "./a", "a/./b", "a//b", "a/", "a\\b", "..\\x", "c:",
    "c:/x", "a\x00b", "a\nb", "user:", "user:/x", "user:../x", "user:a/../../x", "x" * 257,
]  # fmt: skip

ODD_NAMES = [
    "résumé.pdf", "履歴書.pdf", "😀", "a b", "%2e%2e", "%2F", "a%00b", "a/b/c", "...", ".hidden", "a.", "a..", "a.%2e", "ab:c",
    "users:x", "User:x", "user", "session", "data", "meta.json", "0", "1/0", "con", "~", "a~b", "*?<>|\"'$(x)", "é", "e\u0301",
    "ﬁle", "A", "a", "aA", "Aa", "x" * 256, "é" * 128, "x" * 255 + "y", "user:shared", "user:a/b", "user:user:x",
    "user:" + "ü" * 125,
]  # fmt: skip

ODD_IDS = [
    "../../x", "/abs", "..", ".", "a/b", "a\\b", "%2e", "é", "e\u0301", "A", "a", "x" * 256, "x" * 255 + "y", "~", "user",
    "session", "a b", " ", "😀",
]  # fmt: skip


class ArtifactNameConformance(ArtifactSuite):
    """Names, scopes and pages."""

    async def test_odd_names_are_names(self, service: ArtifactService) -> None:
        for number, name in enumerate(ODD_NAMES):
            assert await service.save_artifact(ALICE, name, b"%d" % number) == 0, name
        for number, name in enumerate(ODD_NAMES):
            assert await load_bytes(service, ALICE, name) == b"%d" % number
            assert [v.name for v in await versions_of(service, ALICE, name)] == [name]
        assert await names_of(service, ALICE) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            await service.delete_artifact(ALICE, name)
        assert await names_of(service, ALICE) == []

    @pytest.mark.parametrize("name", UNSAFE_NAMES)
    async def test_unsafe_names_are_refused(self, service: ArtifactService, name: str) -> None:
        await assert_refused(
            InvalidInput,
            "artifact.invalid_name",
            lambda: service.save_artifact(ALICE, name, b"x"),
            lambda: service.load_artifact(ALICE, name),
            lambda: service.open_artifact(ALICE, name),
            lambda: service.list_versions(ALICE, name),
            lambda: service.delete_artifact(ALICE, name),
        )

    @pytest.mark.parametrize("bad", ["", "a\x00b", "a\nb", "x" * 257, "\ud800", None, 7])
    @pytest.mark.parametrize("field", ArtifactScope._fields)
    async def test_ids_that_are_none_are_refused(self, service: ArtifactService, field: str, bad: Any) -> None:
        scope = ALICE._replace(**{field: bad})
        await assert_refused(
            InvalidInput,
            "id.invalid",
            lambda: service.save_artifact(scope, "../x", b"x"),
            lambda: service.load_artifact(scope, "a"),
            lambda: service.open_artifact(scope, "a"),
            lambda: service.list_artifact_names(scope),
            lambda: service.list_versions(scope, "a"),
            lambda: service.delete_artifact(scope, "a"),
            lambda: service.delete_session_artifacts(scope),
        )
        if field in ("app_name", "user_id"):
            await assert_refused(
                InvalidInput, "id.invalid", lambda: service.delete_user_artifacts(scope.app_name, scope.user_id)
            )

    async def test_odd_ids_are_different_owners(self, service: ArtifactService) -> None:
        scopes = [ArtifactScope("app", "alice", "s", odd) for odd in ODD_IDS]
        scopes += [ArtifactScope("app", odd, "s", "uid") for odd in ODD_IDS]
        scopes += [ArtifactScope(odd, "alice", "s", "uid") for odd in ODD_IDS]
        for number, scope in enumerate(scopes):
            assert await service.save_artifact(scope, "a", b"%d" % number) == 0, scope
        for number, scope in enumerate(scopes):
            assert await names_of(service, scope) == ["a"]
            assert await load_bytes(service, scope, "a") == b"%d" % number

    async def test_the_uri_of_a_version_names_it(self, service: ArtifactService) -> None:
        for name in ("reports/july 1.pdf", "user:é?#%"):
            await service.save_artifact(ALICE, name, b"0")
            await service.save_artifact(ALICE, name, b"1")
            for info in await versions_of(service, ALICE, name):
                ref = parse_artifact_uri(info.uri)
                assert await load_bytes(service, ALICE, ref.name, ref.version) == b"%d" % info.version

    # -- scopes -------------------------------------------------------------------------------------------------------------

    async def test_user_names_are_shared_by_the_users_sessions(self, service: ArtifactService) -> None:
        assert await service.save_artifact(ALICE, "user:photo", b"0") == 0
        assert await service.save_artifact(ALICE_ELSEWHERE, "user:photo", b"1") == 1
        assert await load_bytes(service, ALICE, "user:photo") == b"1"
        assert await names_of(service, ALICE_RECREATED) == ["user:photo"]
        await assert_absent(service, ALICE, "photo")
        for scope in (BOB, BOB_SAME_UID, OTHER_APP, OTHER_APP_SAME_UID):
            await assert_absent(service, scope, "user:photo")

    async def test_other_names_belong_to_the_session(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        for scope in (ALICE_ELSEWHERE, ALICE_RECREATED, BOB, BOB_SAME_UID, OTHER_APP, OTHER_APP_SAME_UID):
            await assert_absent(service, scope, "a")
            await assert_absent(service, scope, "a", 0)
        assert await service.save_artifact(BOB_SAME_UID, "a", b"bob's") == 0
        assert await load_bytes(service, ALICE, "a") == b"x"

    async def test_a_recreated_session_starts_empty(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"old")
        await assert_absent(service, ALICE_RECREATED, "a")
        assert await service.save_artifact(ALICE_RECREATED, "a", b"new") == 0
        await service.delete_session_artifacts(ALICE)
        assert await load_bytes(service, ALICE_RECREATED, "a") == b"new"

    async def test_names_are_listed_in_order(self, service: ArtifactService) -> None:
        for name in ("b", "user:a", "a", "B", "é", "a/b", "a-b", "z"):
            await service.save_artifact(ALICE, name, b"x")
            await service.save_artifact(ALICE, name, b"x")
        await service.save_artifact(ALICE_ELSEWHERE, "elsewhere", b"x")
        await service.save_artifact(BOB, "user:bob", b"x")
        assert await names_of(service, ALICE) == ["B", "a", "a-b", "a/b", "b", "user:a", "z", "é"]

    async def test_names_are_listed_in_pages(self, service: ArtifactService) -> None:
        names = sorted([f"n{number}" for number in range(7)] + ["user:a", "user:b", "é", "a" * 250, "b" * 250])
        for name in names:
            await service.save_artifact(ALICE, name, b"x")
        first = await service.list_artifact_names(ALICE, limit=5)
        assert (first.items, first.next is None) == (names[:5], False)
        for limit in (1, 2, 5, len(names), 1000):
            assert await names_of(service, ALICE, limit=limit) == names
        assert (await service.list_artifact_names(ALICE, limit=len(names))).next is None
        assert await service.list_artifact_names(BOB) == Page([], None)

    async def test_names_that_come_and_go_between_pages(self, service: ArtifactService) -> None:
        for name in ("b", "c", "d", "e", "user:f"):
            await service.save_artifact(ALICE, name, b"x")
        page = await service.list_artifact_names(ALICE, limit=2)
        await service.delete_artifact(ALICE, "c")
        for name in ("a", "bb", "dd"):
            await service.save_artifact(ALICE, name, b"x")
        rest = await service.list_artifact_names(ALICE, after=page.next)
        assert page.items + rest.items == ["b", "c", "d", "dd", "e", "user:f"]

    async def test_versions_are_listed_in_pages(self, service: ArtifactService) -> None:
        for number in range(12):
            await service.save_artifact(ALICE, "a", b"x" * number)
        for limit in (1, 5, 12, 1000):
            found = await versions_of(service, ALICE, "a", limit=limit)
            assert [(v.version, v.size) for v in found] == [(number, number) for number in range(12)]
        page = await service.list_versions(ALICE, "a", limit=10)
        await service.save_artifact(ALICE, "a", b"new")
        last = await service.list_versions(ALICE, "a", limit=3, after=page.next)
        assert ([v.version for v in last.items], last.next) == ([10, 11, 12], None)
        await service.delete_artifact(ALICE, "a")
        await assert_refused(
            NotFound, "artifact.not_found", lambda: service.list_versions(ALICE, "a", limit=3, after=page.next)
        )

    async def test_pages_that_cannot_be_are_refused(self, service: ArtifactService) -> None:
        await service.save_artifact(ALICE, "a", b"x")
        bad: list[dict[str, Any]] = [{"limit": limit} for limit in (0, -1, 1001, True, "5", 5.0)]
        for page in (*bad, {"after": 7}, {"after": "../x"}, {"after": ""}):
            await assert_refused(
                InvalidInput,
                "page.invalid",
                lambda page=page: service.list_artifact_names(ALICE, **page),  # type: ignore[misc]
            )
        for page in (*bad, {"after": 7}, {"after": "x"}, {"after": "-1"}, {"after": "01"}, {"after": ""}):
            await assert_refused(
                InvalidInput,
                "page.invalid",
                lambda page=page: service.list_versions(ALICE, "a", **page),  # type: ignore[misc]
            )
