"""The care of data on PostgreSQL."""

import pytest

from sojourn.data import DataCare, Pruned, Retention
from sojourn.errors import Fenced, Unavailable, Unsupported
from sojourn.run.types import RunQuery
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.builders import event, finished, session_key, start, write
from sojourn.testing.suite import raises
from tests.data.support import APP, archive_of, beside, check_strange_users, fill
from tests.store.postgres.conftest import proxy, wiped  # noqa: F401

pytestmark = pytest.mark.anyio


@pytest.fixture
async def opened(postgres, wiped):  # noqa: F811
    stores = []

    def open_store(**options):
        stores.append(PostgresSessionService(postgres.url(), schema=wiped, **options))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


async def test_from_the_first_day_to_the_last(opened, tmp_path):
    store, client = opened(), opened(role="client")
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "alice", word="words")
    await fill(store, artifacts, memory, "bob", word="bobs", sessions=1)
    nul = {"user:nul": "w\0rds"}
    await store.patch_session(app_name=APP, user_id="alice", session_id="s1", state_delta=nul)
    care = DataCare(client, artifacts=artifacts, memory=memory)

    report = await care.report()
    assert (report.sessions, report.runs, report.events) == (3, 9, 45)
    assert report.bytes == sum(one.bytes for one in report.page.items) > 5000

    assert await care.prune(APP, Retention(max_events=5), user_id="alice") == Pruned(0, 4, 20)
    files = await archive_of(care.export("alice"))
    assert files["end.json"] == {"sessions": 2, "events": 10, "runs": 6, "artifacts": 8, "memories": 4}
    assert files["apps/0/app.json"]["userState"] == {"user:b": "words", "user:nul": "w\0rds"}

    with raises(Unsupported, "data.backup_unsupported"):
        await care.backup(tmp_path / "copy.db")

    run = await start(store, "now", session_key())
    erased = await care.erase("alice")
    assert (erased.sessions, erased.runs) == (2, 7)
    with raises(Fenced, "run.fenced"):
        await write(store, run, event(run, 1, "a"))
    assert await store.apps_of_user("alice") == []
    assert set(await archive_of(care.export("alice"))) == {"manifest.json", "end.json"}
    assert (await care.report()).sessions == 1
    assert (await care.prune(APP, Retention(ttl=0.0))).sessions == 1
    assert await store.dropped_sessions(APP) == []


async def test_users_with_strange_ids(opened, tmp_path):
    await check_strange_users(opened(), tmp_path)


@pytest.mark.parametrize("way", ["lose_reply", "swallow"])
@pytest.mark.parametrize("statement", ["r1:message", "COMMIT"])
async def test_what_is_cut_off_is_done_by_the_next_call(postgres, wiped, proxy, way, statement):  # noqa: F811
    """Nothing is half removed, and nothing is removed twice, whether the connection broke before or after the commit."""
    store = PostgresSessionService(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres", schema=wiped)
    for n in range(6):
        await finished(store, f"r{n}", None, "a")
    # The statements are prepared by then.
    assert (await store.trim_session(session_key(), keep_events=8, limit=2)).runs == 1
    getattr(proxy, way)(statement.encode())
    runs = 0
    for _ in range(10):
        try:
            trimmed = await store.trim_session(session_key(), keep_events=4, limit=2)
        except Unavailable:
            continue
        runs += trimmed.runs
        if not trimmed.more:
            break
    assert proxy.cuts == 1
    assert runs in (2, 3)
    events = await store.list_events(app_name=APP, user_id="alice", session_id="s1", limit=100)
    assert [e.seq for e in events] == [9, 10, 11, 12]
    records = (await store.list_runs(RunQuery(APP))).items
    assert [record.trimmed for record in reversed(records)] == [True] * 4 + [False] * 2
    while (await store.drop_session(session_key(), limit=1)).state != "gone":
        pass
    assert len(await store.dropped_sessions(APP)) == 1
    await store.close()
