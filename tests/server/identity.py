"""What tests of identity share: an app that says who calls, keys, an issuer of tokens."""

import json
from contextlib import asynccontextmanager

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.runner.runner import Runner
from sojourn.server import ServerConfig, create_app
from sojourn.server.access import CallerDep

ISSUER = "https://id.example.com"
AUDIENCE = "https://agents.example.com"

# Making RSA keys takes long; these are nobody's.
RSA_KEY = RSAKey.generate_key(2048, {"kid": "rsa-1"}, private=True)
OTHER_RSA_KEY = RSAKey.generate_key(2048, {"kid": "rsa-2"}, private=True)
EC_KEY = ECKey.generate_key("P-256", {"kid": "ec-1"}, private=True)
SECRET = OctKey.import_key({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ", "kid": "oct-1"})


@agent
async def nobody(ctx):
    yield "nothing"


def who_app(auth, **config):
    """An app with the route `/who`, which says who calls."""
    app = create_app(Runner(app_name="app", agent=nobody), ServerConfig(auth=auth, **config))

    @app.get("/who")
    async def who(caller: CallerDep):
        return {"user": caller.principal.user_id, "admin": caller.principal.admin}

    return app


@asynccontextmanager
async def client_of(app, **options):
    """A client of an app, without a socket between them."""
    transport = httpx.ASGITransport(app, client=options.pop("client", ("192.0.2.1", 1)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **options) as client:
        yield client


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def key_set(*keys):
    return {"keys": [key.as_dict(private=False) if key.key_type != "oct" else key.as_dict(private=True) for key in keys]}


def claims(**changes):
    """What a good token says; None leaves a claim out."""
    now = int(platform.now())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "nbf": now, "exp": now + 300}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(key=RSA_KEY, header=None, **changes):
    """A token; good unless it is changed."""
    alg = {"RSA": "RS256", "EC": "ES256", "oct": "HS256"}[key.key_type]
    header = {"alg": alg, "kid": key.kid, **(header or {})}
    header = {name: value for name, value in header.items() if value is not None}
    registry = jwt.JWSRegistry(algorithms=list(jwt.JWSRegistry.algorithms), strict_check_header=False)
    return jwt.encode(header, claims(**changes), key, registry=registry)


class Issuer(httpx.AsyncBaseTransport):
    """Answers what is asked of the issuer; counts what is fetched."""

    def __init__(self, *keys):
        self.keys = keys
        self.fetched = []
        self.status = 200
        self.body = None
        self.failing = False
        self.gate = None

    async def handle_async_request(self, request):
        self.fetched.append(str(request.url))
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise httpx.ConnectError("refused")
        if request.url.path.endswith("/.well-known/openid-configuration"):
            return httpx.Response(self.status, json={"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"})
        return httpx.Response(self.status, content=self.body or json.dumps(key_set(*self.keys)))
