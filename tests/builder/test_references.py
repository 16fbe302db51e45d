"""What names what in a config, and that its agents make up a tree."""

import pytest

from sojourn.builder.load import load_config
from sojourn.builder.references import BUILTIN_TOOLS, root_of, walk

HEAD = "app_name: x\nmodels: {main: test}\ntools: {look_up: 'm:f'}\nmcp_servers: {files: {command: x}}\nagents:\n"
"""Agents begin in line 6."""


def agents(*lines, then=""):
    return HEAD + "".join(f"  {line}\n" for line in lines) + then


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (agents("a: {model: mian}"),
         "6: agents.a.model: there is no model 'mian', nor is it provider:name; did you mean 'main'? [config.unknown_reference]"),
        (agents("a: {model: zzz}"),
         "6: agents.a.model: there is no model 'zzz', nor is it provider:name; there is: main [config.unknown_reference]"),
        (agents("a:", "  model: main", "  tools:", "    - look_up", "    - lok_up"),
         "10: agents.a.tools[1]: there is no tool or MCP server 'lok_up', nor is it package.module:function; did you mean "
         "'look_up'? [config.unknown_reference]"),
        (agents("a: {model: main, tools: [file]}"),
         "6: agents.a.tools[0]: there is no tool or MCP server 'file', nor is it package.module:function; did you mean "
         "'files'? [config.unknown_reference]"),
        (agents("desk: {model: main, sub_agents: [bills]}", "billing: {model: main}"),
         "6: agents.desk.sub_agents[0]: there is no agent 'bills'; did you mean 'billing'? [config.unknown_reference]"),
        (agents("a: {model: main, sub_agents: [{name: b, model: main, sub_agents: [c]}]}"),
         "6: agents.a.sub_agents[0].sub_agents[0]: there is no agent 'c'; there is: a [config.unknown_reference]"),
        (agents("a: {model: main}", then="root: b\n"),
         "7: root: there is no agent 'b'; there is: a [config.unknown_reference]"),
        (agents("a: {model: main, sub_agents: [b]}", "b: {model: main}", then="root: b\n"),
         "8: root: 'b' is a sub-agent of another one; name one that is not: a [config.invalid]"),
        (agents("a: {model: main}", "b: {model: main}"),
         "1: root: it is missing, and several agents are no other's: a, b; say which one is asked first [config.missing_key]"),
        (agents("a: {model: main, name: b}"),
         "6: agents.a.name: the agent's key is its name; remove this [config.duplicate_name]"),
        (agents("a:", "  model: main", "  sub_agents:", "    - {name: b, model: main}", "    - name: b", "      model: main"),
         "10: agents.a.sub_agents[1]: there is an agent 'b' in line 9; rename one of them [config.duplicate_name]"),
        (agents("a: {model: main, sub_agents: [{name: b, model: main}]}", "b: {model: main}"),
         "7: agents.b: there is an agent 'b' in line 6; rename one of them [config.duplicate_name]"),
        (agents("a: {model: main, sub_agents: [{name: a, model: main}]}"),
         "6: agents.a.sub_agents[0]: there is an agent 'a' in line 6; rename one of them [config.duplicate_name]"),
        (agents("a: {model: main}", "'': {model: main}"),
         "7: agents.: an agent's name must not be empty [config.invalid]"),
        (agents("a: {model: main, sub_agents: [{model: main}]}"),
         "6: agents.a.sub_agents[0].name: it is missing; an agent inside of another needs one [config.missing_key]"),
        (agents("a: {model: main, sub_agents: [a]}"),
         "6: agents.a.sub_agents[0]: an agent is below itself: a → a; remove one of these [config.cycle]"),
        (agents("a: {model: main, sub_agents: [b]}", "b: {model: main, sub_agents: [c]}", "c:", "  model: main",
                "  sub_agents: [d, b]", "d: {model: main}"),
         "10: agents.c.sub_agents[1]: an agent is below itself: b → c → b; remove one of these [config.cycle]"),
        (agents("a: {model: main, sub_agents: [{name: i, model: main, sub_agents: [b]}]}", "b: {model: main, sub_agents: [a]}"),
         "7: agents.b.sub_agents[0]: an agent is below itself: a → b → a; remove one of these [config.cycle]"),
        (agents("a: {model: main, sub_agents: [b, c]}", "b: {model: main, sub_agents: [c]}", "c: {model: main}"),
         "7: agents.b.sub_agents[0]: agent 'c' has a parent already, in line 6; make another agent, under another name "
         "[config.shared_agent]"),
        (agents("a: {model: main, sub_agents: [b, b]}", "b: {model: main}"),
         "6: agents.a.sub_agents[1]: agent 'b' has a parent already, in line 6; make another agent, under another name "
         "[config.shared_agent]"),
        (agents("a: {model: main}", then="").replace("files:", "look_up:"),
         "4: mcp_servers.look_up: there is a tool 'look_up', too; rename one of them [config.duplicate_name]"),
    ],
)  # fmt: skip
def test_what_is_wrong(problems, text, told):
    assert problems(text) == [f"app.yaml:{told}"]


def test_all_references_are_told_at_once(problems):
    text = agents("a: {model: x, tools: [y], sub_agents: [z]}", "b: {model: main, sub_agents: [b]}")
    assert [told.split(": there is")[0] for told in problems(text)] == [
        "app.yaml:6: agents.a.sub_agents[0]",
        "app.yaml:6: agents.a.model",
        "app.yaml:6: agents.a.tools[0]",
    ]


def test_mappings_have_no_lines(home):
    values = {"app_name": "x", "agents": {"a": {"model": "test", "sub_agents": [{"name": "a", "model": "test"}]}}}
    with pytest.raises(Exception, match=r"^agents.a.sub_agents\[0\]: there is an agent 'a' before; rename one of them"):
        load_config(values)


def test_what_may_be_named(write):
    names = ["look_up", "files", *BUILTIN_TOOLS, "package.module:function"]
    config = load_config(write(agents(f"a: {{model: openai:gpt-5, tools: {names}}}", "b: {model: test}", then="root: a\n")))
    assert root_of(config) == "a"


def test_the_root_is_the_agent_that_is_no_others(write):
    text = agents("leaf: {model: main}", "top: {kind: loop, sub_agents: [{name: inner, model: main, sub_agents: [leaf]}]}")
    config = load_config(write(text))
    assert root_of(config) == "top"
    assert ["/".join(map(str, path)) for path, _ in walk(config)] == ["agents/leaf", "agents/top", "agents/top/sub_agents/0"]


def test_a_model_may_be_called_test(write):
    text = "app_name: x\nmodels: {test: {model: openai:gpt-5, api_key: k}}\nagents: {a: {model: test}}"
    assert load_config(write(text)).models["test"].model == "openai:gpt-5"
