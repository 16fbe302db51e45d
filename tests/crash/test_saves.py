"""A1 and C1: `kill -9` between the save of an artifact and the event that is to tell it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.file import FileArtifactService
from sojourn.content import Content
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.artifact_conformance import names_of, versions_of

APP, USER, SESSION, RUN = "crash", "alice", "s1", "r1"
ROOT = Path(__file__).parents[2]
MOMENTS = ("in the save", "after the save", "after the event")


class DiesInTheSave(FileArtifactService):
    """Kills its process when a version is there and nobody has been told its number."""

    async def save_artifact(self, *args, **options):
        await super().save_artifact(*args, **options)
        die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def make_agent(moment):
    """An agent whose first attempt saves and dies; later ones do not save."""

    @agent
    async def saver(ctx):
        yield Content("model").with_text("begin")
        if ctx.attempt == 1:
            await ctx.artifacts.save("report.txt", "a report")
            await ctx.artifacts.save("user:note.txt", "a note")
            if moment == "after the event":
                yield Content("model").with_text("saved")
            die()
        yield Content("model").with_text("end")

    return saver


def make_runner(directory, moment, artifacts):
    store = DatabaseSessionService(f"sqlite:///{directory}/sessions.db")
    return Runner(app_name=APP, agent=make_agent(moment), session_service=store, artifact_service=artifacts)


async def live_and_die(directory, moment):
    """The first process."""
    service = DiesInTheSave if moment == "in the save" else FileArtifactService
    runner = make_runner(directory, moment, service(f"{directory}/artifacts"))
    await (await runner.start(USER, SESSION, "go", run_id=RUN)).wait()


async def go_on(directory, moment):
    """The second process: takes up the run, and reads everything."""
    artifacts = FileArtifactService(f"{directory}/artifacts")
    runner = make_runner(directory, moment, artifacts)
    async with runner:
        run = await runner.follow(RUN)
        assert await run.result() == "end"
        assert run.record.deaths == 1
        frames = [frame async for frame in run.frames(partials=False)]
    events = await runner.store.list_events(app_name=APP, user_id=USER, session_id=SESSION, superseded=True)
    session = await runner.store.get_session(app_name=APP, user_id=USER, session_id=SESSION)
    await runner.store.close()
    names = await names_of(artifacts, scope_of(session))
    versions = [v for name in names for v in await versions_of(artifacts, scope_of(session), name)]
    return frames, events, versions


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_was_saved_before_the_process_was_killed_is_told(tmp_path, moment):
    program = [sys.executable, "-m", "tests.crash.test_saves", str(tmp_path), moment]
    first = subprocess.run(program, cwd=ROOT, timeout=50, check=False)
    assert first.returncode == -signal.SIGKILL
    frames, events, versions = asyncio.run(go_on(tmp_path, moment))
    assert [f.pos for f in frames] == list(range(1, len(frames) + 1))
    saved = ["report.txt"] if moment == "in the save" else ["report.txt", "user:note.txt"]
    assert [(v.name, v.version, v.run_id) for v in versions] == [(name, 0, RUN) for name in saved]
    told = [e.actions.artifact_delta for e in events if e.actions.artifact_delta]
    assert told == [dict.fromkeys(saved, 0)]
    teller = next(e for e in events if e.actions.artifact_delta)
    assert teller.attempt == (1 if moment == "after the event" else 2)
    assert [e.text for e in events if not e.superseded and e.text] == ["go", "begin", "end"]


if __name__ == "__main__":
    asyncio.run(live_and_die(*sys.argv[1:]))
