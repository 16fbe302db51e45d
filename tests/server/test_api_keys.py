"""API keys: what is kept of them, and who is let in."""

import asyncio
import json
import logging
import os
import re
import stat
import subprocess
import sys

import pytest

from sojourn import platform
from sojourn.errors import InvalidInput, NotFound, Unavailable
from sojourn.server import AnyOf, ApiKeyAuth, KeyFile, NoAuth
from sojourn.server.auth.keyfile import KEY
from sojourn.testing.clock import ManualPlatform
from tests.server.identity import bearer, client_of, who_app

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(tmp_path):
    return KeyFile(tmp_path / "keys.json")


async def status_with(auth, headers):
    async with client_of(who_app(auth)) as client:
        return (await client.get("/who", headers=headers)).status_code


@pytest.mark.parametrize("header", [bearer, lambda key: {"X-API-Key": key}, lambda key: {"authorization": f"bearer {key}"}])
async def test_a_key_says_whose_it_is(keys, header):
    key, _ = keys.add("ann")
    boss, _ = keys.add("boss", admin=True)
    async with client_of(who_app(ApiKeyAuth(keys))) as client:
        assert (await client.get("/who", headers=header(key))).json() == {"user": "ann", "admin": False}
        assert (await client.get("/who", headers=header(boss))).json() == {"user": "boss", "admin": True}


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(keys):
    with platform.use(clock := ManualPlatform()):
        key, kept = keys.add("ann")
        old, _ = keys.add("ann", expires_at=platform.now() + 10)
        removed, gone = keys.add("ann")
        keys.remove(gone.id)
        clock.advance(10)
        tried = [
            old,
            removed,
            key[:-1] + ("a" if key[-1] != "a" else "b"),
            key + "a",
            key.upper(),
            f"sjn_{kept.id}_{'a' * 32}",
            f"sjn_{'a' * 8}_{key[13:]}",
            kept.hash,
            "é",
            "",
            "x" * 10_000,
            "sjn_",
        ]
        async with client_of(who_app(ApiKeyAuth(keys))) as client:
            assert (await client.get("/who", headers=bearer(key))).status_code == 200
            answers = [await client.get("/who", headers=[(b"x-api-key", each.encode())]) for each in tried]
            answers.append(await client.get("/who", headers=[("x-api-key", key), ("x-api-key", old)]))
            answers.append(
                await client.get("/who", headers=[("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")])
            )
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    (body,) = {answer.text for answer in answers}
    assert json.loads(body)["code"] == "auth.invalid"


async def test_without_a_key_one_is_asked_for(keys):
    async with client_of(who_app(ApiKeyAuth(keys))) as client:
        for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"Cookie": "key=sjn_x"}):
            answer = await client.get("/who", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "auth.missing")
        assert (await client.get("/who?api_key=sjn_aaaaaaaa_" + "a" * 32)).json()["code"] == "auth.missing"


async def test_a_change_counts_from_the_next_request_on_in_every_process(keys):
    auth = ApiKeyAuth(KeyFile(keys.path))
    async with client_of(who_app(auth)) as client:
        assert (await client.get("/who", headers=bearer("sjn_aaaaaaaa_" + "a" * 32))).status_code == 401
        code = "import sys; from sojourn.server.auth.keyfile import KeyFile; print(KeyFile(sys.argv[1]).add('ann')[0])"
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(keys.path), stdout=subprocess.PIPE)
        key = (await other.communicate())[0].decode().strip()
        assert (await client.get("/who", headers=bearer(key))).status_code == 200
        keys.remove(KEY.fullmatch(key)[1])
        assert (await client.get("/who", headers=bearer(key))).status_code == 401
        again, _ = keys.add("ann")
        assert (await client.get("/who", headers=bearer(again))).status_code == 200
        os.unlink(keys.path)
        assert (await client.get("/who", headers=bearer(again))).status_code == 401


def test_processes_that_add_keys_at_once_lose_none(keys):
    code = """
import sys
from sojourn.server.auth.keyfile import KeyFile
for n in range(20):
    KeyFile(sys.argv[1]).add(f"{sys.argv[2]}-{n}")
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(keys.path), who]) for who in ("a", "b", "c")]
    assert [writer.wait(timeout=50) for writer in writers] == [0, 0, 0]
    assert {key.user_id for key in keys.keys().values()} == {f"{who}-{n}" for who in "abc" for n in range(20)}


def test_only_a_hash_is_kept_and_only_the_owner_reads_it(keys):
    key, kept = keys.add("ann", name="laptop")
    text = keys.path.read_text()
    assert key not in text
    assert key.rpartition("_")[2] not in text
    assert kept.hash in text
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    keys.add("ben")
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_keys_are_found_by_scanners_and_cannot_be_guessed(keys):
    made = [keys.add("ann")[0] for _ in range(20)]
    assert all(re.fullmatch(r"sjn_[a-z2-7]{8}_[a-z2-7]{32}", key) for key in made)
    assert len({key[13:] for key in made}) == 20
    assert len({kept.id for kept in keys.keys().values()}) == 20


async def test_a_key_is_never_logged(keys, caplog):
    caplog.set_level(logging.DEBUG)
    key, _ = keys.add("ann")
    for each in (key, key[:-1] + "a"):
        await status_with(ApiKeyAuth(keys), bearer(each))
    keys.path.write_text("broken")
    assert await status_with(ApiKeyAuth(keys), bearer(key)) == 503
    assert "cannot be read" in caplog.text
    assert key[13:30] not in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "a"}]}', '{"version": 1}', "\xff"],
)
async def test_nobody_is_let_in_by_a_damaged_file(keys, text):
    key, _ = keys.add("ann")
    auth = ApiKeyAuth(keys)
    assert await status_with(auth, bearer(key)) == 200
    keys.path.write_text(text, encoding="latin-1")
    async with client_of(who_app(auth)) as client:
        answer = await client.get("/who", headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (503, "auth.unavailable")
    assert str(keys.path) not in answer.text
    with pytest.raises(Unavailable) as caught:
        keys.add("ben")
    assert caught.value.code == "keys.unreadable"
    assert keys.path.read_text(encoding="latin-1") == text


def test_a_file_that_is_kept_elsewhere_stays_there(keys, tmp_path):
    keys.add("ann")
    here = tmp_path / "here.json"
    here.symlink_to(keys.path)
    KeyFile(here).add("ben")
    assert here.is_symlink()
    assert [key.user_id for key in keys.keys().values()] == ["ann", "ben"]


def test_a_write_that_fails_changes_nothing(keys, tmp_path):
    keys.add("ann")
    before = keys.path.read_bytes()
    os.mkdir(f"{keys.path}.new")
    with pytest.raises(Unavailable) as caught:
        keys.add("ben")
    assert caught.value.code == "keys.unwritable"
    assert keys.path.read_bytes() == before
    os.rmdir(f"{keys.path}.new")
    keys.path.with_name("keys.json.new").write_text("of a process that was killed")
    keys.add("ben")
    assert len(KeyFile(keys.path).keys()) == 2


def test_what_cannot_be_is_refused(keys, tmp_path):
    for user in ("", "a\x00b", "x" * 257):
        with pytest.raises(InvalidInput):
            keys.add(user)
    for name in ("x" * 201, "a\nb"):
        with pytest.raises(InvalidInput) as caught:
            keys.add("ann", name=name)
        assert caught.value.code == "keys.invalid"
    with pytest.raises(NotFound) as missing:
        keys.remove("aaaaaaaa")
    assert missing.value.code == "keys.not_found"
    with pytest.raises(Unavailable):
        KeyFile(tmp_path / "nowhere" / "keys.json").add("ann")


async def test_several_authenticators_let_in_whom_one_of_them_knows(keys, tmp_path):
    others = KeyFile(tmp_path / "others.json")
    auth = AnyOf(ApiKeyAuth(keys), ApiKeyAuth(others))
    ann, ben = keys.add("ann")[0], others.add("ben")[0]
    assert [await status_with(auth, headers) for headers in (bearer(ann), bearer(ben), bearer("x"), {})] == [200, 200, 401, 401]
    others.path.write_text("broken")
    assert [await status_with(auth, bearer(key)) for key in (ann, ben)] == [200, 503]
    for wrong in ((), (ApiKeyAuth(keys), NoAuth())):
        with pytest.raises(InvalidInput):
            AnyOf(*wrong)
