"""Spans and measurements of model and tool calls, by the GenAI conventions of OpenTelemetry."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from sojourn import platform, telemetry

if TYPE_CHECKING:
    from pydantic_ai.models.instrumented import InstrumentationSettings

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "google-gla": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""What the conventions call a provider, where they have another name."""

_SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")


def observed(model: Model) -> Model:
    """The model, observed if OpenTelemetry is in use."""
    return model if telemetry.tracer() is None else ObservedModel(model)


class ObservedModel(WrapperModel):
    """A model whose requests are spans."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Asks the model."""
        with _Chat(self.wrapped, messages, model_settings) as chat:
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            chat.answered(response)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Asks the model for a stream."""
        with _Chat(self.wrapped, messages, model_settings) as chat:
            asked = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
            async with asked as stream:
                yield stream
                chat.answered(stream.get())


class _Chat:
    """The span of one request to a model."""

    def __init__(self, model: Model, messages: Sequence[ModelMessage], settings: ModelSettings | None) -> None:
        self._of = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _PROVIDERS.get(model.system, model.system),
            "gen_ai.request.model": model.model_name,
        }
        asked = {f"gen_ai.request.{name}": n for name, n in (settings or {}).items() if name in _SETTINGS and n is not None}
        self._content = _content_writer() if telemetry.captures_content() else None
        self._span = telemetry.Span(f"chat {model.model_name}", {**self._of, **asked, **self._said(messages)}, client=True)
        self._began = 0.0

    def _said(self, messages: Sequence[ModelMessage]) -> dict[str, str]:
        if self._content is None:
            return {}
        told = {"gen_ai.input.messages": json.dumps(self._content.messages_to_otel_messages(list(messages)))}
        instructions = next((m.instructions for m in reversed(messages) if isinstance(m, ModelRequest)), None)
        if instructions:
            told["gen_ai.system_instructions"] = json.dumps([{"type": "text", "content": instructions}])
        return told

    def __enter__(self) -> Self:
        self._began = platform.monotonic()
        self._span.__enter__()
        return self

    def answered(self, response: ModelResponse) -> None:
        """Takes note of the answer."""
        usage = response.usage
        answer: dict[str, Any] = {
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
        }
        if usage.cache_read_tokens:
            answer["gen_ai.usage.cache_read.input_tokens"] = usage.cache_read_tokens
        if response.model_name:
            answer["gen_ai.response.model"] = self._of["gen_ai.response.model"] = response.model_name
        if response.provider_response_id:
            answer["gen_ai.response.id"] = response.provider_response_id
        if response.finish_reason:
            answer["gen_ai.response.finish_reasons"] = [response.finish_reason]
        if self._content is not None:
            answer["gen_ai.output.messages"] = json.dumps(self._content.messages_to_otel_messages([response]))
        self._span.set(answer)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens:
                of = {**self._of, "gen_ai.token.type": kind}
                telemetry.measure("gen_ai.client.token.usage", tokens, of, unit="{token}")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        failed = {"error.type": telemetry.error_type(error)} if isinstance(error, Exception) else {}
        seconds = max(0.0, platform.monotonic() - self._began)
        telemetry.measure("gen_ai.client.operation.duration", seconds, {**self._of, **failed})
        self._span.__exit__(kind, error, trace)


def _content_writer() -> InstrumentationSettings:
    # Only who asks for content pays for loading this.
    from pydantic_ai.models.instrumented import InstrumentationSettings

    return InstrumentationSettings(include_binary_content=False)


def observed_call(
    name: str, call_id: str, args: dict[str, Any], outcome: Awaitable[dict[str, Any]]
) -> Awaitable[dict[str, Any]]:
    """A call of a tool, observed if OpenTelemetry is in use.

    Args:
        name: The tool.
        call_id: The call.
        args: Its arguments.
        outcome: Makes the call, and gives what came of it.
    """
    return outcome if telemetry.tracer() is None else _spanned(name, call_id, args, outcome)


async def _spanned(name: str, call_id: str, args: dict[str, Any], outcome: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": call_id,
        "gen_ai.tool.type": "function",
    }
    content = telemetry.captures_content()
    if content:
        attributes["gen_ai.tool.call.arguments"] = _json(args)
    began = platform.monotonic()
    measured = {"gen_ai.tool.name": name}
    try:
        with telemetry.Span(f"execute_tool {name}", attributes) as span:
            came = await outcome
            if "failed" in came:
                measured["error.type"] = "tool.failed"
                span.fail("tool.failed")
            elif content and "result" in came:
                span.set({"gen_ai.tool.call.result": _json(came["result"])})
            return came
    except Exception as error:
        measured["error.type"] = telemetry.error_type(error)
        raise
    finally:
        telemetry.measure("gen_ai.execute_tool.duration", max(0.0, platform.monotonic() - began), measured)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
