"""Embeddings from any server that speaks OpenAI's protocol (`/v1/embeddings`)."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from sojourn.errors import InvalidInput, ModelError, SojournError, TimedOut, Unavailable, Unsupported

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("sojourn.memory")

OPENAI = "https://api.openai.com/v1"

_KEY = "OPENAI_API_KEY"

BATCH = 32
"""Texts in one request."""

MAX_CHARACTERS = 8000
"""What counts of a text: in any script, it has no more tokens than OpenAI's models take."""

MAX_DELAY = 5.0
"""Seconds that a server may ask to wait for; beyond, the call fails and tells when to come back."""


class OpenAIEmbedder:
    """Makes vectors with a server that speaks OpenAI's protocol: OpenAI itself, vLLM, Ollama, llama.cpp and others.

    Requests that fail quickly are repeated, after the time that the server asks for if that is short. It needs the extra
    `embed`.

    Args:
        model: The name by which the server knows the model.
        dimensions: How many numbers the model's vectors have.
        base_url: Address of the server, with `/v1`; OpenAI's if omitted.
        api_key: The key for that address, which it is sent to and nowhere else. Without it, `OPENAI_API_KEY` is read for
            OpenAI's own address; no key is sent to any other.
        timeout: Seconds that one request may take.
        retries: How often a request is repeated.
        shorten: Whether to ask the server for vectors of `dimensions` numbers, if its model can make them shorter.
        name: What tells the model from others whose vectors cannot be compared with its; the model's name, and the number of
            its dimensions if they are shortened, if omitted.

    Raises:
        InvalidInput: `embedding.invalid_option`; `embedding.no_key` if OpenAI is to be asked without a key.
        Unsupported: `embedding.not_installed`.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 10.0,
        retries: int = 2,
        shorten: bool = False,
        name: str | None = None,
    ) -> None:
        _check(model, dimensions, base_url, timeout, retries)
        if find_spec("httpx2") is None:
            raise Unsupported(
                'OpenAIEmbedder needs httpx2; install it with: pip install "sojourn[embed]"', code="embedding.not_installed"
            )
        if base_url is None and api_key is None:
            api_key = os.environ.get(_KEY)
            if not api_key:
                raise InvalidInput(
                    f"OpenAI wants a key; set the environment variable {_KEY}, or give api_key, or another server's base_url",
                    code="embedding.no_key",
                )
        self.name = name or (f"{model}/{dimensions}" if shorten else model)
        self.dimensions = dimensions
        self._model = model
        self._url = f"{(base_url or OPENAI).rstrip('/')}/embeddings"
        self._key = api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._asked = {"dimensions": dimensions} if shorten else {}
        self._timeout = timeout
        self._retries = retries
        # Connections belong to the event loop that made them.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Makes a vector of each text.

        Raises:
            Unavailable: `embedding.unavailable` if the server cannot be reached, or fails.
            TimedOut: `embedding.timeout`.
            ModelError: `embedding.rate_limited`, `embedding.unauthorized`, `embedding.unknown_model`, `embedding.rejected`;
                `embedding.invalid` for an answer that is none.
        """
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), BATCH):
            vectors += await self._embedded([text[:MAX_CHARACTERS] for text in texts[start : start + BATCH]])
        return vectors

    async def close(self) -> None:
        """Closes the connections of this event loop. The embedder may be used again."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _embedded(self, texts: list[str]) -> list[Sequence[float]]:
        for left in range(self._retries, -1, -1):
            try:
                return await self._asked_once(texts)
            except SojournError as error:
                delay = error.retry_after if error.retry_after is not None else 0.5 * 2 ** (self._retries - left)
                if not left or not error.retryable or delay > MAX_DELAY or isinstance(error, TimedOut):
                    raise
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _asked_once(self, texts: list[str]) -> list[Sequence[float]]:
        import httpx2

        # OpenAI's own refuses empty texts.
        body = {"model": self._model, "input": [text or " " for text in texts], "encoding_format": "float", **self._asked}
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._client().post(self._url, json=body, headers=self._headers)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise TimedOut(
                f"the server of embedding model {self._model!r} did not answer within {self._timeout:g} s",
                code="embedding.timeout",
            ) from error
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the server of embedding model {self._model!r} cannot be reached, or hung up; does it run?",
                code="embedding.unavailable",
            ) from error
        if answer.status_code != 200:
            logger.warning("embedding model %s: HTTP status %d: %.300s", self._model, answer.status_code, self._told(answer))
            raise _refused(self._model, answer.status_code, answer.headers.get("retry-after"))
        return self._vectors(answer, len(texts))

    def _told(self, answer: httpx2.Response) -> str:
        """What an answer says, without the key, which some servers repeat."""
        return answer.text.replace(self._key, "…") if self._key else answer.text

    def _vectors(self, answer: httpx2.Response, count: int) -> list[Sequence[float]]:
        try:
            data: list[dict[str, Any]] = answer.json()["data"]
            by_place = {item.get("index", place): item["embedding"] for place, item in enumerate(data)}
            return [by_place[place] for place in range(count)]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the server of embedding model {self._model!r} did not answer with a vector for each text; check its base_url",
                code="embedding.invalid",
            ) from error

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # It follows no redirects: a key must not get to an address that it was not given for.
            client = self._clients[loop] = httpx2.AsyncClient(timeout=self._timeout)
        return client


def _refused(model: str, status: int, retry_after: str | None) -> SojournError:
    after = _seconds(retry_after)
    told = f"(HTTP status {status})"
    if status >= 500 or status in (408, 409, 425):
        return Unavailable(
            f"the server of embedding model {model!r} failed {told}", code="embedding.unavailable", retry_after=after
        )
    if status == 429:
        return ModelError(
            f"the rate limit for embedding model {model!r} is reached {told}",
            code="embedding.rate_limited",
            retryable=True,
            retry_after=after,
        )
    if status in (401, 403):
        return ModelError(
            f"the server of embedding model {model!r} does not accept the key {told}", code="embedding.unauthorized"
        )
    if status == 404:
        return ModelError(
            f"the server knows no embedding model {model!r}, or base_url is not its address {told}",
            code="embedding.unknown_model",
        )
    return ModelError(f"the server of embedding model {model!r} refuses the request {told}", code="embedding.rejected")


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a header asks to wait for; None if it names none."""
    try:
        seconds = float(retry_after or "nan")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _check(model: object, dimensions: object, base_url: object, timeout: object, retries: object) -> None:
    wrong = None
    if not isinstance(model, str) or not model:
        wrong = f"model is {model!r}; give its name"
    elif not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1:
        wrong = f"dimensions is {dimensions!r}; give how many numbers the model's vectors have"
    elif not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        wrong = f"timeout is {timeout!r}; give seconds"
    elif not isinstance(retries, int) or retries < 0:
        wrong = f"retries is {retries!r}; give 0 or more"
    elif base_url is not None:
        parts = urlsplit(base_url) if isinstance(base_url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            # Without repeating it: it may hold a password.
            wrong = "base_url is no address; write one like http://127.0.0.1:11434/v1"
    if wrong is not None:
        raise InvalidInput(wrong, code="embedding.invalid_option")
