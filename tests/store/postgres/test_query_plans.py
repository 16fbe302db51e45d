"""What is read costs by what it gives, not by what there is: the blocks that statements touch, in small and in large tables."""

import json

import asyncpg
import pytest

from sojourn.postgres.migrations import in_schema
from sojourn.store.postgres import history, records, sessions, watch
from sojourn.testing.builders import session_key, start
from sojourn.testing.world import all_events

pytestmark = pytest.mark.anyio

FILL = """
    INSERT INTO {schema}.events (sid, seq, run_uid, pos, ordinal, path, attempt, body)
    SELECT $1, n, $2, n, n, '', 1, '{"id":"e' || n || '","author":"helper","content":{"parts":[{"text":"' || n || '"}]}}'
    FROM generate_series($3::bigint, $4::bigint) n
"""
MANY = """
    INSERT INTO {schema}.sessions (uid, app_name, user_id, id, event_count, run_no, created_at, updated_at)
    SELECT 'u' || n, 'shop', 'user' || n % 50, 's' || n, 0, 0, 0, 0 FROM generate_series($1::int, $2::int) n
"""
MANY_RUNS = """
    INSERT INTO {schema}.runs (sid, id, app_name, user_id, no, status, attempt, config, attached, last_pos, created_at, finished_at)
    SELECT sid, 'r' || sid, app_name, user_id, 1, 'completed', 1, '{}', false, 1, 0, 1 FROM {schema}.sessions
    WHERE id <> 's1' ON CONFLICT DO NOTHING
"""


async def blocks(conn: asyncpg.Connection, statement: str, *args: object) -> int:
    """How many blocks a statement touches, once its plan is made."""
    await conn.fetch(statement, *args)
    (row,) = await conn.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *args)
    plan = json.loads(row[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_reading_costs_by_what_it_gives(store, schema, admin):
    def text(sql):
        return in_schema(sql, schema)

    run = await start(store, key=session_key("s1"))
    sid = await admin.fetchval(text("SELECT sid FROM {schema}.runs WHERE uid = $1"), run.uid)
    key = ("shop", "alice", "s1")
    costs = []
    for size in (1_000, 30_000):
        newest = await admin.fetchval(text("SELECT max(seq) FROM {schema}.events WHERE sid = $1"), sid)
        await admin.execute(text(FILL), sid, run.uid, newest + 1, size)
        await admin.execute(text("UPDATE {schema}.sessions SET event_count = $2 WHERE sid = $1"), sid, size)
        await admin.execute(text(MANY), newest + 1, size // 10)
        await admin.execute(text(MANY_RUNS))
        for table in ("events", "sessions", "runs", "calls", "state"):
            await admin.execute(f'VACUUM ANALYZE "{schema}".{table}')
        costs.append(
            {
                "window": await blocks(admin, text(history._WINDOW), *key, 50),
                "page": await blocks(admin, text(history._PAGE), sid, size // 2, False, 50),
                "of a run": await blocks(admin, text(history._OF_RUN), run.uid, size // 2, 50),
                "session": await blocks(admin, text(sessions._GET), *key),
                "run": await blocks(admin, text(records._BY_ID_AND_USER), "shop", run.id, "alice"),
                "unfinished": await blocks(admin, text(records._UNFINISHED), "shop"),
                "active": await blocks(admin, text(watch._ACTIVE)),
                "apps": await blocks(admin, text(sessions._APPS)),
            }
        )
    small, large = costs
    # Trees get a level or two higher.
    assert {what: (small[what], cost) for what, cost in large.items() if cost > small[what] + 12} == {}
    assert len(await all_events(store, await store.get_session(app_name="shop", user_id="alice", session_id="s1"))) == 30_000
