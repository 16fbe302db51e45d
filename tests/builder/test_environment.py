"""`${NAME}`: values from the environment, and that neither they nor keys are ever shown."""

import logging
import traceback

import pytest
from pydantic import SecretStr

from sojourn import Runner
from sojourn.builder.load import load_config
from sojourn.builder.problems import ConfigError
from sojourn.builder.schema import AppConfig
from sojourn.builder.workflow import WorkflowBuilder
from sojourn.cli.check import described

SECRET = "sk-live-4242424242"

APP = """\
app_name: shop
agents:
  desk:
    model: test
    instruction: {instruction}
"""


def instruction_of(write, text, **environ):
    return load_config(write(APP.format(instruction=text)), environ=environ).agents["desk"].instruction


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("a ${A} b ${B}", {"A": "x", "B": "y"}, "a x b y"),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-d}", {"A": "x"}, "x"),
        ("${A:-}", {}, ""),
        ("${A:-http://h:1/x-y}", {}, "http://h:1/x-y"),
        ("${A}", {"A": ""}, ""),
        ("${A}", {"A": "${B}"}, "${B}"),
        ("$${A}", {}, "${A}"),
        ("$${A} ${A}", {"A": "x"}, "${A} x"),
        ("$A $ {A} {A}", {}, "$A $ {A} {A}"),
        ("$$ 5 $$", {}, "$$ 5 $$"),
    ],
)
def test_what_is_put_in(write, text, environ, value):
    assert instruction_of(write, f'"{text}"', **environ) == value


def test_the_environment_is_that_of_the_process(write, monkeypatch):
    monkeypatch.setenv("SHOP_TEXT", "from outside")
    assert load_config(write(APP.format(instruction="${SHOP_TEXT}"))).agents["desk"].instruction == "from outside"


def test_numbers_and_truths_may_come_from_it(write):
    text = APP.format(instruction="x") + "limits: {max_concurrency: '${N}'}\nper_user: ${P}\nrun_config: {timeout: '${T}'}\n"
    config = load_config(write(text), environ={"N": "7", "P": "true", "T": "1.5"})
    assert (config.limits.max_concurrency, config.per_user, config.run_config.timeout) == (7, True, 1.5)


def test_mappings_have_it_too(home):
    config = load_config({"app_name": "${A}", "agents": {"b": {"model": "test"}}}, environ={"A": "x"})
    assert config.app_name == "x"


def test_all_that_is_missing_is_told_at_once(problems):
    text = "app_name: ${A}\nmodels:\n  m:\n    model: x\n    api_key: ${KEY}\nagents:\n  desk: {model: m, instruction: '${} ${1}'}\n"
    assert problems(text) == [
        "app.yaml:1: app_name: the environment variable A is not set; set it, or write ${A:-default} [config.missing_variable]",
        "app.yaml:5: models.m.api_key: the environment variable KEY is not set; set it, or write ${KEY:-default} "
        "[config.missing_variable]",
        "app.yaml:7: agents.desk.instruction: ${} names no variable; write ${NAME} or ${NAME:-default}, and $${ for a text that "
        "has ${ in it [config.invalid_variable]",
        "app.yaml:7: agents.desk.instruction: ${1} names no variable; write ${NAME} or ${NAME:-default}, and $${ for a text that "
        "has ${ in it [config.invalid_variable]",
    ]


# -- secrets ------------------------------------------------------------------------------------------------------------

ALL_OVER = """\
app_name: shop
models:
  main:
    model: openai:gpt-5
    api_key: ${KEY}
    settings: {extra_headers: {Authorization: '${KEY}'}}
  local:
    model: ${KEY}
    base_url: http://user:${KEY}@127.0.0.1:1/v1?key=${KEY}
  literal:
    model: openai:gpt-5
    api_key: sk-literal-1234
mcp_servers:
  web: {url: 'http://me:${KEY}@127.0.0.1:1/mcp', headers: {Authorization: 'Bearer ${KEY}'}}
  files: {command: '${KEY}', args: ['--key', '${KEY}'], env: {TOKEN: '${KEY}'}}
agents:
  desk:
    model: main
    description: ${KEY}
    instruction: ${KEY}
    sub_agents: [{name: other, model: local}, {name: third, model: literal}]
services: {artifacts: './${KEY}'}
run_config: {custom_metadata: {key: '${KEY}'}}
"""


def test_nothing_shows_them(write, caplog):
    caplog.set_level(logging.DEBUG)
    config = load_config(write(ALL_OVER), environ={"KEY": SECRET})
    parts = [config, config.source, *config.models.values(), *config.agents.values(), *config.mcp_servers.values()]
    shown = "\n".join([repr(p) + str(p) for p in parts] + list(described(config)))
    assert "42424242" not in shown + caplog.text
    assert "sk-literal" not in shown
    assert config.models["main"].api_key == SecretStr(SECRET)  # and they are there
    assert "models" in repr(config)
    assert "local: ${KEY} at http://user:${KEY}@127.0.0.1:1/v1?key=${KEY}" in shown


def test_addresses_are_shown_without_what_may_be_a_key(write):
    text = APP.format(instruction="x").replace("test", "m") + "models: {m: {model: x, base_url: 'http://me:pw@h:1/v1?key=k'}}"
    assert "  m: x at http://h:1/v1" in list(described(load_config(write(text))))


def test_what_is_made_does_not_show_them(write):
    builder = WorkflowBuilder(environ={"KEY": SECRET}, models={"local": "test"})
    made = builder.build(write(ALL_OVER))
    shown = repr(builder) + repr(list(made.agent.walk()))
    assert "42424242" not in shown
    assert made.agent.resolved_model().client.api_key == SECRET


@pytest.mark.parametrize(
    "text",
    [
        "app_name: [${KEY}]\nagents: {a: {model: test}}",
        "app_name: x\nagents: {a: {model: test, retries: '${KEY}'}}",
        "app_name: x\nagents: {a: {model: test, kind: '${KEY}'}}",
        "app_name: x\nagents: {a: {model: '${KEY}'}}",
        "app_name: x\nagents: {a: {model: '${KEY}:gpt'}}",
        "app_name: x\nagents: {a: {model: test, sub_agents: ['${KEY}']}}",
        "app_name: x\nagents: {a: {model: test, sub_agents: [{name: '${KEY}', model: test}, {name: '${KEY}', model: test}]}}",
        "app_name: x\nagents: {a: {model: test, tools: ['${KEY}']}}",
        "app_name: x\nagents: {a: {model: test, tools: ['${KEY}:x']}}",
        "app_name: x\nagents: {a: {model: test}}\nroot: ${KEY}",
        "app_name: x\nagents: {a: {model: test}}\nplugins: ['${KEY}']",
        "app_name: x\nagents: {a: {model: test}}\nplugins: ['json:${KEY}']",
        "app_name: x\nagents: {a: {model: test}}\nservices: {session: '${KEY}'}",
        "app_name: x\nagents: {a: {model: test}}\nservices: {session: 'postgresql://u:${KEY}@h:port/db'}",
        "app_name: x\nagents: {a: {model: test}}\nrun_config: {when_busy: '${KEY}'}",
        "app_name: x\nmodels: {m: {model: openai:gpt, base_url: 5, api_key: '${KEY}'}}\nagents: {a: {model: m}}",
        "app_name: x\nmodels: {m: {model: nobody:gpt, api_key: '${KEY}'}}\nagents: {a: {model: m}}",
        "app_name: x\nagents: {a: {kind: function, function: 'broken:${KEY}'}}",
        "app_name: x\nagents: {a: {kind: function, function: 'broken:x', description: '${KEY}'}}",
    ],
)
def test_no_error_shows_them(write, text):
    secret = "SKLIVE42424242"
    name = write(text, broken=f"raise RuntimeError('{secret}')")
    with pytest.raises(ConfigError) as caught:
        WorkflowBuilder(environ={"KEY": secret}).build(name)
    error = caught.value
    shown = str(error) + repr(error) + error.details + "".join(f"{p!r}" for p in error.problems)
    assert "42424242" not in shown
    # What the config's own code raised is its own to say; nothing else of the chain has the value.
    error.__cause__ = None
    assert "42424242" not in "".join(traceback.format_exception(error, chain=True)).split("RuntimeError")[0]


def test_a_config_in_python_shows_only_its_keys():
    config = AppConfig.model_validate({"app_name": "secret", "agents": {"a": {"model": "test", "instruction": "secret"}}})
    assert repr(config) == "AppConfig(agents=…, app_name=…)"
    assert "secret" not in repr(config.agents)


def test_short_values_are_not_looked_for_everywhere(problems):
    assert problems("app_name: ${A}\nagents: {a: {modle: b}}", environ={"A": "a"})[0].startswith(
        "app.yaml:2: agents.a.model: it is"
    )


def test_short_values_are_shown_as_they_are_written(problems):
    text = "app_name: x\nagents: {a: {model: '${M}', tools: ['${T}']}}\nroot: ${R}"
    told = "\n".join(problems(text, environ={"M": "mo", "T": "to", "R": "ro"}))
    assert "there is no model '${M}'" in told
    assert "there is no tool or MCP server '${T}'" in told
    config = load_config({"app_name": "${A}", "agents": {"a": {"model": "test"}}}, environ={"A": "xy"})
    assert next(described(config)) == "app ${A}"


def test_a_key_that_is_written_in_the_file_is_not_shown_either(problems):
    text = "app_name: x\nmodels: {m: {model: 'openai:gpt-5', api_key: k-1234}}\nagents: {a: {model: m, tools: ['broken:f']}}"
    (problem,) = problems(text, make=True, broken="raise RuntimeError('no k-1234')")
    assert "RuntimeError: no **********; mend it" in problem


def test_keys_of_providers_are_used(write):
    text = "app_name: x\nmodels: {m: {model: 'openai:gpt-5', api_key: '${KEY}'}}\nagents: {a: {model: m}}"
    runner = Runner(WorkflowBuilder(environ={"KEY": SECRET}).build(write(text)))
    assert runner.agent.resolved_model().client.api_key == SECRET
