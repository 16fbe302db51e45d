"""Power fails: what is left then is what was waited for on its way to the disk, and no more."""

import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.artifact.syscalls import at_call
from tests.artifact.test_artifact_file_races import World

DATA = b"x" * 100_000


class Disk:
    """What a power failure would leave: of each directory the entries that it had when it was last synced, of each file its size."""

    def __init__(self):
        self.waits = 0
        self._entries = {}
        self._sizes = {}

    @contextmanager
    def watched(self):
        """Notes what is synced while the block runs."""
        originals = {name: getattr(os, name) for name in ("fsync", "mkdir", "open", "rename")}

        def fsync(fd):
            self.waits += 1
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                with os.scandir(fd) as entries:
                    self._entries[found.st_ino] = {entry.name: entry.inode() for entry in entries}
            else:
                self._sizes[found.st_ino] = found.st_size

        def mkdir(path, mode=0o777, *, dir_fd=None):
            originals["mkdir"](path, mode, dir_fd=dir_fd)
            # The number may be that of one that is gone.
            self._entries.pop(os.stat(path, dir_fd=dir_fd).st_ino, None)

        def open_(path, flags, mode=0o777, *, dir_fd=None):
            fd = originals["open"](path, flags, mode, dir_fd=dir_fd)
            if flags & os.O_EXCL:
                self._sizes.pop(os.fstat(fd).st_ino, None)
            return fd

        def rename(source, target, *, src_dir_fd=None, dst_dir_fd=None):
            if target.isdigit():
                assert self.holds_version(os.stat(source, dir_fd=src_dir_fd).st_ino), "half a version could be shown"
            originals["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        for name, call in {"fsync": fsync, "mkdir": mkdir, "open": open_, "rename": rename}.items():
            setattr(os, name, call)
        try:
            yield self
        finally:
            for name, call in originals.items():
                setattr(os, name, call)

    def holds_version(self, inode):
        """Whether a directory would have all that a version is made of."""
        entries = self._entries.get(inode, {})
        return self._sizes.get(entries.get("data")) == len(DATA) and self._sizes.get(entries.get("meta.json"), 0) > 0

    def finds(self, above, *path):
        """The directory that would be there at a path below one that is there in any case; None for none."""
        inode = os.stat(above).st_ino
        for segment in path:
            inode = self._entries.get(inode, {}).get(segment)
        return inode


class PowerFails(BaseException):
    """Nothing happens any more."""


@pytest.fixture
def disk():
    return Disk()


def assert_survives(disk, world, above, version):
    below = Path(world.root).relative_to(above).parts
    assert disk.holds_version(disk.finds(above, *below, *world.path, str(version)))


def test_what_was_saved_survives(disk, tmp_path):
    first = World(tmp_path / "made" / "too" / "artifacts", "report.pdf")
    others = [World(first.root, name) for name in ("report.pdf", "other.pdf", "user:photo")]
    with disk.watched():
        for world in (first, *others, *others):
            assert_survives(disk, world, tmp_path, world.save(DATA))
        first.delete()
        assert disk.finds(tmp_path, *Path(first.root).relative_to(tmp_path).parts, *first.path) is None
        assert_survives(disk, first, tmp_path, first.save(DATA))
        first.delete_user()
        assert_survives(disk, first, tmp_path, first.save(DATA))


def test_what_is_saved_after_another_process_died_survives(disk, tmp_path):
    def dies(_):
        raise PowerFails

    for at in range(1000):
        world = World(tmp_path / str(at), "report.pdf")
        os.mkdir(world.root)
        with disk.watched():
            with at_call(at, dies) as counter, suppress(PowerFails):
                world.save(DATA)
            other = World(world.root, "other.pdf")
            assert_survives(disk, other, world.root, other.save(DATA))
            assert_survives(disk, world, world.root, world.save(DATA))
        if not counter.reached:
            break
    assert not counter.reached
    assert at > 30


def test_a_way_that_is_on_the_disk_is_not_waited_for_again(disk, tmp_path):
    def waits(name):
        before = disk.waits
        with disk.watched():
            World(tmp_path / "a", name).save(DATA)
        return disk.waits - before

    # The files, the version, where it is shown; and what is new above that.
    assert waits("first.pdf") > 5
    assert waits("second.pdf") == 5
    assert waits("second.pdf") == 4
