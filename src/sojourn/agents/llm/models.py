"""Which model an agent talks to, and what its failures mean."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
    OutputTokenLimitExceeded,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.models import Model, infer_model

from sojourn.errors import InvalidInput, ModelError, SojournError, Unsupported

MAX_ATTEMPTS = 4
"""How often a model is asked for one answer, as long as its provider asks to come back later."""

MAX_DELAY = 60.0
"""Seconds that a provider may ask to wait for; beyond, the run fails and tells when to come back."""

LOCAL_MODELS = (
    "a local model works without a key: start any server that speaks OpenAI's protocol (Ollama, vLLM, llama.cpp) and give "
    "its address as base_url, http://127.0.0.1:11434/v1 for Ollama"
)


def resolve(model: Model | str, base_url: str | None, api_key: str | None) -> Model:
    """The model that a name means.

    Args:
        model: `provider:name`, or a model of pydantic-ai's, which is taken as it is.
        base_url: Address of a server that speaks OpenAI's protocol; the name's provider, if any, must be `openai` then.
        api_key: Its key; what `OPENAI_API_KEY` says if omitted, and no key if that is not set.

    Raises:
        InvalidInput: `model.unknown`, `model.no_key`, `model.invalid`.
        Unsupported: `model.not_installed` if the provider's package is missing.
    """
    if isinstance(model, Model):
        return model
    if not isinstance(model, str) or not model:
        raise InvalidInput(f"model is {model!r}; give 'provider:name', or a Model of pydantic-ai's", code="model.invalid")
    if base_url is not None:
        return _openai_compatible(model, base_url, api_key)
    try:
        return infer_model(model)
    except ImportError as error:
        message = f"model {model!r} needs a package that is not installed: {error}"
        raise Unsupported(message, code="model.not_installed") from None
    except UserError as error:
        key = re.search(r"\b[A-Z][A-Z0-9_]*(?:KEY|TOKEN|PROJECT|REGION|URL)\b", str(error))
        if key is None:
            raise InvalidInput(f"{error}; give 'provider:name', for example 'openai:gpt-5'", code="model.unknown") from None
        raise InvalidInput(
            f"model {model!r} needs a key: set the environment variable {key[0]}; {LOCAL_MODELS}", code="model.no_key"
        ) from None


def _openai_compatible(model: str, base_url: str, api_key: str | None) -> Model:
    provider, _, name = model.rpartition(":")
    if provider not in ("", "openai", "openai-chat"):
        # Names of local models hold colons themselves: llama3.2:1b.
        name = model
    try:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
    except ImportError as error:
        raise Unsupported(f"base_url needs the openai package: {error}", code="model.not_installed") from None
    # A server of one's own mostly asks for no key, but the client insists on one.
    key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=base_url, api_key=key))


def retry_delay(error: Exception, attempt: int) -> float | None:
    """Seconds after which a model is worth asking again; None if it is not.

    Args:
        error: Why it did not answer.
        attempt: How often it was asked.
    """
    if attempt >= MAX_ATTEMPTS or not isinstance(error, ModelRateLimitError | ModelUnavailableError):
        return None
    delay = error.retry_after if error.retry_after is not None else 0.5 * 2**attempt
    return delay if delay <= MAX_DELAY else None


# The first that fits; what is more special comes first.
_CODES: tuple[tuple[type[Exception], str, bool], ...] = (
    (ModelRateLimitError, "model.rate_limited", True),
    (ModelQuotaExceededError, "model.quota_exceeded", False),
    (ModelUnavailableError, "model.unavailable", True),
    (ModelAuthenticationError, "model.unauthorized", False),
    (ModelNotFoundError, "model.unknown", False),
    (ModelContextWindowExceededError, "model.context_exceeded", False),
    (ModelRequestRejectedError, "model.rejected", False),
    (ModelTimeoutError, "model.timeout", True),
    (ModelRequestTimeout, "model.timeout", True),
    (ModelConnectionError, "model.unreachable", True),
    (ModelServerError, "model.failed", True),
    (ModelHTTPError, "model.failed", False),
    (ModelAPIError, "model.failed", False),
    (ContentFilterError, "model.filtered", False),
    (OutputTokenLimitExceeded, "model.cut_off", False),
    (UnexpectedModelBehavior, "model.bad_answer", False),
)


def model_error(error: Exception, agent: str) -> SojournError:
    """A failure of a model or its provider as an error of ours.

    Args:
        error: What pydantic-ai raised.
        agent: The agent whose model it is.
    """
    message = f"the model of agent {agent!r} failed: {error}"
    for kind, code, retryable in _CODES:
        if isinstance(error, kind):
            after: Any = getattr(error, "retry_after", None)
            return ModelError(message, code=code, retryable=retryable, retry_after=after)
    return ModelError(message, code="model.failed")
