"""Bytes of artifacts over HTTP: ranges and conditions (RFC 9110)."""

import dataclasses
import json

import httpx
import pytest

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.errors import Unavailable
from sojourn.server.ranges import Conditions
from tests.server.adk.support import APP, assert_problem, client_of, make_runner, new_session, sessions
from tests.server.adk.test_artifacts import bytes_part

pytestmark = pytest.mark.anyio

ARTIFACTS = f"{sessions(session='s')}/artifacts"
AT = f"{ARTIFACTS}/film.mp4?alt=media"
DATA = bytes(range(256)) * 8192
SIZE = len(DATA)


@pytest.fixture(params=["inmemory", "file"])
def artifacts(request, tmp_path):
    return InMemoryArtifactService() if request.param == "inmemory" else FileArtifactService(tmp_path)


@pytest.fixture
async def client(artifacts):
    async with client_of(make_runner(artifact_service=artifacts)) as client:
        await new_session(client)
        await save(client)
        yield client


async def save(client, data=DATA, name="film.mp4"):
    response = await client.post(ARTIFACTS, json={"filename": name, "artifact": bytes_part(data, "video/mp4")})
    assert response.status_code == 200


async def ask(client, range_=None, *, at=AT, method="GET", **headers):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.request(method, at, headers=given | ({"Range": range_} if range_ else {}))


@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-1023", 0, 1024),
        ("bytes=1024-", 1024, SIZE),
        ("bytes=0-", 0, SIZE),
        (f"bytes=300000-{SIZE + 7}", 300_000, SIZE),
        (f"bytes={SIZE - 1}-{SIZE - 1}", SIZE - 1, SIZE),
        ("bytes=5-" + "9" * 3000, 5, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=-1000000", SIZE - 1_000_000, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        ("BYTES=007-010", 7, 11),
        ("bytes= 7-10 ,", 7, 11),
    ],
)
async def test_a_range_is_sent_alone(client, range_, start, end):
    answer = await ask(client, range_)
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    # No browser shows a part as a page either.
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''film.mp4"
    assert answer.headers["content-security-policy"] == "sandbox"


@pytest.mark.parametrize(
    "range_",
    [
        "bytes=0-1,5-6", "bytes=5-2", "bytes=-", "bytes=", "bytes", "items=0-1", "bytes=a-b", "bytes=+1-2", "bytes=1_0-20",
        "bytes=0x1-2", "bytes=1.0-2", "bytes=0 -1", "bytes 0-1", "bytes=--1", "bytes=\u00b2-9".encode(), "0-1",
        "bytes=" + "9" * 5000 + "-",
    ],
)  # fmt: skip
async def test_what_is_no_single_range_is_answered_whole(client, range_):
    answer = await ask(client, range_)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert "content-range" not in answer.headers
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("range_", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 9}", "bytes=-0", "bytes=" + "9" * 3000 + "-"])
async def test_a_range_of_nothing_is_refused_with_the_size(client, range_):
    answer = await ask(client, range_)
    assert_problem(answer, 416, "range.not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


async def test_ranges_of_an_empty_artifact(client):
    await save(client, b"", "empty")
    at = f"{ARTIFACTS}/empty?alt=media"
    for range_, status in ((None, 200), ("bytes=0-", 416), ("bytes=0-0", 416), ("bytes=-5", 200), ("bytes=-0", 416)):
        answer = await ask(client, range_, at=at)
        assert answer.status_code == status, range_
        if status == 416:
            assert answer.headers["content-range"] == "bytes */0"
        else:
            assert (answer.content, answer.headers["content-length"]) == (b"", "0")


async def test_a_download_that_broke_goes_on_where_it_was(client):
    etag = (await ask(client, "bytes=0-999")).headers["etag"]
    rest = await ask(client, "bytes=1000-", If_Range=etag)
    assert (rest.status_code, rest.content, rest.headers["etag"]) == (206, DATA[1000:], etag)
    for other in (f"W/{etag}", '"other"', "Wed, 21 Oct 2015 07:28:00 GMT", "*", f"{etag}, {etag}"):
        for range_ in ("bytes=1000-", f"bytes={SIZE}-"):
            whole = await ask(client, range_, If_Range=other)
            assert (whole.status_code, whole.content) == (200, DATA), other


async def test_what_a_client_has_is_not_sent(client):
    etag = (await ask(client)).headers["etag"]
    for given in (etag, f"W/{etag}", f'"x", {etag}', f'"x",W/{etag} ,"y"', "*"):
        for method in ("GET", "HEAD"):
            answer = await ask(client, "bytes=0-5", method=method, If_None_Match=given)
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag), given
            assert answer.headers["cache-control"] == "no-store"
    for given in ('"other"', etag.strip('"'), "", '"*"'):
        answer = await ask(client, If_None_Match=given)
        assert (answer.status_code, answer.content) == (200, DATA), given
    assert (await ask(client, "bytes=0-5", If_None_Match='"other"')).content == DATA[:6]


async def test_each_version_has_an_etag_of_its_own(client):
    first = (await ask(client)).headers["etag"]
    assert first == (await ask(client, at=f"{ARTIFACTS}/film.mp4/versions/0?alt=media")).headers["etag"]
    await save(client)
    second = (await ask(client)).headers["etag"]
    assert second != first
    assert (await ask(client, at=f"{AT}&version=0")).headers["etag"] == first
    await client.delete(f"{ARTIFACTS}/film.mp4")
    await save(client, DATA[::-1])
    again = await ask(client, If_None_Match=first)
    assert (again.status_code, again.content) == (200, DATA[::-1]), "the same number and size, and other bytes"


async def test_head_tells_what_get_would_and_sends_nothing(client):
    whole = await ask(client)
    for range_ in (None, "bytes=0-5", f"bytes={SIZE}-"):
        head = await ask(client, range_, method="HEAD")
        assert (head.status_code, head.content) == (200, b""), "a range is for GET"
        ignored = {"date", "x-request-id"}
        assert [item for item in head.headers.items() if item[0] not in ignored] == [
            item for item in whole.headers.items() if item[0] not in ignored
        ]
    for rest in ("", "/versions", "/versions/0", "/versions/0/metadata", "/versions/metadata"):
        at = f"{ARTIFACTS}/film.mp4{rest}"
        whole, head = await client.get(at), await client.head(at)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert (await ask(client, at=f"{ARTIFACTS}/none?alt=media", method="HEAD")).status_code == 404


async def test_a_part_is_always_whole(client):
    answer = await ask(client, "bytes=0-5", at=f"{ARTIFACTS}/film.mp4", If_None_Match="*")
    assert answer.status_code == 200
    assert "inlineData" in json.loads(answer.content)
    assert not {"etag", "accept-ranges"} & answer.headers.keys()


class SavedAnewBetween(InMemoryArtifactService):
    """Artifacts that somebody deletes and saves anew once, after somebody else has looked at them."""

    anew = None

    async def open_artifact(self, scope, name, version=None, *, start=0, end=None):
        opened = await super().open_artifact(scope, name, version, start=start, end=end)
        if self.anew is not None and end == 0:
            data, self.anew = self.anew, None
            await self.delete_artifact(scope, name)
            await self.save_artifact(scope, name, data)
        return opened


async def test_a_range_is_of_the_version_that_was_looked_at():
    artifacts = SavedAnewBetween()
    runner = make_runner(artifact_service=artifacts)
    async with client_of(runner) as client:
        await new_session(client)
        await save(client)
        etag = (await ask(client)).headers["etag"]
        artifacts.anew = b"anew"
        answer = await ask(client, "bytes=1-2", If_Range=etag)
        assert (answer.status_code, answer.content) == (200, b"anew"), "the client has nothing of it yet"
        artifacts.anew = b"x"
        assert (await ask(client, "bytes=1-2")).status_code == 416
        session = await runner.get_session("ann", "s")
        await artifacts.delete_artifact(ArtifactScope(APP, "ann", "s", session.uid), "film.mp4")
        assert_problem(await ask(client, "bytes=1-2"), 404, "artifact.not_found")


class BreaksOff(InMemoryArtifactService):
    """Artifacts whose bytes cannot be read to the end."""

    async def open_artifact(self, scope, name, version=None, *, start=0, end=None):
        opened = await super().open_artifact(scope, name, version, start=start, end=end)

        async def chunks():
            yield await anext(opened.chunks)
            raise Unavailable("the store is away", code="artifact.unavailable")

        return dataclasses.replace(opened, chunks=chunks())


@pytest.mark.parametrize("range_", [None, "bytes=5-"])
async def test_a_client_can_tell_a_download_that_broke_off(caplog, range_):
    async with client_of(make_runner(artifact_service=BreaksOff())) as client:
        await new_session(client)
        await save(client)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            await ask(client, range_)
        assert "a download broke off: the store is away [artifact.unavailable]" in caplog.text
        assert "Traceback" not in caplog.text
        assert (await client.get("/livez")).status_code == 200


async def test_pages_of_allowed_origins_may_read_what_a_range_is_of():
    async with client_of(allowed_origins=["https://ui.example"]) as client:
        await new_session(client)
        await save(client)
        answer = await ask(client, "bytes=0-1", Origin="https://ui.example")
        assert {"ETag", "Content-Range"} <= set(answer.headers["access-control-expose-headers"].split(", "))


async def test_the_document_tells_of_ranges():
    async with client_of() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/{name}", "/{name}/versions/{version}"):
        item = paths["/apps/{app_name}/users/{user_id}/sessions/{session_id}/artifacts" + path]
        get = item["get"]
        assert {"200", "206", "304"} <= get["responses"].keys()
        assert {"Range", "If-Range", "If-None-Match"} <= {p["name"].title() for p in get["parameters"] if p["in"] == "header"}
        assert "head" not in item


def test_a_range_in_numbers():
    def span(range_, size):
        return Conditions(range_, None, None).span('"e"', size)

    assert span("bytes=2-4", 10) == (2, 5)
    assert span("bytes=2-", 10) == (2, 10)
    assert span("bytes=-3", 10) == (7, 10)
    assert span("bytes=10-", 10) == (10, 10)
    assert span("bytes=12-20", 10)[0] == 12
    assert span("bytes=-3", 0) is None
    assert not Conditions(None, '"e"', None)
