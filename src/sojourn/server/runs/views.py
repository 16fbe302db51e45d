"""Runs and questions as clients see them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from pydantic.alias_generators import to_camel
from starlette.requests import Request

from sojourn.run.types import Interrupt, RunRecord
from sojourn.server.runs.idempotency import without_digest
from sojourn.server.secrets import redacted_interrupt
from sojourn.server.serving import serving_of
from sojourn.server.telling import told
from sojourn.wire import run_to_wire


def run_view(record: RunRecord) -> dict[str, Any]:
    """A run's record as JSON."""
    wire = run_to_wire(record)
    # The metadata is in both.
    wire["config"] = {to_camel(name): value for name, value in record.config.items() if name != "custom_metadata"}
    if record.error is not None:
        wire["error"]["message"] = told(record.error)
    wire["customMetadata"] = without_digest(record.custom_metadata)
    return wire


def run_location(request: Request, record: RunRecord) -> str:
    """The address of a run, for whoever has sent this request."""
    location = f"{request.scope.get('root_path', '')}/runs/{quote(record.id, safe='')}"
    if len(serving_of(request).runners) > 1:
        location += f"?{urlencode({'appName': record.app_name})}"
    return location


def interrupt_view(interrupt: Interrupt) -> dict[str, Any]:
    """A question as JSON, with the run that waits for its answer."""
    return {
        **redacted_interrupt(interrupt),
        "runId": interrupt.run_id,
        "appName": interrupt.app_name,
        "userId": interrupt.user_id,
        "sessionId": interrupt.session_id,
    }
