"""What a session's runs did and when, as the spans that google-adk's web UI draws."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.jsonvalue import JsonValue
from sojourn.run.types import RunRecord, Step
from sojourn.runner.runner import Runner
from sojourn.server.access import Caller, CallerDep
from sojourn.server.paths import PathRoute

router = APIRouter(tags=["adk"], route_class=PathRoute)

RUNS = 50
"""How many runs of a session are told of, the newest."""

EVENTS = 1000
"""How many events of a run are looked at."""

_STEP = re.compile(r"(?:.*/)?(model|tool):(.+)")
_EVENT_ID = "gcp.vertex.agent.event_id"
_RUN_ID = "gcp.vertex.agent.invocation_id"
_OPERATION = "gen_ai.operation.name"


class TraceSpan(BaseModel):
    """Something that took time.

    Attributes:
        name: What was done.
        start_time: Nanoseconds since the epoch.
        end_time: The same.
        trace_id: The same for all of a run; in hexadecimal.
        span_id: In hexadecimal.
        parent_span_id: What it is a part of.
        attributes: By the conventions of OpenTelemetry for generative AI. Nothing that was said is in them.
    """

    name: str
    start_time: int
    end_time: int
    trace_id: str
    span_id: str
    parent_span_id: str | None
    attributes: dict[str, JsonValue]


@router.get("/dev/apps/{app_name}/debug/trace/session/{session_id}", summary="Get a session's trace")
async def session_trace(app_name: str, session_id: str, caller: CallerDep) -> list[TraceSpan]:
    """What the newest runs of a session did: a span for each, and one for each of its steps. It is made from what is stored."""
    return await _trace(caller, caller.runner(app_name), session_id)


@router.get("/debug/trace/session/{session_id}", summary="Get a session's trace", deprecated=True)
async def session_trace_of_only_app(session_id: str, caller: CallerDep) -> list[TraceSpan]:
    """The same for servers that serve one app, as older versions of google-adk's web UI ask for it."""
    return await _trace(caller, caller.runner(None), session_id)


async def _trace(caller: Caller, runner: Runner, session_id: str) -> list[TraceSpan]:
    check_id(session_id, "session_id")
    runs = await runner.list_runs(user_id=caller.scope(None), session_id=session_id, limit=RUNS)
    spans: list[TraceSpan] = []
    for record in reversed(runs.items):
        if record.started_at is not None:
            # Of a run that retention has trimmed, nothing is left but its beginning and end.
            after = record.last_pos if record.trimmed else 0
            events = await runner.store.run_events(record.uid, after=after, limit=EVENTS)
            spans += _spans(record, record.started_at, events, await runner.store.list_steps(record.uid))
    return spans


def _spans(record: RunRecord, started_at: float, events: list[Event], steps: list[Step]) -> list[TraceSpan]:
    trace_id, root_id = _hex(record.id, 16), _hex(record.id, 8)
    agent = events[0].author if events else record.agent or record.app_name
    ended_at = max([started_at, record.finished_at or 0.0, *(e.timestamp for e in events), *(s.finished_at for s in steps)])
    attributes: dict[str, Any] = {
        _OPERATION: "invoke_agent",
        "gen_ai.agent.name": agent,
        "gen_ai.conversation.id": record.session_id,
        _RUN_ID: record.id,
        "sojourn.run.status": record.status.value,
    }
    spans = [_span(f"invoke_agent {agent}", started_at, ended_at, trace_id, root_id, None, attributes)]
    calls = {call.id: call.name for event in events for call in event.get_function_calls()}
    paid = iter([event.id for event in events if event.usage_metadata is not None and not event.superseded])
    for step in sorted(steps, key=lambda s: s.started_at):
        name, told = _told(step, calls, paid)
        attributes = {_RUN_ID: record.id, "gen_ai.conversation.id": record.session_id, **told}
        if step.error is not None:
            attributes["error.type"] = step.error.code
        span_id = _hex(f"{record.id}/{step.key}", 8)
        spans.append(_span(name, step.started_at, step.finished_at, trace_id, span_id, root_id, attributes))
    return spans


def _told(step: Step, calls: Mapping[str | None, str], paid: Iterator[str]) -> tuple[str, dict[str, Any]]:
    """What a step is called, and what is told of it: model calls and tool calls are known by their keys."""
    match = _STEP.fullmatch(step.key)
    if match is None:
        return step.key, {}
    if match[1] == "tool":
        call_id = match[2].removesuffix(":approved")
        tool = calls.get(call_id, "tool")
        return f"execute_tool {tool}", {_OPERATION: "execute_tool", "gen_ai.tool.name": tool, "gen_ai.tool.call.id": call_id}
    answer = step.result if isinstance(step.result, dict) else {}
    usage: Any = answer.get("usage")
    model = answer.get("model_name") or "model"
    attributes: dict[str, Any] = {"gen_ai.request.model": model}
    for ours, theirs in (("input_tokens", "gen_ai.usage.input_tokens"), ("output_tokens", "gen_ai.usage.output_tokens")):
        if isinstance(usage, dict) and isinstance(usage.get(ours), int):
            attributes[theirs] = usage[ours]
    event_id = next(paid, None)
    if event_id is not None:
        # The web UI refuses the whole trace over a span with this name that has no event.
        attributes |= {_OPERATION: "generate_content", _EVENT_ID: event_id}
    return f"generate_content {model}", attributes


def _span(
    name: str, start: float, end: float, trace_id: str, span_id: str, parent: str | None, attributes: dict[str, Any]
) -> TraceSpan:
    begin = round(start * 1e9)
    return TraceSpan(
        name=name,
        start_time=begin,
        end_time=max(begin, round(end * 1e9)),
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        attributes=attributes,
    )


def _hex(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
