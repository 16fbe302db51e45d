"""What the names of a config stand for: modules, tools, models, agents, services."""

import os
import sys
import traceback

import pytest

from sojourn import LlmAgent, LoopAgent, ParallelAgent, Runner, RunnerConfig, SequentialAgent
from sojourn.agents.llm import builtin
from sojourn.agents.llm.tool import Tool
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.s3.service import S3ArtifactService
from sojourn.builder.problems import ConfigError
from sojourn.builder.references import BUILTIN_TOOLS
from sojourn.builder.workflow import WorkflowBuilder
from sojourn.data import Retention
from sojourn.errors import InvalidInput, Unsupported
from sojourn.memory import minilm
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.runner.config import DEFAULT
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.models import Calls, ScriptedModel

SHOP = '''\
"""What a shop's agents are made of."""

from pydantic import BaseModel
from pydantic_ai import Tool as EngineTool
from pydantic_ai.toolsets import FunctionToolset

from contextvars import ContextVar

from sojourn import Agent, LlmAgent, Plugin, agent, tool

SETTING = 5

tenant = ContextVar("tenant")


def instruct(ctx):
    return f"Help {ctx.user_id}."


async def instruct_later(ctx):
    return "Help {later}."


class Answer(BaseModel):
    text: str


def look_up(name: str) -> str:
    """Looks something up."""
    return name.upper()


@tool(name="decorated", timeout=7)
def made(name: str) -> str:
    """Is a tool already."""
    return name


engine = EngineTool(look_up, name="engine")
toolset = FunctionToolset([look_up])


def is_dear(name):
    return name == "dear"


@agent(description="Repeats.")
async def echo(ctx):
    return ctx.user_content.text


@agent(sub_agents=[echo])
async def parent(ctx):
    ctx.transfer_to("echo")


async def plain(ctx):
    """Answers plainly."""
    return "plain"


class Custom(Agent):
    async def run(self, ctx):
        return f"custom {self.name}"


class Demanding(Agent):
    def __init__(self, *, wish, **options):
        super().__init__(**options)


driven = LlmAgent(name="driven", model="openai:gpt-5")


def before(ctx):
    ctx.state["before"] = True


def guard(ctx):
    return None


@agent(description="Is guarded.", before_agent=guard, disallow_transfer_to_peers=True)
async def guarded(ctx):
    return "guarded"


class Recorder(Plugin):
    pass


recorder = Recorder()


def policy(ctx, source, target):
    return True
'''

HEAD = "app_name: x\nagents:\n"


def build(write, text, builder=None, **modules):
    return (builder or WorkflowBuilder(environ={})).build(write(text, shop=SHOP, **modules))


def tools_of(agent):
    return sorted(agent.own_tools) if hasattr(agent, "own_tools") else None


async def answer(config, text="hi"):
    return await (await Runner(config).start("ann", "s", text)).result()


# -- modules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dotted", "told"),
    [
        ("nowhere:x", "there is no module 'nowhere'; there is: broken, needy, shop [config.not_importable]"),
        ("shp:x", "there is no module 'shp'; did you mean 'shop'? [config.not_importable]"),
        ("shop.inner:x", "there is no module 'shop.inner' [config.not_importable]"),
        ("shop:ecko", "shop:ecko: shop has no 'ecko'; did you mean 'echo'? [config.not_importable]"),
        ("shop:Answer.zzz", "shop:Answer.zzz: shop has no 'zzz'"),
        ("broken:x", "module 'broken' cannot be imported: ZeroDivisionError: division by zero; mend it [config.not_importable]"),
        ("needy:x", "module 'needy' cannot be imported: ModuleNotFoundError: No module named 'not_there'; mend it"),
        ("shop:SETTING", "shop:SETTING is of type int; name a function of the context, or an agent [config.wrong_kind]"),
        ("shop:Answer", "shop:Answer is the class Answer; name a function of the context, or an agent [config.wrong_kind]"),
        ("shop:Demanding", "shop:Demanding cannot be made of name, "),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(problems, dotted, told):
    text = f"{HEAD}  a:\n    kind: function\n    function: {dotted}\n"
    (problem,) = problems(text, make=True, shop=SHOP, broken="1 / 0", needy="import not_there")
    assert problem.startswith(f"app.yaml:5: agents.a.function: {told}")


def test_what_a_module_raised_is_the_cause(write):
    with pytest.raises(ConfigError) as caught:
        build(write, f"{HEAD}  a: {{kind: function, function: 'broken:x'}}", broken="def f():\n    1 / 0\nf()\n")
    assert "broken.py" in "".join(traceback.format_exception(caught.value.__cause__))


def test_a_module_that_exits_is_a_problem(problems):
    (problem,) = problems(f"{HEAD}  a: {{kind: function, function: 'bye:x'}}", make=True, bye="import sys; sys.exit('bye')")
    assert "module 'bye' cannot be imported: SystemExit: bye" in problem


def test_modules_are_looked_for_beside_the_config(write, home, monkeypatch):
    (home / "inner").mkdir()
    (home / "inner" / "app.yaml").write_text(f"{HEAD}  a: {{kind: function, function: 'beside.deep:answer'}}", encoding="utf-8")
    (home / "inner" / "beside").mkdir()
    (home / "inner" / "beside" / "__init__.py").touch()
    (home / "inner" / "beside" / "deep.py").write_text("def answer(ctx): return 42", encoding="utf-8")
    made = WorkflowBuilder().build("inner/app.yaml")
    assert sys.modules["beside"].__file__ == str(home / "inner" / "beside" / "__init__.py")
    assert made.agent.fn(None) == 42


def test_modules_beside_the_config_go_before_others(write, home):
    (home / "others").mkdir()
    (home / "others" / "mine.py").write_text("def answer(ctx): return 'other'", encoding="utf-8")
    (home / "inner").mkdir()
    (home / "inner" / "mine.py").write_text("def answer(ctx): return 'mine'", encoding="utf-8")
    (home / "inner" / "app.yaml").write_text(f"{HEAD}  a: {{kind: function, function: 'mine:answer'}}", encoding="utf-8")
    sys.path.insert(0, str(home / "others"))
    assert WorkflowBuilder().build("inner/app.yaml").agent.fn(None) == "mine"


@pytest.mark.parametrize("name", ["json", "sojourn"])
def test_a_module_that_another_one_is_in_the_place_of(problems, name):
    text = f"{HEAD}  a: {{kind: function, function: '{name}:dumps'}}"
    (problem,) = problems(text, make=True, **{name: "def dumps(ctx): return 1"})
    assert f"agents.a.function: module '{name}' is {sys.modules[name].__file__} in this process, not the one beside" in problem
    assert f"rename {name}.py [config.not_importable]" in problem


def test_everything_that_cannot_be_made_is_told_at_once(problems):
    text = """\
app_name: x
tools:
  a: shop:nothing
  b: {function: 'shop:look_up', require_approval: 'shop:SETTING'}
  c: shop:SETTING
models:
  m: nobody:gpt
agents:
  one: {model: m, tools: [a], sub_agents: [two]}
  two: {kind: function, function: 'shop:echo', before_agent: 'shop:nothing'}
services: {session: 'redis://x', artifacts: 'http://x', memory: sqlite}
plugins:
  - shop:echo
  - shop:Recorder
transfer_policy: shop:SETTING
propagate:
  - shop:tenant
  - shop:SETTING
  - shop:tennant
"""
    assert problems(text, make=True, shop=SHOP) == [
        "app.yaml:3: tools.a.function: shop:nothing: shop has no 'nothing' [config.not_importable]",
        "app.yaml:4: tools.b.require_approval: shop:SETTING is of type int; name a function [config.wrong_kind]",
        "app.yaml:5: tools.c.function: shop:SETTING is of type int; name a function, a tool or a toolset [config.wrong_kind]",
        "app.yaml:10: agents.two.before_agent[0]: shop:nothing: shop has no 'nothing' [config.not_importable]",
        "app.yaml:11: services.session: there is no backend for redis:// URLs; use 'sqlite:///relative.db' or "
        "'sqlite:////absolute/path.db', or 'postgresql://user:password@host:5432/database' [store.unsupported_url]",
        "app.yaml:11: services.artifacts: there is no such service; write the path of a directory, s3://bucket/prefix, "
        "memory or none [config.unknown_service]",
        "app.yaml:11: services.memory: there is no such service; write sqlite:///app.db, postgresql://…, "
        "qdrant+http://host:6333, qdrant:///directory, memory or none [config.unknown_service]",
        "app.yaml:13: plugins[0]: shop:echo is of type FunctionAgent; name a Plugin, or a class of them [config.wrong_kind]",
        "app.yaml:15: transfer_policy: shop:SETTING is of type int; name a function [config.wrong_kind]",
        "app.yaml:18: propagate[1]: shop:SETTING is of type int; name a ContextVar [config.wrong_kind]",
        "app.yaml:19: propagate[2]: shop:tennant: shop has no 'tennant'; did you mean 'tenant'? [config.not_importable]",
    ]


def test_functions_that_cannot_instruct(problems):
    text = """\
app_name: x
agents:
  top: {model: test, sub_agents: [one, two, three]}
  one: {model: test, instruction: {function: 'shop:SETTING'}}
  two:
    model: test
    instruction:
      function: shop:instrukt
  three: {model: test, instruction: 'shop:instrukt'}
"""
    assert problems(text, make=True, shop=SHOP) == [
        "app.yaml:4: agents.one.instruction.function: shop:SETTING is of type int; name a function [config.wrong_kind]",
        "app.yaml:8: agents.two.instruction.function: shop:instrukt: shop has no 'instrukt'; did you mean 'instruct'? "
        "[config.not_importable]",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("function", "told"), [("instruct", "Help ann."), ("instruct_later", "Help {later}.")])
async def test_a_function_instructs(write, function, told):
    text = f"{HEAD}  a: {{model: main, instruction: {{function: 'shop:{function}'}}}}\nmodels: {{main: test}}"
    model = ScriptedModel("Good morning.")
    write(text, shop=SHOP)
    await answer(WorkflowBuilder(models={"main": model}).build("app.yaml"))
    assert told in (model.requests[0].instructions or "")


# -- agents -------------------------------------------------------------------------------------------------------------

KINDS = f"""{HEAD}
  desk:
    model: test
    description: Answers.
    instruction: Be kind.
    output_key: said
    settings: {{temperature: 1}}
    retries: 5
    before_agent: shop:before
    disallow_transfer_to_parent: true
    sub_agents:
      - team
      - {{name: repeat, kind: function, function: 'shop:echo'}}
      - {{name: custom, kind: function, function: 'shop:Custom', description: Is special.}}
      - {{name: plain, kind: function, function: 'shop:plain'}}
  team: {{kind: sequential, sub_agents: [both, again]}}
  both: {{kind: parallel, sub_agents: [{{name: p, model: test, output_schema: 'shop:Answer'}}]}}
  again: {{kind: loop, max_iterations: 3, sub_agents: [{{name: q, kind: llm, model: test, output_schema: {{type: object}}}}]}}
"""


def test_agents_of_every_kind(write):
    root = build(write, KINDS).agent
    assert {a.name: type(a).__name__ for a in root.walk()} == {
        "desk": "LlmAgent", "team": "SequentialAgent", "both": "ParallelAgent", "p": "LlmAgent", "again": "LoopAgent",
        "q": "LlmAgent", "repeat": "FunctionAgent", "custom": "Custom", "plain": "FunctionAgent",
    }  # fmt: skip
    assert isinstance(root, LlmAgent)
    assert isinstance(root.find_agent("team"), SequentialAgent)
    assert isinstance(root.find_agent("both"), ParallelAgent)
    again = root.find_agent("again")
    assert isinstance(again, LoopAgent)
    assert again.max_iterations == 3
    assert (root.description, root.instruction, root.output_key) == ("Answers.", "Be kind.", "said")
    assert root.disallow_transfer_to_parent
    assert [c.__name__ for c in root.before_agent] == ["before"]
    assert root.find_agent("p").output_schema.__name__ == "Answer"
    assert root.find_agent("q").output_schema == {"type": "object"}
    assert root.find_agent("repeat").description == "Repeats."
    assert root.find_agent("plain").description == "Answers plainly."
    assert root.find_agent("custom").description == "Is special."


@pytest.mark.anyio
@pytest.mark.parametrize(("function", "said"), [("echo", "hi"), ("plain", "plain"), ("Custom", "custom a"), ("parent", "hi")])
async def test_agents_in_python(write, function, said):
    assert await answer(build(write, f"{HEAD}  a: {{kind: function, function: 'shop:{function}'}}")) == said


def test_each_making_has_agents_of_its_own(write):
    builder = WorkflowBuilder()
    text = f"{HEAD}  a: {{kind: function, function: 'shop:parent', sub_agents: [{{name: b, kind: function, function: 'shop:echo'}}]}}"
    first = build(write, text, builder).agent
    second = builder.build("app.yaml").agent
    third = builder.build("app.yaml", "ann")
    for root in (first, second, third):
        assert [a.name for a in root.walk()] == ["a", "echo", "b"]
        assert root.parent_agent is None
        assert all(child.parent_agent is root for child in root.sub_agents)
    assert len({id(a) for root in (first, second, third) for a in root.walk()}) == 9
    original = sys.modules["shop"].parent
    assert (original.name, original.parent_agent, [a.name for a in original.sub_agents]) == ("parent", None, ["echo"])


def test_what_a_config_says_of_an_agent_in_python_is_added(write):
    text = f"{HEAD}  a: {{kind: function, function: 'shop:guarded', before_agent: 'shop:before', after_agent: ['shop:before']}}"
    made = build(write, text).agent
    assert [c.__name__ for c in made.before_agent] == ["guard", "before"]
    assert [c.__name__ for c in made.after_agent] == ["before"]
    assert made.description == "Is guarded."
    assert made.disallow_transfer_to_peers


def test_what_agents_in_python_bring_must_fit(problems):
    text = f"{HEAD}  echo: {{model: test, sub_agents: [{{name: a, kind: function, function: 'shop:parent'}}]}}"
    assert problems(text, make=True, shop=SHOP) == [
        "app.yaml:3: agents.echo: two agents are named 'echo'; names must be unique in an app [agent.duplicate_name]"
    ]


def test_names_are_those_of_agents(problems):
    assert problems(f"{HEAD}  a.b: {{model: test}}\n  user: {{model: test, sub_agents: [a.b]}}", make=True) == [
        "app.yaml:3: agents.a.b: an agent cannot be named 'a.b': 'user', '.', '/' and '#' are reserved [agent.invalid_name]"
    ]


def test_an_agent_that_nobody_uses_is_checked_too(problems):
    text = f"{HEAD}  a: {{model: test}}\n  b: {{kind: function, function: 'shop:nothing'}}\nroot: a\n"
    assert problems(text, make=True, shop=SHOP) == [
        "app.yaml:4: agents.b.function: shop:nothing: shop has no 'nothing' [config.not_importable]"
    ]


def test_function_agents_need_no_model_packages(write, monkeypatch):
    def refuse(self, making):
        raise AssertionError

    text = f"{HEAD}  a: {{kind: function, function: 'shop:echo'}}"
    monkeypatch.setitem(sys.modules, "sojourn.builder.models", None)
    monkeypatch.setitem(sys.modules, "sojourn.builder.tools", None)
    assert build(write, text).agent.name == "a"


def test_missing_packages_are_told(write, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("sojourn.agents.llm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sojourn.builder.models", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: None)
    with pytest.raises(Unsupported, match=r"pip install 'sojourn\[llm\]'") as caught:
        WorkflowBuilder().build(write(f"{HEAD}  a: {{model: test}}"))
    assert caught.value.code == "model.not_installed"


# -- tools --------------------------------------------------------------------------------------------------------------

TOOLS = """\
app_name: x
tools:
  find: shop:look_up
  renamed: {function: 'shop:made', require_approval: true}
  other: {function: 'shop:made', timeout: 3, description: Another., retries: 4, sequential: true, long_running: false}
  dear: {function: 'shop:look_up', require_approval: 'shop:is_dear'}
  engine: shop:engine
  set: {function: 'shop:toolset'}
agents:
  a:
    model: test
    tools: [find, renamed, other, dear, engine, 'shop:made', {function: 'shop:look_up', timeout: 1}, load_memory, save_artifact]
  b: {model: test, tools: [set]}
root: a
"""


def test_tools(write, monkeypatch):
    given = {}

    def noted(agent, *, name, tools=(), **options):
        given[name] = {t.name: t for t in tools if hasattr(t, "name")}
        init(agent, name=name, tools=tools, **options)

    init = LlmAgent.__init__
    monkeypatch.setattr(LlmAgent, "__init__", noted)
    build(write, TOOLS)
    tools = given["a"]
    assert list(tools) == [
        "find", "renamed", "other", "dear", "engine", "decorated", "look_up", "load_memory", "save_artifact",
    ]  # fmt: skip
    assert tools["renamed"].require_approval is True
    assert tools["renamed"].timeout == 7
    other = tools["other"]
    assert (other.timeout, other.description, other.retries, other.sequential) == (3, "Another.", 4, True)
    assert tools["dear"].needs_approval({"name": "dear"})
    assert not tools["dear"].needs_approval({"name": "cheap"})
    assert tools["look_up"].timeout == 1
    assert tools["decorated"].require_approval is False


@pytest.mark.anyio
async def test_models_call_them_by_their_names_in_the_config(write):
    model = ScriptedModel(Calls("find", {"name": "tea"}), "Found.")
    config = build(write, TOOLS, WorkflowBuilder(models={"test": model}))
    assert await answer(config) == "Found."
    assert "return find TEA" in model.requests[1].lines
    assert {"find", "renamed", "engine", "decorated", "load_memory"} <= set(model.requests[0].tools)


def test_the_built_in_tools_are_those_there_are():
    assert sorted(name for name, value in vars(builtin).items() if isinstance(value, Tool)) == sorted(BUILTIN_TOOLS)


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ("{t: {function: 'shop:engine', timeout: 3}}",
         "tools.t: shop:engine is one of pydantic-ai's, and takes no timeout here; set it in Python [config.invalid]"),
        ("{t: 'shop:Answer'}", "tools.t.function: shop:Answer is the class Answer; name a function, a tool or a toolset"),
        ("{t: 'shop:echo'}", "tools.t.function: shop:echo is of type FunctionAgent; name a function, a tool or a toolset"),
        ("{transfer_to_agent: 'shop:look_up'}", "a tool of agent 'a' cannot be named 'transfer_to_agent' [tool.invalid]"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be(problems, tools, told):
    name = tools[1:].partition(":")[0]
    (problem,) = problems(f"app_name: x\ntools: {tools}\nagents: {{a: {{model: test, tools: [{name}]}}}}", make=True, shop=SHOP)
    assert told in problem


# -- models -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


MODELS = """\
app_name: x
models:
  main:
    model: llama3.2:1b
    base_url: http://127.0.0.1:1/v1
    settings: {temperature: 0, max_tokens: 9}
  keyed: {model: 'openai:gpt-5', api_key: secret}
agents:
  a: {model: main, settings: {temperature: 1}, sub_agents: [b, c]}
  b: {model: main}
  c: {model: keyed}
"""


def test_models(write):
    a, b, c = build(write, MODELS).agent.walk()
    assert a.resolved_model().model_name == "llama3.2:1b"
    assert str(a.resolved_model().client.base_url) == "http://127.0.0.1:1/v1/"
    assert (c.resolved_model().model_name, c.resolved_model().client.api_key) == ("gpt-5", "secret")


@pytest.mark.anyio
async def test_an_agents_settings_go_before_its_models(write):
    model = ScriptedModel("Done.")
    assert await answer(build(write, MODELS, WorkflowBuilder(models={"main": model}))) == "Done."
    settings = model.requests[0].info.model_settings
    assert (settings["temperature"], settings["max_tokens"]) == (1, 9)


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (
            "{m: 'openai:gpt-5'}",
            "app.yaml:2: models.m: model 'openai:gpt-5' needs",
        ),
        ("{m: 'nobody:gpt'}", "app.yaml:2: models.m: "),
        ("{m: {model: 'nobody:gpt', api_key: k}}", "app.yaml:2: models.m: "),
        ("{m: gpt-99}", "app.yaml:2: models.m: "),
    ],
)
def test_models_that_cannot_be(problems, models, told):
    (problem,) = problems(f"app_name: x\nmodels: {models}\nagents: {{a: {{model: m}}, b: {{model: m}}}}\nroot: a", make=True)
    assert problem.startswith(told)
    assert problem.endswith(("[model.no_key]", "[model.unknown]"))
    assert "local model works without a key" in problem or "provider:name" in problem


def test_a_model_without_a_key_in_an_agent(problems):
    (problem,) = problems(f"{HEAD}  a:\n    model: anthropic:claude-5\n", make=True)
    assert problem.startswith("app.yaml:4: agents.a.model: ")


def test_the_builders_model_takes_the_place_of_all(write):
    model = ScriptedModel("Done.")
    text = MODELS.replace("[b, c]", "[b, c, {name: d, kind: function, function: 'shop:driven'}]").replace(
        ", api_key: secret", ""
    )
    a, b, c, d = build(write, text, WorkflowBuilder(model=model)).agent.walk()
    assert all(agent.resolved_model() is model for agent in (a, b, c, d))
    assert sys.modules["shop"].driven.model == "openai:gpt-5"


def test_a_builders_model_that_cannot_be(write):
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY") as caught:
        WorkflowBuilder(model="openai:gpt-5").build(write(MODELS))
    assert caught.value.code == "model.no_key"
    with pytest.raises(InvalidInput, match="give model=, too"):
        WorkflowBuilder(base_url="http://127.0.0.1:1/v1")


# -- services and the rest ----------------------------------------------------------------------------------------------


def test_what_a_config_leaves_open_is_left_open(write):
    made = build(write, f"{HEAD}  a: {{model: test}}")
    assert isinstance(made, RunnerConfig)
    bare = RunnerConfig(app_name="x", agent=made.agent)
    for name in RunnerConfig.__dataclass_fields__:
        assert getattr(made, name) == getattr(bare, name) or name in ("plugins", "propagate"), name
    assert list(made.plugins) == list(made.propagate) == []
    assert made.session_service is made.artifact_service is made.memory_service is DEFAULT


def test_services_limits_and_the_rest(write, home):
    text = f"""{HEAD}  a: {{model: test}}
services: {{session: memory, artifacts: store/files, memory: memory, memory_ingest: on_run_end}}
limits: {{max_concurrency: 3, max_concurrency_per_user: 2, max_queue: 1, queue_timeout: 0.5, max_tokens_per_user: 9, token_window: 60}}
retention: {{ttl: 60, max_events: 5}}
run_config: {{max_turns: 7, timeout: 3}}
plugins: ['shop:Recorder', 'shop:recorder']
transfer_policy: shop:policy
propagate: ['shop:tenant']
"""
    made = build(write, text)
    assert isinstance(made.session_service, InMemorySessionService)
    assert isinstance(made.artifact_service, FileArtifactService)
    assert isinstance(made.memory_service, InMemoryMemoryService)
    assert (made.max_concurrency, made.max_concurrency_per_user, made.max_queue, made.queue_timeout) == (3, 2, 1, 0.5)
    assert (made.max_tokens_per_user, made.token_window) == (9, 60.0)
    assert made.run_config.overrides() == {"max_turns": 7, "timeout": 3.0}
    assert made.memory_ingest == "on_run_end"
    assert made.retention == Retention(ttl=60, max_events=5)
    shop = sys.modules["shop"]
    assert [type(p) for p in made.plugins] == [shop.Recorder, shop.Recorder]
    assert made.plugins[1] is shop.recorder
    assert made.transfer_policy is shop.policy
    assert list(made.propagate) == [shop.tenant]


@pytest.mark.parametrize("name", ["memory", "memory:"])
def test_in_memory_has_two_spellings(write, name):
    made = build(write, f"{HEAD}  a: {{model: test}}\nservices: {{session: '{name}', artifacts: '{name}', memory: '{name}'}}")
    assert isinstance(made.session_service, InMemorySessionService)
    assert isinstance(made.artifact_service, InMemoryArtifactService)


def test_artifacts_in_a_bucket(write):
    made = build(write, f"{HEAD}  a: {{model: test}}\nservices: {{artifacts: 's3://bucket/pre/fix?region=eu-west-1'}}")
    assert isinstance(made.artifact_service, S3ArtifactService)


def test_a_bucket_that_cannot_be(problems):
    (problem,) = problems(f"{HEAD}  a: {{model: test}}\nservices: {{artifacts: 's3://key:secret@bucket'}}", make=True)
    assert problem.startswith("app.yaml:4: services.artifacts: ")
    assert problem.endswith("[artifact.invalid_url]")
    assert "secret" not in problem


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("embedder", "name"),
    [
        ("", None),
        (", embedder: {model: minilm}", "all-MiniLM-L6-v2"),
        (", embedder: {model: m, dimensions: 3, base_url: 'http://x/v1', api_key: '${KEY}', timeout: 1.5}", "m"),
    ],
)
async def test_memory_in_a_file(write, home, monkeypatch, embedder, name):
    monkeypatch.setenv("KEY", "secret")
    if name == "all-MiniLM-L6-v2":
        pytest.importorskip("tokenizers")
        monkeypatch.setattr(minilm, "_files", lambda: home)
    path = write(f"{HEAD}  a: {{model: test}}\nservices: {{memory: 'sqlite:///memory.db'{embedder}}}")
    async with WorkflowBuilder() as builder:
        made = builder.build(path)
        assert made.memory_service is builder.build(path).memory_service
        used = made.memory_service._embedder
        assert (None if used is None else used.name) == name
        await made.memory_service.list_memories("app", "alice")
    assert (home / "memory.db").exists()


@pytest.mark.parametrize(
    ("services", "told"),
    [
        ("memory: 'sqlite:///'", "services.memory: the database URL names no file"),
        ("memory: 'redis://user:secret@x'", "services.memory: there is no memory in redis:// URLs"),
        ("memory: memory, embedder: {model: minilm}", "services.embedder: memory in RAM has no use for it"),
        (
            "memory: 'sqlite:///a.db', embedder: {model: m, base_url: 'http://x/v1'}",
            "services.embedder: say how many dimensions",
        ),
        ("memory: 'sqlite:///a.db', embedder: {model: m, dimensions: 0}", "services.embedder.dimensions: must be"),
        ("memory: 'sqlite:///a.db', embedder: minilm", "services.embedder: must be"),
    ],
)
def test_memory_that_cannot_be(problems, services, told):
    (problem,) = problems(f"{HEAD}  a: {{model: test}}\nservices: {{{services}}}", make=True)
    assert problem.startswith(f"app.yaml:4: {told}")
    assert "secret" not in problem


def test_services_that_are_turned_off(write):
    made = build(write, f"{HEAD}  a: {{model: test}}\nservices: {{artifacts: none, memory: none}}")
    assert made.artifact_service is made.memory_service is None


@pytest.mark.anyio
async def test_paths_are_relative_to_the_config(write, home):
    (home / "inner").mkdir()
    text = (
        f"{HEAD}  a: {{kind: function, function: 'shop:save'}}\nservices: {{session: 'sqlite:///data.db', artifacts: files}}\n"
    )
    (home / "inner" / "app.yaml").write_text(text, encoding="utf-8")
    source = "async def save(ctx): return await ctx.artifacts.save('a.txt', 'b')"
    (home / "inner" / "shop.py").write_text(source, encoding="utf-8")
    async with WorkflowBuilder() as builder:
        assert await answer(builder.build(os.path.join("inner", "app.yaml"))) == 0
    assert (home / "inner" / "data.db").exists()
    assert (home / "inner" / "files").is_dir()
    assert [p.name for p in home.iterdir()] == ["inner"]


@pytest.mark.parametrize(("url", "code"), [("app.db", "config.unknown_service"), ("sqlite://host/x", "store.invalid_url"),
                                           ("sqlite:///", "store.invalid_url"), ("sqlite:///:memory:", "store.invalid_url")])  # fmt: skip
def test_addresses_that_cannot_be(problems, url, code):
    (problem,) = problems(f"{HEAD}  a: {{model: test}}\nservices: {{session: '{url}'}}", make=True)
    assert problem.startswith("app.yaml:4: services.session: ")
    assert problem.endswith(f"[{code}]")
