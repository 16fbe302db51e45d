"""All that is kept of a user, as an archive."""

import tracemalloc

import pytest

from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.data import DataCare
from sojourn.errors import InvalidInput
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, finished, session_key, start, write
from sojourn.testing.suite import raises
from tests.data.support import APP, archive_of, beside, fill

pytestmark = pytest.mark.anyio


async def test_everything_is_in_it(tmp_path):
    store = SqliteSessionService(tmp_path / "store.db", synchronous="normal")
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "alice", word="héllo", apps=("bank", APP))
    await fill(store, artifacts, memory, "bob", word="secret")
    await store.patch_session(app_name=APP, user_id="bob", session_id="s1", state_delta={"app:all": 1})
    files = await archive_of(DataCare(store, artifacts=artifacts, memory=memory).export("alice"))
    await store.close()

    manifest = files["manifest.json"]
    assert (manifest["format"], manifest["version"]) == ("sojourn.user-export", 1)
    assert (manifest["userId"], manifest["apps"]) == ("alice", ["bank", "shop"])
    assert files["end.json"] == {"sessions": 4, "events": 60, "runs": 12, "artifacts": 16, "memories": 8}
    for place in ("apps/0", "apps/1"):
        assert files[f"{place}/app.json"]["userState"] == {"user:b": "héllo"}
        assert files[f"{place}/app.json"]["usage"]["total"]["totalTokenCount"] == 42
        assert len(files[f"{place}/memories.jsonl"]) == 4
        assert files[f"{place}/artifacts/0/1/meta.json"]["name"] == "user:b.bin"
        for number in (0, 1):
            session = f"{place}/sessions/{number}"
            assert files[f"{session}/session.json"]["state"] == {"a": "héllo"}
            assert [e["seq"] for e in files[f"{session}/events.jsonl"]] == list(range(1, 16))
            runs = files[f"{session}/runs.jsonl"]
            assert [run["steps"][0]["result"] for run in runs] == [{"result": "héllo"}] * 3
            assert [run["interrupts"][0]["answer"] for run in runs] == ["héllo!"] * 3
            assert files[f"{session}/artifacts/0/1/data"] == "héllo 1".encode() * 50
            assert files[f"{session}/artifacts/0/1/meta.json"]["size"] == 400
    assert "secret" not in str(files)


async def test_one_app_alone(tmp_path):
    store = InMemorySessionService()
    for app_name in ("bank", APP):
        await finished(store, "r1", session_key(app_name=app_name), "a")
    files = await archive_of(DataCare(store).export("alice", apps=[APP]))
    assert files["manifest.json"]["apps"] == [APP]
    assert files["end.json"]["sessions"] == 1


async def test_an_unknown_user_has_nothing():
    files = await archive_of(DataCare(InMemorySessionService()).export("nobody"))
    assert set(files) == {"manifest.json", "end.json"}
    with raises(InvalidInput, "id.invalid"):
        await archive_of(DataCare(InMemorySessionService()).export(""))


async def test_what_is_trimmed_meanwhile_is_left_out():
    store = InMemorySessionService()
    run = await start(store, "r0")
    await write(store, run, *(event(run, n, "a" * 300) for n in range(1, 400)))
    for n in range(1, 400):
        await finished(store, f"r{n}", None, "a")
    pieces = DataCare(store).export("alice")
    taken = []
    async for piece in pieces:
        if not taken:
            await store.trim_session(session_key(), keep_events=10, limit=100_000)
        taken.append(piece)

    async def again():
        for piece in taken:
            yield piece

    files = await archive_of(again())
    seqs = [e["seq"] for e in files["apps/0/sessions/0/events.jsonl"]]
    assert seqs == sorted(set(seqs))
    assert seqs[-10:] == list(range(1189, 1199))


async def test_memory_does_not_grow_with_an_artifact():
    store, artifacts = InMemorySessionService(), InMemoryArtifactService()
    session = await store.create_session(app_name=APP, user_id="alice", session_id="s1")

    class Large(InMemoryArtifactService):
        async def open_artifact(self, scope, name, version=None, **options):
            opened = await super().open_artifact(scope, name, version, **options)

            async def chunks():
                for n in range(2000):
                    yield bytes([n % 256]) * 50_000

            object.__setattr__(opened, "chunks", chunks())
            return opened

    artifacts = Large()
    await artifacts.save_artifact(ArtifactScope(*SessionKey(APP, "alice", "s1"), session.uid), "big", b"x")
    tracemalloc.start()
    total = 0
    async for piece in DataCare(store, artifacts=artifacts).export("alice"):
        total += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 100_000
    assert peak < 3_000_000
