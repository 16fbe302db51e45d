"""Why a model ended an answer, and what becomes of one that it did not bring to its end."""

from __future__ import annotations

from pydantic_ai.exceptions import ContentFilterError, OutputTokenLimitExceeded, UnexpectedModelBehavior
from pydantic_ai.messages import FinishReason, ModelResponse, ToolCallPart

from sojourn.event import FINISHED

UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
"""A provider has not told why its model ended, though providers do; google-adk's name for it."""

_IN_ADK: dict[FinishReason, str] = {
    "stop": FINISHED,
    "tool_call": FINISHED,
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "error": "OTHER",
}


def finish_reason_of(response: ModelResponse) -> str | None:
    """Why a model ended an answer, as events tell it; None if it is no provider's, and nothing is known."""
    reason = response.finish_reason
    # pydantic-ai takes an answer without a reason for one that is whole; what the provider itself said is in the details.
    told = "finish_reason" in (response.provider_details or {})
    if response.provider_name is not None and not told and reason in (None, "stop"):
        return UNSPECIFIED
    if reason is None:
        return "OTHER" if told else None
    return _IN_ADK[reason]


def cut_calls(response: ModelResponse) -> frozenset[str]:
    """The names of an answer's calls if they may be other ones than the model was about to make; nobody carries them out."""
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    cut = response.finish_reason in ("length", "content_filter", "error")
    if not cut and finish_reason_of(response) == UNSPECIFIED:
        # No arguments at all would pass for those of a call that needs none.
        cut = bool(calls) and response.parts[-1] is calls[-1] and not calls[-1].args
    return frozenset(call.tool_name for call in calls) if cut else frozenset()


def check_calls(response: ModelResponse) -> None:
    """Refuses an answer that may have been cut off in the middle of its calls: none of them may be made.

    Raises:
        OutputTokenLimitExceeded: By the limit of tokens, or because its stream broke off.
        ContentFilterError: By the provider's filter.
        UnexpectedModelBehavior: By an error of the provider's.
    """
    if not cut_calls(response):
        return
    if response.finish_reason == "content_filter":
        raise ContentFilterError("a call of a tool was cut off by the content filter")
    if response.finish_reason == "error":
        raise UnexpectedModelBehavior("its provider failed in the middle of a call of a tool")
    raise OutputTokenLimitExceeded("a call of a tool was cut off")
