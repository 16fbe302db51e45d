"""The public keys of who issues tokens: given, or fetched and remembered."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

from sojourn import platform
from sojourn.errors import InvalidInput, Unavailable

logger = logging.getLogger("sojourn.server")

FETCH_TIMEOUT = 10.0
"""Seconds that a fetch may take."""

LIFETIME = 600.0
"""Seconds after which keys are fetched again, while the ones there are go on being used."""

MAX_AGE = 86_400.0
"""Seconds for which keys are used if no others can be fetched."""

COOLDOWN = 30.0
"""Seconds that must lie between fetches on behalf of tokens that name an unknown key."""

RETRY_DELAY = 5.0
"""Seconds that must lie between fetches of which the first has failed."""

MAX_BYTES = 2**20
"""Size of what is fetched."""

MAX_KEYS = 100
"""Keys of an issuer that are looked at."""


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, kid: str | None) -> Sequence[Key]:
        """The keys of that id; all if a token names none.

        Raises:
            Unavailable: `auth.unavailable`: no key is known, and none can be fetched.
        """
        ...


class GivenKeys:
    """Keys that are known beforehand.

    Args:
        jwks: A JSON Web Key Set.

    Raises:
        InvalidInput: `jwt.invalid` if it has no key that can be used.
    """

    def __init__(self, jwks: Mapping[str, Any]) -> None:
        self._keys = usable_keys(jwks)
        if not self._keys:
            raise InvalidInput("the key set has no keys that can be used", code="jwt.invalid")

    async def find(self, kid: str | None) -> Sequence[Key]:
        """See `KeySource`."""
        return _of_id(self._keys, kid)


class FetchedKeys:
    """Keys that are fetched when they are needed, by one task for all who wait, and then used without waiting.

    After `LIFETIME` they are fetched again in the background. If that fails they are used on, up to `MAX_AGE`. A token that
    names an unknown key, as after a rotation, has them fetched at most once per `COOLDOWN`.

    Args:
        url: Of the key set; None to ask the issuer for it (OpenID Connect Discovery).
        issuer: The issuer.
        transport: How to fetch, in place of HTTP.

    Raises:
        InvalidInput: `jwt.invalid` for a URL that is neither https nor on this machine.
    """

    def __init__(self, url: str | None, issuer: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        check_url(issuer if url is None else url)
        self._url = url
        self._issuer = issuer
        self._transport = transport
        self._keys: Sequence[Key] = ()
        self._fetched_at: float | None = None
        self._may_fetch_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Sequence[Key]:
        """See `KeySource`."""
        now = platform.monotonic()
        age = now - self._fetched_at if self._fetched_at is not None else MAX_AGE
        if age >= MAX_AGE:
            await self._fetch_unless_just_failed(now)
        elif age >= LIFETIME and now >= self._may_fetch_at:
            self._fetch_once()
        found = _of_id(self._keys, kid)
        if not found and kid is not None and now >= self._may_fetch_at:
            await asyncio.shield(self._fetch_once())
            found = _of_id(self._keys, kid)
        return found

    async def _fetch_unless_just_failed(self, now: float) -> None:
        if now >= self._may_fetch_at or self._fetching is not None:
            await asyncio.shield(self._fetch_once())
        if self._fetched_at is None or platform.monotonic() - self._fetched_at >= MAX_AGE:
            raise Unavailable(
                "tokens cannot be checked at the moment: their issuer does not answer; try again later",
                code="auth.unavailable",
                retry_after=RETRY_DELAY,
            )

    def _fetch_once(self) -> asyncio.Task[None]:
        """The fetch under way, or a new one."""
        loop = asyncio.get_running_loop()
        if self._fetching is None or self._fetching.get_loop() is not loop:
            self._fetching = loop.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: asyncio.Task[None]) -> None:
        if self._fetching is task:
            self._fetching = None

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys = usable_keys(await self._key_set())
            if not keys:
                raise ValueError("it has no keys that can be used")
        except (httpx.HTTPError, httpx.InvalidURL, InvalidInput, OSError, ValueError, TimeoutError) as error:
            logger.warning("the keys of %s cannot be fetched: %s: %s", self._issuer, type(error).__name__, error)
            self._may_fetch_at = platform.monotonic() + RETRY_DELAY
            return
        self._keys = keys
        self._fetched_at = platform.monotonic()
        self._may_fetch_at = self._fetched_at + COOLDOWN

    async def _key_set(self) -> Mapping[str, Any]:
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT, transport=self._transport) as client:
            if self._url is not None:
                return await _json_from(client, self._url)
            about = await _json_from(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if about.get("issuer") != self._issuer:
                raise ValueError("what answers says that it is another issuer")
            return await _json_from(client, check_url(str(about.get("jwks_uri"))))


async def _json_from(client: httpx.AsyncClient, url: str) -> Mapping[str, Any]:
    body = b""
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{url} answers with status {response.status_code}")
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"{url} gives more than {MAX_BYTES} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError(f"{url} does not give a JSON object")
    return document


def usable_keys(jwks: Mapping[str, Any]) -> Sequence[Key]:
    """The keys of a set; those of unknown kinds are left out, as the standard asks."""
    listed = jwks.get("keys")
    keys: list[Key] = []
    for each in listed[:MAX_KEYS] if isinstance(listed, list) else ():
        if not isinstance(each, dict):
            continue
        try:
            keys.append(JWKRegistry.import_key(each))
        except (JoseError, ValueError, TypeError, KeyError) as error:
            logger.warning("a key of a key set is left out: %s", error)
    return keys


def check_url(url: str) -> str:
    """Returns a URL from which keys may be fetched.

    Raises:
        InvalidInput: `jwt.invalid` unless it is https, or http on this machine.
    """
    parts = urlsplit(url)
    if not (parts.scheme == "https" and parts.hostname) and not (parts.scheme == "http" and _is_here(parts.hostname)):
        raise InvalidInput(f"keys may not be fetched from {url!r}; use an https URL", code="jwt.invalid")
    return url


def _is_here(host: str | None) -> bool:
    try:
        return host == "localhost" or (host is not None and ip_address(host).is_loopback)
    except ValueError:
        return False


def _of_id(keys: Iterable[Key], kid: str | None) -> Sequence[Key]:
    return [key for key in keys if kid is None or key.kid == kid]
