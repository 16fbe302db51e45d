"""The error tree.

Every error Sojourn raises on purpose derives from `SojournError`. Classes are *categories* (where a caller would look),
`code` is the stable, dotted name of what exactly happened:

    SojournError
    ├── InvalidInput     what the caller passed cannot be used
    ├── NotFound         the named thing does not exist (or is somebody else's)
    ├── AlreadyExists    the named thing exists and was to be created
    ├── Conflict         the request contradicts what is recorded
    ├── Gone             the named thing was there and has been removed
    ├── Fenced           a stale attempt of a run tried to write
    ├── Unauthorized     nobody is identified
    ├── Forbidden        somebody is identified, and may not
    ├── LimitExceeded    a limit is reached; `retry_after` says when to come back
    ├── TimedOut         a time bound has passed
    ├── Unavailable      a store or another dependency does not answer
    ├── AgentError       the agent's own code failed or broke its contract
    ├── ModelError       a model provider failed
    ├── ToolError        a tool failed
    ├── Unsupported      this backend or build cannot do that
    ├── RunCancelled     the run was cancelled
    └── RunWaiting       the run waits for a person

Control flow inside an agent (a cancel, a pause) derives from `BaseException` instead, so that an agent's
`except Exception` cannot swallow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from sojourn.run.types import Interrupt


class SojournError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: What happened, to which id, and what to do about it.
        code: Stable dotted name, for example `session.not_found`. Defaults to the category's own.
        retryable: Whether the same call may succeed later. Defaults to the category's own.
        retry_after: Seconds after which a retry makes sense, if known.
    """

    default_code: ClassVar[str] = "internal"
    default_retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their positional args alone, which would lose the keyword fields.
        return _unpickle, (type(self), self.message), self.__dict__

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


def _unpickle(cls: type[SojournError], message: str) -> SojournError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    return error


class InvalidInput(SojournError):
    """What the caller passed cannot be used."""

    default_code = "input.invalid"
    http_status = 400


class NotFound(SojournError):
    """The named thing does not exist, or belongs to somebody else."""

    default_code = "not_found"
    http_status = 404


class AlreadyExists(SojournError):
    """The named thing exists already."""

    default_code = "already_exists"
    http_status = 409


class Conflict(SojournError):
    """The request contradicts what is recorded."""

    default_code = "conflict"
    http_status = 409


class Gone(SojournError):
    """The named thing was there and has been removed, as those who keep the data wanted it."""

    default_code = "gone"
    http_status = 410


class Fenced(SojournError):
    """A stale attempt of a run tried to write; a newer attempt or a closed record stands in its way."""

    default_code = "run.fenced"
    http_status = 409


class Unauthorized(SojournError):
    """Nobody is identified."""

    default_code = "unauthorized"
    http_status = 401


class Forbidden(SojournError):
    """The identified caller may not do this."""

    default_code = "forbidden"
    http_status = 403


class LimitExceeded(SojournError):
    """A limit is reached; `retry_after` (seconds) says when to come back."""

    default_code = "limit.exceeded"
    default_retryable = True
    http_status = 429


class TimedOut(SojournError):
    """A time bound has passed."""

    default_code = "timed_out"
    default_retryable = True
    http_status = 504


class Unavailable(SojournError):
    """A store or another dependency does not answer. Never used for "absent"."""

    default_code = "store.unavailable"
    default_retryable = True
    http_status = 503


class AgentError(SojournError):
    """The agent's own code failed or broke its contract."""

    default_code = "agent.failed"
    http_status = 500


class ModelError(SojournError):
    """A model provider failed."""

    default_code = "model.failed"
    http_status = 502


class ToolError(SojournError):
    """A tool failed."""

    default_code = "tool.failed"
    http_status = 500


class Unsupported(SojournError):
    """This backend or build cannot do that."""

    default_code = "unsupported"
    http_status = 501


class RunCancelled(SojournError):
    """The run was cancelled before it could complete."""

    default_code = "run.cancelled"
    http_status = 409


class RunWaiting(SojournError):
    """The run waits for a person.

    Attributes:
        interrupts: The open questions; answer them with `Runner.answer`.
    """

    default_code = "run.waiting"
    http_status = 409

    def __init__(self, interrupts: Sequence[Interrupt], *, run_id: str = "") -> None:
        ids = ", ".join(i.id for i in interrupts)
        super().__init__(
            f"run {run_id!r} waits for an answer to {ids}; give it with Runner.answer(run_id, interrupt_id, value)"
        )
        self.interrupts: tuple[Interrupt, ...] = tuple(interrupts)


CATEGORIES: dict[str, type[SojournError]] = {
    cls.__name__: cls
    for cls in (
        SojournError, InvalidInput, NotFound, AlreadyExists, Conflict, Gone, Fenced, Unauthorized, Forbidden, LimitExceeded,
        TimedOut, Unavailable, AgentError, ModelError, ToolError, Unsupported, RunCancelled,
    )
}  # fmt: skip
"""Category by class name: what a stored error is rebuilt from. `RunWaiting` is an outcome, never stored as an error."""
