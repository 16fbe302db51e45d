"""Edits of a target's source, or of its config: noticed by the files' times, taken over by importing the target again."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from sojourn.cli.failures import is_user_code
from sojourn.cli.target import Target


class Reloader:
    """Watches the user's modules below a target's directory, and its config.

    Args:
        target: The target as it was imported last.
    """

    def __init__(self, target: Target) -> None:
        sys.dont_write_bytecode = True
        self._target = target
        self._seen = self._times()
        self._broken = False

    def changed(self) -> bool:
        """Whether a file has changed since the last import, or that has failed."""
        return self._broken or self._times() != self._seen

    def reload(self) -> Target:
        """Imports the target again, with all of the user's modules. If that fails, the modules stay as they were.

        Raises:
            InvalidInput: What `load_target` raises.
        """
        before = self._modules()
        for name, module in before.items():
            _forget_bytecode(module)
            del sys.modules[name]
        importlib.invalidate_caches()
        self._broken = True
        try:
            target = self._target.loaded_again()
        except BaseException:
            for name in self._modules():
                del sys.modules[name]
            sys.modules.update(before)
            raise
        self._target, self._broken, self._seen = target, False, self._times()
        return target

    def _modules(self) -> dict[str, ModuleType]:
        root = str(self._target.root) + os.sep
        found = {}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name != "__main__" and file and os.path.realpath(file).startswith(root) and is_user_code(file):
                found[name] = module
        return found

    def _times(self) -> dict[str, tuple[int, int] | None]:
        files = [file for module in self._modules().values() if (file := module.__file__)]
        if self._target.file is not None:
            files.append(str(self._target.file))
        return {file: _time_of(Path(file)) for file in files}


def _forget_bytecode(module: ModuleType) -> None:
    # It is taken for current if the source has the same size and was written in the same second.
    cached = getattr(module, "__cached__", None)
    if cached:
        with suppress(OSError):
            os.unlink(cached)


def _time_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
