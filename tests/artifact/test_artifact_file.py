import pytest

from sojourn.artifact.file import FileArtifactService
from sojourn.testing.artifact_conformance import ArtifactServiceConformance


class TestFileArtifactService(ArtifactServiceConformance):
    @pytest.fixture
    def service(self, tmp_path):
        return FileArtifactService(tmp_path / "artifacts")

    @pytest.fixture
    def failing_service(self, tmp_path):
        (tmp_path / "file").write_bytes(b"not a directory")
        return FileArtifactService(tmp_path / "file")


SCOPE = ALICE
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


def descriptors():
    return len(os.listdir("/dev/fd"))


class TestLayout:
    async def test_the_directory_is_made_by_the_first_save(self, service, root):
        assert await service.list_artifact_names(SCOPE) == []
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
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

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
        assert await FileArtifactService(tmp_path / "disk").list_artifact_names(SCOPE) == ["a"]

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
        assert await service.list_artifact_names(SCOPE) == ["a"]
        assert [v.version for v in await service.list_versions(SCOPE, "a")] == [0]
        with pytest.raises(NotFound):
            await service.delete_artifact(SCOPE, "no-version")
        assert await service.save_artifact(SCOPE, "a", b"y") == 1
        assert await service.save_artifact(SCOPE, "no-version", b"y") == 0


class TestHygiene:
    async def test_no_descriptor_is_left_open(self, service):
        await service.save_artifact(SCOPE, "a", b"x")
        before = descriptors()
        await service.save_artifact(SCOPE, "b", bytes(3_000_000))
        opened = await service.open_artifact(SCOPE, "b")
        abandoned = await service.open_artifact(SCOPE, "b")
        assert await anext(abandoned.chunks)
        unread = await service.open_artifact(SCOPE, "b")
        assert descriptors() == before + 3
        del unread, abandoned
        assert await opened.read() == bytes(3_000_000)
        assert await opened.read() == b""
        with pytest.raises(NotFound):
            await service.load_artifact(SCOPE, "c")
        with pytest.raises(OSError, match="broke"):
            await service.save_artifact(SCOPE, "b", broken())
        await service.list_versions(SCOPE, "b")
        await service.list_artifact_names(SCOPE)
        await service.delete_artifact(SCOPE, "b")
        await service.delete_user_artifacts("app", "alice")
        assert descriptors() == before

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
        assert (await service.list_versions(SCOPE, "a"))[0].size == 3_000_003
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
        names = await service.list_artifact_names(SCOPE)
        assert task.cancelled() or (task.result(), names) == (0, ["a"])
        sizes = [v.size for v in await service.list_versions(SCOPE, "a")] if names else []
        assert sizes in ([], [4_500_000])
        assert not root.exists() or os.listdir(root / ".tmp") == []


class TestFailures:
    async def test_a_path_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            for call in (
                FileArtifactService(path).save_artifact(SCOPE, "a", b"x"),
                FileArtifactService(path).load_artifact(SCOPE, "a"),
            ):
                with pytest.raises(Unavailable, match="is not a directory") as caught:
                    await call
                assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)
                assert str(path) in caught.value.message
                assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    async def test_a_directory_that_is_not_writable(self, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o500)
        for path in (tmp_path / "locked", tmp_path / "locked" / "below"):
            with pytest.raises(Unavailable, match="check its owner and mode") as caught:
                await FileArtifactService(path).save_artifact(SCOPE, "a", b"x")
            assert (caught.value.code, caught.value.retryable) == ("artifact.unavailable", False)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES, errno.EROFS, errno.ENOENT])
    async def test_any_call_that_fails_is_unavailable_and_saves_nothing(self, tmp_path, number):
        reached = True
        for at in range(200):
            root = tmp_path / str(at)
            service = FileArtifactService(root)
            before = descriptors()
            failing = Failing(number)
            with at_call(at, failing) as counter:
                outcome = await save_in_simulation(service)
            reached = counter.reached
            assert descriptors() == before
            names = await service.list_artifact_names(SCOPE)
            if isinstance(outcome, Unavailable):
                assert outcome.code == "artifact.unavailable"
                assert outcome.__cause__.errno == number
                # The last calls only confirm or clean up.
                assert names == [] or failing.name in ("fsync", "close")
            else:
                assert (outcome, names) == (0, ["a"])
            await FileArtifactService(root).save_artifact(SCOPE, "a", b"y")
            assert await service.load_artifact(SCOPE, "a") == Part.from_bytes(b"y")
            if not reached:
                break
        assert not reached
