"""`Idempotency-Key`: a request that is sent again starts nothing again, over restarts too.

The id of the run is made from the key, so that the store itself knows whether there is one; the digest of the request is kept
with the run, so that the key of one request is not taken for another.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from pydantic import BaseModel

from sojourn import jsonvalue
from sojourn.errors import InvalidInput, NotFound
from sojourn.ids import check_id
from sojourn.run.types import RunRecord
from sojourn.runner.runner import Runner

DIGEST = "sojourn:request"
"""The entry of a run's custom metadata with the digest of the request that started it; not shown to clients."""


class IdempotencyMismatch(InvalidInput):
    """An idempotency key was used for another request."""

    default_code = "idempotency.mismatch"
    http_status = 422


class Keyed(NamedTuple):
    """A request with an idempotency key.

    Attributes:
        key: As the caller gave it.
        run_id: The id of the run that it starts.
        digest: Of what it asks for.
    """

    key: str
    run_id: str
    digest: str

    @classmethod
    def of(cls, key: str | None, runner: Runner, user_id: str, *asked: str | BaseModel) -> Keyed | None:
        """A request by its key, which is the caller's own; None without a key.

        Args:
            key: The header's value.
            runner: Whose app it is for.
            user_id: The user in whose name it acts.
            *asked: What it asks for.

        Raises:
            InvalidInput: `id.invalid`.
        """
        if key is None:
            return None
        name = [runner.app_name, user_id, check_id(key, "Idempotency-Key")]
        wanted = [each if isinstance(each, str) else each.model_dump(mode="json", exclude_unset=True) for each in asked]
        return cls(key, _digest(name)[:32], _digest(wanted))

    async def known(self, runner: Runner, user_id: str) -> RunRecord | None:
        """The run that was started by this request before; None if there is none.

        Raises:
            IdempotencyMismatch: `idempotency.mismatch`.
        """
        try:
            record = await runner.store.get_run(runner.app_name, self.run_id, user_id)
        except NotFound:
            return None
        if (record.custom_metadata or {}).get(DIGEST) != self.digest:
            raise IdempotencyMismatch(f"the idempotency key {self.key!r} was used for another request; use another key")
        return record


def marked(metadata: dict[str, Any] | None, keyed: Keyed | None) -> dict[str, Any] | None:
    """A run's custom metadata with the digest of the request that starts it."""
    shown = without_digest(metadata)
    return shown if keyed is None else {**(shown or {}), DIGEST: keyed.digest}


def without_digest(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """A run's custom metadata as its user gave it."""
    if not metadata or DIGEST not in metadata:
        return metadata
    return {key: value for key, value in metadata.items() if key != DIGEST} or None


def _digest(value: Any) -> str:
    return hashlib.sha256(jsonvalue.canonical(value).encode()).hexdigest()
