import asyncio
import errno
import json
import os
import stat

import pytest

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.content import Part
from sojourn.errors import NotFound, Unavailable, Unsupported
from sojourn.testing.artifact_conformance import ALICE as SCOPE
from sojourn.testing.artifact_conformance import ArtifactServiceConformance, names_of, stream, versions_of
from sojourn.testing.loop import for_seeds, simulate
from tests.artifact.syscalls import at_call, open_below

EVIL = ArtifactScope("../..", "..", "session", "../../..")

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def service(root):
    return FileArtifactService(root)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def broken():
    for _ in range(3):
        yield bytes(3_000_000)
    raise OSError("the source broke")


class TestFileArtifactService(ArtifactServiceConformance):
    @pytest.fixture
    def service(self, tmp_path):
        return FileArtifactService(tmp_path / "artifacts")

    @pytest.fixture
    def failing_service(self, tmp_path):
        (tmp_path / "file").write_bytes(b"not a directory")
        return FileArtifactService(tmp_path / "file")


class TestLayout:
    async def test_the_directory_is_made_by_the_first_save(self, service, root):
        assert await names_of(service, SCOPE) == []
        with pytest.raises(NotFound):
            await service.load_artifact(SCOPE, "a")
        with pytest.raises(NotFound):
            await service.delete_artifact(SCOPE, "a")
        await service.delete_session_artifacts(SCOPE)
        await service.delete_user_artifacts("app", "alice")
        assert not root.exists()
        await service.save_artifact(SCOPE, "a", b"x")
        assert root.is_dir()

    async def test_the_bytes_lie_as_they_are(self, service, root):
        await service.save_artifact(SCOPE, "reports/July.pdf", b"%PDF")
        await service.save_artifact(SCOPE, "user:photo.png", b"PNG")
        assert tree(root) == [
            ".tmp",
            "app",
            "app/alice",
            "app/alice/session",
            "app/alice/session/uid-1",
            "app/alice/session/uid-1/reports%2f%4auly.pdf",
            "app/alice/session/uid-1/reports%2f%4auly.pdf/0",
            "app/alice/session/uid-1/reports%2f%4auly.pdf/0/data",
            "app/alice/session/uid-1/reports%2f%4auly.pdf/0/meta.json",
            "app/alice/user",
            "app/alice/user/user%3aphoto.png",
            "app/alice/user/user%3aphoto.png/0",
            "app/alice/user/user%3aphoto.png/0/data",
            "app/alice/user/user%3aphoto.png/0/meta.json",
        ]
        assert (root / "app/alice/session/uid-1/reports%2f%4auly.pdf/0/data").read_bytes() == b"%PDF"

    async def test_everything_is_private(self, service, root):
        before = os.umask(0)
        try:
            await service.save_artifact(SCOPE, "a", b"x")
        finally:
            os.umask(before)
        for path in (root, *root.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o777 == (0o700 if path.is_dir() else 0o600), path

    async def test_a_deletion_leaves_no_byte(self, service, root):
        for name in ("a", "user:a", "x" * 250):
            await service.save_artifact(SCOPE, name, b"x")
            await service.delete_artifact(SCOPE, name)
        assert not [path for path in root.rglob("*") if path.is_file()]
        await service.save_artifact(SCOPE, "a", b"x")
        await service.delete_user_artifacts("app", "alice")
        assert tree(root) == [".tmp", "app"]

    async def test_nothing_leaves_the_directory(self, service, root, tmp_path):
        for scope in (EVIL, EVIL._replace(app_name="/"), EVIL._replace(user_id=str(tmp_path / "x"))):
            await service.save_artifact(scope, "a", b"x")
            await service.delete_session_artifacts(scope)
            await service.save_artifact(scope, "user:a", b"x")
            await service.delete_user_artifacts(scope.app_name, scope.user_id)
        assert os.listdir(tmp_path) == [root.name]
        assert all(len(path.name) <= 128 for path in root.rglob("*"))

    async def test_a_service_does_not_follow_the_working_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        service = FileArtifactService("here")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await service.save_artifact(SCOPE, "a", b"x")
        assert (tmp_path / "here").is_dir()
        assert await FileArtifactService(tmp_path / "here").load_artifact(SCOPE, "a") == Part.from_bytes(b"x")

    async def test_the_directory_itself_may_be_a_link(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        await FileArtifactService(tmp_path / "link").save_artifact(SCOPE, "a", b"x")
        assert await names_of(FileArtifactService(tmp_path / "disk"), SCOPE) == ["a"]

    async def test_what_others_put_there_is_overlooked(self, service, root):
        await service.save_artifact(SCOPE, "a", b"x")
        owner = root / "app/alice/session/uid-1"
        (owner / ".DS_Store").write_bytes(b"")
        (owner / "a/.DS_Store").write_bytes(b"")
        (owner / "a/00").mkdir()
        (owner / "Not Ours").mkdir()
        (owner / "Not Ours/0").mkdir()
        (owner / "link").symlink_to(owner / "a")
        (owner / "no-version").mkdir()
        assert await names_of(service, SCOPE) == ["a"]
        assert [v.version for v in await versions_of(service, SCOPE, "a")] == [0]
        with pytest.raises(NotFound):
            await service.delete_artifact(SCOPE, "no-version")
        assert await service.save_artifact(SCOPE, "a", b"y") == 1
        assert await service.save_artifact(SCOPE, "no-version", b"y") == 0


class TestHygiene:
    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is open is read from /proc")
    async def test_no_descriptor_is_left_open(self, service, root):
        await service.save_artifact(SCOPE, "b", bytes(3_000_000))
        opened = await service.open_artifact(SCOPE, "b")
        abandoned = await service.open_artifact(SCOPE, "b")
        assert await anext(abandoned.chunks)
        unread = await service.open_artifact(SCOPE, "b")
        assert open_below(root) == 3
        del unread, abandoned
        assert await opened.read() == bytes(3_000_000)
        assert await opened.read() == b""
        with pytest.raises(NotFound):
            await service.load_artifact(SCOPE, "c")
        with pytest.raises(OSError, match="broke"):
            await service.save_artifact(SCOPE, "b", broken())
        await versions_of(service, SCOPE, "b")
        await names_of(service, SCOPE)
        await service.delete_artifact(SCOPE, "b")
        await service.delete_user_artifacts("app", "alice")
        assert open_below(root) == 0

    async def test_a_save_that_fails_cleans_up(self, service, root):
        with pytest.raises(OSError, match="broke"):
            await service.save_artifact(SCOPE, "b", broken())
        assert tree(root) == [".tmp"]

    async def test_what_is_being_written_is_not_taken_for_abandoned(self, service, root):
        async def interrupted():
            yield bytes(3_000_000)
            other = FileArtifactService(root)
            assert await other.save_artifact(SCOPE, "other", b"x") == 0
            await other.delete_artifact(SCOPE, "other")
            yield b"end"

        await service.save_artifact(SCOPE, "a", interrupted())
        assert (await versions_of(service, SCOPE, "a"))[0].size == 3_000_003
        assert os.listdir(root / ".tmp") == []

    async def test_what_nobody_can_own_does_not_stop_a_save(self, service, root):
        (root / ".tmp" / "dir.lock").mkdir(parents=True)
        (root / ".tmp" / "link.lock").symlink_to("/dev/null")
        (root / ".tmp" / "dead.lock").touch()
        (root / ".tmp" / "dead").mkdir()
        (root / ".tmp" / "dead" / "data").touch()
        assert await service.save_artifact(SCOPE, "a", b"x") == 0
        assert sorted(os.listdir(root / ".tmp")) == ["dir.lock", "link.lock"]

    @for_seeds(40)
    async def test_a_save_cancelled_anywhere_leaves_nothing_half(self, tmp_path):
        root = tmp_path / platform.new_id()
        service = FileArtifactService(root)

        async def pieces():
            for _ in range(3):
                await asyncio.sleep(0)
                yield bytes(1_500_000)

        task = asyncio.create_task(service.save_artifact(SCOPE, "a", pieces()))
        for _ in range(int(platform.random() * 40)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        names = await names_of(service, SCOPE)
        assert task.cancelled() or (task.result(), names) == (0, ["a"])
        sizes = [v.size for v in await versions_of(service, SCOPE, "a")] if names else []
        assert sizes in ([], [4_500_000])
        assert not root.exists() or os.listdir(root / ".tmp") == []


class Failing:
    """Fails a call to the operating system, and remembers which."""

    def __init__(self, number):
        self.number = number
        self.name = None

    def __call__(self, name):
        self.name = name
        raise OSError(self.number, os.strerror(self.number))


async def outcome_of(awaitable):
    try:
        return await awaitable
    except Unavailable as error:
        return error


class TestFailures:
    @pytest.mark.parametrize("below", ["", "below", "below/further"])
    async def test_a_path_that_is_a_file(self, root, below):
        root.touch()
        service = FileArtifactService(root / below)
        for call in (service.save_artifact(SCOPE, "a", b"x"), service.load_artifact(SCOPE, "a")):
            with pytest.raises(Unavailable, match="is not a directory") as caught:
                await call
            assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)
            assert str(root / below) in caught.value.message
            assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    @pytest.mark.parametrize("below", ["", "below"])
    async def test_a_directory_that_is_not_writable(self, root, below):
        root.mkdir(mode=0o500)
        with pytest.raises(Unavailable, match="check its owner and mode") as caught:
            await FileArtifactService(root / below).save_artifact(SCOPE, "a", b"x")
        assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)

    def test_an_operating_system_that_cannot(self, root, monkeypatch):
        monkeypatch.setattr(os, "supports_dir_fd", set())
        with pytest.raises(Unsupported) as caught:
            FileArtifactService(root)
        assert caught.value.code == "artifact.unsupported_platform"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EACCES])
    def test_a_save_of_which_any_call_fails(self, tmp_path, number):
        for at in range(1000):
            service = FileArtifactService(tmp_path / str(at))
            before = open_below(tmp_path)
            failing = Failing(number)
            with at_call(at, failing) as counter:
                outcome = simulate(lambda service=service: outcome_of(service.save_artifact(SCOPE, "a", stream(b"x"))), seed=0)
            # What was prevented from being closed is still open.
            assert open_below(tmp_path) - before == (failing.name == "close")
            names = asyncio.run(names_of(service, SCOPE))
            if isinstance(outcome, Unavailable):
                assert (outcome.code, outcome.__cause__.errno) == ("artifact.unavailable", number)
                assert outcome.retryable == (number != errno.EACCES)
                # The rename was done; what failed was to make sure of it.
                assert names == [] or failing.name in ("fsync", "close")
            else:
                assert (outcome, names) == (0, ["a"])
            asyncio.run(FileArtifactService(service._tree.root).save_artifact(SCOPE, "a", b"y"))
            assert asyncio.run(service.load_artifact(SCOPE, "a")) == Part.from_bytes(b"y")
            if not counter.reached:
                break
        assert not counter.reached
        assert at > 30

    @pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
    def test_a_reader_of_which_any_call_fails_never_says_absent(self, root, number):
        service = FileArtifactService(root)
        asyncio.run(service.save_artifact(SCOPE, "a", b"x"))
        for call, expected in (
            (lambda: service.load_artifact(SCOPE, "a"), Part.from_bytes(b"x")),
            (lambda: names_of(service, SCOPE), ["a"]),
        ):
            for at in range(1000):
                failing = Failing(number)
                with at_call(at, failing) as counter:
                    outcome = simulate(lambda call=call: outcome_of(call()), seed=0)
                assert outcome == expected or outcome.__cause__.errno == number
                if not counter.reached:
                    break
            assert not counter.reached
            assert at > 5

    @pytest.mark.parametrize("where", ["app", "app/alice", "app/alice/session", "app/alice/session/uid-1/a", ".tmp"])
    async def test_links_are_not_followed(self, service, root, tmp_path, where):
        outside = tmp_path / "outside"
        await FileArtifactService(outside).save_artifact(SCOPE, "a", b"secret")
        await service.save_artifact(SCOPE, "a", b"x")
        link = root / where
        link.rename(tmp_path / "moved")
        link.symlink_to(outside / where)
        before = tree(outside)
        calls = [service.save_artifact(SCOPE, "a", b"y"), service.save_artifact(SCOPE, "a", stream(b"y"))]
        if where != ".tmp":
            calls += [service.load_artifact(SCOPE, "a"), service.delete_artifact(SCOPE, "a")]
        for call in calls:
            with pytest.raises(Unavailable) as caught:
                await call
            assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)
        assert tree(outside) == before

    @pytest.mark.parametrize("file", ["data", "meta.json"])
    async def test_links_to_files_are_not_followed(self, service, root, tmp_path, file):
        await service.save_artifact(SCOPE, "a", b"x")
        (tmp_path / "secret").write_bytes(b"y")
        path = root / "app/alice/session/uid-1/a/0" / file
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(Unavailable):
            await service.load_artifact(SCOPE, "a")

    async def test_deleting_removes_a_link_and_not_what_it_names(self, service, root, tmp_path):
        outside = tmp_path / "outside"
        await FileArtifactService(outside).save_artifact(SCOPE, "a", b"kept")
        await service.save_artifact(SCOPE, "user:a", b"x")
        (root / "app/alice/session").symlink_to(outside / "app/alice/session")
        await service.delete_user_artifacts("app", "alice")
        assert await names_of(FileArtifactService(outside), SCOPE) == ["a"]
        assert tree(root) == [".tmp", "app"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda version: (version / "data").write_bytes(b"12"),
            lambda version: (version / "data").write_bytes(b"1234"),
            lambda version: (version / "data").unlink(),
            lambda version: (version / "meta.json").unlink(),
            lambda version: (version / "meta.json").write_bytes(b""),
            lambda version: (version / "meta.json").write_bytes(b"[]"),
            lambda version: (version / "meta.json").write_bytes(b"{}"),
            lambda version: (version / "meta.json").write_bytes(b"\xff"),
        ],
        ids=["short", "long", "no-data", "no-meta", "empty-meta", "list-meta", "wrong-meta", "binary-meta"],
    )
    async def test_damage_is_told(self, service, root, damage):
        await service.save_artifact(SCOPE, "a", b"123")
        await service.save_artifact(SCOPE, "a", b"456")
        damage(root / "app/alice/session/uid-1/a/1")
        for call in (
            service.load_artifact(SCOPE, "a"),
            service.load_artifact(SCOPE, "a", 1),
            service.open_artifact(SCOPE, "a"),
            versions_of(service, SCOPE, "a"),
        ):
            with pytest.raises(Unavailable) as caught:
                await call
            assert (caught.value.code, caught.value.retryable) == ("artifact.damaged", False)
        assert await service.load_artifact(SCOPE, "a", 0) == Part.from_bytes(b"123")
        assert await service.save_artifact(SCOPE, "a", b"789") == 2
        await service.delete_artifact(SCOPE, "a")
        assert await names_of(service, SCOPE) == []

    async def test_a_version_whose_file_does_not_name_a_run_has_none(self, service, root):
        await service.save_artifact(SCOPE, "a", b"123", run_id="r1")
        path = root / "app/alice/session/uid-1/a/0/meta.json"
        meta = json.loads(path.read_text())
        assert meta.pop("run_id") == "r1"
        path.write_text(json.dumps(meta))
        (info,) = await versions_of(service, SCOPE, "a")
        assert (info.run_id, info.size) == (None, 3)

    async def test_damage_while_reading_is_told(self, service, root):
        await service.save_artifact(SCOPE, "a", bytes(3_000_000))
        opened = await service.open_artifact(SCOPE, "a")
        assert await anext(opened.chunks)
        os.truncate(root / "app/alice/session/uid-1/a/0/data", 1_500_000)
        with pytest.raises(Unavailable, match="bytes are missing"):
            await opened.read()
