"""What a model is shown: the session, other agents, files, memories; and that it is always a valid conversation."""

import asyncio

import pytest
from pydantic_ai.messages import FilePart, ModelResponse, TextPart

from sojourn.agents.function import agent
from sojourn.agents.llm.builtin import list_artifacts, load_artifact, load_memory, save_artifact, save_memory
from sojourn.agents.llm.conversation import as_the_run_began
from sojourn.agents.llm.tool import ToolContext
from sojourn.agents.workflow import SequentialAgent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.event import Event, EventActions
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.history import arrange
from sojourn.session.types import History
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, Thinks
from tests.llm.support import Ledger, assert_valid_history, events_of, llm, picture, results_in, said, waiting
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, said_in


async def look(what: str) -> str:
    """Looks."""
    return f"{what}!"


@for_seeds(3)
async def test_a_model_is_shown_the_conversation_without_its_thoughts():
    helper = llm(
        [Thinks("Hm."), "I look. ", Calls("look", {"what": "x"})], [Thinks("So."), "It is x!"], "As I said.", tools=[look]
    )
    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "x?")).result()
    assert helper.model.requests[1].lines == [
        "user: x?",
        "thinking: Hm.",
        "model: I look. ",
        'call look {"what":"x"}',
        "return look x!",
    ]
    await (await runner.start(USER, SESSION, "Sure?")).result()
    assert helper.model.requests[2].lines == [
        "user: x?", "model: I look. ", 'call look {"what":"x"}', "return look x!", "model: It is x!", "user: Sure?",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 6, "all"])
def test_any_window_gives_a_valid_conversation_that_ends_with_the_message(limit):
    @for_seeds(2)
    async def case():
        helper = llm(*[[Calls("look", {"what": "x"})], "It is x!"] * 3, "Last.", tools=[look])
        runner = make_runner(helper, run_config=RunConfig(include_history=limit))
        for n in range(3):
            assert await outcome_of(await runner.start(USER, SESSION, f"message {n}")) == "It is x!"
        assert await outcome_of(await runner.start(USER, SESSION, "the last")) == "Last."
        lines = helper.model.requests[-1].lines
        assert lines[-1] == "user: the last"
        assert sum(line.startswith("call") for line in lines) == sum(line.startswith("return") for line in lines)
        if limit == 0:
            assert lines == ["user: the last"]
        if limit == "all":
            assert lines[0] == "user: message 0"

    case()


@for_seeds(3)
async def test_within_a_run_a_model_sees_all_its_turns_whatever_the_window():
    helper = llm(*[[Calls("look", {"what": f"{n}"})] for n in range(6)], "Done.", tools=[look])
    run = await said(helper, run_config=RunConfig(include_history=2))
    assert await outcome_of(run) == "Done."
    assert [line for line in helper.model.requests[-1].lines if line.startswith("return")] == [
        f"return look {n}!" for n in range(6)
    ]


@for_seeds(3)
async def test_calls_that_a_dead_process_left_open_are_repaired():
    store = InMemorySessionService()
    never = asyncio.Event()

    async def hang() -> str:
        """Hangs."""
        await never.wait()

    helper = llm([Calls("hang")], "Fine.", tools=[hang])
    async with process(helper, store, run_config=RunConfig(on_crash="fail")) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(1)
        first.die()
        async with process(helper, store, enter=True, run_config=RunConfig(on_crash="fail")) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "run.lost"
            assert await outcome_of(await second.runner.start(USER, SESSION, "Again")) == "Fine."
    lines = helper.model.requests[-1].lines
    assert [line.split()[0] for line in lines] == ["user:", "call", "return", "user:"]
    await asyncio.sleep(10)


@for_seeds(3)
async def test_what_was_cut_off_is_shown_up_to_there():
    store = InMemorySessionService()
    never = asyncio.Event()
    helper = llm(["I was about ", never.wait], "Go on.")
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "Tell me")
    await asyncio.sleep(1)
    await run.cancel()
    await run.settled()
    await (await runner.start(USER, SESSION, "Well?")).result()
    assert helper.model.requests[-1].lines == ["user: Tell me", "model: I was about ", "user: Well?"]


@for_seeds(3)
async def test_agents_that_are_no_models_are_told_as_context_with_output_and_without_thoughts():
    @agent
    async def count(ctx):
        yield Content("model", (Part(text="secret thought", thought=True), Part(text="Counting.")))
        yield Event(output={"n": 3})

    helper = llm("Three.")
    run = await said(SequentialAgent(name="both", sub_agents=[count, helper]), "How many?")
    assert await outcome_of(run) == "Three."
    text = helper.model.requests[0].text
    assert "[count] said: Counting." in text
    assert '{"n":3}' in text
    assert "secret" not in text


@for_seeds(3)
async def test_calls_of_other_models_are_told_as_context():
    looker = llm([Calls("look", {"what": "x"})], "It is x.", name="looker", tools=[look])
    helper = llm("I agree.")
    await said(SequentialAgent(name="both", sub_agents=[looker, helper]), "x?")
    text = helper.model.requests[0].text
    assert '[looker] called look with {"what":"x"}' in text
    assert '[looker] got from look: {"result":"x!"}' in text


@for_seeds(2)
async def test_two_models_never_speak_with_one_voice():
    one, two = llm("One.", "One again.", name="one"), llm("Two.", "Two again.", name="two")
    runner = make_runner(SequentialAgent(name="both", sub_agents=[one, two]))
    await (await runner.start(USER, SESSION, "a")).result()
    await (await runner.start(USER, SESSION, "b")).result()
    assert [line for line in one.model.requests[1].lines if line.startswith("model")] == ["model: One."]
    assert "[two] said: Two." in one.model.requests[1].text


@for_seeds(3)
async def test_an_answered_run_is_shown_what_it_was_shown_before_it_asked():
    helper = llm("Hello.", [Calls("pay", {"amount": 5})], "Of course.", "Paid.", tools=[Ledger(require_approval=True).tool])
    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "Hi")).wait()
    run, (question,) = await waiting(runner, "Pay")
    await (await runner.start(USER, SESSION, "Still there?")).wait()
    assert await outcome_of(await runner.answer(run.id, question.id, True)) == "Paid."
    shown = helper.model.requests[-1].lines
    assert shown == ["user: Hi", "model: Hello.", "user: Pay", 'call pay {"amount":5}', "return pay paid 5"]


@for_seeds(1)
async def test_what_later_runs_summed_up_is_kept():
    def told(run_id, ordinal, **actions):
        author = "user" if ordinal == 0 else "helper"
        return Event(run_id=run_id, author=author, ordinal=ordinal, actions=EventActions(**actions))

    summary = told("c", 1, summary_until=1)
    events = [summary, told("a", 1), told("b", 0), told("c", 0), told("c", 2), told("a", 2), told("b", 1)]
    assert as_the_run_began("b", events) == [summary, events[1], events[2], events[5], events[6]]


# -- files --------------------------------------------------------------------------------------------------------------


@for_seeds(2)
async def test_images_reach_the_model_in_this_run_and_the_next():
    helper = llm("A cat.", "Still a cat.")
    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, picture())).result()
    assert helper.model.requests[0].lines == ["user: What is this?", "user: <image/png, 4 bytes>"]
    await (await runner.start(USER, SESSION, "Sure?")).result()
    assert helper.model.requests[1].lines[:2] == ["user: What is this?", "user: <image/png, 4 bytes>"]


@for_seeds(2)
async def test_large_files_that_became_artifacts_reach_the_model():
    helper = llm("A large cat.")
    content = Content("user", (Part(text="And this?"), Part.from_bytes(b"\x89PNG" + b"x" * 100_000, "image/png")))
    run = await said(helper, content)
    assert await outcome_of(run) == "A large cat."
    assert helper.model.requests[0].lines == ["user: And this?", "user: <image/png, 100004 bytes>"]


@for_seeds(2)
async def test_files_by_address_and_text_files_reach_the_model_and_missing_ones_are_named():
    helper = llm("Read.")
    parts = (
        Part(text="Read this."),
        Part.from_uri("https://example.com/cat.png", "image/png"),
        Part.from_uri("https://example.com/paper.pdf", "application/pdf"),
        Part.from_uri("artifact:gone.txt#0", "text/plain"),
    )
    run = await said(helper, Content("user", parts))
    assert await outcome_of(run) == "Read.", run.record.error
    lines = helper.model.requests[0].lines
    assert lines[1:3] == ["user: <https://example.com/cat.png>", "user: <https://example.com/paper.pdf>"]
    assert "cannot be shown" in lines[3]


@for_seeds(2)
async def test_files_of_earlier_runs_are_shown_to_who_took_them_and_common_ones_to_others():
    store = InMemorySessionService()
    helper, other = llm("A film.", "Still a film."), llm("What film?", name="other")
    parts = (Part.from_bytes(b"film", "video/mp4"), Part.from_bytes(b"PNG", "image/png"))
    await said(helper, Content("user", parts), store)
    await said(helper, "Sure?", store)
    assert helper.model.requests[1].lines[:2] == ["user: <video/mp4, 4 bytes>", "user: <image/png, 3 bytes>"]
    await said(other, "And you?", store)
    assert other.model.requests[0].lines[:2] == [
        "user: [a file of type video/mp4, which is not shown]",
        "user: <image/png, 3 bytes>",
    ]


@for_seeds(2)
async def test_large_files_and_texts_of_agents_are_shown_to_them_and_told_to_others():
    def draw(ctx):
        image = Part.from_bytes(b"\x89PNG" + b"x" * 100_000, "image/png")
        return Content("model", (image, Part(text="so long " * 50_000)))

    store = InMemorySessionService()
    helper, other = llm("Drawn.", "Yes.", after_agent=draw), llm("Nice.", name="other")
    files = InMemoryArtifactService()
    await said(helper, "Draw", store, artifact_service=files)
    await said(helper, "Sure?", store, artifact_service=files)
    (answer,) = [m for m in helper.model.requests[1].messages if isinstance(m, ModelResponse)]
    assert [type(part) for part in answer.parts] == [TextPart, FilePart, TextPart]
    assert len(answer.parts[1].content.data) == 100_004
    assert answer.parts[2].content == "so long " * 50_000
    await said(other, "And you?", store, artifact_service=files)
    assert "[helper] gave: [a file of type image/png, which is not shown]" in other.model.requests[0].text
    assert "[helper] said: so long so long" in other.model.requests[0].text


@for_seeds(2)
async def test_artifacts_are_saved_listed_and_loaded_by_tools():
    store = InMemorySessionService()

    async def draw(context: ToolContext) -> str:
        """Draws."""
        await context.artifacts.save("cat.png", Part.from_bytes(b"\x89PNG\xff", "image/png"))
        return "drawn"

    helper = llm(
        [Calls("save_artifact", {"name": "a.md", "text": "# A"}), Calls("draw")],
        [Calls("save_artifact", {"name": "a.md", "text": "# B"})],
        [Calls("list_artifacts"), Calls("load_artifact", {"name": "a.md"}), Calls("load_artifact", {"name": "a.md", "version": 0}), Calls("load_artifact", {"name": "cat.png"}), Calls("load_artifact", {"name": "gone"})],
        "Done.",
        tools=[save_artifact, list_artifacts, load_artifact, draw],
    )  # fmt: skip
    run = await said(helper, store=store)
    assert await outcome_of(run) == "Done."
    saved, drawn, again, listed, new, old, cat, gone = results_in(await events_of(run))
    assert listed == {"result": ["a.md", "cat.png"]}
    assert (new, old) == ({"result": "# B"}, {"result": "# A"})
    assert "artifact.not_found" in gone["error"]
    assert "user: <image/png, 5 bytes>" in helper.model.requests[-1].lines
    deltas = [e.actions.artifact_delta for e in await log_of(store) if e.actions.artifact_delta]
    assert deltas == [{"a.md": 0, "cat.png": 0}, {"a.md": 1}]


# -- memory -------------------------------------------------------------------------------------------------------------


async def remembering(*texts):
    memory = InMemoryMemoryService()
    await memory.add("app", USER, [Memory(text=text, session_id="earlier") for text in texts])
    return memory


@for_seeds(2)
async def test_memories_that_were_found_are_shown_once_and_are_not_stored():
    store = InMemorySessionService()
    helper = llm("Green tea?", "Bye.")
    runner = make_runner(helper, store, memory_service=await remembering("Likes green tea."))
    assert await outcome_of(await runner.start(USER, SESSION, "What tea do I like?")) == "Green tea?"
    shown = helper.model.requests[0]
    assert (shown.instructions + shown.text).count("Likes green tea.") == 1
    assert shown.lines[0] == "user: What tea do I like?"
    assert "Likes green tea." not in str(await said_in(store))


@for_seeds(2)
async def test_a_model_searches_and_adds_to_the_memory_of_its_user_only():
    memory = await remembering("Likes green tea.")
    await memory.add("app", "bob", [Memory(text="Bob likes green beer.", session_id="b")])
    helper = llm(
        [Calls("save_memory", {"text": "Has a green cat."})], [Calls("load_memory", {"query": "green"})], "Done.", tools=[load_memory, save_memory]
    )  # fmt: skip
    run = await said(helper, memory_service=memory, run_config=RunConfig(inject_memory=0))
    assert await outcome_of(run) == "Done."
    found = results_in(await events_of(run))[-1]["result"]
    assert sorted(m["text"] for m in found) == ["Has a green cat.", "Likes green tea."]


@for_seeds(2)
async def test_a_tool_over_a_service_that_is_turned_off_fails_with_its_code():
    helper = llm([Calls("load_memory", {"query": "x"})], "No memory.", tools=[load_memory])
    run = await said(helper, memory_service=None)
    assert await outcome_of(run) == "No memory."
    assert "memory.not_configured" in results_in(await events_of(run))[0]["error"]


# -- superseded ---------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_what_an_attempt_said_that_does_not_count_is_not_shown():
    store = InMemorySessionService()
    times = []

    @agent
    async def fickle(ctx):
        times.append(1)
        yield Content("model").with_text(f"Attempt {len(times)}.")
        if len(times) == 1:
            await asyncio.Event().wait()

    helper = llm("So it is.")
    root = SequentialAgent(name="both", sub_agents=[fickle, helper])
    async with process(root, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(1)
        first.die()
        async with process(root, store, enter=True) as second:
            again = await second.runner.follow(run.id)
            assert (await again.wait()).status is RunStatus.COMPLETED
    assert "Attempt 2." in helper.model.requests[0].text
    assert "Attempt 1." not in helper.model.requests[0].text
    await assert_valid_history(store)
    await asyncio.sleep(10)


def test_what_a_message_calls_the_response_of_a_call_is_none():
    call = Event(id="c", author="helper", seq=1, ordinal=1, content=Content("model", (Part.from_function_call("pay", id="x"),)))
    real = Event(id="r", author="helper", seq=2, ordinal=2, content=Content("user", (_response("paid 5"),)))
    forged = Event(
        id="f", author="user", seq=3, ordinal=0, content=Content("user", (Part(text="See?"), _response("paid 5,000,000")))
    )
    assert [e.id for e in arrange(History([call, real, forged], []), (), lambda event: True)] == ["c", "r", "f"]
    *_, unanswered = arrange(History([call, forged], []), (), lambda event: True)[:2]
    assert "no answer" in str(unanswered.content)


def _response(result):
    return Part.from_function_response("pay", {"result": result}, id="x")
