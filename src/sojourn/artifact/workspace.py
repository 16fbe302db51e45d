"""Private directories for work under way, which anybody may remove once their owner is dead.

Beside each workspace `<id>/` lies `<id>.lock`, which its owner holds locked with `flock`. The kernel lets go of the lock
when the owner dies, however it dies; unlike a process id this also tells the truth across containers. So: who gets the
lock of a workspace that is still there knows that nobody owns it, and removes it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from contextlib import ExitStack, suppress

from sojourn import platform

# Windows has neither; there the service refuses to start, and this module need only be importable.
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
ROOT: int = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
"""How the root is opened; it may be a symbolic link, since it is what the user named."""

DIRECTORY = ROOT | NO_FOLLOW
"""How directories below the root are opened: a symbolic link in place of one is an error."""

_LOCK = os.O_RDWR | NO_FOLLOW
_LOCK_SUFFIX = ".lock"
_REMOVE_ATTEMPTS = 100
_serial = itertools.count()


class Workspace:
    """A directory of one's own; `close()` it.

    Args:
        parent_fd: The directory to make it in; need not stay open.

    Attributes:
        name: The directory's name in its parent.
        parent_fd: The parent.
        fd: The directory itself.
    """

    def __init__(self, parent_fd: int) -> None:
        with ExitStack() as stack:
            self.parent_fd = os.dup(parent_fd)
            stack.callback(os.close, self.parent_fd)
            self.name, lock_fd = _lock_unused_name(self.parent_fd)
            # Closed after the directory is removed: only then may others take it for abandoned.
            stack.callback(os.close, lock_fd)
            stack.callback(_remove, self.name, self.parent_fd)
            os.mkdir(self.name, 0o700, dir_fd=self.parent_fd)
            self.fd = os.open(self.name, DIRECTORY, dir_fd=self.parent_fd)
            stack.callback(os.close, self.fd)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Removes the workspace with all that is still in it; closing twice is fine."""
        self._stack.close()


def _lock_unused_name(parent_fd: int) -> tuple[str, int]:
    while True:
        # The process id and the count make it unique even where ids are made up by a test.
        name = f"{platform.new_id()}-{os.getpid()}-{next(_serial)}"
        lock = name + _LOCK_SUFFIX
        try:
            fd = os.open(lock, _LOCK | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent_fd)
        except FileExistsError:
            continue
        with ExitStack() as stack:
            stack.callback(os.close, fd)
            # Between the two calls somebody who cleans up may have taken the lock, or the file.
            if _try_lock(fd) and _is_file(fd, lock, parent_fd):
                stack.pop_all()
                return name, fd


def remove_abandoned(parent_fd: int) -> None:
    """Removes the workspaces in `parent_fd` whose owners are dead; leaves what it cannot remove."""
    for entry in os.listdir(parent_fd):
        if entry.endswith(_LOCK_SUFFIX):
            with suppress(OSError):
                _remove_if_abandoned(entry, parent_fd)


def _remove_if_abandoned(lock: str, parent_fd: int) -> None:
    fd = os.open(lock, _LOCK, dir_fd=parent_fd)
    try:
        # If the file is gone, its owner finished after we opened it, and what was its workspace may be published.
        if _try_lock(fd) and _is_file(fd, lock, parent_fd):
            _remove(lock.removesuffix(_LOCK_SUFFIX), parent_fd)
    finally:
        os.close(fd)


def _remove(name: str, parent_fd: int) -> None:
    for attempts_left in reversed(range(_REMOVE_ATTEMPTS)):
        try:
            shutil.rmtree(name, dir_fd=parent_fd)
            break
        except FileNotFoundError:
            break
        except OSError as error:
            # Somebody who had opened a directory before it was moved here may still put a version into it.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not attempts_left:
                raise
    os.unlink(name + _LOCK_SUFFIX, dir_fd=parent_fd)


def _try_lock(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file(fd: int, name: str, parent_fd: int) -> bool:
    try:
        there = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)
