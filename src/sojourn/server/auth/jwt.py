"""Tokens of an identity provider (JWT, OpenID Connect) as a way to say who calls. Needs the extra `sojourn[jwt]`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import Key
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry
from starlette.requests import HTTPConnection

from sojourn import platform
from sojourn.errors import InvalidInput, Unauthorized
from sojourn.ids import check_id
from sojourn.server.auth.credentials import bearer_of, invalid, missing
from sojourn.server.auth.jwks import FetchedKeys, GivenKeys, KeySource
from sojourn.server.auth.principal import Principal

ASYMMETRIC = frozenset(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in ("256", "384", "512")) | {
    "EdDSA",
    "Ed25519",
}
"""Algorithms for which who verifies does not know what signs."""

SYMMETRIC = frozenset({"HS256", "HS384", "HS512"})
"""Algorithms for which whoever verifies could sign as well; only with keys that are given."""

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})


class JwtAuth:
    """Identifies callers by tokens of one issuer, as `Authorization: Bearer …`.

    A token counts if it is signed with one of the issuer's own keys and one of `algorithms`, is for `audience`, and is valid
    now. What it says about keys itself (`jwk`, `jku`, `x5u`, …) is not looked at. Whatever is wrong with a token, the answer is
    the same.

    Args:
        issuer: Who issues them: the claim `iss`, exactly.
        audience: Whom they are for: one of these has to be in the claim `aud`.
        jwks_url: Where the issuer's keys are. By default the issuer is asked (OpenID Connect Discovery).
        keys: The issuer's keys as a JSON Web Key Set, instead of fetching them.
        algorithms: Those that are taken. Symmetric ones (`HS256`) need `keys`, and cannot be mixed with others.
        user_claim: The claim that is the user's id.
        admin_claim: The claim in which admins have `admin_value`: text with words, or a list. With dots it leads into objects:
            `realm_access.roles`.
        admin_value: The word that makes an admin, such as `sojourn:admin`; None, and no token does.
        leeway: Seconds by which clocks may differ.
        transport: How to fetch keys, in place of HTTP.

    Raises:
        InvalidInput: `jwt.invalid`.
    """

    needs_loopback = False
    schemes: Mapping[str, Mapping[str, Any]] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}

    def __init__(
        self,
        *,
        issuer: str,
        audience: str | Sequence[str],
        jwks_url: str | None = None,
        keys: Mapping[str, Any] | None = None,
        algorithms: Sequence[str] = ("RS256", "ES256"),
        user_claim: str = "sub",
        admin_claim: str = "scope",
        admin_value: str | None = None,
        leeway: int = 30,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        audiences = [audience] if isinstance(audience, str) else list(audience)
        if not issuer or not audiences or not all(audiences):
            raise InvalidInput("name the issuer and the audience of tokens", code="jwt.invalid")
        if keys is not None and jwks_url is not None:
            raise InvalidInput("give either keys or jwks_url", code="jwt.invalid")
        _check_algorithms(algorithms, given_keys=keys is not None)
        self._source: KeySource = GivenKeys(keys) if keys is not None else FetchedKeys(jwks_url, issuer, transport=transport)
        self._algorithms = frozenset(algorithms)
        self._issuer, self._audiences = issuer, audiences
        self._user_claim, self._admin_claim, self._admin_value = user_claim, admin_claim, admin_value
        self._leeway = leeway
        # Headers that it does not know are left alone, as the standard asks; those that must be understood are refused below.
        self._registry = JWSRegistry(algorithms=self._algorithms, strict_check_header=False)
        self._registry.max_header_length = 4096

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """See `Authenticator`."""
        shown = bearer_of(connection)
        if shown is None:
            raise missing()
        try:
            token = self._taken_apart(shown)
            kid = token.headers().get("kid")
            keys = await self._source.find(kid)
            if not any(self._is_signed(token, key) for key in keys):
                raise invalid()
            return self._principal(self._checked_claims(token))
        except Unauthorized:
            raise
        except (JoseError, InvalidInput, ValueError, TypeError, KeyError, RecursionError):
            raise invalid() from None

    def _taken_apart(self, shown: str) -> CompactSignature:
        token = extract_compact(shown.encode("ascii"), registry=self._registry)
        headers = token.headers()
        if (
            headers.get("alg") not in self._algorithms
            or "crit" in headers
            or not isinstance(headers.get("kid"), str | None)
            or str(headers.get("typ", "JWT")).lower() not in _TYPES
        ):
            raise invalid()
        return token

    def _is_signed(self, token: CompactSignature, key: Key) -> bool:
        try:
            return validate_compact(token, key, registry=self._registry)
        except (JoseError, ValueError):
            return False  # A key of another kind.

    def _checked_claims(self, token: CompactSignature) -> dict[str, Any]:
        claims = json.loads(token.payload)
        if not isinstance(claims, dict):
            raise invalid()
        JWTClaimsRegistry(
            now=int(platform.now()),
            leeway=self._leeway,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "values": self._audiences},
            exp={"essential": True},
        ).validate(claims)
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        user_id = check_id(_claim(claims, self._user_claim), self._user_claim)
        return Principal(
            user_id, admin=self._admin_value is not None and self._admin_value in _words(claims, self._admin_claim)
        )


def _check_algorithms(algorithms: Sequence[str], *, given_keys: bool) -> None:
    named = set(algorithms)
    if not named or isinstance(algorithms, str) or not (named <= ASYMMETRIC or named <= SYMMETRIC):
        raise InvalidInput(
            f"algorithms are {', '.join(sorted(ASYMMETRIC))}; or, not mixed with those, {', '.join(sorted(SYMMETRIC))}",
            code="jwt.invalid",
        )
    if named & SYMMETRIC and not given_keys:
        raise InvalidInput("symmetric algorithms need a secret of yours as keys, and none that is fetched", code="jwt.invalid")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim, by its name or by the way into objects; None if it is not there."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _words(claims: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = _claim(claims, name)
    if isinstance(value, str):
        return value.split()
    return value if isinstance(value, list) else ()
