"""What the outside sees of every run without code in the agent: log lines, observers, and spans by the GenAI conventions."""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from sojourn import platform, telemetry
from sojourn.agents.context import MODEL_STEP, TOOL_STEP
from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord

logger = logging.getLogger("sojourn.run")

T = TypeVar("T")

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("sojourn_request_id", default=None)
"""The id of the request that is being served. Runs that it starts inherit it, so that their log lines can tell it."""

_NOTHING: AbstractContextManager[telemetry.Span | None] = nullcontext()


class Observer:
    """Is told what a Runner does, to measure it: override what you need, and give it to `Runner.add_observer`.

    The calls are made from the event loop between the steps of runs, so they must return at once. What one raises is
    logged, and changes nothing. They tell what this process executes; the store knows the whole.
    """

    def run_started(self, record: RunRecord, waited: float) -> None:
        """An attempt begins.

        Args:
            record: The run.
            waited: Seconds for which it waited for its turn and a slot; 0 if it began at once.
        """

    def run_ended(self, record: RunRecord, seconds: float) -> None:
        """An attempt has ended and its outcome is stored, or a run ended before it began.

        Args:
            record: The run: completed, failed or cancelled; waiting for a person; queued again by a shutdown.
            seconds: What the attempt took.
        """

    def events_stored(self, record: RunRecord, count: int) -> None:
        """Events of a run's agents were stored."""

    def store_called(self, operation: str, seconds: float, error: BaseException | None) -> None:
        """The store was asked to write, and has answered.

        Args:
            operation: `submit`, `begin` or `append`.
            seconds: What it took.
            error: What it raised, if anything.
        """


Observers = list[Observer]
"""Those of a Runner, in the order in which they were added."""


def tell(observers: Observers, what: str, *args: Any) -> None:
    """Makes a call to each observer."""
    for observer in observers:
        try:
            getattr(observer, what)(*args)
        except Exception:
            logger.exception("observer %s failed; the run goes on", type(observer).__qualname__)


# -- runs ---------------------------------------------------------------------------------------------------------------


def run_started(observers: Observers, record: RunRecord, queued_at: float | None) -> None:
    """Tells of the start of an attempt.

    Args:
        observers: Whom to tell.
        record: The run.
        queued_at: Since when it waited for its turn; None if it did not have to.
    """
    if logger.isEnabledFor(logging.INFO):
        logger.info("run started", extra=_fields(record))
    if queued_at is not None:
        attributes = {"sojourn.run.id": record.id, "sojourn.app.name": record.app_name}
        telemetry.past("queue", attributes, queued_at, platform.now())
    if observers:
        waited = 0.0 if queued_at is None else max(0.0, platform.now() - queued_at)
        tell(observers, "run_started", record, waited)


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


def span(record: RunRecord, agent_name: str) -> AbstractContextManager[telemetry.Span | None]:
    """A span around an attempt; nothing if OpenTelemetry is not in use."""
    if telemetry.tracer() is None:
        return _NOTHING
    attributes = {
        **_of_agent(agent_name, record),
        "sojourn.app.name": record.app_name,
        "user.id": record.user_id,
        "sojourn.run.attempt": record.attempt,
    }
    return telemetry.Span(f"invoke_agent {agent_name}", attributes)


def end_span(current: telemetry.Span | None, record: RunRecord, agent_name: str, seconds: float) -> None:
    """Notes how the attempt ended."""
    failed = {} if record.error is None else {"error.type": record.error.code}
    if current is not None:
        current.set({"sojourn.run.status": record.status.value})
        # What was stopped has not failed.
        if record.error is not None and record.status is RunStatus.FAILED:
            current.fail(record.error.code)
    telemetry.measure("gen_ai.invoke_agent.duration", seconds, {"gen_ai.agent.name": agent_name, **failed})


def agent_span(record: RunRecord, agent_name: str) -> AbstractContextManager[telemetry.Span | None]:
    """A span around an agent that another one of the run hands over to, or runs inside of itself."""
    if telemetry.tracer() is None:
        return _NOTHING
    return telemetry.Span(f"invoke_agent {agent_name}", _of_agent(agent_name, record))


def _of_agent(name: str, record: RunRecord) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": name,
        "gen_ai.conversation.id": record.session_id,
        "sojourn.run.id": record.id,
    }


def step_span(key: str) -> AbstractContextManager[telemetry.Span | None]:
    """A span around a step that is done. Calls of models and tools have spans of their own, by who knows more of them."""
    if telemetry.tracer() is None or key.startswith((MODEL_STEP, TOOL_STEP)):
        return _NOTHING
    return telemetry.Span("step", {"sojourn.step.key": key})


# -- the store ----------------------------------------------------------------------------------------------------------


def stored(observers: Observers, operation: str, call: Awaitable[T]) -> Awaitable[T]:
    """A call to the store, measured if anybody wants to know."""
    if not observers and telemetry.tracer() is None:
        return call
    return _measured(observers, operation, call)


async def _measured(observers: Observers, operation: str, call: Awaitable[T]) -> T:
    started = platform.monotonic()
    error: BaseException | None = None
    try:
        with telemetry.Span(f"store {operation}", {"sojourn.store.operation": operation}, client=True):
            return await call
    except BaseException as e:
        error = e
        raise
    finally:
        if observers:
            tell(observers, "store_called", operation, platform.monotonic() - started, error)
        error = None


# -- contexts -----------------------------------------------------------------------------------------------------------


def run_context(propagate: Sequence[contextvars.ContextVar[Any]]) -> contextvars.Context:
    """The context that a run starts in: empty, but for the trace, the request, and the variables that are to be handed on."""
    context = contextvars.Context()
    if (serving := request_id.get()) is not None:
        context.run(request_id.set, serving)
    for variable in propagate:
        try:
            context.run(variable.set, variable.get())
        except LookupError:
            continue
    otel = sys.modules.get("opentelemetry.context")
    if otel is not None and (current := otel.get_current()):
        context.run(otel.attach, current)
    return context
