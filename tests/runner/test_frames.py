"""R1 and R2: frames are numbered without gaps, one is terminal, and any number of readers see the same."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content, Part
from sojourn.errors import NotFound, Unavailable
from sojourn.event import Event, Partial
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.live import KEPT_FRAMES
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    idle,
    make_runner,
    outcome_of,
    read_events,
    read_frames,
)


@agent
async def talker(ctx):
    """Says what its message asks for: pieces in lower case, whole messages in upper case, failures as `!`."""
    for word in ctx.user_content.text.split():
        await asyncio.sleep(0)
        if word == "!":
            raise ValueError("broken")
        if word == "?":
            await ctx.ask("q", "really?")
        elif word.isupper():
            yield Content("model").with_text(word)
        else:
            yield word


SCRIPTS = ["", "a", "a b c", "A", "A B C", "a b A c B d", "a b !", "A !", "! a", "a A b ?", "?"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_live_readers_and_later_readers_see_the_same_whole_run(script):
    @for_seeds(10)
    async def case():
        runner = make_runner(talker)
        run = await runner.start(USER, SESSION, f"{script} ")
        live = await read_frames(run)
        again = await read_frames(await runner.follow(run.id))
        assert live.frames == again.frames
        if "?" not in script:
            assert_whole(live)
            assert live.frames[-1].error == run.record.error
            assert live.frames[-1].pos == run.record.last_pos
        else:
            assert live.kinds[-1] == "interrupt"
        text = "".join(w for w in script.partition("!")[0].split() if w.isalpha())
        assert live.screen == again.screen == text
        assert again.partials == []
        assert_at_rest(runner)

    case()


@for_seeds(30)
async def test_readers_of_every_kind_see_every_text_once():
    runner = make_runner(talker)
    script = " ".join(f"{w}{n}" if n % 7 else f"W{n}" for n in range(40) for w in "ab")
    run = await runner.start(USER, SESSION, script)

    async def late(pause):
        await asyncio.sleep(pause)
        return await read_frames(await runner.follow(run.id))

    readings = await asyncio.gather(
        read_frames(run), read_frames(run, partials=False), read_frames(run, pause=0.001), late(0), late(0.001),
        read_events(run.events()), read_events(run.events(partials=False)),
    )  # fmt: skip
    assert {r.screen for r in readings} == {script.replace(" ", "")}
    assert readings[1].partials == readings[6].partials == []
    for reading in readings[:5]:
        assert_whole(reading)
        assert reading.frames == readings[0].frames


@for_seeds(20)
async def test_who_joins_late_gets_the_open_message_in_one_piece():
    go_on = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "a"
        yield "b"
        await go_on.wait()
        yield "c"

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    frames = (await runner.follow(run.id)).frames()
    first = [await anext(frames), await anext(frames)]
    assert first[0].kind == "run.started"
    assert isinstance(first[1], Partial)
    assert (first[1].offset, first[1].delta) == (0, "ab")
    go_on.set()
    rest = [i async for i in frames]
    assert [(i.offset, i.delta) for i in rest if isinstance(i, Partial)] == [(2, "c")]
    assert [i.event.delta for i in rest if not isinstance(i, Partial) and i.event] == [""]


@for_seeds(5)
async def test_a_reader_that_comes_from_the_store_gets_no_piece_of_what_it_was_given_whole():
    """The run's own process has not yet heard that its message is stored, when a reader finds it in the store."""
    store = FaultyStore(InMemorySessionService())
    submitted = hold("submit", 1, after=True)
    appended = hold("append", 1, after=True)
    store.plan += [submitted, appended]

    @agent
    async def helper(ctx):
        yield "a"
        yield Content("model").with_text("b")

    runner = make_runner(helper, store)
    starting = asyncio.ensure_future(runner.start(USER, SESSION, "hi", run_id="r1"))
    await submitted.reached.wait()
    reading = asyncio.ensure_future(read_frames(await runner.follow("r1")))
    await idle()
    submitted.go.set()
    await starting
    await appended.reached.wait()
    await asyncio.sleep(10)
    appended.go.set()
    got = await reading
    assert got.screen == "ab"
    assert_whole(got)


@for_seeds(20)
async def test_reading_again_after_a_position_gives_what_comes_after_it():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "A B C D")
    first = run.frames()
    seen = [await anext(first), await anext(first)]
    rest = await read_frames(run, after=seen[-1].pos)
    assert [f.pos for f in [*seen, *rest.frames]] == [1, 2, 3, 4, 5, 6]
    for after in range(7):
        assert (await read_frames(run, after=after)).positions == list(range(after + 1, 7))
        assert (await read_frames(await runner.follow(run.id), after=after)).positions == list(range(after + 1, 7))


@for_seeds(5)
async def test_a_position_beyond_the_end_gives_nothing():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "A B C D")
    live = await read_frames(run, after=100)
    assert (live.items, live.error) == ([], None)
    assert (await read_frames(await runner.follow(run.id), after=100)).items == []


@for_seeds(5)
async def test_partials_say_which_message_they_build_and_where():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "ab c def A gh")
    reading = await read_frames(run)
    built = {}
    for partial in reading.partials:
        assert len(built.get(partial.id, "")) == partial.offset
        assert (partial.run_id, partial.author, partial.pos, partial.seq) == (run.id, "talker", None, None)
        built[partial.id] = built.get(partial.id, "") + partial.delta
    assert built == {f.event.id: f.event.text for f in reading.frames if f.event and f.event.text != "A"}


@for_seeds(5)
async def test_thoughts_are_partials_but_no_text():
    @agent
    async def thinker(ctx):
        yield Event(partial=True, content=Content("model", (Part(text="hm", thought=True),)))
        yield Event(partial=True, content=Content("model", (Part(text="so: "),)))
        yield "42"

    runner = make_runner(thinker)
    run = await runner.start(USER, SESSION, "hi")
    reading = await read_frames(run)
    assert [(p.delta, p.thought) for p in reading.partials if p.thought] == [("hm", True)]
    assert "".join(p.delta for p in reading.partials if not p.thought) == "so: 42"
    event = reading.events[-1]
    assert (event.text, event.delta, event.content.thoughts) == ("so: 42", "", "hm")
    assert "".join([c async for c in run.result_stream()]) == "so: 42"
    assert await run.result() == "so: 42"
    late = await read_frames(await runner.follow(run.id))
    assert late.screen == "so: 42"


@for_seeds(3)
async def test_a_slow_reader_is_never_cut_and_misses_no_frame():
    messages = KEPT_FRAMES * 2

    @agent
    async def chatty(ctx):
        for n in range(messages):
            yield f"{n} "
            yield Content("model").with_text(f"{n}! ")

    store = InMemorySessionService()
    runner = make_runner(chatty, store)
    run = await runner.start(USER, SESSION, "hi")
    frames = run.frames()
    items = [await anext(frames) for _ in range(3)]
    await run.wait()
    items += [i async for i in frames]
    assert [i.pos for i in items if not isinstance(i, Partial)] == list(range(1, 2 * messages + 3))
    screen = "".join(i.event.delta if hasattr(i, "kind") and i.event else getattr(i, "delta", "") for i in items)
    assert screen == "".join(f"{n} {n}! " for n in range(messages))


@for_seeds(3)
async def test_a_reader_that_falls_behind_in_the_middle_of_a_message_gets_the_rest_of_it():
    go_on = asyncio.Event()

    @agent
    async def thinker(ctx):
        yield Event(partial=True, content=Content("model", (Part(text="hmm", thought=True),)))
        yield "ab"
        await go_on.wait()
        yield "cd"
        for n in range(KEPT_FRAMES * 2):
            yield Content("model").with_text(f" {n}")

    run = await make_runner(thinker).start(USER, SESSION, "hi")
    frames = run.frames()
    items = [await anext(frames) for _ in range(3)]
    assert [getattr(i, "delta", None) for i in items] == [None, "hmm", "ab"]
    go_on.set()
    await run.wait()
    items += [i async for i in frames]
    event = next(i.event for i in items if getattr(i, "event", None))
    assert (event.text, event.delta) == ("abcd", "cd")


@for_seeds(3)
async def test_a_flood_of_pieces_reaches_a_slow_reader_coalesced():
    pieces = 5_000

    @agent
    async def flood(ctx):
        for n in range(pieces):
            yield f"{n},"

    run = await make_runner(flood).start(USER, SESSION, "hi")
    frames = run.frames()
    first = [await anext(frames), await anext(frames)]
    await run.wait()
    rest = [i async for i in frames]
    partials = [i for i in (*first, *rest) if isinstance(i, Partial)]
    assert "".join(p.delta for p in partials) == "".join(f"{n}," for n in range(pieces))
    assert len(partials) < pieces / 2


@for_seeds(10)
async def test_a_hundred_readers_do_not_change_the_run():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "a b A c")
    readings = await asyncio.gather(*(read_frames(run) for _ in range(100)))
    assert {r.screen for r in readings} == {"abAc"}
    assert run.status is RunStatus.COMPLETED


@for_seeds(10)
async def test_readers_get_copies():
    @agent
    async def helper(ctx):
        yield Content("model").with_text("x")
        ctx.state["list"] = [1]
        ctx.set_actions(state_delta={"a": {"b": 1}})
        yield Content("model").with_text("y")

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    one, two = await asyncio.gather(read_frames(run), read_frames(run))
    delta = one.events[-1].actions.state_delta
    for value in delta.values():
        value.clear()
    again = await read_frames(await runner.follow(run.id))
    assert two.events[-1].actions.state_delta == again.events[-1].actions.state_delta
    assert all(again.events[-1].actions.state_delta.values())


@for_seeds(20)
async def test_streaming_modes_of_events():
    runner = make_runner(talker, run_config=RunConfig(streaming_mode=StreamingMode.NONE))
    quiet = await read_events(runner.run(USER, SESSION, "a b A c"))
    assert [e.delta for e in quiet.items] == ["ab", "A", "c"]
    loud = await read_events(runner.run(USER, SESSION, "a b A c", run_config=RunConfig(streaming_mode=StreamingMode.SSE)))
    assert loud.partials
    assert loud.screen == "abAc"


@for_seeds(20)
async def test_the_result_stream_is_what_is_said_and_ends_with_the_runs_error():
    runner = make_runner(talker)

    async def chunks(script):
        run = await runner.start(USER, SESSION, script)
        got = []
        try:
            async for chunk in run.result_stream():
                got.append(chunk)
        except Exception as error:
            return "".join(got), error.code
        return "".join(got), None

    assert await chunks("a b A c") == ("abAc", None)
    assert await chunks("a b !") == ("ab", "agent.failed")
    assert await chunks("a A ?") == ("aA", "run.waiting")


@for_seeds(30)
async def test_a_run_that_is_cancelled_before_its_first_step_has_all_its_frames():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "a b")
    reader = asyncio.ensure_future(read_frames(run))
    await run.cancel()
    reading = await reader
    assert_whole(reading)
    assert reading.kinds[-1] == "run.cancelled"
    assert reading.frames == (await read_frames(await runner.follow(run.id))).frames


@for_seeds(30)
async def test_a_queued_run_that_is_cancelled_has_only_a_terminal_frame():
    runner = make_runner(talker, max_concurrency=1)
    blocker = await runner.start(USER, "other", "?")
    first = await runner.start(USER, SESSION, "a b")
    second = await runner.start(USER, SESSION, "a b")
    reader = asyncio.ensure_future(read_frames(second))
    if second.status is RunStatus.QUEUED:
        await second.cancel()
        assert (await reader).kinds == ["run.cancelled"]
        assert second.record.attempt == 0
    await asyncio.gather(first.wait(), blocker.wait(), reader)
    assert_at_rest(runner)


@for_seeds(20)
async def test_an_answered_run_goes_on_numbering_for_every_reader():
    @agent
    async def helper(ctx):
        yield Content("model").with_text("before")
        yield f"you said {await ctx.ask('name', 'who?')}"
        yield Content("model").with_text("after")

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    first = await read_frames(run)
    assert first.kinds == ["run.started", "event", "interrupt"]
    interrupt = (await run.interrupts())[0]
    answered = await runner.answer(run.id, interrupt.id, "Bob")
    whole, rest = await asyncio.gather(read_frames(answered), read_frames(answered, after=answered.start_pos))
    assert_whole(whole)
    assert whole.kinds == ["run.started", "event", "interrupt", "event", "event", "run.completed"]
    assert rest.positions == [4, 5, 6]
    assert rest.screen == "you said Bobafter"
    assert whole.screen == "beforeyou said Bobafter"
    assert whole.frames == (await read_frames(await runner.follow(run.id))).frames


@for_seeds(20)
async def test_branches_that_speak_at_once_have_frames_without_gaps():
    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            for n in range(3):
                yield f"{name}{n}"
                await asyncio.sleep(0)
                yield Content("model").with_text(f"{name.upper()}{n}")

        return speak

    runner = make_runner(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y"), branch("z")]))
    run = await runner.start(USER, SESSION, "hi")
    live = await read_frames(run)
    assert_whole(live)
    assert len(live.frames) == 20
    assert live.frames == (await read_frames(await runner.follow(run.id))).frames
    for partial in live.partials:
        assert partial.branch == partial.author


@for_seeds(10)
async def test_an_error_of_the_store_while_a_reader_catches_up_is_told_and_the_reader_may_come_back():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(talker, store)
    run = await runner.start(USER, SESSION, "A B C")
    await run.wait()
    store.plan.append(fail_before("run_events"))
    assert (await read_frames(await runner.follow(run.id))).error.code == "store.unavailable"
    store.plan.clear()
    assert_whole(await read_frames(await runner.follow(run.id)))


@for_seeds(3)
async def test_following_a_run_that_is_not_there():
    runner = make_runner(talker)
    with raises(NotFound, "run.not_found"):
        await runner.follow("nobody")
    run = await runner.start(USER, SESSION, "a")
    await run.wait()
    with raises(NotFound, "run.not_found"):
        await runner.follow(run.id, user_id="bob")


@for_seeds(10)
async def test_a_cancelled_reader_changes_nothing():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "a b A c d")
    readers = [asyncio.ensure_future(read_frames(run)) for _ in range(5)]
    waiter = asyncio.ensure_future(run.result())
    await asyncio.sleep(0)
    for task in (*readers, waiter):
        task.cancel()
    await asyncio.gather(*readers, waiter, return_exceptions=True)
    assert await run.result() == "cd"
    assert run.status is RunStatus.COMPLETED


@for_seeds(10)
async def test_a_reader_that_gives_up_waiting_for_the_next_item_can_go_on():
    go_on = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "a"
        await go_on.wait()
        yield "b"

    run = await make_runner(helper).start(USER, SESSION, "hi")
    frames = run.frames()
    items = [await anext(frames), await anext(frames)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(frames), 1)
    go_on.set()
    items += [i async for i in frames]
    assert [getattr(i, "kind", None) or i.delta for i in items] == ["run.started", "a", "b", "event", "run.completed"]


@for_seeds(10)
async def test_a_failed_run_tells_its_code_to_every_reader_and_no_stack():
    runner = make_runner(talker)
    run = await runner.start(USER, SESSION, "a !")
    for reading in (await read_frames(run), await read_frames(await runner.follow(run.id))):
        error = reading.frames[-1].error
        assert (error.code, error.category) == ("agent.failed", "AgentError")
        assert "broken" not in error.message
        assert "Traceback" not in error.message
    events = await read_events(run.events())
    assert events.error.code == "agent.failed"
    assert isinstance(events.error.__cause__, ValueError)


@for_seeds(5)
async def test_an_error_of_sojourns_own_keeps_its_category():
    @agent
    async def helper(ctx):
        raise Unavailable("away", code="crm.away")

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    assert await outcome_of(run) == "crm.away"
    with raises(Unavailable, "crm.away"):
        await (await runner.follow(run.id)).result()
