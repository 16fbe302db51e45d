"""`kill -9` at each statement of each kind of write: all of it is there, or nothing."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from sojourn import platform
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.world import assert_same_world, read_world
from tests.crash.writes import WRITES, prepare, users_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]


@contextmanager
def nursery():
    """Starts processes that are killed, one after the other: a coroutine function that gives what each ends with."""
    command = [sys.executable, "-m", "tests.crash.writes"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        async def live_and_die(*what):
            print(json.dumps(what), file=process.stdin, flush=True)
            return int(await asyncio.to_thread(process.stdout.readline))

        yield live_and_die
        process.stdin.close()


@asynccontextmanager
async def opened(url, options):
    """The database as its executor has it: what a cancel does depends on whether there is one."""
    store = DatabaseSessionService(url, **options)
    await store.become_executor()
    try:
        yield store
    finally:
        await store.close()


async def everything(store, app):
    """All that there is of an app, under a name that is the same for all."""
    return under_one_name(
        {
            **await read_world(store, [app]),
            "dropped": [session.key for session in await store.dropped_sessions(app)],
            "users": {user: (await store.apps_of_user(user), await store.user_state(app, user)) for user in users_of(app)},
        },
        app,
    )


def under_one_name(value, app):
    match value:
        case str():
            return value.replace(app, "app")
        case dict():
            return {under_one_name(name, app): under_one_name(one, app) for name, one in value.items()}
        case list() | tuple():
            return [under_one_name(one, app) for one in value]
    return value


async def kill_at_each_statement(url, options, quiet, *, after):
    """Fails unless each write is there as a whole or not at all, wherever its process was killed."""
    before, done, alive, rounds = None, {}, list(WRITES), 0
    with nursery() as live_and_die:
        for number in count():
            apps = {kind: f"{place}-{number}." for place, kind in enumerate(WRITES) if kind in alive}
            with platform.use(ManualPlatform(seed=number)):
                async with opened(url, options) as store:
                    await asyncio.gather(*(prepare(store, app) for app in apps.values()))
                    if before is None:
                        await prepare(store, "before.")
                        before = await everything(store, "before.")
                        for kind, write in WRITES.items():
                            await prepare(store, f"{kind}.")
                            await write(store, f"{kind}.")
                            done[kind] = await everything(store, f"{kind}.")
                            assert done[kind] != before, kind
                ended = {kind: await live_and_die("change", url, options, apps[kind], kind, number, after) for kind in alive}
                await quiet()
                async with opened(url, options) as store:
                    worlds = await asyncio.gather(*(everything(store, app) for app in apps.values()))
                    for kind, found in zip(apps, worlds, strict=True):
                        if ended[kind] == 0 or found != before:
                            assert_same_world(found, done[kind])
            assert set(ended.values()) <= {0, -signal.SIGKILL}, ended
            alive = [kind for kind in alive if ended[kind]]
            rounds += len(alive)
            if not alive:
                break
    assert rounds >= 50


async def test_on_sqlite(tmp_path):
    async def quiet():
        pass

    await kill_at_each_statement(f"sqlite:///{tmp_path / 'store.db'}", {"synchronous": "normal"}, quiet, after=False)


async def test_on_postgresql(postgres):
    postgres.psql("CREATE DATABASE writes")
    admin = await asyncpg.connect(postgres.url())

    async def quiet():
        """Waits until the server has noticed that a process is gone, and has done what that had told it."""
        while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = 'writes'"):
            await asyncio.sleep(0)

    await kill_at_each_statement(postgres.url("writes"), {}, quiet, after=True)
    await admin.close()
