"""What the outside sees of every run without code in the agent: a log line at each end, and a span."""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sojourn.run.types import RunRecord

logger = logging.getLogger("sojourn.run")

_NOTHING: AbstractContextManager[Any] = nullcontext()


def run_started(record: RunRecord) -> None:
    """Logs the start of an attempt."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("run started", extra=_fields(record))


def run_finished(record: RunRecord, seconds: float) -> None:
    """Logs the end of an attempt."""
    if logger.isEnabledFor(logging.INFO):
        fields = _fields(record)
        fields["status"] = record.status.value
        fields["seconds"] = round(seconds, 6)
        if record.error is not None:
            fields["error_code"] = record.error.code
        logger.info("run %s", record.status.value, extra=fields)


def _fields(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.id,
        "app_name": record.app_name,
        "user_id": record.user_id,
        "session_id": record.session_id,
        "attempt": record.attempt,
    }


def span(record: RunRecord, agent_name: str) -> AbstractContextManager[Any]:
    """An OpenTelemetry span around an attempt, named by the GenAI conventions; nothing if OpenTelemetry is not in use.

    Whoever has set up tracing has imported `opentelemetry.trace`; nobody else should pay for importing it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _NOTHING
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": agent_name,
        "gen_ai.conversation.id": record.session_id,
        "sojourn.run.id": record.id,
        "sojourn.app.name": record.app_name,
        "user.id": record.user_id,
        "sojourn.run.attempt": record.attempt,
    }
    manager: AbstractContextManager[Any] = trace.get_tracer("sojourn").start_as_current_span(
        f"invoke_agent {agent_name}", attributes=attributes
    )
    return manager


def end_span(current: Any, record: RunRecord) -> None:
    """Notes on a span how the attempt ended."""
    if current is None:
        return
    current.set_attribute("sojourn.run.status", record.status.value)
    if record.error is not None:
        current.set_attribute("error.type", record.error.code)
        trace = sys.modules["opentelemetry.trace"]
        current.set_status(trace.StatusCode.ERROR, record.error.code)


def run_context(propagate: Sequence[contextvars.ContextVar[Any]]) -> contextvars.Context:
    """The context that a run starts in: empty, but for the trace and the variables that are to be handed on."""
    context = contextvars.Context()
    for variable in propagate:
        try:
            context.run(variable.set, variable.get())
        except LookupError:
            continue
    otel = sys.modules.get("opentelemetry.context")
    if otel is not None and (current := otel.get_current()):
        context.run(otel.attach, current)
    return context
