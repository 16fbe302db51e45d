"""Artifacts in object storage: against real servers, and in the driver's own memory."""

import asyncio
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from obstore.exceptions import GenericError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store

from sojourn import platform
from sojourn.artifact.place import artifact_service_at
from sojourn.artifact.s3.faults import unavailable
from sojourn.artifact.s3.service import S3ArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.errors import InvalidInput, NotFound, Unavailable, Unsupported
from sojourn.testing.artifact_conformance import ArtifactServiceConformance, load_bytes, names_of, stream, versions_of
from sojourn.testing.clock import ManualPlatform
from tests.artifact.s3_servers import BUCKET, client, keys_below, service_at

pytestmark = pytest.mark.anyio

SCOPE = ArtifactScope("app", "alice", "session", "uid")
HOUR = 3600.0


class TestS3ArtifactService(ArtifactServiceConformance):
    has_urls = True

    @pytest.fixture
    def service(self, moto_port):
        return service_at(moto_port)

    @pytest.fixture
    def failing_service(self, moto_port):
        return service_at(moto_port, bucket="no-such-bucket")


class TestAnExistingStore(ArtifactServiceConformance):
    @pytest.fixture
    def service(self):
        return S3ArtifactService(MemoryStore(), prefix="a/b")


@pytest.fixture
def prefix():
    return platform.new_id()


@pytest.fixture
def service(moto_port, prefix):
    return service_at(moto_port, prefix)


# -- where things are ----------------------------------------------------------------------------------------------------


async def test_keys_are_as_documented(moto_port, prefix, service):
    await service.save_artifact(SCOPE, "reports/july.pdf", b"0")
    await service.save_artifact(SCOPE, "reports/july.pdf", b"1")
    await service.save_artifact(SCOPE._replace(user_id="Åsa"), "user:photo", b"2")
    keys = [re.sub("[0-9a-f]{32}$", "ID", key) for key in keys_below(moto_port, prefix)]
    assert sorted(keys) == [
        ".conditional-writes",
        "app/=c3=85sa/data/user/user=3aphoto/ID",
        "app/=c3=85sa/versions/user/user=3aphoto/000000000000",
        "app/alice/data/session/uid/reports=2fjuly.pdf/ID",
        "app/alice/data/session/uid/reports=2fjuly.pdf/ID",
        "app/alice/versions/session/uid/reports=2fjuly.pdf/000000000000",
        "app/alice/versions/session/uid/reports=2fjuly.pdf/000000000001",
    ]


async def test_bytes_lie_as_they_are_with_their_type(moto_port, prefix, service):
    for size in (5, 9_000_000):
        await service.save_artifact(SCOPE, "ä.png", stream(b"x" * (size - 1), b"y"), mime_type="image/png")
        (key,) = [key for key in keys_below(moto_port, prefix) if "/data/" in key]
        found = client(moto_port).get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")
        assert found["Body"].read() == b"x" * (size - 1) + b"y"
        assert (found["ContentType"], found["ContentDisposition"]) == ("image/png", "attachment; filename*=UTF-8''%C3%A4.png")
        await service.delete_artifact(SCOPE, "ä.png")


@pytest.mark.parametrize("whole", ["artifact", "session", "user"])
async def test_deleting_removes_the_bytes_and_leaves_marks(moto_port, prefix, service, whole):
    for name in ("a", "a", "b"):
        await service.save_artifact(SCOPE, name, b"secret")
    if whole == "artifact":
        await service.delete_artifact(SCOPE, "a")
        await service.delete_artifact(SCOPE, "b")
    elif whole == "session":
        await service.delete_session_artifacts(SCOPE)
    else:
        await service.delete_user_artifacts("app", "alice")
    left = [f"app/alice/versions/session/uid/{name}/00000000000{n}" for name in "ab" for n in range(3 if name == "a" else 2)]
    assert sorted(keys_below(moto_port, prefix)) == [".conditional-writes", *left]
    for key in left:
        body = client(moto_port).get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read()
        assert re.fullmatch(b"[0-9a-f]{32}", body), "nothing is left of what was known of a version"
    assert await names_of(service, SCOPE) == []
    assert await later(2 * HOUR, service.sweep()) == len(left)
    assert keys_below(moto_port, prefix) == [".conditional-writes"]


async def test_versions_that_are_old_when_they_are_deleted_leave_one_mark(moto_port, prefix, service):
    for _ in range(3):
        await service.save_artifact(SCOPE, "a", b"x")
    await later(2 * HOUR, service.delete_artifact(SCOPE, "a"))
    assert [key for key in keys_below(moto_port, prefix) if "/a/" in key] == ["app/alice/versions/session/uid/a/000000000003"]


# -- others at work ------------------------------------------------------------------------------------------------------


async def test_versions_of_several_services_have_no_gaps(moto_port, prefix):
    services = [service_at(moto_port, prefix) for _ in range(4)]

    async def save(number):
        return await services[number % 4].save_artifact(SCOPE, "a", b"%d" % number), b"%d" % number

    saved = dict(await asyncio.gather(*(save(number) for number in range(24))))
    assert sorted(saved) == list(range(24))
    for version, data in saved.items():
        assert await load_bytes(services[0], SCOPE, "a", version) == data


async def test_deletions_are_seen_by_other_services(moto_port, prefix, service):
    other = service_at(moto_port, prefix)
    await service.save_artifact(SCOPE, "a", b"old")
    await other.delete_artifact(SCOPE, "a")
    with pytest.raises(NotFound):
        await service.load_artifact(SCOPE, "a")
    assert await service.save_artifact(SCOPE, "a", b"new") == 0
    assert await load_bytes(other, SCOPE, "a") == b"new"


# -- what is left behind -------------------------------------------------------------------------------------------------


def orphan(port, prefix, name="a", data=b"orphan"):
    """Leaves what a process leaves that dies between upload and entry."""
    key = f"{prefix}/app/alice/data/session/uid/{name}/{platform.new_id()}"
    client(port).put_object(Bucket=BUCKET, Key=key, Body=data)


async def later(seconds, call):
    """Awaits a call by a clock that is ahead."""
    with platform.use(ManualPlatform(platform.now() + seconds)):
        return await call


async def test_the_sweep_removes_what_nobody_can_reach(moto_port, prefix, service):
    await service.save_artifact(SCOPE, "a", b"kept")
    await service.save_artifact(SCOPE, "gone", b"x")
    await service.delete_artifact(SCOPE, "gone")
    orphan(moto_port, prefix)
    orphan(moto_port, prefix, "new")
    before = keys_below(moto_port, prefix)
    assert await service.sweep() == 0, "it is too young: its save may still be under way"
    assert keys_below(moto_port, prefix) == before
    assert await later(2 * HOUR, service.sweep()) == 4, "two orphans and two marks"
    assert len(keys_below(moto_port, prefix)) == 3
    assert await load_bytes(service, SCOPE, "a") == b"kept"
    assert await service.save_artifact(SCOPE, "gone", b"anew") == 0
    assert await later(2 * HOUR, service.sweep()) == 0


async def test_deleting_removes_old_orphans_too(moto_port, prefix, service):
    await service.save_artifact(SCOPE, "a", b"x")
    orphan(moto_port, prefix)
    await later(2 * HOUR, service.delete_artifact(SCOPE, "a"))
    assert not any("/data/" in key for key in keys_below(moto_port, prefix))


async def test_the_sweep_leaves_what_is_not_ours(moto_port, prefix, service):
    await service.save_artifact(SCOPE, "a", b"x")
    foreign = ["x", "app/x", "app/alice/x", "app/alice/data/user/backup/db.sql", "other/thing/data/user/x/db.sql"]
    for key in foreign:
        client(moto_port).put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=b"theirs")
    assert await later(2 * HOUR, service.sweep()) == 0
    assert set(foreign) <= set(keys_below(moto_port, prefix))


@pytest.mark.parametrize("older_than", [0, 59, -1, True, "3600", float("nan")])
async def test_the_sweep_must_spare_what_is_new(service, older_than):
    with pytest.raises(InvalidInput) as caught:
        await service.sweep(older_than=older_than)
    assert caught.value.code == "artifact.invalid_option"


async def test_saves_go_on_while_it_sweeps(moto_port, prefix, service):
    async def sweeps():
        with platform.use(ManualPlatform(platform.now() + 2 * HOUR)):
            for _ in range(10):
                await service.sweep()

    async def saves(worker):
        return [await service.save_artifact(SCOPE, f"a{worker}", b"%d" % n) for n in range(15)]

    # The clock of the sweep is ahead for all, so that even what is new would be old enough: only entries protect it.
    for worker in range(2):
        await service.save_artifact(SCOPE, f"a{worker}", b"first")
    results = await asyncio.gather(sweeps(), *(saves(worker) for worker in range(2, 4)))
    for versions in results[1:]:
        assert versions == list(range(15))
    for worker in range(2):
        assert await load_bytes(service, SCOPE, f"a{worker}") == b"first"


# -- damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["entry", "entry is no version", "bytes are missing", "bytes are too few"])
async def test_damage_is_told_and_can_be_deleted(moto_port, prefix, service, how):
    await service.save_artifact(SCOPE, "a", b"whole")
    (entry,) = [key for key in keys_below(moto_port, prefix) if "/versions/" in key]
    (data,) = [key for key in keys_below(moto_port, prefix) if "/data/" in key]
    match how:
        case "entry":
            client(moto_port).put_object(Bucket=BUCKET, Key=f"{prefix}/{entry}", Body=b"{" * 100)
        case "entry is no version":
            client(moto_port).put_object(Bucket=BUCKET, Key=f"{prefix}/{entry}", Body=b'{"data": "x"}' + b" " * 100)
        case "bytes are missing":
            client(moto_port).delete_object(Bucket=BUCKET, Key=f"{prefix}/{data}")
        case "bytes are too few":
            client(moto_port).put_object(Bucket=BUCKET, Key=f"{prefix}/{data}", Body=b"wh")
    with pytest.raises(Unavailable) as caught:
        await service.load_artifact(SCOPE, "a")
    assert (caught.value.code, caught.value.retryable) == ("artifact.damaged", False)
    await service.delete_artifact(SCOPE, "a")
    assert await names_of(service, SCOPE) == []
    assert await service.save_artifact(SCOPE, "a", b"anew") == 0


# -- a store that checks signatures and ignores conditions ---------------------------------------------------------------


async def test_a_store_that_ignores_conditions_is_refused_before_the_first_write(nanio_port, prefix):
    service = service_at(nanio_port, prefix)
    for call in (
        service.save_artifact(SCOPE, "a", b"x"),
        service.delete_artifact(SCOPE, "a"),
        service.delete_session_artifacts(SCOPE),
        service.delete_user_artifacts("app", "alice"),
    ):
        with pytest.raises(Unsupported) as caught:
            await call
        assert caught.value.code == "artifact.unconditional_store"
    assert keys_below(nanio_port, prefix) == [".conditional-writes"]
    assert await names_of(service, SCOPE) == []


async def test_what_only_reads_works_there_with_real_signatures(moto_port, nanio_port, prefix, service):
    large = bytes(range(256)) * 8000
    for data in (b"zero", large):
        await service.save_artifact(SCOPE, "a/ä.bin", data, mime_type="image/png")
    for key in keys_below(moto_port, prefix):
        body = client(moto_port).get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read()
        client(nanio_port).put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=body)
    copied = service_at(nanio_port, prefix)
    assert await names_of(copied, SCOPE) == ["a/ä.bin"]
    assert [v.size for v in await versions_of(copied, SCOPE, "a/ä.bin")] == [4, len(large)]
    assert await load_bytes(copied, SCOPE, "a/ä.bin") == large
    opened = await copied.open_artifact(SCOPE, "a/ä.bin", start=5, end=-5 + len(large))
    assert await opened.read() == large[5:-5]
    url = await copied.presigned_url(SCOPE, "a/ä.bin", 0)
    assert await asyncio.to_thread(lambda: urllib.request.urlopen(url).read()) == b"zero"
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(urllib.request.urlopen, url[:-1] + ("0" if url[-1] != "0" else "1"))
    caught.value.close()
    assert caught.value.code == 403


# -- what the driver says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: error sending request",
            "no credentials",
        ),
        ("PUT http://169.254.169.254/latest/api/token - status code: 403 Forbidden: ", "no credentials"),
        (
            "GET http://h/b - status code: 301 Moved Permanently: <Error><Code>PermanentRedirect</Code></Error>",
            "another region",
        ),
        ("GET http://h/b - status code: 400 Bad Request: <Error><Code>ExpiredToken</Code></Error>", "have expired"),
        ("PUT http://h/b - status code: 501 Not Implemented: ", "If-None-Match"),
        ("PUT http://h/b - status code: 418 : ", "refuses the request"),
        ("PUT http://h/b - status code: 409 Conflict: ", None),
        ("GET http://h/b - status code: 429 Too Many Requests: ", None),
        ("GET http://h/b - status code: 503 Slow Down: ", None),
        ("GET http://h/b - HTTP error: error sending request", None),
    ],
)
def test_what_lasts_is_told_with_what_to_do(said, advice):
    raised = unavailable("s3://bucket", GenericError(said))
    assert raised.retryable == (advice is None)
    assert (advice or "try again later") in raised.message


# -- addresses and options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://", "s3:///prefix", "s3://key:SENTINEL@bucket", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/a b",
        "s3://bucket/%2e%2e", "s3://bucket#SENTINEL", "s3://bucket?secret_access_key=SENTINEL", "s3://bucket/" + "x" * 257,
        "az://container?region=x", "gs://bucket?account=x", "bucket", "",
    ],
)  # fmt: skip
def test_urls_that_name_no_bucket_are_refused(url):
    with pytest.raises(InvalidInput) as caught:
        S3ArtifactService(url)
    assert caught.value.code == "artifact.invalid_url"
    assert "SENTINEL" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://bucket", "http://127.0.0.1/bucket", "file:///tmp", "postgres://u:SENTINEL@h/d"])
def test_other_urls_are_unsupported(url):
    for make in (S3ArtifactService, artifact_service_at):
        with pytest.raises(Unsupported) as caught:
            make(url)
        assert caught.value.code == "artifact.unsupported_url"
        assert "SENTINEL" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("s3://bucket", S3Store),
        ("s3://bucket/", S3Store),
        ("s3://bucket/a/b?", S3Store),
        ("gs://bucket/a", GCSStore),
        ("az://container/a?account=x", AzureStore),
    ],
)
def test_urls_of_stores(url, store):
    bucket = S3ArtifactService(url)._bucket
    assert bucket.where == url.partition("?")[0].rstrip("/")
    assert isinstance(bucket._store, store)


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"no_such_option": "SENTINEL"}},
        {"options": {"client_options": {"no_such_option": "SENTINEL"}}},
        {"timeout": 0},
        {"timeout": True},
        {"prefix": "a"},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(InvalidInput) as caught:
        S3ArtifactService("s3://bucket", **options)
    assert caught.value.code == "artifact.invalid_option"
    assert "SENTINEL" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("options", [{"endpoint": "http://x"}, {"region": "x"}, {"options": {"a": 1}}, {"prefix": "../x"}])
def test_an_existing_store_takes_a_prefix_only(options):
    with pytest.raises(InvalidInput) as caught:
        S3ArtifactService(MemoryStore(), **options)
    assert caught.value.code == "artifact.invalid_option"


@pytest.mark.parametrize("store", [LocalStore(), None, 7, object()])
def test_what_is_no_store_is_refused(store):
    with pytest.raises(InvalidInput) as caught:
        S3ArtifactService(store)
    assert caught.value.code == "artifact.invalid_option"


def test_an_endpoint_belongs_to_s3():
    with pytest.raises(InvalidInput):
        S3ArtifactService("gs://bucket", endpoint="http://127.0.0.1:1")


async def test_the_endpoint_may_stand_in_the_url(moto_port, prefix, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    service = artifact_service_at(f"s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{moto_port}&region=eu-west-1")
    assert await service.save_artifact(SCOPE, "a", b"x") == 0
    assert await names_of(service_at(moto_port, prefix), SCOPE) == ["a"]


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from sojourn import S3ArtifactService\n"
        "try: S3ArtifactService('s3://bucket')\n"
        "except Exception as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'sojourn[s3]'" in said
    assert "[artifact.not_installed]" in said
