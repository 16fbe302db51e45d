"""What a real model says: in pieces, with its tokens, in the shape asked for, until it is stopped."""

import asyncio
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import NativeOutput

from sojourn.event import Event
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from tests.real_model.support import ENDLESS, REAL, serving

pytestmark = REAL

APP, USER, SESSION = "shop", "ann", "s"


class Name(BaseModel):
    name: Literal["Ann", "Boris", "Chiara"]


def runner_of(agent):
    return Runner(app_name=APP, agent=agent, run_config=RunConfig(cancel_grace=60))


async def log_of(runner):
    return await runner.store.list_events(app_name=APP, user_id=USER, session_id=SESSION)


async def test_pieces_join_to_the_text_of_the_event_and_tokens_are_counted(server, helper):
    runner = runner_of(helper(server, instruction="Be brief."))
    run = await runner.start(USER, SESSION, "Say hello.")
    items = [item async for item in run.events()]
    (event,) = [item for item in items if isinstance(item, Event)]
    pieces = [item for item in items if item.partial]
    assert len(pieces) > 3
    assert event.text
    assert "".join(piece.delta for piece in pieces) == event.text == await run.result()
    assert {piece.id for piece in pieces} == {event.id}

    usage = event.usage_metadata
    assert usage.prompt_token_count > 0
    assert 0 < usage.candidates_token_count <= 24
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert run.record.usage["total_token_count"] == usage.total_token_count


async def test_without_streaming_there_is_the_event_alone_with_its_tokens(server, helper):
    runner = runner_of(helper(server))
    run = await runner.start(USER, SESSION, "Say hello.", run_config=RunConfig(streaming_mode=StreamingMode.NONE))
    (event,) = [item async for item in run.events()]
    assert event.text == event.delta
    assert run.record.usage["total_token_count"] == event.usage_metadata.total_token_count > 0


async def test_a_session_is_remembered_and_another_is_not(server, helper):
    runner = runner_of(helper(server, output_schema=NativeOutput(Name)))
    prompts = {}
    for name in ("Boris", "Chiara"):
        for message in (f"My name is {name}.", "What is my name?"):
            run = await runner.start(USER, name, message)
            assert await run.result() == {"name": name}
            prompts.setdefault(name, []).append(run.record.usage["prompt_token_count"])
    assert all(second > first for first, second in prompts.values())


async def test_an_answer_has_the_shape_of_the_schema(server, helper):
    class Place(BaseModel):
        city: str
        country: str

    agent = helper(server, output_schema=NativeOutput(Place), output_key="place", model_settings={"max_tokens": 80})
    runner = runner_of(agent)
    run = await runner.start(USER, SESSION, "Paris is the capital of France.")
    (event,) = [item async for item in run.events()]
    assert event.output.keys() == {"city", "country"}
    assert not event.text
    assert event.usage_metadata.total_token_count > 0
    assert (await run.result(to_type=Place)).city == "Paris"
    assert (await runner.get_session(USER, SESSION)).state == {"place": event.output}


async def test_an_answer_in_a_shape_that_does_not_end_in_time_fails_with_a_code(server, helper):
    agent = helper(server, output_schema=NativeOutput(Name), model_settings={"max_tokens": 2})
    record = await (await runner_of(agent).start(USER, SESSION, "My name is Ann.")).wait()
    assert record.error.code == "model.cut_off"


async def test_a_cancel_in_mid_answer_stops_the_model_and_the_next_run_works(server, helper):
    runner = runner_of(helper(server, model_settings=ENDLESS))
    run = await runner.start(USER, SESSION, "Tell me a story.")
    seen = await first(4, run.events())
    await run.cancel()
    record = await run.wait()
    assert (record.status, record.error.code) == (RunStatus.CANCELLED, "run.cancelled")
    said = (await log_of(runner))[-1]
    assert said.interrupted
    assert said.text.startswith("".join(piece.delta for piece in seen))
    longest = max(slot.get("n_prompt_tokens", 0) for slot in await asyncio.to_thread(server.at_rest))
    assert longest < ENDLESS["max_tokens"], "the model talked to the end"

    again = Runner(app_name=APP, agent=helper(server), session_service=runner.store)
    assert await (await again.start(USER, SESSION, "Say hello.")).result()


async def test_leaving_the_loop_stops_the_model(server, helper):
    runner = runner_of(helper(server, model_settings=ENDLESS))
    stream = runner.run(USER, SESSION, "Tell me a story.")
    async for _ in stream:
        break
    await stream.aclose()
    (record,) = (await runner.list_runs()).items
    assert record.status is RunStatus.CANCELLED
    assert (await log_of(runner))[-1].interrupted


async def test_a_server_that_dies_in_mid_answer_fails_the_run_and_what_was_said_is_kept(tmp_path, helper):
    with serving(tmp_path) as mortal:
        runner = runner_of(helper(mortal, model_settings=ENDLESS))
        run = await runner.start(USER, SESSION, "Tell me a story.")
        seen = await first(4, run.events())
        mortal.kill()
        record = await run.wait()
    assert (record.status, record.error.code, record.error.retryable) == (RunStatus.FAILED, "model.unreachable", True)
    said = (await log_of(runner))[-1]
    assert said.interrupted
    assert said.text.startswith("".join(piece.delta for piece in seen))


async def test_a_conversation_that_is_too_long_has_a_code_of_its_own(server, helper):
    record = await (await runner_of(helper(server)).start(USER, SESSION, "word " * 3000)).wait()
    assert record.error.code == "model.context_exceeded"


async def first(count, stream):
    """The first of what is said; nothing more is read."""
    return [await anext(stream) for _ in range(count)]
