"""What a run stores besides events, and cannot be moved to artifacts: it may be as large as an event, and no larger."""

from __future__ import annotations

from typing import Any

from sojourn import jsonvalue
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.session.state import StateDelta


def check_result(path: str, result: Any, max_bytes: int) -> None:
    """Refuses what a step has given, a checked JSON value, with `step.too_large`."""
    what, remedy = f"what step {path!r} gave", "save large data as an artifact in the step and return its name"
    if (words := _too_large(what, result, max_bytes, remedy)) is not None:
        raise LimitExceeded(words, code="step.too_large", retryable=False)


def check_left_state(run_id: str, left: StateDelta, max_bytes: int) -> None:
    """Refuses changes of state that no event carries with `state.too_large`."""
    what = f"the state that run {run_id!r} left to be stored at its end"
    if (words := _too_large(what, left.durable().as_actions(), max_bytes, _IN_ARTIFACTS)) is not None:
        raise LimitExceeded(words, code="state.too_large", retryable=False)


def check_answer_size(interrupt_id: str, answer: Any, max_bytes: int) -> None:
    """Refuses a person's answer, a checked JSON value, with `interrupt.answer_too_large`."""
    what, remedy = f"the answer to {interrupt_id!r}", "save large data as an artifact and answer with its name"
    if (words := _too_large(what, answer, max_bytes, remedy)) is not None:
        raise InvalidInput(words, code="interrupt.answer_too_large")


def check_metadata(metadata: dict[str, Any] | None, max_bytes: int) -> None:
    """Refuses a run's `custom_metadata` with `run.metadata_too_large`."""
    if (words := _too_large("custom_metadata", metadata, max_bytes, _IN_ARTIFACTS)) is not None:
        raise InvalidInput(words, code="run.metadata_too_large")


_IN_ARTIFACTS = "keep large data in artifacts instead"


def _too_large(what: str, value: Any, max_bytes: int, remedy: str) -> str | None:
    """What to say of something that is too large as JSON; None if it is not."""
    size = jsonvalue.size(value) if value else 0
    if size <= max_bytes:
        return None
    return f"{what} has {size} bytes as JSON, more than max_event_bytes ({max_bytes}); {remedy}"
