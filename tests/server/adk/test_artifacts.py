"""Artifacts on google-adk's wire."""

import base64

import pytest

from sojourn.runner.runner import Runner
from tests.server.adk.support import assert_problem, client_of, helper, new_session, say, sessions, stream

pytestmark = pytest.mark.anyio

ARTIFACTS = f"{sessions(session='s')}/artifacts"
DATA = bytes(range(256))


def bytes_part(data=DATA, mime_type="application/pdf", **more):
    return {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(data).decode(), **more}}


def decoded(part):
    return base64.urlsafe_b64decode(part["inlineData"]["data"])


async def test_versions_are_saved_and_loaded():
    async with client_of() as client:
        await new_session(client)
        assert (await client.get(ARTIFACTS)).json() == []
        name = "reports/july.pdf"
        first = await client.post(
            ARTIFACTS, json={"filename": name, "artifact": bytes_part(displayName="July"), "customMetadata": {"by": "ann"}}
        )
        assert first.json() == {
            "version": 0,
            "canonicalUri": "artifact:reports/july.pdf?version=0",
            "customMetadata": {"by": "ann"},
            "createTime": first.json()["createTime"],
            "mimeType": "application/pdf",
        }
        second = await client.post(ARTIFACTS, json={"filename": name, "artifact": {"text": "new"}, "custom_metadata": None})
        assert (second.json()["version"], second.json()["mimeType"]) == (1, "text/plain")
        assert (await client.get(ARTIFACTS)).json() == [name]
        part = (await client.get(f"{ARTIFACTS}/{name}/versions/0")).json()
        assert (decoded(part), part["inlineData"]["displayName"]) == (DATA, "July")
        for address in ("", "/versions/1", "/versions/latest", "?version=1"):
            assert (await client.get(f"{ARTIFACTS}/{name}{address}")).json() == {"text": "new"}, address
        assert decoded((await client.get(f"{ARTIFACTS}/{name}?version=0")).json()) == DATA
        assert (await client.get(f"{ARTIFACTS}/{name}/versions")).json() == [0, 1]
        listed = (await client.get(f"{ARTIFACTS}/{name}/versions/metadata")).json()
        assert listed == [first.json(), second.json()]
        assert (await client.get(f"{ARTIFACTS}/{name}/versions/0/metadata")).json() == listed[0]
        assert (await client.get(f"{ARTIFACTS}/{name}/versions/latest/metadata")).json() == listed[1]
        assert (await client.delete(f"{ARTIFACTS}/{name}")).json() is None
        assert (await client.get(ARTIFACTS)).json() == []


async def test_what_an_agent_saves_is_told_and_found():
    async with client_of() as client:
        await new_session(client)
        [event] = await stream(client, "save notes/a.txt")
        assert event["actions"]["artifactDelta"] == {"notes/a.txt": 0}
        assert (await client.get(f"{ARTIFACTS}/notes/a.txt/versions/0")).json() == {"text": "the text of notes/a.txt"}


async def test_a_users_artifacts_are_shared_by_the_users_sessions_only():
    async with client_of() as client:
        for user in ("ann", "bob"):
            await new_session(client, "s", user=user)
            await new_session(client, "t", user=user)
        await say(client, "save user:me.txt")
        await say(client, "save mine.txt")
        assert (await client.get(ARTIFACTS)).json() == ["mine.txt", "user:me.txt"]
        other = f"{sessions(session='t')}/artifacts"
        assert (await client.get(other)).json() == ["user:me.txt"]
        assert (await client.get(f"{other}/user:me.txt")).status_code == 200
        assert_problem(await client.get(f"{other}/mine.txt"), 404, "artifact.not_found")
        assert (await client.get(f"{sessions('bob', 's')}/artifacts")).json() == []
        assert_problem(await client.get(f"{sessions('bob', 's')}/artifacts/user:me.txt"), 404, "artifact.not_found")


@pytest.mark.parametrize("mime_type", ["text/html", "image/svg+xml", "application/pdf"])
async def test_bytes_are_downloaded_and_never_shown(mime_type):
    async with client_of() as client:
        await new_session(client)
        large = DATA * 8192
        name = 'reports/über "all".html'
        body = {"filename": name, "artifact": bytes_part(large, mime_type)}
        assert (await client.post(ARTIFACTS, json=body)).status_code == 200
        for address in (f"{ARTIFACTS}/{name}?alt=media", f"{ARTIFACTS}/{name}/versions/0?alt=media"):
            response = await client.get(address)
            assert response.content == large
            assert response.headers["content-type"].partition(";")[0] == mime_type
            disposition = response.headers["content-disposition"]
            assert disposition == "attachment; filename*=UTF-8''%C3%BCber%20%22all%22.html"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"] == "sandbox"
            assert response.headers["content-length"] == str(len(large))


BAD_NAMES = ["../s", "a/../../b", "..", "a//b", "c:x", "a\\b", "a\x00b", "", "user:", "user:../x", "/etc/passwd", "a" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_cannot_lead_elsewhere(name):
    async with client_of() as client:
        await new_session(client)
        saved = await client.post(ARTIFACTS, json={"filename": name, "artifact": {"text": "x"}})
        assert_problem(saved, 400, "artifact.invalid_name")
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        for address in (
            f"{ARTIFACTS}/{quoted}/versions",
            f"{ARTIFACTS}/{quoted}/versions/0",
            f"{ARTIFACTS}/{quoted}?alt=media",
        ):
            response = await client.get(address)
            assert response.status_code in (400, 404), address
            assert "code" in response.json()


@pytest.mark.parametrize(
    ("method", "rest", "status", "code"),
    [
        ("GET", "/none", 404, "artifact.not_found"),
        ("GET", "/none?alt=media", 404, "artifact.not_found"),
        ("GET", "/none/versions", 404, "artifact.not_found"),
        ("GET", "/none/versions/metadata", 404, "artifact.not_found"),
        ("GET", "/a.txt/versions/7", 404, "artifact.not_found"),
        ("GET", "/a.txt/versions/7/metadata", 404, "artifact.not_found"),
        ("GET", "/a.txt?version=7", 404, "artifact.not_found"),
        ("GET", "/a.txt/versions/newest", 422, "request.invalid"),
        ("GET", "/a.txt/versions/-1", 400, "artifact.invalid_version"),
        ("GET", "/a.txt?version=-1", 422, "request.invalid"),
        ("GET", f"/a.txt/versions/{10**30}", 400, "artifact.invalid_version"),
        ("GET", "/a.txt?alt=xml", 422, "request.invalid"),
        ("DELETE", "/none", 404, "artifact.not_found"),
    ],
)
async def test_what_is_not_there_is_told(method, rest, status, code):
    async with client_of() as client:
        await new_session(client)
        await say(client, "save a.txt")
        assert_problem(await client.request(method, ARTIFACTS + rest), status, code)


@pytest.mark.parametrize(
    ("artifact", "code"),
    [
        ({}, "artifact.invalid_data"),
        ({"functionCall": {"name": "f"}}, "artifact.invalid_data"),
        ({"fileData": {"fileUri": "file:///etc/passwd"}}, "artifact.invalid_data"),
        ({"inlineData": {"mimeType": "a\r\nb", "data": ""}}, "artifact.invalid_mime_type"),
    ],
)
async def test_only_bytes_and_text_are_saved(artifact, code):
    async with client_of() as client:
        await new_session(client)
        assert_problem(await client.post(ARTIFACTS, json={"filename": "a", "artifact": artifact}), 400, code)
        assert (await client.get(ARTIFACTS)).json() == []


async def test_without_a_service_it_is_said():
    runner = Runner(app_name="demo", agent=helper, artifact_service=None)
    async with client_of(runner) as client:
        await new_session(client)
        assert_problem(await client.get(ARTIFACTS), 501, "artifact.not_configured")
