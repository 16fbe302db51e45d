"""A run that is refused when it is submitted leaves nothing: no slot, no turn, no record, no session, no artifact."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, SojournError, Unavailable
from sojourn.event import ASK_CALL
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.artifact_conformance import names_of
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from sojourn.testing.world import assert_same_world, read_world
from tests.runner.support import APP, SESSION, USER, assert_at_rest, idle, make_runner

LARGE = "x" * 5000


@agent
async def helper(ctx):
    """Does what the message says: `ask`, `hang`; or answers."""
    match ctx.user_content.text:
        case "ask":
            return await ctx.ask("q", "?", schema=int)
        case "hang":
            await asyncio.Event().wait()
    return "done"


class Refusing(Plugin):
    async def on_user_message(self, key, message):
        if message.text == "refuse me":
            raise InvalidInput("not that", code="policy.refused")


@dataclass
class Scene:
    """A Runner, and what the message that is to be refused finds."""

    fields: dict = field(default_factory=dict)
    message: object = "hi"
    options: dict = field(default_factory=dict)
    earlier: tuple = ()
    user_id: str = USER
    session_id: str = SESSION
    answers: object = None
    fault: object = None
    closed: bool = False

    async def set_up(self):
        self.store = FaultyStore(InMemorySessionService())
        self.artifacts = InMemoryArtifactService()
        config = RunConfig(max_event_bytes=2048)
        fields = {"artifact_service": self.artifacts, "run_config": config, "plugins": [Refusing()], **self.fields}
        self.runner = make_runner(helper, self.store, **fields)
        self.runs = [await self.runner.start(USER, *where) for where in self.earlier]
        await idle()
        if self.answers is not None:
            (question,) = await self.runner.list_interrupts()
            part = Part.from_function_response(ASK_CALL, {"result": self.answers}, id=question.id)
            self.message = Content("user", (part,))
        if self.closed:
            await self.runner.close()
        if "run_id" in self.options and self.options["run_id"] is None:
            self.options = {**self.options, "run_id": self.runs[0].id}

    def strike(self):
        """Has the store fail in the next submission, as often as it is repeated."""
        if self.fault is not None:
            first = self.store.calls["submit"] + 1
            self.store.plan.append(self.fault("submit", first, first + 1, first + 2))

    async def seen(self):
        """All that a refused run could have changed."""
        names = {}
        for key in {run.key for run in (await self.runner.list_runs()).items}:
            session = await self.runner.get_session(key.user_id, key.session_id)
            names[key] = await names_of(self.artifacts, scope_of(session))
        limiter = self.runner.limiter
        jobs = {uid: job.live.record.status for uid, job in self.runner.hub.jobs.items()}
        return await read_world(self.store.inner, (APP,)), names, (limiter.active, limiter.queued, limiter.abandoned), jobs


BUSY = (("s1", "hang"),)
ONE = {"max_concurrency": 1, "max_queue": 0}
SCENES = {
    "an empty message": ("message.invalid", Scene(message="")),
    "a message that is no text": ("message.invalid", Scene(message=7)),
    "a lone surrogate": ("message.invalid", Scene(message="\ud800")),
    "content without parts": ("message.invalid", Scene(message=Content("user"))),
    "a call": ("message.invalid", Scene(message=Content("user", (Part.from_function_call("f", {}, id="c"),)))),
    "a bad user id": ("id.invalid", Scene(user_id="")),
    "a bad session id": ("id.invalid", Scene(session_id="a\nb")),
    "a bad run id": ("id.invalid", Scene(options={"run_id": ""})),
    "metadata": ("run.metadata_too_large", Scene(options={"run_config": RunConfig(custom_metadata={"a": LARGE})})),
    "a large message without artifacts": ("event.too_large", Scene(fields={"artifact_service": None}, message=LARGE)),
    "a plugin": ("policy.refused", Scene(message="refuse me")),
    "no session": ("session.not_found", Scene(options={"create_session": False})),
    "no session for a large message": ("session.not_found", Scene(message=LARGE, options={"create_session": False})),
    "full": ("limit.queue_full", Scene(fields=ONE, earlier=(("other", "hang"),))),
    "full for a large message": ("limit.queue_full", Scene(fields=ONE, earlier=(("other", "hang"),), message=LARGE)),
    "full in its session": ("limit.queue_full", Scene(fields=ONE, earlier=BUSY)),
    "full for one that replaces": (
        "limit.queue_full",
        Scene(fields=ONE, earlier=(("other", "hang"),), options={"run_config": RunConfig(when_busy="replace")}),
    ),
    "busy": ("session.busy", Scene(earlier=BUSY, options={"run_config": RunConfig(when_busy="reject")})),
    "busy for a large message": (
        "session.busy",
        Scene(earlier=BUSY, message=LARGE, options={"run_config": RunConfig(when_busy="reject", max_event_bytes=2048)}),
    ),
    "another run of its id": ("run.conflict", Scene(earlier=(("other", "done"),), options={"run_id": None})),
    "another run of its id, large": (
        "run.conflict",
        Scene(earlier=(("other", "done"),), options={"run_id": None}, message=LARGE),
    ),
    "an answer to nothing": (
        "interrupt.not_found",
        Scene(message=Content("user", (Part.from_function_response(ASK_CALL, {"result": 1}, id="nobody"),))),
    ),
    "a wrong answer": ("interrupt.invalid_answer", Scene(earlier=(("s1", "ask"),), answers="one")),
    "a large answer": ("interrupt.answer_too_large", Scene(earlier=(("s1", "ask"),), answers=LARGE)),
    "closed": ("runner.closed", Scene(closed=True)),
    "the store is away": ("store.unavailable", Scene(fault=fail_before)),
}


async def in_a_loop(runner, *message, **options):
    async for _ in runner.run(*message, **options):
        raise AssertionError("it says something")


async def one_item(runner, *message, **options):
    async with runner.run(*message, **options) as stream:
        await anext(stream)


async def as_a_handle(runner, *message, **options):
    await runner.start(*message, **options)


@pytest.mark.parametrize("submit", [in_a_loop, one_item, as_a_handle])
@pytest.mark.parametrize("name", SCENES)
def test_a_refused_run_leaves_nothing(name, submit):
    code, template = SCENES[name]

    @for_seeds(5)
    async def check():
        scene = replace(template)
        await scene.set_up()
        runner = scene.runner
        before = await scene.seen()
        for _ in range(1 + int(platform.random() * 3)):
            scene.strike()
            with pytest.raises(SojournError) as refused:
                await submit(runner, scene.user_id, scene.session_id, scene.message, **scene.options)
            assert refused.value.code == code
            await idle()
        world, *rest = await scene.seen()
        assert_same_world(world, before[0])
        assert rest == list(before[1:])
        assert not runner.hub.recording
        assert not runner.dispatcher.recording
        if scene.closed:
            return
        await asyncio.gather(*(run.cancel() for run in scene.runs if run.status is not RunStatus.COMPLETED))
        await idle()
        assert await (await runner.start(USER, SESSION, "hi")).result() == "done"
        await idle()
        assert_at_rest(runner)

    check()


@pytest.mark.parametrize("submit", [in_a_loop, one_item, as_a_handle])
def test_a_run_whose_record_nobody_could_hear_of_is_cancelled(submit):
    @for_seeds(10)
    async def check():
        scene = Scene(fault=fail_after)
        await scene.set_up()
        scene.strike()
        with raises(Unavailable, "store.unavailable"):
            await submit(scene.runner, USER, SESSION, "hang")
        await idle()
        (record,) = (await scene.runner.list_runs()).items
        assert (record.status, record.error.code) == (RunStatus.CANCELLED, "run.cancelled")
        assert await (await scene.runner.start(USER, SESSION, "hi")).result() == "done"
        await idle()
        assert_at_rest(scene.runner)

    check()


@for_seeds(10)
async def test_a_run_that_a_run_may_not_wait_for_leaves_nothing():
    refused = []

    @agent
    async def nesting(ctx):
        with raises(Conflict, "run.nested_session"):
            await in_a_loop(runner, ctx.user_id, ctx.session_id, LARGE)
        refused.append(ctx.run_id)
        return "done"

    artifacts = InMemoryArtifactService()
    runner = make_runner(nesting, artifact_service=artifacts, run_config=RunConfig(max_event_bytes=2048), max_concurrency=1)
    run = await runner.start(USER, SESSION, "hi")
    assert await run.result() == "done"
    assert refused == [record.id for record in (await runner.list_runs()).items]
    assert await names_of(artifacts, scope_of(await runner.get_session(USER, SESSION))) == []
    await idle()
    assert_at_rest(runner)


class Full(InMemoryArtifactService):
    """Takes one artifact and refuses all others."""

    async def save_artifact(self, scope, name, *args, **options):
        if await names_of(self, scope):
            raise Unavailable("the disk is full", code="artifact.unavailable")
        return await super().save_artifact(scope, name, *args, **options)


@for_seeds(5)
async def test_a_message_of_which_not_all_could_be_kept_leaves_no_part_of_itself():
    artifacts = Full()
    runner = make_runner(helper, artifact_service=artifacts, run_config=RunConfig(max_event_bytes=2048))
    session = await runner.get_session(USER, SESSION, create=True)
    with raises(Unavailable, "artifact.unavailable"):
        await runner.start(USER, SESSION, Content("user", (Part(text=LARGE), Part(text=LARGE))))
    assert await names_of(artifacts, scope_of(session)) == []
    assert (await runner.list_runs()).items == []


@for_seeds(20)
async def test_a_large_message_that_is_sent_twice_at_once_is_kept_once():
    artifacts = InMemoryArtifactService()
    runner = make_runner(helper, artifact_service=artifacts, run_config=RunConfig(max_event_bytes=2048))
    runs = await asyncio.gather(*(runner.start(USER, SESSION, LARGE, run_id="r1") for _ in range(3)))
    assert [await run.result() for run in runs] == ["done"] * 3
    assert len(await names_of(artifacts, scope_of(await runner.get_session(USER, SESSION)))) == 1
