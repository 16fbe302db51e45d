"""Opens the bucket that a URL names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from sojourn.artifact.s3.bucket import Bucket
from sojourn.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
"""What the URLs of object stores start with."""

MAX_PREFIX = 256
"""Bytes of a prefix, so that what is below it stays within the 1,024 bytes that a key may have."""

_FORMS = "use 's3://bucket/prefix', 'gs://bucket/prefix' or 'az://container/prefix?account=name'"
_URL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:/([^?#]*))?(?:\?([^#]*))?")
_SEGMENT = re.compile(r"[A-Za-z0-9!_.=()*'+,-]+")
_QUERY: dict[str, dict[str, str]] = {
    "s3": {"endpoint": "endpoint", "region": "region"},
    "gs": {},
    "az": {"account": "account_name"},
}
"""Options that a URL may have, and what the driver calls them. None of them is a secret."""
_CONNECT_SECONDS = 10.0


def open_url(
    url: str, *, endpoint: str | None, region: str | None, options: Mapping[str, Any] | None, timeout: float
) -> Bucket:
    """The bucket that a URL names; nothing is sent yet.

    Raises:
        InvalidInput: `artifact.invalid_url`, `artifact.invalid_option`.
        Unsupported: `artifact.unsupported_url`, `artifact.not_installed`.
    """
    scheme, place, query = _parse(url)
    given = {name: value for name, value in (("endpoint", endpoint), ("region", region)) if value is not None}
    if given and scheme != "s3":
        raise InvalidInput(
            f"endpoint and region are for s3:// URLs; give what a {scheme}:// URL needs in options",
            code="artifact.invalid_option",
        )
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 3600:
        raise InvalidInput(f"timeout is {timeout!r}; give seconds, up to 3600", code="artifact.invalid_option")
    config = {**query, **given, **(options or {})}
    store = _store(f"{scheme}://{place}", config, timeout)
    return Bucket(store, f"{scheme}://{place}")


def open_store(store: ObjectStore, prefix: str) -> tuple[Bucket, str]:
    """The bucket of an existing store, and the prefix in it.

    Raises:
        InvalidInput: `artifact.invalid_option`.
        Unsupported: `artifact.not_installed`.
    """
    require_obstore()
    from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

    if not isinstance(store, S3Store | GCSStore | AzureStore | MemoryStore):
        raise InvalidInput(
            f"a {type(store).__name__} is no store for artifacts; give a URL, or an S3Store, GCSStore or AzureStore of obstore",
            code="artifact.invalid_option",
        )
    if not isinstance(prefix, str) or not _is_prefix(prefix.strip("/")):
        raise InvalidInput(
            f"prefix is {prefix!r}; give segments of letters, digits and '-_.=' separated by '/'",
            code="artifact.invalid_option",
        )
    return Bucket(store, type(store).__name__), prefix.strip("/")


def require_obstore() -> None:
    """Makes sure that the driver is there.

    Raises:
        Unsupported: `artifact.not_installed`.
    """
    try:
        import obstore  # noqa: F401
    except ModuleNotFoundError as error:
        raise Unsupported(
            "object storage needs obstore; run: pip install 'sojourn[s3]'", code="artifact.not_installed"
        ) from error


def _parse(url: object) -> tuple[str, str, dict[str, str]]:
    """Scheme, what follows it up to the query, and the query."""
    # Somebody may have put a password into the URL, so no message repeats it.
    text = url if isinstance(url, str) else ""
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in SCHEMES:
        raise Unsupported(f"there is no object storage for {scheme[:16]!r} URLs; {_FORMS}", code="artifact.unsupported_url")
    match = _URL.fullmatch(rest)
    prefix = (match[2] or "").strip("/") if match else ""
    if match is None or not _is_prefix(prefix):
        raise InvalidInput(
            f"the URL names no bucket; {_FORMS}, with a prefix of letters, digits and '-_.=', and without credentials",
            code="artifact.invalid_url",
        )
    query = dict(parse_qsl(match[3] or "", keep_blank_values=True))
    known = _QUERY[scheme]
    if unknown := sorted(query.keys() - known):
        raise InvalidInput(
            f"the URL has the option {unknown[0]!r}; {scheme}:// takes {sorted(known)}, all else goes into options",
            code="artifact.invalid_url",
        )
    place = f"{match[1]}/{prefix}" if prefix else match[1]
    return scheme, place, {known[name]: value for name, value in query.items()}


def _is_prefix(prefix: str) -> bool:
    segments = prefix.split("/") if prefix else []
    fits = len(prefix) <= MAX_PREFIX
    return fits and all(_SEGMENT.fullmatch(segment) and segment not in (".", "..") for segment in segments)


def _store(url: str, config: dict[str, Any], timeout: float) -> ObjectStore:
    require_obstore()
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    seconds = timedelta(seconds=timeout)
    client: dict[str, Any] = {
        "connect_timeout": min(seconds, timedelta(seconds=_CONNECT_SECONDS)),
        "read_timeout": seconds,
        # Of a whole answer, which may be large, and its reader slow.
        "timeout": timedelta(days=1),
    }
    if str(config.get("endpoint", "")).startswith("http://"):
        client["allow_http"] = True
    client |= config.pop("client_options", {})
    retry = config.pop("retry_config", {"retry_timeout": seconds, "backoff": {"max_backoff": timedelta(seconds=5)}})
    try:
        return from_url(url, config=config, client_options=client, retry_config=retry)  # type: ignore[call-overload, no-any-return]
    except (BaseError, ValueError, TypeError, OSError) as error:
        kind = type(error).__name__
    # Outside of the block: what the driver says may repeat a value, and must not become the context.
    raise InvalidInput(
        f"{url} cannot be opened with the options {sorted(config)} ({kind}); see obstore's for this kind of store",
        code="artifact.invalid_option",
    )
