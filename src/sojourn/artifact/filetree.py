"""Artifacts as a tree of directories: blocking, crash-safe, shared by any number of processes.

    <root>/<app>/<user>/user/<name>/<version>/            artifacts that the user's sessions share
    <root>/<app>/<user>/session/<uid>/<name>/<version>/   those of one session
        data                                              the bytes, as they are
        meta.json                                         what is known of them
    <root>/.tmp/                                          versions being written, directories being deleted

A version is written aside and then renamed to its number. The kernel refuses to rename a directory onto one that is not
empty, so the rename claims the number and shows the version whole, in one step. Deleting is one rename too, out of
sight; the files go afterwards. Nothing is ever changed in place.

Directories are opened segment by segment, each relative to the one before and never through a symbolic link, and what
is found is used through its descriptor: it stays the same directory whatever happens to its path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice, pairwise
from typing import BinaryIO

from sojourn import jsonvalue
from sojourn.artifact.rules import Draft, damaged
from sojourn.artifact.segments import HASH_MARK, decode_segment, encode_segment
from sojourn.artifact.types import USER_PREFIX, ArtifactScope, ArtifactVersion
from sojourn.artifact.workspace import DIRECTORY, NO_FOLLOW, ROOT, Workspace, remove_abandoned

_TMP = ".tmp"
_DATA = "data"
_META = "meta.json"
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_READ = os.O_RDONLY | NO_FOLLOW
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
# Not every system takes advice.
_IN_ORDER: int | None = getattr(os, "POSIX_FADV_SEQUENTIAL", None)
_WRITTEN: int | None = getattr(os, "POSIX_FADV_DONTNEED", None)
_ATTEMPTS = 100
"""How often an operation starts again because what it works in was deleted under it."""

Segments = tuple[str, ...]
"""Where something is below the root: encoded segments."""


def user_path(app_name: str, user_id: str) -> Segments:
    """Where all artifacts of a user are."""
    return encode_segment(app_name), encode_segment(user_id)


def session_path(scope: ArtifactScope) -> Segments:
    """Where the artifacts of the session are."""
    return *user_path(scope.app_name, scope.user_id), "session", encode_segment(scope.session_uid)


def shared_path(scope: ArtifactScope) -> Segments:
    """Where the artifacts are that the user's sessions share."""
    return *user_path(scope.app_name, scope.user_id), "user"


def name_path(scope: ArtifactScope, name: str) -> Segments:
    """Where the versions of an artifact are."""
    owner = shared_path(scope) if name.startswith(USER_PREFIX) else session_path(scope)
    return *owner, encode_segment(name)


class OpenVersion:
    """A version whose file is open; closed at its end, by `close()`, or when nobody refers to it."""

    def __init__(self, info: ArtifactVersion, fd: int) -> None:
        self.info = info
        self._fd: int | None = fd
        self._at = 0
        self._end = info.size

    @property
    def left(self) -> int:
        """How many bytes are still to be read; none once it is closed."""
        return 0 if self._fd is None else self._end - self._at

    def narrow(self, start: int, end: int) -> None:
        """Reads only the bytes from `start` to before `end`; to be called before anything is read."""
        if self._fd is not None:
            # The disk is asked for more at once.
            _advise(self._fd, start, end - start, _IN_ORDER)
        self._at, self._end = start, end
        self.skip(0)

    def peek(self, count: int, size: int) -> list[bytes]:
        """The next pieces, so many at most, and the same ones again until they are skipped.

        Args:
            count: How many.
            size: Of how many bytes each at most.

        Raises:
            Unavailable: `artifact.damaged` if the file ends early.
        """
        pieces: list[bytes] = []
        at = self._at
        while self._fd is not None and at < self._end and len(pieces) < count:
            piece = os.pread(self._fd, min(size, self._end - at), at)
            if not piece:
                raise damaged(self.info.name, self.info.version, f"{self._end - at} bytes are missing")
            at += len(piece)
            pieces.append(piece)
        return pieces

    def read_all(self) -> bytes:
        """All bytes that are left."""
        pieces = self.peek(self.left, self.left)
        self.close()
        return b"".join(pieces)

    def skip(self, size: int) -> None:
        """Goes on after so many bytes."""
        self._at += size
        if self._at >= self._end:
            self.close()

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            # What was only read from cannot lose anything.
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()


class FileTree:
    """Reads and changes the tree under `root`, which is made when something is first written.

    All methods block, and raise `OSError` for what the file system does not do.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._cleaned = False

    def open_version(self, path: Segments, version: int | None) -> OpenVersion | None:
        """Opens a version of the artifact at `path`, the newest for None; None if it does not exist."""
        for _ in range(_ATTEMPTS):
            with self._directory(path) as name_fd:
                number = _newest(name_fd) if version is None else version
                if name_fd is None or number is None:
                    return None
                found = self._open_number(path, name_fd, number)
            # The newest one has gone while this looked: it was deleted, or deleted and saved anew.
            if found is not None or version is not None:
                return found
        raise _contended(path)

    def versions(self, path: Segments, first: int, limit: int) -> list[ArtifactVersion] | None:
        """Versions of the artifact at `path` from `first` on, oldest first; None if it does not exist."""
        infos: list[ArtifactVersion] = []
        with self._directory(path) as name_fd:
            numbers = _numbers(name_fd)
            for number in [n for n in numbers if n >= first][:limit]:
                found = self._open_number(path, name_fd, number)
                if found is None:
                    # Versions are deleted all together.
                    return None
                found.close()
                infos.append(found.info)
        return infos if numbers else None

    def names(self, path: Segments, after: str, limit: int) -> list[str]:
        """The first names of artifacts directly under `path` that come after a name, in the order of their code points."""
        with self._directory(path) as owner_fd:
            if owner_fd is None:
                return []
            with os.scandir(owner_fd) as entries:
                segments = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        candidates = ((name, segment) for segment in segments if (name := self._name((*path, segment))) is not None)
        ordered = sorted(candidate for candidate in candidates if candidate[0] > after)
        return list(islice((name for name, segment in ordered if self._exists((*path, segment))), limit))

    def remove_artifact(self, path: Segments) -> bool:
        """Removes the artifact at `path`; returns whether there was one."""
        return self._exists(path) and self.remove(path)

    def remove(self, path: Segments) -> bool:
        """Removes the directory at `path` with all that is in it; returns whether it was there."""
        with ExitStack() as stack:
            parent_fd = stack.enter_context(self._directory(path[:-1]))
            if parent_fd is None or not _is_there(path[-1], parent_fd):
                return False
            workspace = self.open_workspace()
            stack.callback(workspace.close)
            try:
                os.rename(path[-1], "deleted", src_dir_fd=parent_fd, dst_dir_fd=workspace.fd)
            except FileNotFoundError:
                return False
            os.fsync(parent_fd)
            return True

    def tidy(self) -> None:
        """Removes what processes that died have left of their work, deletions that they had begun included."""
        with self._directory((_TMP,)) as tmp_fd:
            if tmp_fd is not None:
                remove_abandoned(tmp_fd)

    def open_workspace(self) -> Workspace:
        """A directory for work under way. The first call cleans up after dead processes."""
        with ExitStack() as stack:
            with self._made((_TMP,)) as fds:
                if not self._cleaned:
                    self._cleaned = True
                    remove_abandoned(fds[-1])
                workspace = Workspace(fds[-1])
                stack.callback(workspace.close)
            stack.pop_all()
            return workspace

    def publish(self, workspace: Workspace, path: Segments) -> int:
        """Makes a workspace the next version of the artifact at `path`; returns its number."""
        for _ in range(_ATTEMPTS):
            # A directory that was deleted between two steps is made again.
            with suppress(FileNotFoundError), self._made(path) as fds:
                for parent_fd, fd in pairwise(fds):
                    _anchor(parent_fd, fd)
                return _claim_number(workspace, fds[-1])
        raise _contended(path)

    @contextmanager
    def _directory(self, path: Segments) -> Iterator[int | None]:
        """The directory at `path`, open while the block runs; None if it does not exist."""
        with ExitStack() as stack:
            fd: int | None = None
            # Only the root may be a link: it is where the user said.
            steps: list[tuple[str, int]] = [(self.root, ROOT), *((s, DIRECTORY) for s in path)]
            for segment, flags in steps:
                try:
                    fd = os.open(segment, flags, dir_fd=fd)
                except FileNotFoundError:
                    fd = None
                    break
                stack.callback(os.close, fd)
            yield fd

    @contextmanager
    def _made(self, path: Segments) -> Iterator[list[int]]:
        """The root and the directories at and above `path`, made where missing, open while the block runs."""
        _make_root(self.root)
        with ExitStack() as stack:
            fds = [os.open(self.root, ROOT)]
            stack.callback(os.close, fds[0])
            for segment in path:
                with suppress(FileExistsError):
                    os.mkdir(segment, _DIRECTORY_MODE, dir_fd=fds[-1])
                fds.append(os.open(segment, DIRECTORY, dir_fd=fds[-1]))
                stack.callback(os.close, fds[-1])
            yield fds

    def _open_number(self, path: Segments, name_fd: int | None, number: int) -> OpenVersion | None:
        try:
            fd = os.open(str(number), DIRECTORY, dir_fd=name_fd)
        except FileNotFoundError:
            return None
        try:
            return _open_files(fd, number, "/".join(path))
        except FileNotFoundError as error:
            # Files go only after their directory was moved away: if it is still in its place, this was not a deletion.
            with self._directory((*path, str(number))) as there:
                if there is not None and os.path.samestat(os.fstat(fd), os.fstat(there)):
                    raise damaged("/".join(path), number, "a file is missing") from error
            return None
        finally:
            os.close(fd)

    def _exists(self, path: Segments) -> bool:
        # A directory without versions is what is left of a first save that did not finish.
        with self._directory(path) as name_fd:
            return _newest(name_fd) is not None

    def _name(self, path: Segments) -> str | None:
        """The name that a directory is for; None if it is not one of an artifact."""
        name = decode_segment(path[-1])
        if name is None and HASH_MARK in path[-1]:
            found = self.open_version(path, None)
            return None if found is None else found.info.name
        return name


class PendingVersion:
    """A version being written aside: nothing of it is visible until `publish()`, and nothing is left of it after `close()`.

    Attributes:
        is_open: Whether something was written and it has to be closed.
    """

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self._stack = ExitStack()
        self._size = 0
        self.is_open = False

    def write(self, blocks: Sequence[bytes | bytearray]) -> None:
        """Writes the next bytes."""
        if not self.is_open:
            self.is_open = True
            self._workspace = self._tree.open_workspace()
            self._stack.callback(self._workspace.close)
            self._file = self._create(_DATA)
        first = self._size
        for block in blocks:
            self._file.write(block)
            self._size += len(block)
        # What is written and not needed any more is sent to the disk at once, and is kept in memory until it is there.
        _advise(self._file.fileno(), first, self._size - first, _WRITTEN)

    def publish(self, blocks: Sequence[bytes | bytearray], draft: Draft, path: Segments) -> int:
        """Writes the last bytes, puts the version on disk and shows it; returns its number."""
        with closing(self):
            self.write(blocks)
            # The number is not known before the rename, which comes last; it is the directory's name.
            info = draft.version(0, self._size).model_dump(exclude={"version"})
            meta = self._create(_META)
            meta.write(jsonvalue.encode(info).encode())
            # The bytes come last: they are on their way to the disk meanwhile.
            _sync(meta)
            os.fsync(self._workspace.fd)
            _sync(self._file)
            return self._tree.publish(self._workspace, path)

    def close(self) -> None:
        """Removes whatever was not published; what cannot be removed is left for others to clean up."""
        self.is_open = False
        with suppress(OSError):
            self._stack.close()

    def _create(self, name: str) -> BinaryIO:
        file = os.fdopen(os.open(name, _CREATE, _FILE_MODE, dir_fd=self._workspace.fd), "wb")
        self._stack.callback(_close_quietly, file)
        return file


def _open_files(version_fd: int, number: int, place: str) -> OpenVersion:
    with os.fdopen(os.open(_META, _READ, dir_fd=version_fd), "rb") as meta:
        info = _parse(meta.read(), number, place)
    fd = os.open(_DATA, _READ, dir_fd=version_fd)
    opened = OpenVersion(info, fd)
    size = os.fstat(fd).st_size
    if size != info.size:
        opened.close()
        raise damaged(info.name, number, f"it has {size} bytes instead of {info.size}")
    return opened


def _parse(meta: bytes, number: int, place: str) -> ArtifactVersion:
    try:
        return ArtifactVersion.model_validate({**jsonvalue.decode(meta), "version": number})
    except (ValueError, TypeError) as error:
        raise damaged(place, number, "its meta.json cannot be read") from error


def _anchor(parent_fd: int, fd: int) -> None:
    """Makes sure that a directory is found in its parent after a power failure.

    Who made it may not have come to that yet, so whoever relies on it does it. The sticky bit, which means nothing in a private
    directory, tells the next ones that it is done: waiting for the disk is what costs most.
    """
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if not mode & stat.S_ISVTX:
        os.fsync(parent_fd)
        # Where modes cannot be changed, it is done each time.
        with suppress(OSError):
            os.fchmod(fd, mode | stat.S_ISVTX)


def _claim_number(workspace: Workspace, name_fd: int) -> int:
    while True:
        newest = _newest(name_fd)
        number = 0 if newest is None else newest + 1
        try:
            os.rename(workspace.name, str(number), src_dir_fd=workspace.parent_fd, dst_dir_fd=name_fd)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            raise
        os.fsync(name_fd)
        return number


def _numbers(name_fd: int | None) -> list[int]:
    if name_fd is None:
        return []
    entries = os.listdir(name_fd)
    return sorted(int(entry) for entry in entries if entry.isascii() and entry.isdigit() and str(int(entry)) == entry)


def _newest(name_fd: int | None) -> int | None:
    return max(_numbers(name_fd), default=None)


def _is_there(segment: str, parent_fd: int) -> bool:
    try:
        os.stat(segment, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_root(root: str, mode: int = _DIRECTORY_MODE) -> None:
    """Makes the root where it is missing, with the directories above it, each of them on disk before the next."""
    if os.path.isdir(root):
        return
    parent = os.path.dirname(root)
    _make_root(parent, 0o777)
    try:
        os.mkdir(root, mode)
    except FileExistsError:
        if not os.path.isdir(root):
            raise
    parent_fd = os.open(parent, ROOT)
    try:
        os.fsync(parent_fd)
    finally:
        os.close(parent_fd)


def _advise(fd: int, start: int, size: int, advice: int | None) -> None:
    if advice is not None:
        with suppress(OSError):
            os.posix_fadvise(fd, start, size, advice)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _close_quietly(file: BinaryIO) -> None:
    # What could not be written is written again by close(), and fails again.
    with suppress(OSError):
        file.close()


def _contended(path: Segments) -> OSError:
    return OSError(errno.EAGAIN, "it was deleted again and again while this looked", "/".join(path))
