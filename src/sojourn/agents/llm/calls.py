"""Calls of tools: each is a step of the run, and some wait for people."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    ToolFailed,
    ToolFailedError,
    ToolRetryError,
)
from pydantic_ai.messages import ToolCallPart, ToolReturn, UserContent
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_core import PydanticSerializationError, to_jsonable_python

from sojourn import jsonvalue
from sojourn.agents.context import Context
from sojourn.agents.control import RunPaused
from sojourn.agents.llm.tool import Tool, ToolContext
from sojourn.agents.question import Question
from sojourn.content import FunctionCall
from sojourn.errors import Fenced, InvalidInput, LimitExceeded, RunCancelled, SojournError, Unavailable
from sojourn.event import EventActions
from sojourn.session.state import State, StateDelta

logger = logging.getLogger("sojourn.llm")

Handler = Callable[[dict[str, Any]], Awaitable[Any]]

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

_THE_RUN_ITSELF = (Fenced, Unavailable, LimitExceeded, RunCancelled)
"""Errors that are not a tool's: they end the run."""

_user_content: TypeAdapter[list[UserContent]] = TypeAdapter(
    list[UserContent], config={"ser_json_bytes": "base64", "val_json_bytes": "base64"}
)

_current: ContextVar[ToolContext] = ContextVar("sojourn_tool_context")


def tool_context() -> ToolContext:
    """The context of the tool call that the calling code works for."""
    return _current.get()


class _Postponed(BaseException):
    """Carries a deferral past the journal: it is no failure of the step."""

    def __init__(self, error: CallDeferred | ApprovalRequired) -> None:
        self.error = error


class Calls:
    """The tool calls of one agent in one attempt.

    Args:
        ctx: The agent's context.
        tools: The agent's own tools, by name.
        before: Called before each call.
        after: Called after each call.
    """

    def __init__(
        self, ctx: Context, tools: Mapping[str, Tool], before: Sequence[BeforeTool], after: Sequence[AfterTool]
    ) -> None:
        self._ctx = ctx
        self._tools = tools
        self._before = before
        self._after = after
        self._outcomes: dict[str, dict[str, Any]] = {}

    # -- one call ---------------------------------------------------------------------------------------------------

    async def execute(self, call: ToolCallPart, args: dict[str, Any], handler: Handler, *, approved: bool) -> Any:
        """Makes a call, or gives what it gave in an earlier attempt.

        Raises:
            ApprovalRequired: A person has to allow it.
            CallDeferred: A person has to give the result, or to answer what the tool asked.
            ModelRetry: The model is to call again with other arguments.
            ToolFailed: The model is told that the call has failed.
        """
        tool = self._tools.get(call.tool_name)
        if tool is not None and not approved and tool.needs_approval(args):
            raise ApprovalRequired
        key = f"tool:{call.tool_call_id}"
        ctx = ToolContext(self._ctx, State(self._ctx.state.to_dict()), call.tool_name, call.tool_call_id, key)
        token = _current.set(ctx)
        try:
            outcome = await self._ctx.step(key, lambda: self._outcome(ctx, args, handler))
        except _Postponed as postponed:
            raise postponed.error from None
        except RunPaused:
            # The other calls of this turn go on; the run waits once they are done.
            raise CallDeferred(metadata={"paused": True}) from None
        finally:
            _current.reset(token)
        self._outcomes[call.tool_call_id] = outcome
        if "retry" in outcome:
            raise ModelRetry(outcome["retry"])
        if "failed" in outcome:
            raise ToolFailed(outcome["failed"])
        if tool is not None and tool.long_running:
            raise CallDeferred(metadata={"status": outcome["result"]})
        if "content" in outcome:
            return ToolReturn(outcome["result"], content=_user_content.validate_python(outcome["content"]))
        return outcome["result"]

    async def _outcome(self, ctx: ToolContext, args: dict[str, Any], handler: Handler) -> dict[str, Any]:
        """Makes a call; what came of it, as JSON."""
        outcome: dict[str, Any]
        try:
            outcome = _told(await self._result(ctx, args, handler))
        except (CallDeferred, ApprovalRequired) as error:
            raise _Postponed(error) from None
        except ModelRetry as error:
            return {"retry": error.message}
        except ToolRetryError as error:
            return {"retry": str(error.tool_retry.content)}
        except (ToolFailed, ToolFailedError) as error:
            return {"failed": str(error)}
        except _THE_RUN_ITSELF:
            raise
        except SojournError as error:
            return {"failed": f"{error.code}: {error.message}"}
        except Exception as error:
            logger.warning("tool %s failed in run %s", ctx.tool_name, ctx.run_id, exc_info=error)
            return {"failed": f"{type(error).__name__}: {error}"}
        return outcome | _effects(ctx)

    async def _result(self, ctx: ToolContext, args: dict[str, Any], handler: Handler) -> Any:
        for before in self._before:
            given = before(ctx, args)
            given = await given if isawaitable(given) else given
            if given is not None:
                return given
        result = await handler(args)
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
                ctx.transfer_to(outcome["transfer"])
            if outcome.get("ended"):
                ctx.end_invocation()

    # -- people -----------------------------------------------------------------------------------------------------

    async def ask(self, requests: DeferredToolRequests) -> DeferredToolResults:
        """Asks people for what the calls of a turn wait for; the run waits if it is not known yet."""
        paused = False
        approvals = list(requests.approvals)
        calls: list[ToolCallPart] = []
        for call in requests.calls:
            if (requests.metadata.get(call.tool_call_id) or {}).get("paused"):
                paused = True
            else:
                calls.append(call)
        questions = [
            *(_confirm(call, requests.metadata.get(call.tool_call_id)) for call in approvals),
            *(_result_wanted(call, requests.metadata.get(call.tool_call_id)) for call in calls),
        ]
        answers = await self._ctx.ask_all(questions) if questions else []
        if paused:
            raise RunPaused
        return DeferredToolResults(
            approvals={c.tool_call_id: _verdict(a) for c, a in zip(approvals, answers, strict=False)},
            calls={c.tool_call_id: a for c, a in zip(calls, answers[len(approvals) :], strict=True)},
        )


def _confirm(call: ToolCallPart, metadata: dict[str, Any] | None) -> Question:
    args = call.args_as_dict()
    hint = (metadata or {}).get("hint") or f"May {call.tool_name} be called with {jsonvalue.encode(args)}?"
    wanted = FunctionCall(id=call.tool_call_id, name=call.tool_name, args=args)
    return Question(f"approve:{call.tool_call_id}", hint, CONFIRMATION, kind="confirm", call=wanted)


def _result_wanted(call: ToolCallPart, metadata: dict[str, Any] | None) -> Question:
    args = call.args_as_dict()
    prompt = {"tool": call.tool_name, "args": args, "status": (metadata or {}).get("status")}
    wanted = FunctionCall(id=call.tool_call_id, name=call.tool_name, args=args)
    return Question(f"result:{call.tool_call_id}", prompt, kind="result", call=wanted)


def _verdict(answer: Any) -> ToolApproved | ToolDenied:
    confirmed = answer if isinstance(answer, bool) else answer["confirmed"]
    if confirmed:
        return ToolApproved()
    reason = None if isinstance(answer, bool) else answer.get("reason")
    return ToolDenied(f"A person denied this call{f': {reason}' if reason else '.'}")


def _told(result: Any) -> dict[str, Any]:
    """A tool's result as JSON."""
    content = None
    if isinstance(result, ToolReturn):
        result, content = result.return_value, result.content
    try:
        told = {"result": jsonvalue.copy(to_jsonable_python(result), where="the result")}
        if content is not None:
            items = [content] if isinstance(content, str) else list(content)
            told["content"] = _user_content.dump_python(items, mode="json")
    except (PydanticSerializationError, InvalidInput) as error:
        raise ToolFailed(f"the tool returned a {type(result).__name__}, which is not JSON: {error}") from None
    return told


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
    if ctx.ended:
        effects["ended"] = True
    return effects
