"""The executor role: which process may execute the runs of a database file."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sojourn.errors import Conflict, Unavailable
from sojourn.processes import is_alive
from sojourn.sqlite.faults import fault

_RETRIES = 20
_RETRY_DELAY = 0.01


class ExecutorRole:
    """A lock on a file beside the database, held for as long as the process executes runs.

    The kernel releases it when the process dies, so nothing has to be cleaned up; the file stays, and names the holder.

    Args:
        database: The database file.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._path = f"{database}.executor"
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the role."""
        return self._fd is not None

    def claim(self) -> None:
        """Takes the role; does nothing if this object has it.

        Raises:
            Conflict: `store.in_use` if another process, or another object of this one, has it.
            Unavailable: The lock file cannot be used.
        """
        if self._fd is not None:
            return
        fd = self._open(os.O_RDWR)
        for _ in range(_RETRIES):
            if _lock(fd):
                self._fd = fd
                _held.add(self)
                _sign(fd, b"%d\n" % os.getpid())
                return
            pid = _holder(fd)
            if pid is not None and is_alive(pid):
                break
            # Whoever has the lock is not an executor: a client looks whether there is one, which takes no time.
            threading.Event().wait(_RETRY_DELAY)
        pid = _holder(fd)
        os.close(fd)
        who = "another process" if pid is None else "this process" if pid == os.getpid() else f"process {pid}"
        raise Conflict(
            f"{who} executes the runs of {self._database} already; stop it, or use another database (--db)", code="store.in_use"
        )

    def release(self) -> None:
        """Gives the role up, if this object has it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            _sign(fd, b"")
            os.close(fd)

    @contextmanager
    def vacant(self) -> Iterator[bool]:
        """Tells whether nobody has the role; nobody can take it while the block runs.

        Where that cannot be found out, somebody may have it.
        """
        fd = None
        if self._fd is None:
            # Another user's client may only read the file, which is enough to lock it.
            with suppress(Unavailable):
                fd = self._open(os.O_RDONLY)
        if fd is None:
            yield False
            return
        try:
            yield _lock(fd)
        finally:
            os.close(fd)

    def _open(self, mode: int) -> int:
        try:
            return os.open(self._path, mode | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise fault(error, self._path) from error

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(fd: int, text: bytes) -> None:
    # Who holds the lock is for people: a full disk does not take the role away.
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


_held: weakref.WeakSet[ExecutorRole] = weakref.WeakSet()


def _in_forked_child() -> None:
    # A forked child shares the lock: it would keep the role from others after its parent has died.
    for role in list(_held):
        role._forget()


os.register_at_fork(after_in_child=_in_forked_child)
