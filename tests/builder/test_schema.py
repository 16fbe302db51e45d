"""What does not fit: every problem at once, each with its line and what to do."""

import inspect
import json

import pytest

from sojourn import Agent, LlmAgent, RunnerConfig
from sojourn.builder.load import load_config
from sojourn.builder.schema import AppConfig, LimitsConfig, LlmAgentConfig, LoopAgentConfig, RunSettings
from sojourn.run.config import RunConfig

WRONG = """\
app_nam: shop
per_user: maybe
models:
  my model: test
  m:
    base_url: 5
    api_key: ""
    sttings: {}
tools:
  t:
    function: no dots
    require_approval: [1]
    timeout: 0
  u: 5
mcp_servers:
  a: {}
  b: {url: http://x, command: y}
  c: {url: http://x, args: [y]}
  d: {command: y, headers: {a: 1}}
agents:
  desk:
    modl: test
    retries: true
    tools: load_memory
    sub_agents:
      - 5
      - kind: lop
        name: x
      - name: y
        kind: loop
        max_iterations: 0
  fn:
    kind: function
  text: hello
  seq:
    kind: sequential
    sub_agents: []
services:
  session:
    url: x
  memory_ingest: sometimes
limits: []
run_config:
  max_turns: -1
  include_history: some
  when_busy: wait
  timeout: soon
  max_turn: 5
plugins: one
"""

TOLD = [
    "1: app_name: it is missing; add it [config.missing_key]",
    "1: app_nam: there is no such key here; did you mean 'app_name'? [config.unknown_key]",
    "2: per_user: must be true or false, not text [config.invalid]",
    "4: models.my model: is no name: letters, digits, _ and -, at most 64, and no digit first [config.invalid]",
    "5: models.m.model: it is missing; add it [config.missing_key]",
    "6: models.m.base_url: must be text, not a number; put it in quotes [config.invalid]",
    "7: models.m.api_key: must not be empty [config.invalid]",
    "8: models.m.sttings: there is no such key here; did you mean 'settings'? [config.unknown_key]",
    "11: tools.t.function: must be a dotted name: package.module:name [config.invalid]",
    "12: tools.t.require_approval: must be true or false, or text, not a list [config.invalid]",
    "13: tools.t.timeout: must be more than 0 [config.invalid]",
    "14: tools.u: must be a mapping of keys to values, not a number [config.invalid]",
    "16: mcp_servers.a: needs either url, or command with args [config.invalid]",
    "17: mcp_servers.b: needs either url, or command with args [config.invalid]",
    "18: mcp_servers.c: args cannot go with url; remove it [config.invalid]",
    "19: mcp_servers.d.headers.a: must be text, not a number; put it in quotes [config.invalid]",
    "21: agents.desk.model: it is missing; add it [config.missing_key]",
    "22: agents.desk.modl: there is no such key here; did you mean 'model'? [config.unknown_key]",
    "23: agents.desk.retries: must be a number, not true or false [config.invalid]",
    "24: agents.desk.tools: must be a list, not text [config.invalid]",
    "26: agents.desk.sub_agents[0]: must be an agent: a mapping, or in sub_agents a name; it is a number [config.invalid]",
    "27: agents.desk.sub_agents[1]: there is no kind of agent 'lop'; did you mean 'loop'? [config.invalid]",
    "29: agents.desk.sub_agents[2].sub_agents: it is missing; add it [config.missing_key]",
    "31: agents.desk.sub_agents[2].max_iterations: must be at least 1 [config.invalid]",
    "32: agents.fn.function: it is missing; add it [config.missing_key]",
    "34: agents.text: must be an agent: a mapping, or in sub_agents a name; it is text [config.invalid]",
    "37: agents.seq.sub_agents: must not be empty [config.invalid]",
    "39: services.session: must be text, not a mapping [config.invalid]",
    "41: services.memory_ingest: must be 'on_run_end' or 'manual' [config.invalid]",
    "42: limits: must be a mapping of keys to values, not a list [config.invalid]",
    "44: run_config.max_turns: must be at least 1 [config.invalid]",
    "45: run_config.include_history: must be a whole number, or 'all' [config.invalid]",
    "46: run_config.when_busy: must be 'enqueue', 'reject' or 'replace' [config.invalid]",
    "47: run_config.timeout: must be a number, not text [config.invalid]",
    "48: run_config.max_turn: there is no such key here; did you mean 'max_turns'? [config.unknown_key]",
    "49: plugins: must be a list, not text [config.invalid]",
]


def test_all_that_is_wrong_is_told_at_once(problems):
    assert problems(WRONG) == [f"app.yaml:{told}" for told in TOLD]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "app.yaml:1: must be a mapping of keys to values, not a list [config.invalid]"),
        ("hello", "app.yaml:1: must be a mapping of keys to values, not text [config.invalid]"),
        ("app_name: x\nagents: {}", "app.yaml:2: agents: must not be empty [config.invalid]"),
        ("app_name: x\nagents:", "app.yaml:2: agents: must be a mapping of keys to values, not nothing [config.invalid]"),
        ("app_name: ''\nagents: {a: {model: test}}", "app.yaml:1: app_name: must not be empty [config.invalid]"),
        ("app_name: no\nagents: {a: {model: 5}}", "app.yaml:2: agents.a.model: must be text, not a number; put it in quotes [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test, tools: [5]}}",
         "app.yaml:2: agents.a.tools[0]: must be a name, or a mapping with a function [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test, zzz: 5}}", "app.yaml:2: agents.a.zzz: there is no such key here; there is: kind, name, "),
        ("app_name: x\nagents: {a: {model: test}}\nrun_config: {timeout: .nan}", "app.yaml:3: run_config.timeout: "),
        ("app_name: x\nagents: {a: {model: test}}\nlimits: {max_tokens_per_user: 0}", "app.yaml:3: limits.max_tokens_per_user: "),
        ("app_name: x\nagents: {a: {model: test}}\nlimits: {token_window: 0}", "app.yaml:3: limits.token_window: "),
        ("app_name: x\nagents: {a: {model: test}}\nlimits: {max_queue: 1.5}",
         "app.yaml:3: limits.max_queue: must be a whole number, not a number [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test, sub_agents: [{kind: 5, name: b}]}}",
         "app.yaml:2: agents.a.sub_agents[0]: there is no kind of agent '5'; there is: llm, function, sequential, parallel, loop"),
        ("app_name: x\nagents: {a: {model: test, tools: [{function: 'x:y', timout: 5}]}}",
         "app.yaml:2: agents.a.tools[0].timout: there is no such key here; did you mean 'timeout'? [config.unknown_key]"),
        ("app_name: x\nagents: {a: {model: test, instruction: 5}}",
         "app.yaml:2: agents.a.instruction: must be a text, or a mapping with a function [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test, instruction: {functoin: 'm:f', function: 'm:f'}}}",
         "app.yaml:2: agents.a.instruction.functoin: there is no such key here; did you mean 'function'? [config.unknown_key]"),
        ("app_name: x\nagents: {a: {model: test, instruction: {}}}",
         "app.yaml:2: agents.a.instruction.function: it is missing; add it [config.missing_key]"),
        ("app_name: x\nagents: {a: {model: test, instruction: {function: f}}}",
         "app.yaml:2: agents.a.instruction.function: must be a dotted name: package.module:name [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nmcp_servers: {s: {url: server.py}}",
         "app.yaml:3: mcp_servers.s.url: must be an address that begins with http:// or https:// [config.invalid]"),
        ("app_name: x\nagents: {a: {model: m}}\nmodels: {m: {model: m, base_url: 'localhost:11434/v1'}}",
         "app.yaml:3: models.m.base_url: must be an address that begins with http:// or https:// [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\npropagate: ['m']",
         "app.yaml:3: propagate[0]: must be a dotted name: package.module:name [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nper_user: true\nper_user_idle: 0",
         "app.yaml:4: per_user_idle: must be more than 0 [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nper_user: true\nper_user_max: 0",
         "app.yaml:4: per_user_max: must be at least 1 [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nper_user: true\nper_user_max: true",
         "app.yaml:4: per_user_max: must be a number, not true or false [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nper_user_idle: 60",
         "app.yaml:3: per_user_idle: says something of agents for each user, and there are none; add per_user: true [config.invalid]"),
        ("app_name: x\nagents: {a: {model: test}}\nper_user: false\nper_user_max: 60",
         "app.yaml:4: per_user_max: says something of agents for each user, and there are none; add per_user: true [config.invalid]"),
    ],
)  # fmt: skip
def test_what_is_wrong(problems, text, told):
    (problem,) = problems(text)
    assert problem.startswith(told)


def test_what_came_from_the_environment_is_told_as_it_is_written(problems):
    text = "app_name: x\nagents: {a: {model: test}}\nlimits: {max_queue: '${N}'}"
    assert problems(text, environ={"N": "many"}) == [
        "app.yaml:3: limits.max_queue: must be a whole number, not text; here it is ${N} [config.invalid]"
    ]


FULL = {
    "app_name": "shop",
    "root": "desk",
    "per_user": True,
    "per_user_idle": 60.0,
    "per_user_max": None,
    "models": {"main": "openai:gpt-5", "local": {"model": "x", "base_url": "http://h/v1", "settings": {"temperature": 0}}},
    "tools": {"a": "m:f", "b": {"function": "m:g", "require_approval": "m:when", "timeout": 5, "sequential": True}},
    "mcp_servers": {
        "web": {"url": "http://h/mcp", "tools": ["x"], "prefix": "w", "require_approval": True},
        "files": {"command": "npx", "args": ["y"], "cwd": "z"},
    },
    "agents": {
        "desk": {
            "model": "main",
            "instruction": "Help.",
            "tools": ["a", "b", "web", "load_memory", "m:h", {"function": "m:i", "require_approval": True}],
            "sub_agents": ["team", {"name": "echo", "kind": "function", "function": "m:echo"}],
            "before_model": "m:cb",
            "output_schema": {"type": "object"},
            "settings": {"max_tokens": 5},
        },
        "team": {"kind": "sequential", "sub_agents": ["both", "again"], "description": "A team."},
        "both": {"kind": "parallel", "sub_agents": [{"name": "p", "model": "test", "instruction": {"function": "m:f"}}]},
        "again": {"kind": "loop", "max_iterations": 3, "sub_agents": [{"name": "q", "kind": "llm", "model": "local"}]},
    },
    "services": {"session": "sqlite:///a.db", "artifacts": "none", "memory": "memory", "memory_ingest": "on_run_end"},
    "limits": {
        "max_concurrency": 0,
        "max_concurrency_per_user": 2,
        "max_queue": 10,
        "queue_timeout": 1.5,
        "max_tokens_per_user": 1000,
        "token_window": 3600.0,
    },
    "retention": {"ttl": 3600.0, "max_events": 100, "max_age": 60.0, "every": 10.0},
    "run_config": {"max_turns": 5, "include_history": "all", "when_busy": "reject", "custom_metadata": {"a": [1]}},
    "plugins": ["m:Plugin"],
    "transfer_policy": "m:policy",
    "propagate": ["m:tenant"],
}


def test_a_round_trip(home):
    config = load_config(FULL)
    dumped = config.model_dump(exclude_unset=True)
    again = load_config(json.loads(json.dumps(dumped)))
    assert again.model_dump() == config.model_dump()
    assert again.per_user
    assert load_config(AppConfig.model_validate(FULL)).model_dump() == config.model_dump()


def test_a_config_does_not_change(home):
    config = load_config(FULL)
    with pytest.raises(ValueError, match="frozen"):
        config.app_name = "other"


def test_agents_and_runners_can_be_told_all_there_is():
    def options(init):
        return {p.name for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY}

    of_models = {"model", "base_url", "api_key", "settings"}
    wanted = {"settings" if name == "model_settings" else name for name in options(LlmAgent.__init__)}
    assert wanted <= LlmAgentConfig.model_fields.keys() | of_models
    assert options(Agent.__init__) <= LoopAgentConfig.model_fields.keys()
    in_python_only = {"agent"}
    services = {"session_service", "artifact_service", "memory_service", "memory_ingest"}
    known = AppConfig.model_fields.keys() | LimitsConfig.model_fields.keys() | services | in_python_only
    assert RunnerConfig.__dataclass_fields__.keys() <= known


def test_how_runs_run_has_all_of_run_configs_fields():
    assert RunSettings.model_fields.keys() == RunConfig.model_fields.keys()
    settings = RunSettings(max_turns=3)
    assert settings.to_run_config() == RunConfig(max_turns=3)
    assert settings.to_run_config().overrides() == {"max_turns": 3}
