"""Configs at the console: `sojourn run app.yaml`, `sojourn check app.yaml`, and `--model` for any target."""

import json
import os

import pytest

from sojourn.builder import models  # noqa: F401  before any test: what a test imports is forgotten at its end
from sojourn.cli.reload import Reloader
from sojourn.cli.target import TargetError, load_target
from sojourn.errors import InvalidInput
from tests.cli.shell import Terminal, environment, invoke, sojourn

TOOLS = """
from sojourn import LlmAgent, agent

sold = []


def price(item: str) -> int:
    "Tells a price."
    return 5


def count() -> int:
    "Counts what was sold."
    return len(sold)


@agent
async def echo(ctx):
    return f"said {ctx.user_content.text}"


driven = LlmAgent(name="driven", model="openai:gpt-5", sub_agents=[echo])
"""

APP = """\
app_name: shop
models:
  main: ${SHOP_MODEL:-test}
tools: {price: 'shop_tools:price'}
agents:
  desk: {model: main, tools: [price]}
"""

ECHO = "app_name: echoes\nagents: {echo: {kind: function, function: 'shop_tools:echo'}}\n"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SHOP_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shop(imports):
    (imports / "shop_tools.py").write_text(TOOLS, encoding="utf-8")
    (imports / "app.yaml").write_text(APP, encoding="utf-8")
    (imports / "echo.yaml").write_text(ECHO, encoding="utf-8")
    return imports


# -- run ----------------------------------------------------------------------------------------------------------------


def test_a_config_is_run(shop):
    ran = sojourn("run", "app.yaml", "hi", cwd=shop)
    assert (ran.returncode, ran.stdout) == (0, '{"price":5}\n'), ran.stderr
    assert sojourn("sessions", "ls", "--app", "shop", cwd=shop).stdout.count("\n") == 1


def test_a_config_in_json_and_elsewhere(shop):
    (shop / "inner").mkdir()
    (shop / "inner" / "echo.json").write_text(
        json.dumps({"app_name": "echoes", "agents": {"echo": {"kind": "function", "function": "shop_tools:echo"}}}),
        encoding="utf-8",
    )
    (shop / "shop_tools.py").rename(shop / "inner" / "shop_tools.py")
    ran = invoke("run", os.path.join("inner", "echo.json"), "hi", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (0, "said hi\n")
    assert (shop / ".sojourn" / "sojourn.db").exists()


def test_its_own_services_are_used_unless_a_database_is_named(shop):
    (shop / "echo.yaml").write_text(f"{ECHO}services: {{session: 'sqlite:///own.db'}}\n", encoding="utf-8")
    assert invoke("run", "echo.yaml", "hi", "--session", "s", cwd=shop).exit_code == 0
    assert invoke("sessions", "show", "s", "--db", "own.db", cwd=shop).exit_code == 0
    assert invoke("run", "echo.yaml", "hi", "--session", "t", "--db", "named.db", cwd=shop).exit_code == 0
    assert invoke("sessions", "show", "t", "--db", "own.db", cwd=shop).exit_code == 1
    assert invoke("sessions", "show", "t", "--db", "named.db", cwd=shop).exit_code == 0


def test_what_is_wrong_is_told_with_its_line(shop):
    (shop / "app.yaml").write_text(APP.replace("tools: [price]", "tols: [price]"), encoding="utf-8")
    ran = invoke("run", "app.yaml", "hi", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: app.yaml:6: agents.desk.tols: there is no such key here; did you mean 'tools'? [config.unknown_key]\n"
    )


def test_all_that_is_wrong_is_told(shop):
    (shop / "app.yaml").write_text("app_nam: x\nagents: []\n", encoding="utf-8")
    ran = invoke("run", "app.yaml", "hi", cwd=shop)
    assert ran.stderr.splitlines() == [
        "app.yaml:1: app_name: it is missing; add it",
        "app.yaml:1: app_nam: there is no such key here; did you mean 'app_name'?",
        "app.yaml:2: agents: must be a mapping of keys to values, not a list",
        "error: app.yaml:1: app_name: it is missing; add it (and 2 more) [config.missing_key]",
    ]


def test_a_module_that_fails_shows_its_traceback(shop):
    (shop / "shop_tools.py").write_text("def broken():\n    1 / 0\n\nbroken()\n", encoding="utf-8")
    ran = invoke("run", "echo.yaml", "hi", cwd=shop)
    assert ran.exit_code == 2
    assert 'shop_tools.py", line 2, in broken' in ran.stderr
    assert "sojourn/builder" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(
        "error: echo.yaml:2: agents.echo.function: module 'shop_tools' cannot be imported: ZeroDivisionError"
    )


@pytest.mark.parametrize(
    ("spec", "code"),
    [("nowhere.yaml", "config.not_found"), ("app.yaml:desk", "target.invalid"), ("app.toml", "target.invalid")],
)
def test_what_is_no_config(shop, spec, code):
    with pytest.raises(InvalidInput) as caught:
        load_target(spec)
    assert caught.value.code == code


def test_an_approval_is_answered_in_another_shell(shop):
    (shop / "app.yaml").write_text(APP.replace("'shop_tools:price'", "{function: 'shop_tools:price', require_approval: true}"))
    ran = sojourn("run", "app.yaml", "hi", cwd=shop)
    assert ran.returncode == 3
    (command,) = [line for line in ran.stderr.splitlines() if "runs answer" in line]
    words = command.split()
    assert words[-2:] == ["--target", "app.yaml"]
    answered = sojourn(*["yes" if word == "VALUE" else word for word in words[1:]], cwd=shop)
    assert (answered.returncode, answered.stdout) == (0, '{"price":5}\n'), answered.stderr


def test_a_chat_takes_over_edits_of_the_config(shop):
    with Terminal("run", "echo.yaml", "--reload", cwd=shop) as terminal:
        terminal.is_asked()
        terminal.types("one")
        terminal.sees("said one")
        terminal.is_asked()
        (shop / "echo.yaml").write_text(ECHO.replace("{echo:", "{other:"), encoding="utf-8")
        terminal.types("two")
        terminal.sees("reloaded")
        terminal.sees("said two")
        terminal.is_asked()
        (shop / "echo.yaml").write_text(ECHO.replace("kind:", "knd:"), encoding="utf-8")
        terminal.types("three")
        terminal.sees("echo.yaml:2: agents.echo.knd: there is no such key here")
        terminal.sees("the agent before this edit goes on")
        terminal.sees("said three")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0


def test_a_reload_keeps_the_services(shop):
    (shop / "echo.yaml").write_text(f"{ECHO}services: {{session: memory}}\n", encoding="utf-8")
    target = load_target("echo.yaml")
    reloader = Reloader(target)
    assert not reloader.changed()
    (shop / "echo.yaml").write_text(f"{ECHO}services: {{session: memory}}\n# edited\n", encoding="utf-8")
    assert reloader.changed()
    again = reloader.reload()
    assert again.config.session_service is target.config.session_service
    assert again.config.agent is not target.config.agent
    assert not reloader.changed()


# -- check --------------------------------------------------------------------------------------------------------------


def test_a_check_prints_what_would_run(shop):
    (shop / "app.yaml").write_text(
        """\
app_name: shop
per_user: true
models:
  main: test
  local: {model: llama, base_url: 'http://127.0.0.1:1/v1', api_key: sk-12345678}
  spare: test
tools:
  price: {function: 'shop_tools:price', require_approval: true}
  other: {function: 'shop_tools:price', require_approval: 'shop_tools:price'}
mcp_servers:
  files: {command: npx, args: [--key, sk-12345678]}
  web: {url: 'http://h/mcp', require_approval: true}
agents:
  desk:
    model: main
    description: Sells.
    tools: [price, files, load_memory, {function: 'shop_tools:count', require_approval: true}]
    sub_agents: [team, {name: echo, kind: function, function: 'shop_tools:echo'}]
  team: {kind: sequential, sub_agents: [again]}
  again: {kind: loop, max_iterations: 3, sub_agents: [{name: inner, model: local}]}
  unused: {model: 'openai:gpt-5'}
root: desk
services:
  session: 'sqlite:///shop.db'
  memory: 'sqlite:///shop.db'
  embedder: {model: small, dimensions: 3, base_url: 'http://user:secret@127.0.0.1:1/v1', api_key: sk-87654321}
limits: {max_concurrency: 5}
retention: {ttl: 86400, max_events: 1000}
run_config: {max_turns: 8, custom_metadata: {a: 1}}
plugins: []
""",
        encoding="utf-8",
    )
    ran = invoke("check", "app.yaml", "--model", "test", cwd=shop)
    assert ran.exit_code == 0, ran.stderr
    ran = sojourn("check", "app.yaml", cwd=shop, env=environment() | {"OPENAI_API_KEY": "sk-12345678"})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (
        ran.stdout
        == """\
app shop, with agents for each user
agents
  desk (llm, main): Sells.
    tools: price (asks for approval), files, load_memory, shop_tools:count (asks for approval)
    team (sequential)
      again (loop, at most 3 times)
        inner (llm, local)
    echo (function shop_tools:echo)
  unused is used by no other agent
models
  main: test
  local: llama at http://127.0.0.1:1/v1, with a key
  spare: test; used by no agent
tools
  price: shop_tools:price (asks for approval)
  other: shop_tools:price (asks for approval when shop_tools:price says so); used by no agent
mcp servers
  files: starts npx
  web: http://h/mcp (asks for approval)
services
  session: sqlite:///shop.db
  memory: sqlite:///shop.db
  embedder: small at http://127.0.0.1:1/v1
limits
  max_concurrency: 5
retention
  ttl: 86400.0
  max_events: 1000
run config
  max_turns: 8
  custom_metadata: …
"""
    )
    assert not (shop / "shop.db").exists()


def test_a_check_prints_every_problem(shop):
    (shop / "app.yaml").write_text(APP.replace("price}", "prize}").replace("'shop_tools:price'", "'shop_tools:prize'"))
    ran = invoke("check", "app.yaml", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr == (
        "error: app.yaml:4: tools.price.function: shop_tools:prize: shop_tools has no 'prize'; did you mean 'price'? "
        "[config.not_importable]\n"
    )
    (shop / "app.yaml").write_text("app_nam: x\nagents: []\n", encoding="utf-8")
    ran = invoke("check", "app.yaml", cwd=shop)
    assert [line.rpartition(" ")[2] for line in ran.stderr.splitlines()] == [
        "[config.missing_key]",
        "[config.unknown_key]",
        "[config.invalid]",
    ]


def test_a_check_tells_which_key_is_missing(shop, monkeypatch):
    monkeypatch.setenv("SHOP_MODEL", "openai:gpt-5")
    ran = invoke("check", "app.yaml", cwd=shop)
    assert ran.exit_code == 1
    assert ran.stderr.startswith("error: app.yaml:3: models.main: model ")
    assert "OPENAI_API_KEY" in ran.stderr
    assert "openai:gpt-5'" not in ran.stderr  # it came from the environment


def test_a_check_is_for_configs(shop):
    ran = invoke("check", "shop_tools.py", cwd=shop)
    assert ran.exit_code == 2
    assert "'shop_tools.py' is no config; the name of one ends with .yaml, .yml, .json [target.invalid]" in ran.stderr


def test_a_check_without_a_file(shop):
    ran = invoke("check", "ap.yaml", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "there is no such file; did you mean 'app.yaml'?" in ran.stderr


# -- another model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["app.yaml", "shop_tools.py:driven"])
def test_another_model_for_any_target(shop, target, monkeypatch):
    monkeypatch.setenv("SHOP_MODEL", "openai:gpt-5")
    ran = invoke("run", target, "hi", "--model", "test", cwd=shop)
    assert ran.exit_code == 0, ran.stderr


def test_another_model_for_the_agents_of_each_user(shop, monkeypatch):
    (shop / "app.yaml").write_text(f"{APP}per_user: true\n", encoding="utf-8")
    monkeypatch.setenv("SHOP_MODEL", "openai:gpt-5")
    ran = invoke("run", "app.yaml", "hi", "--model", "test", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (0, '{"price":5}\n'), ran.stderr


@pytest.mark.parametrize("target", ["app.yaml", "shop_tools.py:driven"])
def test_a_missing_key_is_named_and_a_way_without_told(shop, target):
    ran = invoke("run", target, "hi", "--model", "openai:gpt-5", cwd=shop)
    assert (ran.exit_code, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert "OPENAI_API_KEY" in line
    assert "a local model works without a key" in line
    assert "on the command line: --model llama3.2 --base-url http://127.0.0.1:11434/v1 [model.no_key]" in line
    assert not (shop / ".sojourn").exists()


def test_a_config_whose_key_is_missing_tells_the_same(shop, monkeypatch):
    monkeypatch.setenv("SHOP_MODEL", "openai:gpt-5")
    ran = invoke("run", "app.yaml", "hi", cwd=shop)
    assert ran.stderr.startswith("error: app.yaml:3: models.main: ")
    assert "on the command line: --model llama3.2 --base-url" in ran.stderr


def test_a_model_that_nobody_knows(shop):
    ran = invoke("run", "app.yaml", "hi", "--model", "nobody:gpt", cwd=shop)
    assert ran.exit_code == 2
    assert "[model.unknown]" in ran.stderr


@pytest.mark.parametrize("target", ["echo.yaml", "shop_tools.py:echo"])
def test_a_target_without_models(shop, target):
    ran = invoke("run", target, "hi", "--model", "test", cwd=shop)
    assert ran.exit_code == 2
    assert (
        f"{target} has no agent that a model drives, so --model changes nothing; leave it out [target.no_model]" in ran.stderr
    )


def test_an_address_is_of_a_model(shop):
    ran = invoke("run", "app.yaml", "hi", "--base-url", "http://127.0.0.1:1/v1", cwd=shop)
    assert ran.exit_code == 2
    assert "--base-url" in ran.stderr
    assert "give --model" in ran.stderr


def test_the_address_is_used(shop):
    load = load_target("app.yaml")
    assert load.config.agent.resolved_model().model_name == "test"
    ran = invoke("check", "app.yaml", "--model", "llama3.2", "--base-url", "http://127.0.0.1:1/v1", cwd=shop)
    assert "  --model llama3.2 --base-url http://127.0.0.1:1/v1, in place of all others" in ran.stdout


def test_the_command_that_answers_names_the_model(shop):
    (shop / "app.yaml").write_text(
        APP.replace("'shop_tools:price'", "{function: 'shop_tools:price', require_approval: true}").replace(
            "test}", "openai:gpt}"
        )
    )
    ran = sojourn("run", "app.yaml", "hi", "--model", "test", cwd=shop)
    assert ran.returncode == 3, ran.stderr
    (command,) = [line for line in ran.stderr.splitlines() if "runs answer" in line]
    assert command.endswith("--target app.yaml --model test")
    words = ["yes" if word == "VALUE" else word for word in command.split()[1:]]
    answered = sojourn(*words, cwd=shop)
    assert (answered.returncode, answered.stdout) == (0, '{"price":5}\n'), answered.stderr


def test_a_model_for_no_target(shop):
    ran = invoke("runs", "answer", "r", "yes", "--model", "test", cwd=shop)
    assert ran.exit_code == 2
    assert "--target" in ran.stderr


def test_targets_in_python_stay_as_they_were(shop):
    assert load_target("shop_tools.py:driven").config.agent.name == "driven"
    with pytest.raises(TargetError):
        load_target("shop_tools.py:nothing")
