"""Tokens per user on a real database: what was spent outlives sessions, processes and the file's being closed."""

import pytest

from sojourn.errors import LimitExceeded
from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from tests.runner.support import SESSION, USER, make_runner
from tests.runner.test_user_tokens import talker

pytestmark = pytest.mark.anyio


@pytest.fixture
async def opened(tmp_path):
    """Opens the database, each time as a process of its own would, once the one before has closed it."""
    stores = []

    async def open_store(**options):
        for store in stores:
            await store.close()
        stores.append(DatabaseSessionService(f"sqlite:///{tmp_path / 'sessions.db'}", **options))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


async def test_the_limit_holds_when_the_file_is_opened_again(opened):
    async with make_runner(talker, await opened(), max_tokens_per_user=100) as runner:
        run = await runner.start(USER, SESSION, "2")
        assert (await run.wait()).status is RunStatus.COMPLETED
    async with make_runner(talker, await opened(), max_tokens_per_user=100) as runner:
        run = await runner.start(USER, SESSION, "9")
        assert (await run.wait()).error.code == "user.max_tokens"
        assert (await runner.usage(USER)).total.total_token_count == 120
        await runner.delete_session(USER, SESSION)
    async with make_runner(talker, await opened(), max_tokens_per_user=100) as runner:
        with pytest.raises(LimitExceeded) as caught:
            await runner.start(USER, SESSION, "1")
        assert caught.value.code == "user.max_tokens"
        assert 86_400 - 3600 < caught.value.retry_after <= 86_400 + 3600
        assert (await runner.list_runs()).items == []
        assert (await (await runner.start("ben", SESSION, "1")).wait()).status is RunStatus.COMPLETED


async def test_runs_at_once_share_what_there_is(opened):
    async with make_runner(talker, await opened(), max_tokens_per_user=400) as runner:
        runs = [await runner.start(USER, f"s{n}", "50") for n in range(4)]
        assert {(await run.wait()).error.code for run in runs} == {"user.max_tokens"}
        assert 400 <= (await runner.usage(USER)).total.total_token_count < 400 + 4 * 40


async def test_a_client_reads_what_was_spent(opened):
    async with make_runner(talker, await opened()) as runner:
        await (await runner.start(USER, SESSION, "2")).wait()
    usage = await make_runner(talker, await opened(role="client")).usage(USER)
    assert usage.total.total_token_count == sum(b.usage.total_token_count for b in usage.buckets) == 80
