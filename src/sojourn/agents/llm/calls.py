"""Calls of tools: each is a step of the run, and some wait for people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic_ai import RunContext, WrapperToolset
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed
from pydantic_ai.messages import BinaryContent, ToolCallPart, ToolReturn, UserContent
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_ai.toolsets import ToolsetTool
from pydantic_core import to_jsonable_python

from sojourn import jsonvalue
from sojourn.agents.context import Context
from sojourn.agents.control import RunPaused
from sojourn.agents.llm.tool import Tool, ToolContext
from sojourn.agents.question import Question
from sojourn.content import FunctionCall
from sojourn.errors import Fenced, LimitExceeded, RunCancelled, SojournError
from sojourn.event import EventActions
from sojourn.session.state import State, StateDelta

if TYPE_CHECKING:
    from sojourn.agents.llm.turns import Turns

logger = logging.getLogger("sojourn.llm")

TRANSFER_TOOL = "transfer_to_agent"
"""The tool by which a model hands over; google-adk's name for it."""

Body = Callable[[], Awaitable[Any]]
"""Makes a call."""

BeforeTool = Callable[[ToolContext, dict[str, Any]], Any]
"""Called with a call's context and arguments. What it returns, if not None, is the result in place of calling the tool."""

AfterTool = Callable[[ToolContext, Any], Any]
"""Called with a call's context and result. What it returns, if not None, is the result instead."""

CONFIRMATION = {
    "anyOf": [
        {"type": "boolean"},
        {
            "type": "object",
            "properties": {"confirmed": {"type": "boolean"}, "reason": {"type": "string"}},
            "required": ["confirmed"],
        },
    ]
}
"""What a person answers who is asked whether a tool may be called."""

MAX_FAILURE = 16_384
"""Characters that a model is told of a failure; what libraries put into their errors has no bound."""

_user_content: TypeAdapter[list[UserContent]] = TypeAdapter(
    list[UserContent], config={"ser_json_bytes": "base64", "val_json_bytes": "base64"}
)

_current: ContextVar[ToolContext] = ContextVar("sojourn_tool_context")


def tool_context() -> ToolContext:
    """The context of the tool call that the calling code works for."""
    return _current.get()


# pydantic-ai makes copies of toolsets with `dataclasses.replace`.
@dataclass
class RecordedTools(WrapperToolset["Turns"]):
    """Tools whose calls are steps of the run."""

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: RunContext[Turns], tool: ToolsetTool[Turns]) -> Any:
        """Makes a call, or gives what it gave in an earlier attempt."""
        body = super().call_tool
        if name == TRANSFER_TOOL:
            return await body(name, tool_args, ctx, tool)
        call_id = ctx.tool_call_id or name
        approved = ctx.tool_call_approved
        return await ctx.deps.calls.make(name, call_id, tool_args, lambda: body(name, tool_args, ctx, tool), approved=approved)


@dataclass
class People(AbstractCapability["Turns"]):
    """Asks people for what the calls of a turn wait for, once all others are done."""

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Turns], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Gives the answers, or lets the run wait for them."""
        return await ctx.deps.calls.ask(requests)


class Calls:
    """The tool calls of one agent in one attempt.

    Args:
        ctx: The agent's context.
        tools: The agent's own tools, by name.
        timeout: Seconds a call may take if its tool says nothing; None for no bound.
        before: Called before each call.
        after: Called after each call.

    Attributes:
        transfer: Whom a call has handed over to; the first one counts.
        ends: Whether a call has ended the run.
    """

    def __init__(
        self,
        ctx: Context,
        tools: Mapping[str, Tool],
        timeout: float | None,
        before: Sequence[BeforeTool],
        after: Sequence[AfterTool],
    ) -> None:
        self.transfer: str | None = None
        self.ends = False
        self._ctx = ctx
        self._tools = tools
        self._timeout = timeout
        self._before = before
        self._after = after
        self._outcomes: dict[str, dict[str, Any]] = {}

    def hand_over(self, call_id: str, name: str) -> None:
        """Takes note that a call hands over; it does so when the turn is over, so that no other call of it is left open.

        Raises:
            SojournError: It may not; see `Context.transfer_to`.
        """
        self._ctx._attempt.check_transfer(self._ctx, name)
        self._outcomes.setdefault(call_id, {})["transfer"] = name

    # -- one call ---------------------------------------------------------------------------------------------------

    async def make(self, name: str, call_id: str, args: dict[str, Any], body: Body, *, approved: bool) -> Any:
        """Makes a call, or gives what it gave in an earlier attempt.

        Raises:
            ApprovalRequired: A person has to allow it.
            CallDeferred: A person has to give the result, or to answer what the tool asked.
            ModelRetry: The model is to call again with other arguments.
            ToolFailed: The model is told that the call has failed.
        """
        tool = self._tools.get(name)
        if tool is not None and not approved and _needs_approval(tool, args):
            raise ApprovalRequired
        # What a tool did before it asked for leave itself is not what it does with it.
        key = f"tool:{call_id}:approved" if approved and (tool is None or not tool.require_approval) else f"tool:{call_id}"
        ctx = ToolContext(self._ctx, State(self._ctx.state.to_dict()), name, call_id, key)
        token = _current.set(ctx)
        try:
            outcome = await self._ctx.step(key, lambda: self._outcome(ctx, tool, args, body))
        except RunPaused:
            # The other calls of this turn go on; the run waits once they are done.
            raise CallDeferred(metadata={"paused": True}) from None
        finally:
            _current.reset(token)
        self._outcomes[call_id] = outcome
        if "retry" in outcome:
            raise ModelRetry(outcome["retry"])
        if "failed" in outcome:
            raise ToolFailed(outcome["failed"])
        if "approval" in outcome:
            raise ApprovalRequired(outcome["approval"])
        if "deferred" in outcome:
            raise CallDeferred(outcome["deferred"])
        if tool is not None and tool.long_running:
            raise CallDeferred({"status": outcome["result"]})
        if "content" in outcome:
            return ToolReturn(outcome["result"], content=_user_content.validate_python(outcome["content"]))
        return outcome["result"]

    async def _outcome(self, ctx: ToolContext, tool: Tool | None, args: dict[str, Any], body: Body) -> dict[str, Any]:
        """Makes a call; what came of it, as JSON."""
        limit = tool.timeout if tool is not None and tool.timeout is not None else self._timeout
        try:
            async with asyncio.timeout(limit) as bound:
                outcome = _told(await self._result(ctx, args, body))
        except ModelRetry as error:
            return {"retry": _cut(error.message)}
        except ToolFailed as error:
            return {"failed": _cut(error.message)}
        except ApprovalRequired as error:
            return {"approval": error.metadata}
        except CallDeferred as error:
            return {"deferred": error.metadata}
        except (Fenced, RunCancelled):
            raise
        except SojournError as error:
            if isinstance(error, LimitExceeded) and error.code.startswith("run."):
                # The run's own bounds are not the tool's failure.
                raise
            return {"failed": _cut(f"{error.code}: {error.message}")}
        except Exception as error:
            if isinstance(error, TimeoutError) and bound.expired():
                return {"failed": f"it took longer than {limit:g} seconds"}
            logger.warning("tool %s failed in run %s", ctx.tool_name, ctx.run_id, exc_info=error)
            return {"failed": _cut(f"{type(error).__name__}: {error}")}
        return _bounded(outcome | _effects(ctx), ctx.run_config.max_event_bytes)

    async def _result(self, ctx: ToolContext, args: dict[str, Any], body: Body) -> Any:
        for before in self._before:
            given = before(ctx, args)
            given = await given if isawaitable(given) else given
            if given is not None:
                return given
        result = await body()
        for after in self._after:
            given = after(ctx, result)
            given = await given if isawaitable(given) else given
            if given is not None:
                return given
        return result

    def take_effect(self, calls: Sequence[str]) -> None:
        """Makes what tools did besides giving a result part of what the agent's next event does.

        Args:
            calls: Ids of calls, in the order in which they were made.
        """
        ctx = self._ctx
        for outcome in (self._outcomes.pop(id_, {}) for id_ in calls):
            if "state" in outcome:
                ctx.state.write(StateDelta.of_all(EventActions.model_validate(outcome["state"])))
            if "artifacts" in outcome:
                ctx._artifact_delta = {**(ctx._artifact_delta or {}), **outcome["artifacts"]}
            if "actions" in outcome:
                ctx.set_actions(**outcome["actions"])
            if "transfer" in outcome:
                self.transfer = self.transfer or outcome["transfer"]
            self.ends = self.ends or "ends" in outcome

    # -- people -----------------------------------------------------------------------------------------------------

    async def ask(self, requests: DeferredToolRequests) -> DeferredToolResults:
        """Asks people for what the calls of a turn wait for; the run waits if it is not known yet."""
        told = {
            call.tool_call_id: requests.metadata.get(call.tool_call_id) or {} for call in (*requests.approvals, *requests.calls)
        }
        results = [call for call in requests.calls if not told[call.tool_call_id].get("paused")]
        questions = [
            *(_confirm(call, told[call.tool_call_id]) for call in requests.approvals),
            *(_result_wanted(call, told[call.tool_call_id]) for call in results),
        ]
        answers = await self._ctx.ask_all(questions) if questions else []
        if len(results) < len(requests.calls):
            raise RunPaused
        verdicts, values = answers[: len(requests.approvals)], answers[len(requests.approvals) :]
        return DeferredToolResults(
            approvals={c.tool_call_id: _verdict(a) for c, a in zip(requests.approvals, verdicts, strict=True)},
            calls={c.tool_call_id: a for c, a in zip(results, values, strict=True)},
        )


def _needs_approval(tool: Tool, args: dict[str, Any]) -> bool:
    try:
        return tool.needs_approval(args)
    except Exception as error:
        logger.warning("require_approval of tool %s failed", tool.name, exc_info=error)
        raise ToolFailed("whether this call is allowed could not be found out; it was not made") from None


def _confirm(call: ToolCallPart, metadata: dict[str, Any]) -> Question:
    wanted = FunctionCall(id=call.tool_call_id, name=call.tool_name, args=call.args_as_dict())
    hint = metadata.get("hint") or f"May {call.tool_name} be called with {jsonvalue.encode(wanted.args)}?"
    return Question(f"approve:{call.tool_call_id}", hint, CONFIRMATION, kind="confirm", call=wanted)


def _result_wanted(call: ToolCallPart, metadata: dict[str, Any]) -> Question:
    wanted = FunctionCall(id=call.tool_call_id, name=call.tool_name, args=call.args_as_dict())
    prompt = {"tool": call.tool_name, "args": wanted.args, "status": metadata.get("status")}
    return Question(f"result:{call.tool_call_id}", prompt, kind="result", call=wanted)


def _verdict(answer: Any) -> ToolApproved | ToolDenied:
    confirmed = answer if isinstance(answer, bool) else answer["confirmed"]
    if confirmed:
        return ToolApproved()
    reason = None if isinstance(answer, bool) else answer.get("reason")
    return ToolDenied(f"A person denied this call{f': {reason}' if reason else '.'}")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FAILURE else f"{text[:MAX_FAILURE]}…"


def _told(result: Any) -> dict[str, Any]:
    """A tool's result as JSON.

    Raises:
        ToolFailed: It cannot be.
    """
    content: Sequence[UserContent] | str | None = None
    if isinstance(result, ToolReturn):
        result, content = result.return_value, result.content
    elif isinstance(result, BinaryContent):
        result, content = f"{result.media_type}, which follows", [result]
    try:
        told = {"result": jsonvalue.copy(to_jsonable_python(result), where="the result")}
        if content is not None:
            items: list[UserContent] = [content] if isinstance(content, str) else list(content)
            told["content"] = _user_content.dump_python(items, mode="json")
    except ValueError as error:
        raise ToolFailed(f"the tool returned a {type(result).__name__}, which is not JSON: {error}") from None
    except SojournError as error:
        raise ToolFailed(f"the tool returned what is not JSON: {error.message}") from None
    return told


def _bounded(outcome: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """An outcome that a step may have; a failure in place of one that is too large for that."""
    size = jsonvalue.size(outcome)
    if size <= max_bytes:
        return outcome
    return {"failed": f"the result is too large: {size} bytes, more than {max_bytes}; ask for less of it"}


def _effects(ctx: ToolContext) -> dict[str, Any]:
    """What a call did besides giving a result, as JSON."""
    effects: dict[str, Any] = {}
    delta = ctx.state.take()
    if delta:
        effects["state"] = EventActions(**delta.as_actions()).to_wire()
    if ctx._artifact_delta:
        effects["artifacts"] = ctx._artifact_delta
    if ctx._actions is not None:
        effects["actions"] = ctx._actions.model_dump(mode="json", exclude_unset=True)
    if ctx._transfer is not None:
        effects["transfer"] = ctx._transfer
    if ctx._ends:
        effects["ends"] = True
    return effects
