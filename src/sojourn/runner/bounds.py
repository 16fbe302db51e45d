"""What a run stores besides events, and cannot be moved to artifacts: it may be as large as an event, and no larger."""

from __future__ import annotations

from typing import Any

from sojourn import jsonvalue
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.session.state import StateDelta


def check_result(path: str, result: Any, max_bytes: int) -> None:
    """Refuses what a step has given, a checked JSON value, with `step.too_large`."""
    size = jsonvalue.size(result)
    if size > max_bytes:
        raise LimitExceeded(
            f"step {path!r} gave {size} bytes of JSON, more than max_event_bytes ({max_bytes}); save large data as an artifact "
            "in the step and return its name",
            code="step.too_large",
            retryable=False,
        )


def check_left_state(run_id: str, left: StateDelta, max_bytes: int) -> None:
    """Refuses changes of state that no event carries with `state.too_large`."""
    fields = left.durable().as_actions()
    size = jsonvalue.size(fields) if fields else 0
    if size > max_bytes:
        raise LimitExceeded(
            f"run {run_id!r} left {size} bytes of state to be stored at its end, more than max_event_bytes ({max_bytes}); keep "
            "large data in artifacts instead",
            code="state.too_large",
            retryable=False,
        )


def check_answer_size(interrupt_id: str, answer: Any, max_bytes: int) -> None:
    """Refuses a person's answer, a checked JSON value, with `interrupt.answer_too_large`."""
    size = jsonvalue.size(answer)
    if size > max_bytes:
        raise InvalidInput(
            f"the answer to {interrupt_id!r} has {size} bytes as JSON, more than max_event_bytes ({max_bytes}); save large "
            "data as an artifact and answer with its name",
            code="interrupt.answer_too_large",
        )


def check_metadata(metadata: dict[str, Any] | None, max_bytes: int) -> None:
    """Refuses a run's `custom_metadata` with `run.metadata_too_large`."""
    size = jsonvalue.size(metadata) if metadata is not None else 0
    if size > max_bytes:
        raise InvalidInput(
            f"custom_metadata has {size} bytes as JSON, more than max_event_bytes ({max_bytes}); keep large data in artifacts "
            "instead",
            code="run.metadata_too_large",
        )
