"""Who may execute runs, what everybody may do, and how the executor learns of it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sojourn.errors import Conflict, Unavailable
from sojourn.run.status import Move, RunStatus
from sojourn.store.sqlite import executor
from sojourn.store.sqlite.executor import ExecutorRole
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import ask, event, failure, new_run, reply, session_key, start, write
from tests.store.sqlite.processes import other, said_by

pytestmark = pytest.mark.anyio


# -- the role -----------------------------------------------------------------------------------------------------------


async def test_a_second_executor_is_told_who_the_first_is(store: SqliteSessionService, path: Path) -> None:
    await store.become_executor()
    [line] = said_by("execute", path)
    assert line.startswith("error store.in_use")
    assert f"process {os.getpid()} " in line
    assert "--db" in line
    assert str(path) in line


async def test_it_is_told_so_in_either_direction(store: SqliteSessionService, path: Path) -> None:
    with other("execute", path) as process:
        _, pid = process.stdout.readline().split()
        for call in (store.become_executor, lambda: start(store), lambda: store.begin(1)):
            with pytest.raises(Conflict) as caught:
                await call()
            assert caught.value.code == "store.in_use"
            assert f"process {pid} " in caught.value.message
            assert "\n" not in caught.value.message
        process.communicate()
    assert (await start(store)).status is RunStatus.RUNNING


async def test_two_objects_of_one_process_are_two(opened) -> None:
    await opened().become_executor()
    with pytest.raises(Conflict, match="this process") as caught:
        await opened().become_executor()
    assert caught.value.code == "store.in_use"


async def test_links_to_a_file_share_its_role(path: Path, opened) -> None:
    await opened().become_executor()
    link = path.parent / "link.db"
    link.symlink_to(path)
    store = SqliteSessionService(link)
    with pytest.raises(Conflict):
        await store.become_executor()
    await store.close()


async def test_claiming_again_is_nothing(store: SqliteSessionService) -> None:
    await asyncio.gather(*(store.become_executor() for _ in range(5)))
    await start(store)
    await store.become_executor()


async def test_the_role_ends_with_close(opened) -> None:
    first, second = opened(), opened()
    await first.become_executor()
    await first.close()
    await second.become_executor()


async def test_the_role_ends_with_the_process(path: Path, store: SqliteSessionService) -> None:
    with other("execute", path) as process:
        assert process.stdout.readline().startswith("executor")
        process.kill()
        process.wait()
    await store.become_executor()


def test_a_forked_child_does_not_keep_the_role(path: Path) -> None:
    with other("fork_and_wait", path) as process:
        assert process.stdout.readline() == "forked\n"
        process.kill()
        process.wait()
        # The child still waits on the same stdin.
        role = ExecutorRole(str(path))
        role.claim()
        role.release()


def test_the_file_that_is_locked_stays(path: Path) -> None:
    lock = Path(f"{path}.executor")
    role = ExecutorRole(str(path))
    role.claim()
    assert lock.read_text() == f"{os.getpid()}\n"
    inode = lock.stat().st_ino
    role.release()
    assert lock.stat().st_ino == inode
    assert lock.read_text() == ""


def test_a_client_that_looks_is_not_taken_for_an_executor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, role = ExecutorRole(str(path)), ExecutorRole(str(path))
    look = client.vacant()
    assert look.__enter__() is True

    class Event:
        def wait(self, seconds: float) -> None:
            look.__exit__(None, None, None)

    monkeypatch.setattr(executor.threading, "Event", Event)
    role.claim()
    assert role.held
    with client.vacant() as vacant:
        assert not vacant
    role.release()


def test_a_role_that_cannot_be_locked_is_unavailable(tmp_path: Path) -> None:
    role = ExecutorRole(str(tmp_path / "nowhere" / "store.db"))
    with pytest.raises(Unavailable, match="nowhere"):
        role.claim()
    assert not role.held
    with role.vacant() as vacant:
        assert not vacant


# -- clients ------------------------------------------------------------------------------------------------------------


async def test_a_client_does_all_but_execute(store: SqliteSessionService, opened) -> None:
    run = await start(store)
    await ask(store, run, 1)
    queued = (await store.submit(new_run("r2"), begin=False)).record
    client = opened()
    assert (await client.get_run("shop", "r1")).status is RunStatus.WAITING
    assert len(await client.run_events(run.uid)) == 1
    await client.create_session(app_name="shop", user_id="alice", session_id="s2")
    await client.patch_session(app_name="shop", user_id="alice", session_id="s2", state_delta={"a": 1})
    await client.delete_session(app_name="shop", user_id="alice", session_id="s2")
    assert (await reply(client, run)).record.status is RunStatus.QUEUED
    assert (await client.request_cancel(run.uid, "enough")).status is RunStatus.CANCELLED
    assert (await client.close_run(queued.uid, failure(), move=Move.FAIL)).status is RunStatus.FAILED
    with pytest.raises(Conflict):
        await client.take_over(run.uid, failure(), move=Move.FAIL)


async def test_one_that_is_only_a_client_never_executes(store: SqliteSessionService, path: Path) -> None:
    client = SqliteSessionService(path, role="client")
    run = await start(store)
    await ask(store, run, 1)
    await store.close()
    calls: list[Callable[[], Awaitable[object]]] = [
        client.become_executor,
        lambda: client.submit(new_run("r2"), begin=False),
        lambda: client.begin(run.uid),
        lambda: write(client, run, move=Move.COMPLETE),
        lambda: client.take_over(run.uid, failure(), move=Move.FAIL),
    ]
    for call in calls:
        with pytest.raises(Conflict, match="role='client'") as caught:
            await call()
        assert caught.value.code == "store.client_only"
        assert str(path) in caught.value.message
    assert (await reply(client, run)).record.status is RunStatus.QUEUED
    assert (await client.request_cancel(run.uid, "enough")).status is RunStatus.CANCELLED
    await client.delete_session(app_name="shop", user_id="alice", session_id="s1")
    assert await client.changes() == []
    # None of that has made it the executor.
    with other("execute", path) as process:
        assert process.stdout.readline().startswith("executor")
    await client.close()


async def test_one_that_is_only_a_client_cancels_runs_of_the_dead(path: Path) -> None:
    client = SqliteSessionService(path, role="client")
    with other("start_and_wait", path) as process:
        _, uid = process.stdout.readline().split()
        assert (await client.request_cancel(int(uid), "enough")).status is RunStatus.RUNNING
        process.kill()
        process.wait()
    assert (await client.request_cancel(int(uid), "enough")).status is RunStatus.CANCELLED
    await client.close()


async def test_a_cancel_of_a_running_run_is_a_wish(store: SqliteSessionService, path: Path) -> None:
    run = await start(store)
    assert said_by("cancel", path, run.uid) == ["running"]
    record = await store.get_run("shop", "r1")
    assert (record.status, record.cancel_requested) == (RunStatus.RUNNING, "enough")
    await write(store, run, move=Move.COMPLETE)


async def test_a_cancel_of_a_run_whose_process_is_dead_closes_it(path: Path, store: SqliteSessionService) -> None:
    with other("start_and_wait", path) as process:
        _, uid = process.stdout.readline().split()
        process.kill()
        process.wait()
    record = await store.request_cancel(int(uid), "enough")
    assert (record.status, record.attempt) == (RunStatus.CANCELLED, 2)
    assert record.error is not None
    assert (record.error.code, record.error.message) == ("run.cancelled", "enough")
    # Looking whether there is an executor has not made this process one.
    with other("execute", path) as process:
        assert process.stdout.readline().startswith("executor")


# -- changes ------------------------------------------------------------------------------------------------------------


async def changes(store: SqliteSessionService) -> list[tuple[str, int]]:
    return [(c.kind, c.run_uid) for c in await store.changes()]


async def test_a_cancel_is_told_once(store: SqliteSessionService, opened) -> None:
    run = await start(store)
    client = opened()
    await client.request_cancel(run.uid, "enough")
    [change] = await store.changes()
    assert (change.kind, change.run_uid) == ("cancel", run.uid)
    assert change.record is not None
    assert change.record.cancel_requested == "enough"
    await client.request_cancel(run.uid, "again")
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(store) == []


async def test_an_answer_is_told_once(store: SqliteSessionService, opened) -> None:
    run = await start(store)
    await ask(store, run, 1)
    client = opened()
    await reply(client, run)
    assert await changes(store) == [("queued", run.uid)]
    await reply(client, run)
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(store) == []
    # Told again when it is answered again.
    again = (await store.begin(run.uid)).record
    await ask(store, again, 2, "q2")
    await reply(client, again, "q2")
    assert await changes(store) == [("queued", run.uid)]


@pytest.mark.parametrize("way", ["delete", "take_over"])
async def test_a_run_that_was_closed_by_others_is_told_once(store: SqliteSessionService, opened, way: str) -> None:
    run = await start(store)
    kept = await start(store, "r2", session_key("s2"))
    client = opened()
    if way == "delete":
        await client.delete_session(app_name="shop", user_id="alice", session_id="s1")
    else:
        # As a client does that finds no executor.
        client._role = ExecutorRole(f"{store.path}.elsewhere")
        await client.request_cancel(run.uid, "enough")
    [change] = await store.changes()
    assert (change.kind, change.run_uid) == ("closed", run.uid)
    assert (change.record is None) == (way == "delete")
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(store) == []
    await write(store, kept, event(kept, 1, "goes on"))


async def test_what_the_executor_did_itself_is_not_told(store: SqliteSessionService, opened) -> None:
    client = opened()
    running = await start(store, "r1", session_key("s1"))
    await store.request_cancel(running.uid, "enough")
    ended = await start(store, "r2", session_key("s2"))
    await write(store, ended, move=Move.COMPLETE)
    await store.submit(new_run("r3", session_key("s3")), begin=False)
    answered = await start(store, "r4", session_key("s4"))
    await ask(store, answered, 1)
    await reply(store, answered)
    lost = await start(store, "r5", session_key("s5"))
    await store.requeue_lost(lost.uid)
    taken = await start(store, "r6", session_key("s6"))
    await store.take_over(taken.uid, failure(), move=Move.FAIL)
    shut_down = await start(store, "r7", session_key("s7"))
    await write(store, shut_down, move=Move.REQUEUE)
    await start(store, "r8", session_key("s8"))
    await store.delete_session(app_name="shop", user_id="alice", session_id="s8")
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(store) == []


async def test_a_look_sees_what_the_executor_does_at_the_same_time(store: SqliteSessionService, opened) -> None:
    await store.become_executor()
    await opened().create_session(app_name="shop", user_id="alice")
    submitted, found = await asyncio.gather(store.submit(new_run(), begin=False), store.changes())
    assert submitted.record.status is RunStatus.QUEUED
    assert found == []


async def test_what_a_client_did_before_it_became_the_executor_is_past(opened) -> None:
    first, second = opened(), opened()
    run = await start(first)
    await ask(first, run, 1)
    await reply(second, run)
    again = (await first.begin(run.uid)).record
    await ask(first, again, 2, "q2")
    await first.close()
    await second.become_executor()
    await reply(opened(), again, "q2")
    assert await changes(second) == [("queued", run.uid)]


async def test_a_wish_that_meets_an_append_is_told(store: SqliteSessionService, opened) -> None:
    run = await start(store)
    await opened().request_cancel(run.uid, "enough")
    await write(store, run, event(run, 1, "goes on"))
    assert await changes(store) == [("cancel", run.uid)]


async def test_what_was_there_before_the_executor_is_not_told(opened) -> None:
    first = opened()
    await first.submit(new_run("r1"), begin=False)
    await first.submit(new_run("r2", session_key("s2", app_name="other")), begin=False)
    waiting = await start(first, "r3", session_key("s3"))
    await ask(first, waiting, 1)
    await first.close()

    second, client = opened(), opened()
    await second.become_executor()
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(second) == []
    await reply(client, waiting)
    assert [(r.id, r.status) for r in await second.unfinished("shop")] == [
        ("r1", RunStatus.QUEUED),
        ("r3", RunStatus.QUEUED),
    ]
    await client.create_session(app_name="shop", user_id="alice")
    assert await changes(second) == []


async def test_an_answer_after_the_unfinished_were_listed_is_told(opened) -> None:
    first = opened()
    run = await start(first)
    await ask(first, run, 1)
    await first.close()
    second = opened()
    await second.become_executor()
    await second.unfinished("shop")
    await reply(opened(), run)
    assert await changes(second) == [("queued", run.uid)]


async def test_only_an_executor_is_told(store: SqliteSessionService, opened) -> None:
    client = opened()
    assert await client.changes() == []
    run = await start(store)
    await store.request_cancel(run.uid, "enough")
    assert await client.changes() == []


async def test_a_look_that_finds_nothing_reads_no_runs(store: SqliteSessionService, opened) -> None:
    run = await start(store)
    client = opened()
    await client.create_session(app_name="shop", user_id="alice")
    await store.changes()
    seen: list[str] = []
    await store._writer.call(lambda conn: conn.set_trace_callback(seen.append))
    await write(store, run, event(run, 1, "own"))
    await store._writer.call(lambda conn: seen.clear())
    assert await store.changes() == []
    assert [s for s in seen if s not in ("BEGIN", "ROLLBACK")] == ["PRAGMA data_version"]
    await store._writer.call(lambda conn: conn.set_trace_callback(None))


async def test_what_other_processes_do_is_told(path: Path, store: SqliteSessionService) -> None:
    running = await start(store, "r1", session_key("s1"))
    waiting = await start(store, "r2", session_key("s2"))
    await ask(store, waiting, 1)
    deleted = await start(store, "r3", session_key("s3"))
    assert await store.changes() == []
    assert said_by("cancel", path, running.uid) == ["running"]
    assert await changes(store) == [("cancel", running.uid)]
    assert said_by("answer", path, "r2") == ["queued"]
    assert await changes(store) == [("queued", waiting.uid)]
    begun = await store.begin(waiting.uid)
    assert begun.interrupts[0].answer == "yes"
    assert said_by("delete", path, "s3") == ["deleted"]
    assert await changes(store) == [("closed", deleted.uid)]
