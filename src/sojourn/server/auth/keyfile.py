"""API keys, kept in a file as hashes.

A key is `sjn_ID_SECRET`: a prefix by which scanners find keys that have leaked, the id by which people name it, and 160 random
bits. So many cannot be guessed, hashed fast or slowly: the slow hashes that passwords need would cost every request, and
protect nothing. What is kept is SHA-256 of the whole key.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from sojourn import platform
from sojourn.errors import InvalidInput, NotFound, Unavailable
from sojourn.ids import check_id

KEY = re.compile(r"sjn_([a-z2-7]{8})_[a-z2-7]{32}")
"""What a key looks like; the group is its id."""

MAX_NAME = 200
"""Characters that the name of a key may have."""

_Signature = tuple[int, int, int]


class ApiKey(BaseModel):
    """What is kept of a key.

    Attributes:
        id: By this it is named; part of the key.
        hash: SHA-256 of the key, in hex.
        user_id: Whose it is: requests with it are this user's.
        admin: Whether requests with it may see and do what belongs to other users, too.
        name: What people call it.
        created_at: Seconds since the epoch.
        expires_at: Seconds since the epoch, from when on it is not valid any more; None for never.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    id: str
    hash: str
    user_id: str
    admin: bool = False
    name: str = ""
    created_at: float
    expires_at: float | None = None

    def has_expired(self) -> bool:
        """Whether it is not valid any more."""
        return self.expires_at is not None and self.expires_at <= platform.now()


class KeyFile:
    """A file of keys. Any number of processes may read and change it: a change is seen by the next reading.

    Args:
        path: The file; it is made by the first key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._signature: _Signature | None = None
        self._keys: dict[str, ApiKey] = {}

    def keys(self) -> dict[str, ApiKey]:
        """The keys by id, oldest first; none if there is no file.

        Raises:
            Unavailable: `keys.unreadable`.
        """
        try:
            signature = _signature(os.stat(self.path))
            if signature != self._signature:
                with open(self.path, "rb") as file:
                    signature = _signature(os.fstat(file.fileno()))
                    self._keys = _parsed(file.read())
                self._signature = signature
        except FileNotFoundError:
            self._keys, self._signature = {}, None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._signature = None
            raise Unavailable(
                f"the keys in {str(self.path)!r} cannot be read; restore the file, or remove it and make new keys",
                code="keys.unreadable",
            ) from error
        return self._keys

    def add(self, user_id: str, *, admin: bool = False, name: str = "", expires_at: float | None = None) -> tuple[str, ApiKey]:
        """Makes a key.

        Args:
            user_id: Whose.
            admin: Whether requests with it may see and do what belongs to other users, too.
            name: What people call it.
            expires_at: Seconds since the epoch, from when on it is not valid any more; None for never.

        Returns:
            The key, which can never be told again, and what is kept of it.

        Raises:
            InvalidInput: `id.invalid` for the user; `keys.invalid` for the name.
            Unavailable: `keys.unreadable`, `keys.unwritable`.
        """
        check_id(user_id, "user_id")
        if len(name) > MAX_NAME or not name.isprintable():
            raise InvalidInput(f"a key's name has at most {MAX_NAME} characters, all printable", code="keys.invalid")
        with self._changing() as keys:
            ident = _word(5)
            while ident in keys:
                ident = _word(5)
            key = f"sjn_{ident}_{_word(20)}"
            kept = ApiKey(
                id=ident,
                hash=hash_of(key),
                user_id=user_id,
                admin=admin,
                name=name,
                created_at=platform.now(),
                expires_at=expires_at,
            )
            keys[ident] = kept
        return key, kept

    def remove(self, ident: str) -> ApiKey:
        """Makes a key invalid; what it was is returned.

        Raises:
            NotFound: `keys.not_found`.
            Unavailable: `keys.unreadable`, `keys.unwritable`.
        """
        with self._changing() as keys:
            if ident not in keys:
                raise NotFound(
                    f"there is no key {ident!r} in {str(self.path)!r}; `sojourn keys ls` lists them", code="keys.not_found"
                )
            return keys.pop(ident)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ApiKey]]:
        """The keys, to be changed by nobody else meanwhile; they are written if the block succeeds."""
        try:
            lock = os.open(f"{os.path.realpath(self.path)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = dict(self.keys())
            yield keys
            self._write(keys)
        finally:
            os.close(lock)

    def _write(self, keys: dict[str, ApiKey]) -> None:
        path = os.path.realpath(self.path)
        document = {"version": 1, "keys": [key.model_dump(by_alias=True, exclude_none=True) for key in keys.values()]}
        beside = f"{path}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(beside)  # Of a process that was killed.
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(fd)
            os.replace(beside, path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"the keys in {str(self.path)!r} cannot be written: {error.strerror}; nothing was changed", code="keys.unwritable"
        )


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _word(size: int) -> str:
    """Random bytes as lower case letters and digits that nobody takes for others; `size` is a multiple of 5."""
    return base64.b32encode(platform.random_bytes(size)).decode().lower()


def _signature(stat: os.stat_result) -> _Signature:
    # Each change makes another file, whose number is another one.
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _parsed(data: bytes) -> dict[str, ApiKey]:
    document: Any = json.loads(data)
    if document["version"] != 1:
        raise ValueError("it was written by a later version")
    try:
        return {key.id: key for key in map(ApiKey.model_validate, document["keys"])}
    except ValidationError as error:
        raise ValueError("it holds what is no key") from error
