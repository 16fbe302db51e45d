"""The reference desk that a model drives: in Python and as a config, with a scripted model."""

import inspect
import json
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from examples import reference_desk
from sojourn import Runner, RunStatus, WorkflowBuilder
from sojourn.artifact.types import ArtifactScope
from sojourn.builder.models import use_model
from sojourn.cli.target import load_target
from sojourn.errors import NotFound
from sojourn.testing.models import Calls, ScriptedModel
from tests.cli.shell import invoke

EXAMPLES = Path(reference_desk.__file__).parent
CONFIG = EXAMPLES / "support_desk" / "app.yaml"
PYTHON = f"{EXAMPLES / 'llm_desk.py'}:app"


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    monkeypatch.delenv("DESK_MODEL", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("library", "llm_desk", "support_desk"):
            del sys.modules[name]


@pytest.fixture(params=["python", "config"])
def desk(request):
    """A Runner of the desk whose agents all have the given model."""

    @asynccontextmanager
    async def desk(*script):
        model = ScriptedModel(*script)
        if request.param == "config":
            async with WorkflowBuilder(models={"main": model}) as builder, Runner(builder.build(CONFIG)) as runner:
                yield runner, model
        else:
            config = load_target(PYTHON).config
            use_model(config.agent, model)
            async with Runner(config) as runner:
                yield runner, model

    return desk


@pytest.mark.anyio
async def test_a_task_is_for_the_finder(desk):
    script = [
        Calls("transfer_to_agent", {"agent_name": "finder"}),
        [Calls("search", {"words": "parse json"}), Calls("note", {"name": "json.loads"})],
        "Use json.loads.",
    ]
    async with desk(*script) as (runner, model):
        said = [(e.author, e.text) async for e in runner.run("ann", "s", "How do I parse JSON?") if not e.partial and e.text]
        assert said == [("finder", "Use json.loads.")]
        assert {"transfer_to_agent", "save_memory", "load_memory"} == set(model.requests[0].tools)
        assert {"transfer_to_agent", "search", "note"} == set(model.requests[1].tools)
        assert inspect.getdoc(json.loads).split("\n\n", maxsplit=1)[0].replace("\n", " ")[:60] in model.requests[2].text
        session = await runner.get_session("ann", "s")
        scope = ArtifactScope(session.app_name, "ann", "s", session.uid)
        assert "- **json.loads**: Deserialize" in (await runner.artifacts.load_artifact(scope, "reading-list.md")).text


@pytest.mark.anyio
async def test_an_example_is_run_once_a_person_has_allowed_it(desk):
    script = [
        Calls("transfer_to_agent", {"agent_name": "explainer"}),
        [Calls("read", {"name": "textwrap.shorten"}), Calls("run_example", {"name": "textwrap.shorten"})],
        "It shortens.",
    ]
    async with desk(*script) as (runner, model):
        run = await runner.start("ann", "s", "How does textwrap.shorten work? Show me.")
        assert (await run.wait()).status is RunStatus.WAITING
        (question,) = await run.interrupts()
        assert "textwrap.shorten" in question.prompt
        run = await runner.answer(run.id, question.id, True)
        assert await run.result() == "It shortens."
        assert textwrap.shorten.__name__ in model.requests[2].text
        assert "'Hello world!'" in model.requests[2].text


@pytest.mark.anyio
async def test_an_example_is_not_run_if_a_person_says_so(desk):
    script = [
        Calls("transfer_to_agent", {"agent_name": "explainer"}),
        Calls("run_example", {"name": "textwrap.shorten"}),
        "Then not.",
    ]
    async with desk(*script) as (runner, model):
        run = await runner.start("ann", "s", "Show me textwrap.shorten")
        await run.wait()
        (question,) = await run.interrupts()
        run = await runner.answer(run.id, question.id, {"confirmed": False, "reason": "not now"})
        assert await run.result() == "Then not."
        assert "not now" in model.requests[2].text
        assert "Hello" not in model.requests[2].text


@pytest.mark.anyio
async def test_what_the_user_says_is_remembered_in_other_sessions(desk):
    script = [Calls("save_memory", {"text": "Ann works with dates."}), "Good to know.", "You work with dates.", "Who are you?"]
    async with desk(*script) as (runner, model):
        assert await (await runner.start("ann", "monday", "I work with dates")).result() == "Good to know."
        assert await (await runner.start("ann", "friday", "What do I work with? dates?")).result() == "You work with dates."
        assert "Ann works with dates." in model.requests[2].instructions + model.requests[2].text
        assert await (await runner.start("ben", "friday", "What do I work with? dates?")).result() == "Who are you?"
        assert "Ann" not in model.requests[3].instructions + model.requests[3].text


@pytest.mark.anyio
async def test_both_forms_are_the_same():
    def told(agent):
        return {
            "name": agent.name,
            "description": agent.description,
            "instruction": " ".join(agent.instruction.split()),
            "tools": {name: (tool.require_approval, tool.timeout) for name, tool in agent.own_tools.items()},
            "model": agent.model,
            "sub_agents": [told(child) for child in agent.sub_agents],
        }

    async with WorkflowBuilder(environ={"DESK_MODEL": "test"}) as builder:
        config = builder.build(CONFIG)
    python = load_target(PYTHON).config
    for agent in python.agent.walk():
        assert agent.model == "openai:gpt-5-mini"
        agent.use_model("test")
    assert told(config.agent) == told(python.agent)
    assert config.run_config == python.run_config
    assert (config.app_name, config.memory_ingest) == (python.app_name, python.memory_ingest)


# -- the tools ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    load_target(PYTHON)
    return sys.modules["support_desk.library"]


def test_search_finds_by_names_and_summaries(library):
    assert "json.loads" in [found["name"] for found in library.search("deserialize json")]
    assert all(found["name"].startswith("statistics") for found in library.search("statistics mean", limit=2))
    assert library.search("supercalifragilistic") == []
    assert len(library.search("a", limit=1000)) <= 20


def test_read_gives_signature_and_docstring(library):
    assert library.read("json.dumps").startswith("json.dumps(obj, *")
    assert inspect.getdoc(json.dumps) in library.read("json.dumps")
    assert library.read("json").startswith("module json\n\n")
    for name in ("antigravity", "json.nothing", "os.system", ""):
        with pytest.raises(NotFound, match="on the shelves; search for it"):
            library.read(name)


def test_examples_run(library):
    assert library.run_example("textwrap.shorten").splitlines()[-1] == "'Hello world!'"
    assert library.run_example("json.dumps") == "json.dumps has no example"


# -- as people start it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [str(CONFIG), PYTHON])
def test_it_runs_at_the_console(target, tmp_path):
    ran = invoke("run", target, "hi", "--model", "test", "--json", cwd=tmp_path)
    assert ran.exit_code == 0, ran.stderr
    assert "finder" in ran.stdout


def test_it_can_be_checked(tmp_path):
    ran = invoke("check", str(CONFIG), "--model", "test", cwd=tmp_path)
    assert ran.exit_code == 0, ran.stderr
    assert "explainer (llm, test): Explains a module, class or function." in ran.stdout
    assert "run_example (asks for approval)" in ran.stdout
