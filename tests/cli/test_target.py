"""Finding the agent that a target names."""

import sys

import pytest

from sojourn.cli.target import TargetError, load_target

ONE = """
from sojourn import agent

@agent
async def helper(ctx):
    return "helped"
"""

FAMILY = """
from sojourn import agent

@agent
async def billing(ctx):
    return "billed"

@agent(sub_agents=[billing])
async def front(ctx):
    return "hello"

limit = 3

class Thing:
    pass
"""

SEVERAL = (
    ONE
    + """
@agent
async def other(ctx):
    return "other"
"""
)


def write(directory, name, source):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def refused(spec, code):
    with pytest.raises(TargetError) as caught:
        load_target(spec)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value


# -- what is found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["helpers.py:helper", "helpers:helper", "./helpers.py:helper", "helpers.py", "helpers"])
def test_an_agent_is_found_in_a_file_and_in_a_module(imports, spec):
    write(imports, "helpers.py", ONE)
    target = load_target(spec)
    assert target.config.agent.name == "helper"
    assert target.config.app_name == "helper"
    assert target.root == imports


def test_an_absolute_path_names_a_file(imports, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere, "helpers.py", ONE)
    assert load_target(f"{elsewhere}/helpers.py:helper").root == elsewhere


def test_a_file_imports_its_neighbours(imports):
    write(imports, "deep/texts.py", "HELLO = 'hello'")
    write(imports, "deep/helpers.py", f"from texts import HELLO\n{ONE}")
    assert load_target("deep/helpers.py").config.agent.name == "helper"


def test_a_file_imports_from_the_working_directory(imports):
    write(imports, "shared_texts.py", "HELLO = 'hello'")
    write(imports, "deep/helpers.py", f"from shared_texts import HELLO\n{ONE}")
    assert load_target("deep/helpers.py").config.agent.name == "helper"


@pytest.mark.parametrize("spec", ["shop/desk/helpers.py:helper", "shop.desk.helpers:helper"])
def test_a_module_of_a_package_imports_relatively(imports, spec):
    write(imports, "shop/__init__.py", "")
    write(imports, "shop/texts.py", "HELLO = 'hello'")
    write(imports, "shop/desk/__init__.py", "")
    write(imports, "shop/desk/helpers.py", f"from ..texts import HELLO\n{ONE}")
    target = load_target(spec)
    assert target.config.agent.name == "helper"
    assert target.root == imports
    assert sys.modules["shop.desk.helpers"].HELLO == "hello"


@pytest.mark.parametrize("spec", ["shop/__init__.py:helper", "shop:helper", "shop"])
def test_a_package_itself(imports, spec):
    write(imports, "shop/__init__.py", ONE)
    target = load_target(spec)
    assert target.config.agent.name == "helper"
    assert target.root == imports


@pytest.mark.parametrize("name", ["json.py", "pytest.py", "my-agent.py"])
def test_a_file_may_be_called_like_another_module(imports, name):
    write(imports, name, ONE)
    known = sys.modules.get(name.removesuffix(".py"))
    assert load_target(f"{name}:helper").config.agent.name == "helper"
    assert sys.modules.get(name.removesuffix(".py")) is known or known is None


def test_a_file_is_run_once(imports):
    write(imports, "helpers.py", ONE)
    assert load_target("helpers.py").config.agent is load_target("helpers").config.agent


# -- which one ----------------------------------------------------------------------------------------------------------


def test_an_agent_that_belongs_to_another_does_not_count(imports):
    write(imports, "family.py", FAMILY)
    assert load_target("family.py").config.agent.name == "front"
    assert load_target("family.py:billing").config.agent.name == "billing"


@pytest.mark.parametrize("name", ["root_agent", "agent", "app"])
def test_of_several_the_one_with_a_usual_name(imports, name):
    write(imports, "several.py", SEVERAL + f"\n{name} = other\n")
    assert load_target("several.py").config.agent.name == "other"


def test_usual_names_for_different_agents_do_not_decide(imports):
    write(imports, "several.py", SEVERAL + "\nagent = other\nroot_agent = helper\n")
    assert "say which" in refused("several.py", "target.unknown_name").message


def test_the_decorator_is_not_an_agent(imports):
    write(imports, "helpers.py", ONE)
    assert "FunctionAgent" not in refused("helpers.py:agent", "target.not_an_agent").message


def test_a_runner_config_and_a_runner_count(imports):
    write(
        imports,
        "configs.py",
        ONE
        + """
from sojourn import Runner, RunnerConfig
config = RunnerConfig(app_name="shop", agent=helper, max_concurrency=7)
runner = Runner(app_name="desk", agent=helper)
""",
    )
    assert load_target("configs.py:config").config.app_name == "shop"
    assert load_target("configs.py:config").config.max_concurrency == 7
    assert load_target("configs.py:runner").config.app_name == "desk"
    assert "configs.py:config" in refused("configs.py", "target.unknown_name").message


def test_a_config_stands_for_its_agent(imports):
    write(
        imports,
        "configs.py",
        ONE
        + """
from sojourn import RunnerConfig
config = RunnerConfig(app_name="shop", agent=helper)
""",
    )
    assert load_target("configs.py").config.app_name == "shop"


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", ":x", "x.py:", "x.py:two words", "a:b:", "x.py:a.b"])
def test_what_is_not_a_target(imports, spec):
    assert "file.py:name" in refused(spec, "target.invalid").message


@pytest.mark.parametrize("spec", ["app.yaml:x", "agents.toml", "notes.txt"])
def test_files_of_other_kinds(imports, spec):
    assert "not a Python file" in refused(spec, "target.invalid").message
    write(imports, spec.partition(":")[0], "name: x")
    assert "not a Python file" in refused(spec, "target.invalid").message


def test_a_directory(imports):
    write(imports, "shop/agent.py", ONE)
    assert "a directory" in refused("./shop", "target.invalid").message


def test_an_unknown_file_suggests_a_near_one(imports):
    write(imports, "helpers.py", ONE)
    assert "did you mean 'helpers.py'?" in refused("helper.py", "target.not_found").message
    assert "did you mean" not in refused("qqq.py", "target.not_found").message


def test_an_unknown_module_suggests_a_near_one(imports):
    write(imports, "helpers.py", ONE)
    assert "did you mean 'helpers'?" in refused("helper:x", "target.not_found").message
    assert "'nowhere'" in refused("nowhere.at.all:x", "target.not_found").message


def test_an_unknown_name_suggests_a_near_one_and_lists_the_agents(imports):
    write(imports, "family.py", FAMILY)
    message = refused("family.py:billin", "target.unknown_name").message
    assert "did you mean 'billing'? Agents there: billing, front" in message
    assert refused("family.py:qqq", "target.unknown_name").message.endswith("Agents there: billing, front")


@pytest.mark.parametrize(("name", "what"), [("limit", "an int"), ("Thing", "the class Thing")])
def test_what_is_not_an_agent(imports, name, what):
    write(imports, "family.py", FAMILY)
    message = refused(f"family.py:{name}", "target.not_an_agent").message
    assert f"is {what}, which is neither" in message
    assert message.endswith("Agents there: billing, front")


def test_a_module_without_agents(imports):
    write(imports, "empty.py", "x = 1")
    assert "has no agent" in refused("empty.py", "target.unknown_name").message


def test_several_agents_are_listed_as_targets(imports):
    write(imports, "several.py", SEVERAL)
    assert refused("several.py", "target.unknown_name").message.endswith("several.py:helper, several.py:other")


# -- what is broken -----------------------------------------------------------------------------------------------------


def test_a_file_that_raises_shows_the_users_frames_alone(imports):
    write(imports, "texts.py", "import json\njson.loads('{')\n")
    write(imports, "broken.py", "import texts\n")
    error = refused("broken.py:x", "target.broken")
    assert "JSONDecodeError" in error.message
    assert f'File "{imports}/broken.py", line 1' in error.details
    assert f'File "{imports}/texts.py", line 2' in error.details
    assert error.details.count("File ") == 2


def test_a_syntax_error_shows_its_place(imports):
    write(imports, "broken.py", "x = (\n")
    error = refused("broken.py:x", "target.broken")
    assert f'File "{imports}/broken.py", line 1' in error.details
    assert "sojourn" not in error.details.replace(str(imports), "")


@pytest.mark.parametrize("spec", ["broken.py:x", "broken:x"])
def test_a_missing_import_is_the_files_fault(imports, spec):
    write(imports, "broken.py", "import nowhere_to_be_found\n")
    error = refused(spec, "target.broken")
    assert "nowhere_to_be_found" in error.message
    assert "line 1" in error.details


def test_a_file_that_exits(imports):
    write(imports, "leaving.py", "raise SystemExit(0)\n")
    refused("leaving.py:x", "target.broken")


def test_a_broken_file_can_be_mended(imports):
    write(imports, "helpers.py", "1 / 0\n")
    refused("helpers.py:helper", "target.broken")
    write(imports, "helpers.py", ONE)
    assert load_target("helpers.py:helper").config.agent.name == "helper"
