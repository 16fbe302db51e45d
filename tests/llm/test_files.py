"""Files in what a model answers: however large, the log and the journal stay small, and models are shown them again."""

import pytest
from pydantic_ai.messages import BinaryContent, FilePart, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

from sojourn import jsonvalue
from sojourn.agents.llm.agent import LlmAgent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.types import parse_artifact_uri
from sojourn.event import INLINE_BYTES
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.runner.attempt.spill import scope_of
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.artifact_conformance import names_of
from sojourn.testing.loop import for_seeds
from tests.llm.support import assert_valid_history, crashed, said
from tests.runner.support import APP, SESSION, USER, log_of, make_runner, outcome_of, process

MIB = 1_048_576
WHOLE = RunConfig(streaming_mode=StreamingMode.NONE)


def image(size=3 * MIB, kind="image/png", first=b"\x89PNG", identifier=None):
    return BinaryContent(first + bytes(size - len(first)), media_type=kind, identifier=identifier)


class Painter(FunctionModel):
    """A model that answers with parts, one turn for each request; it keeps what it was shown."""

    def __init__(self, *turns):
        super().__init__(self._respond, model_name="painter")
        self.turns = turns
        self.shown = []

    async def _respond(self, messages, info):
        self.shown.append(list(messages))
        parts = self.turns[sum(isinstance(m, ModelResponse) for m in messages)]
        return ModelResponse([TextPart(p) if isinstance(p, str) else p for p in parts])

    def files_shown(self, request=-1):
        """What files of its own a request showed it."""
        parts = [part for message in self.shown[request] if isinstance(message, ModelResponse) for part in message.parts]
        return [(part.content.media_type, part.content.data) for part in parts if isinstance(part, FilePart)]


def paints(*files, call=True):
    """A painter that draws in its first turn, frames what it drew, and says that it is done."""
    first = ["Here: ", *map(FilePart, files)]
    turns = ([*first, ToolCallPart("frame", {}, "call-frame")], ["Framed."]) if call else (first,)
    model = Painter(*turns, ["It is a cat."])
    framed = []

    async def frame() -> str:
        """Puts a frame around it."""
        framed.append(1)
        return "framed"

    return LlmAgent(name="painter", model=model, tools=[frame]), model, framed


class Watched(InMemorySessionService):
    """A store that notes how large the results of steps are."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    async def append(self, fence, batch):
        for step in batch.steps:
            self.sizes[step.key] = jsonvalue.size(step.result)
        return await super().append(fence, batch)


@for_seeds(2)
async def test_a_large_file_of_a_model_is_an_artifact_and_is_shown_again():
    store, files = Watched(), InMemoryArtifactService()
    drawn = image()
    agent, model, _ = paints(drawn)
    runner = make_runner(agent, store, artifact_service=files, run_config=WHOLE)
    run = await runner.start(USER, SESSION, "A cat")
    assert await outcome_of(run) == "Framed.", run.record.error
    assert model.files_shown(1) == [("image/png", drawn.data)], "the next call of the run has it"
    assert store.sizes["model:1"] < 2048
    event = (await log_of(store))[1]
    assert len(event.to_json()) < 4096
    reference = event.content.parts[1].file_data
    assert reference.mime_type == "image/png"
    assert event.actions.artifact_delta == dict([parse_artifact_uri(reference.file_uri)])
    session = await store.get_session(app_name=APP, user_id=USER, session_id=SESSION)
    assert await names_of(files, scope_of(session)) == list(event.actions.artifact_delta), "it is kept once"
    assert await outcome_of(await runner.start(USER, SESSION, "What is it?")) == "It is a cat."
    assert model.files_shown() == [("image/png", drawn.data)], "later runs have it"


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_goes_on_elsewhere_reads_the_file_again(number, after):
    @for_seeds(2)
    async def case():
        store, files = InMemorySessionService(), InMemoryArtifactService()
        drawn = image()
        agent, model, framed = paints(drawn)
        options = {"artifact_service": files, "run_config": WHOLE}
        async with crashed(agent, store, number, after=after, **options) as run:
            async with process(agent, store, enter=True, **options) as second:
                again = await second.runner.follow(run.id)
                assert await outcome_of(again) == "Framed.", again.record.error
            events = await log_of(store)
            shown = [request for request in range(len(model.shown)) if model.files_shown(request)]
            assert shown, "the second turn is shown what was drawn in the first"
            assert all(model.files_shown(request) == [("image/png", drawn.data)] for request in shown)
            assert len(framed) <= 2
            (told,) = [e.actions.artifact_delta for e in events if e.get_function_calls()]
            (reference,) = [p.file_data for e in events if e.content for p in e.content.parts if p.file_data]
            assert told == dict([parse_artifact_uri(reference.file_uri)])
            assert not [e for e in await log_of(store, superseded=True) if e.superseded], "the same is said again"
            await assert_valid_history(store)

    case()


@for_seeds(2)
async def test_what_a_file_is_called_is_the_same_in_a_later_attempt():
    store, files = InMemorySessionService(), InMemoryArtifactService()
    agent, model, _ = paints(image(), image(identifier="cat"))
    options = {"artifact_service": files, "run_config": WHOLE}
    # The fourth append tells what the second turn said: it is asked again.
    async with crashed(agent, store, 4, after=False, **options) as run, process(agent, store, enter=True, **options) as second:
        assert await outcome_of(await second.runner.follow(run.id)) == "Framed."
        names = [[p.content.identifier for p in shown[1].parts if isinstance(p, FilePart)] for shown in model.shown[1:]]
        assert len(names) == 2
        assert names[0] == names[1]
        assert names[0][1] == "cat"


@for_seeds(2)
async def test_small_files_stay_in_the_log_unless_there_are_too_many():
    small = image(INLINE_BYTES)
    store = InMemorySessionService()
    agent, model, _ = paints(small, call=False)
    assert await outcome_of(await said(agent, store=store, run_config=WHOLE, artifact_service=None)) == "Here: "
    assert (await log_of(store))[1].content.parts[1].inline_data.data == small.data
    store = Watched()
    many = [image(INLINE_BYTES, first=bytes([n])) for n in range(20)]
    agent, model, _ = paints(*many[:11], call=False)
    run = await said(agent, store=InMemorySessionService(), run_config=WHOLE, artifact_service=None)
    assert await outcome_of(run) == "Here: ", "as many as one event holds need no artifacts"
    agent, model, _ = paints(*many)
    run = await said(agent, store=store, run_config=WHOLE)
    assert await outcome_of(run) == "Framed.", run.record.error
    assert model.files_shown(1) == [("image/png", one.data) for one in many]
    assert store.sizes["model:1"] < MIB / 4
    assert len((await log_of(store))[1].actions.artifact_delta) == 20


@for_seeds(2)
async def test_a_file_of_an_odd_kind_is_kept_too():
    odd = image(kind="odd")
    agent, model, _ = paints(odd)
    run = await said(agent, run_config=WHOLE)
    assert await outcome_of(run) == "Framed.", run.record.error
    assert model.files_shown(1) == [("odd", odd.data)]


@for_seeds(2)
async def test_without_artifacts_a_large_file_is_an_error_that_says_so():
    agent, model, framed = paints(image())
    run = await said(agent, run_config=WHOLE, artifact_service=None)
    assert await outcome_of(run) == "artifact.not_configured"
    assert f"{3 * MIB} bytes" in run.record.error.message
    assert "artifact_service=" in run.record.error.message
    assert (len(model.shown), framed) == (1, [])


@for_seeds(2)
async def test_a_file_that_was_deleted_meanwhile_is_an_error_with_a_code():
    store, files = InMemorySessionService(), InMemoryArtifactService()
    agent, model, _ = paints(image())
    options = {"artifact_service": files, "run_config": WHOLE}
    async with crashed(agent, store, 3, **options) as run:
        session = await store.get_session(app_name=APP, user_id=USER, session_id=SESSION)
        await files.delete_session_artifacts(scope_of(session))
        async with process(agent, store, enter=True, **options) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "artifact.not_found"
    assert len(model.shown) <= 2
