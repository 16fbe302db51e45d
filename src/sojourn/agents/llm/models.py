"""Which model an agent talks to, and what its failures mean."""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from typing import Any, NamedTuple, cast

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
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
from pydantic_ai.providers import Provider, infer_provider_class

from sojourn.errors import AgentError, InvalidInput, ModelError, SojournError, Unsupported

logger = logging.getLogger("sojourn.llm")

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
        api_key: The key. Without it, the provider's environment variable is read; with a `base_url`, a placeholder is sent.

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
        return infer_model(model) if api_key is None else infer_model(model, lambda name: _provider(name, api_key))
    except ImportError as error:
        message = f"model {model!r} needs a package that is not installed: {error}"
        raise Unsupported(message, code="model.not_installed") from None
    except UserError as error:
        key = re.search(r"\b[A-Z][A-Z0-9_]*(?:KEY|TOKEN|PROJECT|REGION|URL|ENDPOINT)\b", str(error))
        if key is None:
            raise InvalidInput(f"{error}; give 'provider:name', for example 'openai:gpt-5'", code="model.unknown") from None
        raise InvalidInput(
            f"model {model!r} needs the environment variable {key[0]}, which is not set; {LOCAL_MODELS}", code="model.no_key"
        ) from None


def _provider(name: str, api_key: str) -> Provider[Any]:
    """A provider with a key of its own, in place of the environment's."""
    try:
        made: Any = infer_provider_class(name)
    except ValueError:
        raise UserError(f"Unknown provider: {name}") from None
    if "api_key" not in inspect.signature(made).parameters:
        raise InvalidInput(f"provider {name!r} takes no api_key; set its environment variables", code="model.invalid")
    return cast(Provider[Any], made(api_key=api_key))


def _openai_compatible(model: str, base_url: str, api_key: str | None) -> Model:
    provider, _, rest = model.partition(":")
    # Names of local models hold colons themselves: llama3.2:1b.
    name = rest if rest and provider in ("openai", "openai-chat") else model
    try:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
    except ImportError as error:
        raise Unsupported(f"base_url needs the openai package: {error}", code="model.not_installed") from None
    # A server of one's own mostly asks for no key, but the client insists on one; OpenAI's is not for others' servers.
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=base_url, api_key=api_key or "none"))


def retry_delay(error: Exception, attempt: int) -> float | None:
    """Seconds after which a model is worth asking again; None if it is not.

    Args:
        error: Why it did not answer.
        attempt: How often it was asked.
    """
    if attempt >= MAX_ATTEMPTS or not isinstance(error, _WORTH_ANOTHER_TRY):
        return None
    asked = error.retry_after if isinstance(error, ModelAPIError) else None
    delay = asked if asked is not None else 0.5 * 2**attempt
    return delay if delay <= MAX_DELAY else None


_WORTH_ANOTHER_TRY = (
    ModelRateLimitError,
    ModelUnavailableError,
    ModelServerError,
    ModelConnectionError,
    ModelRequestTimeout,
)


class _Meaning(NamedTuple):
    """What a failure means: its code, whether the same may work later, and what to say of it."""

    code: str
    retryable: bool
    says: str


# The first that fits; what is more special comes first.
_MEANINGS: tuple[tuple[type[BaseException], _Meaning], ...] = (
    (ModelRateLimitError, _Meaning("model.rate_limited", True, "its provider's rate limit is reached")),
    (ModelQuotaExceededError, _Meaning("model.quota_exceeded", False, "the account's quota is used up")),
    (ModelUnavailableError, _Meaning("model.unavailable", True, "its provider cannot serve it at the moment")),
    (ModelAuthenticationError, _Meaning("model.unauthorized", False, "its provider does not accept the key")),
    (ModelNotFoundError, _Meaning("model.unknown", False, "its provider knows no such model")),
    (ModelContextWindowExceededError, _Meaning("model.context_exceeded", False, "the conversation is too long for it")),
    (ModelRequestRejectedError, _Meaning("model.rejected", False, "its provider refuses the request")),
    (ModelTimeoutError, _Meaning("model.timeout", True, "it did not answer in time")),
    (ModelRequestTimeout, _Meaning("model.timeout", True, "it did not answer in time")),
    (ModelConnectionError, _Meaning("model.unreachable", True, "its server cannot be reached, or hung up; does it run?")),
    (ModelServerError, _Meaning("model.failed", True, "its provider failed")),
    (ModelAPIError, _Meaning("model.failed", False, "its provider failed")),
    (ContentFilterError, _Meaning("model.filtered", False, "its provider's content filter kept the answer back")),
    (OutputTokenLimitExceeded, _Meaning("model.cut_off", False, "the answer is longer than it may be; see max_tokens")),
    (UnexpectedModelBehavior, _Meaning("model.bad_answer", False, "its answers cannot be used")),
    (NotImplementedError, _Meaning("model.unsupported_content", False, "it cannot take what the conversation holds")),
)
_UNKNOWN = _Meaning("model.failed", False, "it failed")

_TOO_LONG = "exceed_context_size_error"
"""What llama.cpp's server calls a conversation that is too long; pydantic-ai knows the words of other servers."""


def model_error(error: BaseException, agent: str) -> SojournError:
    """A failure of a model or its provider as an error of ours. What the provider said is not for clients: it is logged.

    Args:
        error: What pydantic-ai raised.
        agent: The agent whose model it is.
    """
    if isinstance(error, FallbackExceptionGroup):
        return model_error(error.exceptions[-1], agent)
    logger.warning("the model of agent %s failed: %s", agent, error)
    if isinstance(error, UserError):
        if "conflicts with existing tool" in str(error):
            return AgentError(f"two tools of agent {agent!r} have one name: {error}", code="tool.duplicate_name")
        return AgentError(f"agent {agent!r} cannot run: {error}", code="agent.invalid")
    kind: type[BaseException] = type(error)
    if isinstance(error, ModelHTTPError) and isinstance(error.body, dict) and error.body.get("type") == _TOO_LONG:
        kind = ModelContextWindowExceededError
    status = f" (HTTP status {error.status_code})" if isinstance(error, ModelHTTPError) else ""
    return _no_answer(agent, kind, status, error.retry_after if isinstance(error, ModelAPIError) else None)


def _no_answer(agent: str, kind: type[BaseException], status: str = "", after: float | None = None) -> ModelError:
    meaning = next((meaning for known, meaning in _MEANINGS if issubclass(kind, known)), _UNKNOWN)
    later = f"; try again in {after:g} seconds" if after is not None and meaning.retryable else ""
    return ModelError(
        f"the model of agent {agent!r} gave no answer: {meaning.says}{status}{later}",
        code=meaning.code,
        retryable=meaning.retryable,
        retry_after=after,
    )


def engine_error(error: Exception, agent: str) -> SojournError | None:
    """The error of ours if pydantic-ai itself has stumbled; None for all else, which is of the user's code.

    It may stumble over the conversation that it makes a request of, such as a file of a kind unknown to the model, and over
    what the provider answered.

    Args:
        error: Any error out of a run.
        agent: The agent whose model it is.
    """
    kind = _stumble(error)
    if kind is None:
        return None
    logger.warning("the model of agent %s failed: %s: %s", agent, type(error).__name__, error)
    return _no_answer(agent, kind)


def _stumble(error: Exception) -> type[Exception] | None:
    walked = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame, _ in walked]
    inner = frames[-1][0] if frames else ""
    if isinstance(error, ValueError | RuntimeError) and inner.startswith(_MAPPING):
        return NotImplementedError
    if ("pydantic_ai.models", "download_item") in frames:
        return NotImplementedError
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError) and inner.startswith("pydantic_ai.models."):
        return UnexpectedModelBehavior
    return None


_MAPPING = ("pydantic_ai.models", "pydantic_ai.messages", "pydantic_ai._ssrf")
"""Modules that make a provider's request of the conversation."""
