"""Tokens of an issuer: who is let in, and when its keys are fetched."""

import asyncio
import base64
import json

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from sojourn import platform
from sojourn.errors import InvalidInput, Unavailable
from sojourn.server import AnyOf, ApiKeyAuth, JwtAuth, KeyFile
from sojourn.server.auth.jwks import COOLDOWN, FETCH_TIMEOUT, LIFETIME, MAX_AGE, MAX_BYTES, RETRY_DELAY, FetchedKeys
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.loop import for_seeds
from tests.server.identity import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    OTHER_RSA_KEY,
    RSA_KEY,
    SECRET,
    Issuer,
    bearer,
    claims,
    client_of,
    key_set,
    token,
    who_app,
)
from tests.server.serving import serve

pytestmark = pytest.mark.anyio


def jwt_auth(**changes):
    return JwtAuth(**{"issuer": ISSUER, "audience": AUDIENCE, "keys": key_set(RSA_KEY, EC_KEY), **changes})


async def answer(auth, shown):
    async with client_of(who_app(auth)) as client:
        return await client.get("/who", headers=bearer(shown))


def b64(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed_by_public_key(**changes):
    """A token made by who knows nothing but the public key, and takes it for a secret."""
    import hashlib
    import hmac

    head, body = b64({"alg": "HS256", "typ": "JWT", "kid": RSA_KEY.kid}), b64(claims(**changes))
    pem = RSA_KEY.as_pem(private=False)
    return f"{head}.{body}.{b64(hmac.new(pem, f'{head}.{body}'.encode(), hashlib.sha256).digest())}"


async def test_a_good_token_says_who_calls():
    for key in (RSA_KEY, EC_KEY):
        got = await answer(jwt_auth(), token(key))
        assert (got.status_code, got.json()) == (200, {"user": "ann", "admin": False})


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [AUDIENCE, "https://other.example.com"]},
        {"exp": lambda now: now - 29},
        {"nbf": lambda now: now + 29},
        {"nbf": None},
        {"iat": None},
        {"header": {"typ": "at+jwt"}},
        {"header": {"typ": None}},
        {"header": {"x-more": "1"}},
        # What a token says about keys is not looked at, so it does no harm either.
        {"header": {"jku": "https://evil.example.com/keys"}},
        {"header": {"jwk": OTHER_RSA_KEY.as_dict(private=False)}},
    ],
)
async def test_what_does_no_harm_is_let_through(changes):
    with platform.use(ManualPlatform()):
        made = {name: value(int(platform.now())) if callable(value) else value for name, value in changes.items()}
        assert (await answer(jwt_auth(), token(**made))).status_code == 200


def forgeries():
    """Tokens that must not count, by what is wrong with them."""
    now = int(platform.now())
    good = token()
    head, body, signature = good.split(".")
    unsigned = [f"{b64({'alg': alg, 'kid': 'rsa-1'})}.{body}." for alg in ("none", "None", "NONE", "nOnE")]
    return {
        "another key under this name": token(RSAKey.import_key({**OTHER_RSA_KEY.as_dict(private=True), "kid": "rsa-1"})),
        "a key that brings itself": token(OTHER_RSA_KEY, header={"jwk": OTHER_RSA_KEY.as_dict(private=False), "kid": "rsa-1"}),
        "a key that brings itself without a name": token(
            OTHER_RSA_KEY, header={"jwk": OTHER_RSA_KEY.as_dict(private=False), "kid": None}
        ),
        "a key from elsewhere": token(OTHER_RSA_KEY, header={"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"}),
        "an unknown key": token(OTHER_RSA_KEY),
        "the name of a key of another kind": token(RSA_KEY, header={"kid": "ec-1"}),
        "the public key taken for a secret": signed_by_public_key(),
        "a secret": token(SECRET, header={"kid": "rsa-1"}),
        "an algorithm that is not named": token(RSA_KEY, header={"alg": "RS512"}),
        **{f"no signature, {n}": each for n, each in enumerate(unsigned)},
        "no signature": f"{head}.{body}.",
        "another signature": f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        "other claims": f"{head}.{b64(claims(sub='ben'))}.{signature}",
        "expired": token(exp=now - 31),
        "without an end": token(exp=None),
        "with an end that never comes": token(exp=float("inf")),
        "with an end that is no number": token(exp=float("nan")),
        "with an end that is text": token(exp=str(now + 300)),
        "with an end that is true": token(exp=True),
        "not yet valid": token(nbf=now + 31),
        "issued in the future": token(iat=now + 31),
        "for another audience": token(aud="https://other.example.com"),
        "for a part of the audience": token(aud=AUDIENCE[:-1]),
        "for no audience": token(aud=None),
        "for an empty audience": token(aud=[]),
        "for an audience that is an object": token(aud={AUDIENCE: 1}),
        "of another issuer": token(iss=f"{ISSUER}/"),
        "of several issuers": token(iss=[ISSUER]),
        "of no issuer": token(iss=None),
        "of nobody": token(sub=None),
        "of a number": token(sub=17),
        "of an empty user": token(sub=""),
        "of a user with a NUL": token(sub="ann\x00"),
        "of a long user": token(sub="a" * 257),
        "with what must be understood": token(header={"crit": ["b64"], "b64": True}),
        "of another kind": token(header={"typ": "logout+jwt"}),
        "a name of a key that is no text": f"{b64({'alg': 'RS256', 'kid': 17})}.{body}.{signature}",
        "claims that are no object": f"{head}.{b64([])}.{signature}",
        "claims that are no JSON": f"{head}.{b64(b'{')}.{signature}",
        "a header that is no object": f"{b64([])}.{body}.{signature}",
        "a header that is deep": f"{b64(b'[' * 3000)}.{body}.{signature}",
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.x",
        "five parts": f"{good}.x.y",
        "no text": "\x80.\x80.\x80",
        "nothing of the kind": "ann",
        "dots": "..",
    }


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
async def test_whatever_is_wrong_with_a_token_the_answer_is_the_same():
    with platform.use(ManualPlatform()):
        async with client_of(who_app(jwt_auth())) as client:
            assert (await client.get("/who", headers=bearer(token()))).status_code == 200
            for wrong, shown in forgeries().items():
                got = await client.get("/who", headers=[(b"authorization", f"Bearer {shown}".encode("latin-1"))])
                assert (got.status_code, got.json().get("code")) == (401, "auth.invalid"), wrong
                assert (got.json()["detail"], got.headers["www-authenticate"]) == ("the key or token is not valid", "Bearer")


async def test_admins_are_those_of_whom_the_token_says_so():
    assert (await answer(jwt_auth(), token(scope="sojourn:admin"))).json()["admin"] is False
    auth = jwt_auth(admin_value="sojourn:admin")
    for scope, admin in [
        ("openid sojourn:admin", True),
        (["sojourn:admin"], True),
        ("sojourn:administrator", False),
        ("not-sojourn:admin", False),
        (["openid sojourn:admin"], False),
        ({"sojourn:admin": True}, False),
        (True, False),
        (None, False),
    ]:
        assert (await answer(auth, token(scope=scope))).json()["admin"] is admin, scope
    nested = jwt_auth(admin_value="boss", admin_claim="realm_access.roles", user_claim="email")
    got = await answer(nested, token(email="ann@example.com", realm_access={"roles": ["boss"]}))
    assert got.json() == {"user": "ann@example.com", "admin": True}
    assert (await answer(nested, token(email="a", realm_access="boss"))).json() == {"user": "a", "admin": False}


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
async def test_a_shared_secret_is_taken_if_it_is_asked_for():
    auth = jwt_auth(keys=key_set(SECRET), algorithms=["HS256"])
    assert (await answer(auth, token(SECRET))).status_code == 200
    assert (await answer(auth, token(RSA_KEY))).status_code == 401
    other = OctKey.import_key({"kty": "oct", "k": b64(b"another secret of 32 bytes, or more")})
    assert (await answer(auth, token(other, header={"kid": SECRET.kid}))).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": ""},
        {"audience": ""},
        {"audience": []},
        {"audience": [""]},
        {"algorithms": []},
        {"algorithms": ["none"]},
        {"algorithms": "RS256"},
        {"algorithms": ["RS256", "HS256"]},
        {"algorithms": ["HS256"], "keys": None, "jwks_url": f"{ISSUER}/keys"},
        {"jwks_url": f"{ISSUER}/keys"},
        {"keys": {"keys": []}},
        {"keys": {}},
        {"keys": None, "jwks_url": "http://id.example.com/keys"},
        {"keys": None, "jwks_url": "file:///etc/passwd"},
        {"keys": None, "jwks_url": "https://"},
        {"keys": None, "issuer": "id.example.com"},
    ],
)
def test_what_would_let_others_in_is_refused(changes):
    with pytest.raises(InvalidInput) as caught:
        jwt_auth(**changes)
    assert caught.value.code == "jwt.invalid"


async def test_keys_that_are_not_for_signatures_are_left_out():
    for_others = {**EC_KEY.as_dict(private=False), "use": "enc"}
    strange = {"kty": "quantum", "kid": "q"}
    auth = jwt_auth(keys={"keys": [strange, "no key", for_others, *key_set(RSA_KEY)["keys"]]})
    assert (await answer(auth, token(RSA_KEY))).status_code == 200
    assert (await answer(auth, token(EC_KEY))).status_code == 401


async def test_keys_and_tokens_go_side_by_side(tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    key, _ = keys.add("ben")
    issuer = Issuer(RSA_KEY)
    auth = AnyOf(ApiKeyAuth(keys), jwt_auth(keys=None, transport=issuer))
    assert (await answer(auth, token())).json()["user"] == "ann"
    assert (await answer(auth, key)).json()["user"] == "ben"
    issuer.failing = True
    assert [(await answer(auth, each)).status_code for each in ("x", key[:-1] + "1")] == [401, 401]


# -- the issuer's keys --------------------------------------------------------------------------------------------------


def fetched(issuer, url=f"{ISSUER}/keys"):
    return FetchedKeys(url, ISSUER, transport=issuer)


@for_seeds(20)
async def test_keys_are_fetched_once_for_all_who_wait_and_then_used():
    issuer = Issuer(RSA_KEY, EC_KEY)
    keys = fetched(issuer)
    found = await asyncio.gather(*(keys.find("rsa-1") for _ in range(20)))
    assert {key.kid for (key,) in found} == {"rsa-1"}
    assert len(await keys.find(None)) == 2
    await asyncio.sleep(LIFETIME - 1)
    assert await keys.find("rsa-1")
    assert issuer.fetched == [f"{ISSUER}/keys"]


@for_seeds(20)
async def test_who_gives_up_does_not_take_the_keys_from_others():
    issuer = Issuer(RSA_KEY)
    issuer.gate = asyncio.Event()
    keys = fetched(issuer)
    waiting = [asyncio.create_task(keys.find("rsa-1")) for _ in range(3)]
    await asyncio.sleep(1)
    waiting[0].cancel()
    await asyncio.sleep(1)
    issuer.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError, list, list]
    assert len(issuer.fetched) == 1


@for_seeds(20)
async def test_keys_are_renewed_while_the_old_ones_are_used():
    issuer = Issuer(RSA_KEY)
    keys = fetched(issuer)
    assert await keys.find("rsa-1")
    issuer.keys, issuer.gate = (EC_KEY,), asyncio.Event()
    await asyncio.sleep(LIFETIME)
    assert await keys.find("rsa-1")  # nobody waits
    assert await keys.find("rsa-1")
    await asyncio.sleep(1)
    assert len(issuer.fetched) == 2
    issuer.gate.set()
    await asyncio.sleep(1)
    assert await keys.find("ec-1")
    assert await keys.find("rsa-1") == []
    assert len(issuer.fetched) == 2


@for_seeds(20)
async def test_an_unknown_name_has_them_fetched_now_and_then():
    issuer = Issuer(RSA_KEY)
    keys = fetched(issuer)
    await keys.find("rsa-1")
    issuer.keys = (RSA_KEY, EC_KEY)
    for n in range(100):  # somebody makes names up
        assert await keys.find(f"made up {n}") == []
    assert len(issuer.fetched) == 1
    await asyncio.sleep(COOLDOWN)
    found = await asyncio.gather(*(keys.find("ec-1") for _ in range(10)))
    assert all(found)
    assert len(issuer.fetched) == 2


async def test_an_issuer_that_fails_is_done_without_for_a_while():
    issuer = Issuer(RSA_KEY)
    with platform.use(clock := ManualPlatform()):
        keys = fetched(issuer)
        await keys.find("rsa-1")
        issuer.failing = True
        clock.advance(MAX_AGE - 1)
        assert await keys.find("rsa-1")
        assert await keys.find("another") == []  # waits for the fetch that goes on in the background
        assert await keys.find("rsa-1")
        clock.advance(RETRY_DELAY + 1)
        with pytest.raises(Unavailable) as caught:
            await keys.find("rsa-1")
        assert caught.value.code == "auth.unavailable"
        asked = len(issuer.fetched)
        for _ in range(10):
            with pytest.raises(Unavailable):
                await keys.find("rsa-1")
        assert len(issuer.fetched) == asked  # it is not asked in vain all the time
        issuer.failing = False
        clock.advance(RETRY_DELAY)
        assert await keys.find("rsa-1")


@pytest.mark.parametrize(
    "change",
    [
        {"failing": True},
        {"status": 500},
        {"status": 302},
        {"body": "{"},
        {"body": "[]"},
        {"body": '{"keys": []}'},
        {"body": '{"keys": {}}'},
        {"body": "\xff"},
        {"body": json.dumps(key_set(RSA_KEY)) + " " * MAX_BYTES},
        {"keys": ()},
    ],
)
async def test_an_issuer_that_cannot_be_used_is_unavailable(change):
    issuer = Issuer(RSA_KEY)
    for name, value in change.items():
        setattr(issuer, name, value)
    got = await answer(jwt_auth(keys=None, jwks_url=f"{ISSUER}/keys", transport=issuer), token())
    assert (got.status_code, got.json()["code"], got.headers["retry-after"]) == (503, "auth.unavailable", "5")
    assert len(issuer.fetched) == 1


@for_seeds(5)
async def test_an_issuer_that_hangs_is_waited_for_only_so_long():
    issuer = Issuer(RSA_KEY)
    issuer.gate = asyncio.Event()
    start = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable):
        await fetched(issuer).find("rsa-1")
    assert asyncio.get_running_loop().time() - start == FETCH_TIMEOUT


async def test_the_issuer_is_asked_where_its_keys_are():
    issuer = Issuer(RSA_KEY)
    assert (await answer(jwt_auth(keys=None, transport=issuer), token())).status_code == 200
    assert issuer.fetched == [f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"]
    impostor = jwt_auth(keys=None, issuer=f"{ISSUER}/other", transport=issuer)
    assert (await answer(impostor, token(iss=f"{ISSUER}/other"))).status_code == 503


async def test_a_token_that_cannot_be_one_costs_no_fetch():
    issuer = Issuer(RSA_KEY)
    auth = jwt_auth(keys=None, transport=issuer)
    for shown in ("x", "sjn_" + "a" * 41, token(SECRET), f"{b64({'alg': 'none'})}.{b64(claims())}."):
        assert (await answer(auth, shown)).status_code == 401
    assert issuer.fetched == []


async def test_with_a_real_issuer():
    async def keys(request):
        return JSONResponse(key_set(EC_KEY))

    async with serve(Starlette(routes=[Route("/keys", keys)])) as url:
        auth = jwt_auth(keys=None, jwks_url=f"{url}/keys")
        assert (await answer(auth, token(EC_KEY))).json()["user"] == "ann"
        stranger = ECKey.generate_key("P-256", {"kid": "ec-1"}, private=True)
        assert (await answer(auth, token(stranger))).status_code == 401
