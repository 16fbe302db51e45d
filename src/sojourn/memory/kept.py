"""What is kept in RAM of users whose memory is searched, so that a search does not read it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sojourn.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]
    """Keys of entries, or numbers of words."""

MAX_KEPT = 256 * 2**20
"""Bytes, about: users beyond, least recently searched first, are read again."""

ENTRY_BYTES = 100
"""What an entry takes beside its vector, about."""


def check_numpy() -> None:
    """Checks that vectors can be compared.

    Raises:
        Unsupported: `embedding.not_installed`.
    """
    if find_spec("numpy") is None:
        raise Unsupported(
            'comparing vectors needs numpy; install it with: pip install "sojourn[embed]"', code="embedding.not_installed"
        )


class Keepable(Protocol):
    """What is kept of one user."""

    @property
    def size(self) -> int:
        """How many bytes it takes, about."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Keepable)


class Kept(Generic[K, T]):
    """Keeps something for each of as many users as there is room for, and for one in any case. Any thread may use it."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max = max_kept
        self._lock = threading.Lock()
        self._size = 0
        self._of: OrderedDict[K, T] = OrderedDict()

    def get(self, user: K) -> T | None:
        """What is kept of a user."""
        with self._lock:
            found = self._of.get(user)
            if found is not None:
                self._of.move_to_end(user)
            return found

    def keep(self, user: K, found: T) -> None:
        """Keeps this of a user, in place of what was kept."""
        with self._lock:
            replaced = self._of.pop(user, None)
            self._of[user] = found
            self._size += found.size - (replaced.size if replaced is not None else 0)
            while self._size > self._max and len(self._of) > 1:
                _, dropped = self._of.popitem(last=False)
                self._size -= dropped.size


class Vectors:
    """The vectors of one user's entries by one model, in the order of the entries' keys; zeros where there is none.

    A vector of a key and a model is the same for ever, so those that were read before are taken over. Once all are put in,
    nothing changes any more, and any thread may read.

    Args:
        changes: What the user's counter of changes was.
        model: The number of the model.
        dimensions: How many numbers a vector has.
        keys: The keys of all entries, rising.
        lengths: How many words each has.
        before: What was read of the user before, if anything.

    Attributes:
        matrix: A row for each entry.
        size: How many bytes this takes, about.
    """

    def __init__(
        self, changes: int, model: int, dimensions: int, keys: Numbers, lengths: Numbers, before: Vectors | None = None
    ) -> None:
        import numpy as np

        self.changes = changes
        self.model = model
        self.keys = keys
        self.lengths = lengths
        if before is None or before.model != model or not len(before.keys):
            self.matrix = np.zeros((len(keys), dimensions), dtype=np.float32)
            self._has = np.zeros(len(keys), dtype=bool)
        else:
            there = np.minimum(np.searchsorted(before.keys, keys), len(before.keys) - 1)
            self._has = before._has[there] & (before.keys[there] == keys)
            self.matrix = before.matrix[there]
            self.matrix[~self._has] = 0.0
        self.size = self.matrix.nbytes + len(keys) * ENTRY_BYTES

    def missing(self, stored: Numbers) -> Numbers:
        """Those of these keys whose vectors are not here yet; all of them are of entries."""
        import numpy as np

        return stored[~self._has[np.searchsorted(self.keys, stored)]]

    def put(self, keys: Numbers, vectors: npt.NDArray[np.floating]) -> None:
        """Puts vectors in, a row for each key."""
        import numpy as np

        at = np.searchsorted(self.keys, keys)
        self.matrix[at] = vectors
        self._has[at] = True
