"""Calls of tools: each is a step of the run, and some wait for people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_ai import RunContext, WrapperToolset
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ModelRetry, ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_ai.toolsets import ToolsetTool

from sojourn import jsonvalue
from sojourn.agents.base import first_answer
from sojourn.agents.context import TOOL_STEP, Context
from sojourn.agents.control import RunPaused
from sojourn.agents.effects import Effects
from sojourn.agents.llm.observed import observed_call
from sojourn.agents.llm.outcome import Room, effects_of, returned, told
from sojourn.agents.llm.storable import storable_text
from sojourn.agents.llm.tool import Tool, ToolContext
from sojourn.agents.question import Question
from sojourn.content import FunctionCall, FunctionResponse
from sojourn.errors import Fenced, LimitExceeded, RunCancelled, SojournError

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
        self._room = Room(ctx)
        self._outcomes: dict[str, dict[str, Any]] = {}

    def hand_over(self, call_id: str, name: str) -> None:
        """Takes note that a call hands over; it does so when the turn is over, so that no other call of it is left open.

        Raises:
            SojournError: It may not; see `Context.transfer_to`.
        """
        self._ctx.check_transfer(name)
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
        asked_itself = approved and (tool is None or not tool.require_approval)
        key = f"{TOOL_STEP}{call_id}:approved" if asked_itself else f"{TOOL_STEP}{call_id}"
        ctx = ToolContext(self._ctx, name, call_id, key)
        token = _current.set(ctx)
        try:
            outcome = await self._ctx.step(
                key, lambda: observed_call(name, call_id, args, self._outcome(ctx, tool, args, body))
            )
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
        return returned(outcome)

    async def _outcome(self, ctx: ToolContext, tool: Tool | None, args: dict[str, Any], body: Body) -> dict[str, Any]:
        """Makes a call; what came of it, as JSON."""
        limit = tool.timeout if tool is not None and tool.timeout is not None else self._timeout
        try:
            async with asyncio.timeout(limit) as bound:
                outcome = told(await self._result(ctx, args, body))
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
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return {"failed": "it was cancelled"}
        # In a task of its own, what calls `sys.exit` would end the process.
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and bound.expired():
                return {"failed": f"it took longer than {limit:g} seconds"}
            logger.warning("tool %s failed in run %s", ctx.tool_name, ctx.run_id, exc_info=error)
            return {"failed": _cut(f"{type(error).__name__}: {_words_of(error)}")}
        return self._room.bounded(ctx.tool_name, ctx.call_id, outcome | ctx.effects().to_json())

    async def _result(self, ctx: ToolContext, args: dict[str, Any], body: Body) -> Any:
        given = await first_answer(self._before, ctx, args)
        if given is not None:
            return given
        result = await body()
        changed = await first_answer(self._after, ctx, result)
        return result if changed is None else changed

    def shared_out(self, given: Sequence[FunctionResponse]) -> Iterator[Sequence[FunctionResponse]]:
        """What calls gave, as far as it goes with one event each; what they did is part of what the agent's next event does.

        Args:
            given: In the order in which the calls were made.
        """
        counts = [len(given)]
        if len(given) > 1:
            counts = self._room.shared_out(self._size_of(response) for response in given)
        taken = 0
        for count in counts:
            part = given[taken : taken + count]
            taken += count
            for response in part:
                self._take_effect(Effects.from_json(self._outcomes.pop(response.id or "", {})))
            yield part

    def _size_of(self, given: FunctionResponse) -> int:
        effects = effects_of(self._outcomes.get(given.id or "", {}))
        return self._room.size_of(given.name, given.id or "", given.response, effects)

    def _take_effect(self, effects: Effects) -> None:
        self._ctx.join(effects)
        self.transfer = self.transfer or effects.transfer
        self.ends = self.ends or effects.ends

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


def _is_cancelled() -> bool:
    """Whether the calling task was, and not something that it has waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


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


def _words_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "what it says cannot be read"


def _cut(words: str) -> str:
    text = storable_text(words)
    return text if len(text) <= MAX_FAILURE else f"{text[:MAX_FAILURE]}…"
