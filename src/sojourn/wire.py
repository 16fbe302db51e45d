"""Frames, runs and sessions as JSON: what `--json` and `sessions export` print."""

from __future__ import annotations

from typing import Any

from sojourn.errors import SojournError
from sojourn.event import Partial
from sojourn.run.types import FrameOrPartial, Interrupt, RunError, RunRecord, Step
from sojourn.session.types import Session


def frame_to_wire(frame: FrameOrPartial) -> dict[str, Any]:
    """A frame as a JSON object; a partial has the kind `partial`, and as its event the partial event of ADK's wire."""
    if isinstance(frame, Partial):
        event = frame.to_event().to_wire()
        return {"kind": "partial", "runId": frame.run_id, "offset": frame.offset, "event": event}
    wire: dict[str, Any] = {"kind": frame.kind, "runId": frame.run_id, "pos": frame.pos, "timestamp": frame.timestamp}
    if frame.event is not None:
        wire["event"] = frame.event.to_wire()
    if frame.error is not None:
        wire["error"] = error_to_wire(frame.error)
    return wire


def waiting_to_wire(run_id: str, interrupts: list[dict[str, Any]]) -> dict[str, Any]:
    """The last thing said of a run that waits for a person, with what it asks; no frame, as the run goes on later."""
    return {"kind": "run.waiting", "runId": run_id, "interrupts": interrupts}


def error_to_wire(error: SojournError | RunError) -> dict[str, Any]:
    """Why a run or a step failed, or something else."""
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def run_to_wire(record: RunRecord) -> dict[str, Any]:
    """A run's record, without the store's internal keys."""
    return {
        "id": record.id,
        "appName": record.app_name,
        "userId": record.user_id,
        "sessionId": record.session_id,
        "no": record.no,
        "status": record.status.value,
        "attempt": record.attempt,
        "deaths": record.deaths,
        "agent": record.agent,
        "transfers": record.transfers,
        "message": record.message.to_wire(),
        "config": record.config,
        "attached": record.attached,
        "cancelRequested": record.cancel_requested,
        "error": error_to_wire(record.error) if record.error is not None else None,
        "lastPos": record.last_pos,
        "retryOf": record.retry_of,
        "supersededBy": record.superseded_by,
        "usage": record.usage,
        "customMetadata": record.custom_metadata,
        "trimmed": record.trimmed,
        "createdAt": record.created_at,
        "startedAt": record.started_at,
        "finishedAt": record.finished_at,
    }


def step_to_wire(step: Step) -> dict[str, Any]:
    """A step of a run's journal."""
    return {
        "key": step.key,
        "status": step.status,
        "result": step.result,
        "error": error_to_wire(step.error) if step.error is not None else None,
        "attempt": step.attempt,
        "startedAt": step.started_at,
        "finishedAt": step.finished_at,
    }


def interrupt_to_wire(interrupt: Interrupt) -> dict[str, Any]:
    """A question of a run, and its answer."""
    return {
        "id": interrupt.id,
        "key": interrupt.key,
        "prompt": interrupt.prompt,
        "schema": interrupt.schema,
        "kind": interrupt.kind,
        "callId": interrupt.call_id,
        "status": interrupt.status,
        "answer": interrupt.answer,
        "createdAt": interrupt.created_at,
        "expiresAt": interrupt.expires_at,
        "answeredAt": interrupt.answered_at,
    }


def session_to_wire(session: Session) -> dict[str, Any]:
    """A session's record, without state and events, which an export has beside it."""
    return session.model_dump(mode="json", by_alias=True, exclude={"state", "events", "uid"})
