"""Something happens at a chosen call to the operating system; and which files this process has open."""

import fcntl
import os
from contextlib import contextmanager, suppress

CALLS = [
    *((os, n) for n in ("open", "close", "dup", "mkdir", "rename", "fsync", "fchmod", "unlink", "rmdir", "listdir", "scandir")),
    *((os, n) for n in ("stat", "fstat", "pread")),
    (fcntl, "flock"),
]


class Counter:
    """Calls `act(name)` once: before the call with the number `at`, counted from 0, or after it."""

    def __init__(self, at, act, *, after=False):
        self.at = at
        self.act = act
        self.after = after
        self.count = 0
        self.paused = False

    def wrap(self, name, call):
        def counted(*args, **kwargs):
            if self.paused:
                return call(*args, **kwargs)
            mine, self.count = self.count, self.count + 1
            if mine == self.at and not self.after:
                self._act(name)
            try:
                return call(*args, **kwargs)
            finally:
                if mine == self.at and self.after:
                    self._act(name)

        return counted

    def _act(self, name):
        self.paused = True
        try:
            self.act(name)
        finally:
            self.paused = False

    @property
    def reached(self):
        return self.count > self.at


@contextmanager
def at_call(at, act, *, after=False):
    counter = Counter(at, act, after=after)
    originals = [(module, name, getattr(module, name)) for module, name in CALLS]
    for module, name, call in originals:
        setattr(module, name, counter.wrap(name, call))
    try:
        yield counter
    finally:
        for module, name, call in originals:
            setattr(module, name, call)


def open_below(root):
    """How many descriptors are open for `root` and what is below it; 0 where there is no /proc to tell."""
    count = 0
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{entry}").startswith(str(root))
    return count
