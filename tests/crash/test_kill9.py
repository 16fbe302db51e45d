"""C1: `kill -9` at any point, many times over: what was acknowledged is there, and everything comes to its end."""

import asyncio
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.run.store import MAX_DEATHS
from sojourn.runner.runner import Runner
from sojourn.session.state import State, StateDelta
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.clock import ManualPlatform
from tests.crash import worker

ROUNDS = 60
ROOT = Path(__file__).parents[2]
SEED = 20260101


class Processes:
    """Starts worker processes, one after the other, and kills them."""

    def __init__(self, directory, module="tests.crash.worker", url=None):
        self.path = str(directory / "sessions.db")
        self.url = url or f"sqlite:///{self.path}"
        self.notes_path = str(directory / "notes")
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._started = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._nursery.stdin.close()
        self._nursery.wait(20)
        self._nursery.stdout.close()

    def live_and_die(self, seconds, lines=None):
        """Lets a process live for a while, or until it has noted so many lines, and kills it."""
        before = self._lines()
        print(json.dumps([self.url, self._started, self.notes_path]), file=self._nursery.stdin, flush=True)
        pid = int(self._nursery.stdout.readline())
        death = os.pidfd_open(pid)
        try:
            if lines is None:
                select.select([death], [], [], seconds)
            else:
                tries = iter(range(int(seconds / 0.005)))
                while self._lines() - before < lines and next(tries, None) is not None:
                    select.select([death], [], [], 0.005)
            os.kill(pid, signal.SIGKILL)
            select.select([death], [], [], 20)
        finally:
            os.close(death)
        # What was recorded without an acknowledgement is started again by its id.
        told = [int(n[key][1:]) for n in self.notes() for key in ("started", "run", "ended") if key in n]
        self._started = max(told, default=-1) + 1

    def _lines(self):
        path = Path(self.notes_path)
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def notes(self):
        try:
            lines = Path(self.notes_path).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]


async def finish(url, notes_path):
    """Takes up what is left and waits for its end."""
    store = DatabaseSessionService(url)
    runner = Runner(app_name=worker.APP, agent=worker.make_agent(worker.Notes(notes_path)), session_service=store)
    try:
        async with runner:
            while left := await store.unfinished(worker.APP):
                for question in await runner.list_interrupts():
                    await runner.answer(question.run_id, question.id, "late", user_id=question.user_id)
                for record in left:
                    await (await runner.follow(record.id)).settled()
            return await read_all(store)
    finally:
        await store.close()


async def read_all(store):
    """Runs and questions by id; events, with superseded ones, and state by session."""
    runs, events, states = {}, {}, {}
    questions = {q.id: q for q in await store.list_interrupts(worker.APP, open_only=False)}
    for user, session in worker.SESSIONS:
        found, after = [], 0
        while page := await store.list_events(
            app_name=worker.APP, user_id=user, session_id=session, after=after, limit=1000, superseded=True
        ):
            found += page
            after = page[-1].seq
        events[user, session] = found
        states[user, session] = (await store.get_session(app_name=worker.APP, user_id=user, session_id=session)).state
        for run_id in {e.run_id for e in found}:
            runs[run_id] = await store.get_run(worker.APP, run_id, user)
    return runs, questions, events, states


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_that_is_killed_at_random_points_loses_and_repeats_nothing(tmp_path):
    with Processes(tmp_path) as processes:
        live_and_die(processes)
    check(processes)
    with closing(sqlite3.connect(processes.path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_on_postgresql(tmp_path, postgres):
    postgres.psql("CREATE DATABASE kill9")
    with Processes(tmp_path, url=postgres.url("kill9")) as processes:
        live_and_die(processes)
    check(processes)


def live_and_die(processes):
    """Kills one process after the other."""
    chance = ManualPlatform(seed=SEED)
    for n in range(ROUNDS):
        if n % 2:
            processes.live_and_die(0.02 + chance.random() * 0.25)
        else:
            # However slow the machine is, it gets to do something.
            processes.live_and_die(10.0, lines=5 + int(chance.random() * 60))


def check(processes):
    """Brings everything to its end, and looks whether it is whole."""
    assert not [n for n in processes.notes() if "broken" in n]
    runs, questions, events, states = asyncio.run(finish(processes.url, processes.notes_path))
    notes = processes.notes()
    assert sum(r.attempt > 1 for r in runs.values()) > ROUNDS / 4, "too few runs were killed to tell"
    assert any(e.superseded for log in events.values() for e in log), "no run took another way"
    assert any(r.error and r.error.code == "run.lost" for r in runs.values()), "no attached run was lost"

    check_acknowledged(notes, runs, questions, events)
    check_log(runs, questions, events)
    check_effects(notes, runs)
    check_state(events, states)


def check_acknowledged(notes, runs, questions, events):
    """Runs whose start was confirmed, answers that were taken, and events that a reader was shown, are there."""
    stored = {e.id: e for log in events.values() for e in log}
    for note in notes:
        if "started" in note:
            record = runs[note["started"]]
            assert (record.user_id, record.session_id) == (note["user"], note["session"])
        if "seen" in note:
            event = stored[note["seen"]]
            assert (event.run_id, event.pos, event.text) == (note["run"], note["pos"], note["text"])
        if "answered" in note:
            question = questions[note["answered"]]
            assert (question.run_id, question.status, question.answer) == (note["run"], "answered", note["value"])
        if "ended" in note:
            assert runs[note["ended"]].status.terminal


def check_log(runs, questions, events):
    """Numbers have no gaps, every run has ended, and what counts of each is what its agent says, once and in order."""
    said = defaultdict(list)
    for log in events.values():
        assert [e.seq for e in log] == list(range(1, len(log) + 1))
        for event in log:
            if not event.superseded:
                said[event.run_id].append(event)
        numbers = [runs[e.run_id].no for e in log if e.author == "user" and e.ordinal == 0]
        assert numbers == sorted(set(numbers)), "runs of a session begin in their order, each once"
    for run_id, record in runs.items():
        log = [e for found in events.values() for e in found if e.run_id == run_id and e.pos is not None]
        assert [e.pos for e in log] == list(range(2, len(log) + 2))
        assert record.last_pos == len(log) + 2
        texts = [e.text for e in said[run_id][1:]]
        if record.status is RunStatus.COMPLETED:
            answers = [q.answer for q in questions.values() if q.run_id == run_id and q.status == "answered"]
            assert [t for t in texts if t and not t.isdigit()] == expected_texts(run_id, answers)
        elif record.error.code == "run.lost":
            assert worker.is_attached(run_id)
            assert record.attached
        else:
            assert (record.status, record.error.code) == (RunStatus.FAILED, "run.crash_loop")
            # More if a process was killed between beginning and storing this very end.
            assert record.deaths >= MAX_DEATHS


def expected_texts(run_id, answers):
    texts = ["begin"]
    for n in range(worker.STEPS):
        if n == 2 and worker.asks(run_id):
            texts.append(f"got {answers[0]}")
        texts.append(f"step {n} gave {n * n}")
        if not (n == 1 and worker.changes_its_mind(run_id)):
            texts.append("done")
    return [*texts, "end"]


def check_effects(notes, runs):
    """No effect is repeated but the one that was in flight when its process died."""
    effects = defaultdict(list)
    for note in notes:
        if "effect" in note:
            effects[note["run"]].append(note["effect"])
    for run_id, done in effects.items():
        assert done == sorted(done), f"{run_id} did a finished step again: {done}"
        repeated = sum(count - 1 for count in Counter(done).values())
        assert repeated <= runs[run_id].attempt - 1
        if runs[run_id].status is RunStatus.COMPLETED:
            assert set(done) == set(range(worker.STEPS))


def check_state(events, states):
    """The state is what the events that count add up to."""
    users = defaultdict(lambda: State({}))
    folded = {}
    for (user, session), log in events.items():
        own = folded[user, session] = State({})
        for event in log:
            if not event.superseded:
                fold(own, users[user], event)
    for (user, session), state in states.items():
        assert state == {**folded[user, session].to_dict(), **users[user].to_dict()}


def fold(own: State, shared: State, event: Event) -> None:
    delta = StateDelta.of(event.actions)
    for state, is_users in ((own, False), (shared, True)):
        state.apply(
            StateDelta(
                {k: v for k, v in delta.values.items() if k.startswith("user:") is is_users},
                {k: v for k, v in delta.deleted.items() if k.startswith("user:") is is_users},
                {k: v for k, v in delta.increments.items() if k.startswith("user:") is is_users},
            )
        )
