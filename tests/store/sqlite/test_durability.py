"""`kill -9`: what was acknowledged is there, and nothing is there by halves."""

from pathlib import Path

import pytest

from sojourn.run.status import RunStatus
from sojourn.run.types import RunQuery
from sojourn.testing.world import all_events, all_runs, all_sessions
from tests.store.sqlite.processes import other

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("lines", [1, 9, 40, 250])
async def test_what_was_acknowledged_survives_a_kill(path: Path, opened, lines: int) -> None:
    acknowledged: dict[str, int] = {}
    with other("append_for_ever", path) as process:
        for _ in range(lines):
            note(acknowledged, process.stdout.readline())
        process.kill()
        for line in process.stdout:
            note(acknowledged, line)
    store = opened()
    sessions = {s.id: s for s in await all_sessions(store, "shop")}
    assert acknowledged.keys() <= sessions.keys()
    for name, session in sessions.items():
        events = await all_events(store, session)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert len(events) >= acknowledged.get(name, 0)
        assert [e.text for e in events] == ["Hello", *(str(n) for n in range(1, len(events)))]
        # Each event and its change of state were one.
        whole = await store.get_session(app_name="shop", user_id="alice", session_id=name)
        assert whole.event_count == len(events)
        assert whole.state.get("n", 0) == len(events) - 1
    for run in await all_runs(store, RunQuery("shop")):
        assert run.status is RunStatus.RUNNING
        assert run.last_pos == sessions[run.session_id].event_count
    integrity = await store._writer.call(lambda conn: conn.execute("PRAGMA integrity_check").fetchall())
    assert integrity == [("ok",)]


def note(acknowledged: dict[str, int], line: str) -> None:
    if line.endswith("\n"):
        name, seq = line.split()
        acknowledged[name] = int(seq)
