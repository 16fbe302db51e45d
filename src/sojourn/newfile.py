"""Files that appear under their name whole, or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sojourn import platform
from sojourn.processes import is_alive

_SUFFIX = ".partial"
_JOURNAL = "-journal"

_here: set[str] = set()
"""What this process is filling."""


@contextmanager
def partial_file(target: str) -> Iterator[str]:
    """Gives the name of an empty file beside another one, for its owner alone: fill it, then `put_in_place`.

    What is left of it at the end is removed, and so is what processes that died have left of theirs; with what SQLite may have
    put beside it.

    Args:
        target: What the file is to be called. Its directory must exist.

    Raises:
        OSError: It cannot be made.
    """
    path = os.path.abspath(target)
    remove_partial(path)
    partial = f"{path}.{os.getpid()}.{platform.new_id()}{_SUFFIX}"
    _here.add(partial)
    try:
        # Exclusively: whoever else may write to the directory might have put a link there.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield partial
    finally:
        for own in (partial, f"{partial}{_JOURNAL}"):
            with suppress(FileNotFoundError):
                os.unlink(own)
        _here.discard(partial)


def put_in_place(partial: str, target: str, *, overwrite: bool) -> None:
    """Gives a file that is complete its name, on the disk, too.

    Args:
        partial: What `partial_file` gave.
        target: What the file is to be called.
        overwrite: Whether to replace a file of that name.

    Raises:
        FileExistsError: There is a file of that name, and it is not to be replaced.
        OSError: It cannot be written.
    """
    sync(partial)
    if overwrite:
        os.replace(partial, target)
    else:
        os.link(partial, target)
    sync(os.path.dirname(os.path.abspath(target)))


def remove_partial(target: str) -> None:
    """Removes what processes that died were filling for a file of this name."""
    directory, name = os.path.split(os.path.abspath(target))
    left = re.compile(rf"({re.escape(name)}\.([0-9]{{1,9}})\.[^.]+{re.escape(_SUFFIX)})({_JOURNAL})?")
    for path in Path(directory).iterdir():
        found = left.fullmatch(path.name)
        if found is None or os.path.join(directory, found[1]) in _here:
            continue
        # One of our own number that is not ours died before us.
        if int(found[2]) == os.getpid() or not is_alive(int(found[2])):
            path.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until the disk has what is in a file, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
