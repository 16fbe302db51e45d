"""The text of a config: YAML and JSON to values that know their lines, and what is neither."""

import json
import pickle
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sojourn.builder.jsontext import parse_json
from sojourn.builder.load import load_config
from sojourn.builder.problems import ConfigError
from sojourn.builder.source import Node, node_of
from sojourn.builder.yamltext import parse_yaml
from sojourn.errors import InvalidInput, Unsupported


def plain(node):
    if isinstance(node.value, dict):
        return {key: plain(inner) for key, inner in node.value.items()}
    return [plain(inner) for inner in node.value] if isinstance(node.value, list) else node.value


def lines(node, path=()):
    """The line of each place."""
    found = {path: node.line}
    inner = (
        node.value.items() if isinstance(node.value, dict) else enumerate(node.value) if isinstance(node.value, list) else ()
    )
    for key, child in inner:
        found |= lines(child, (*path, key))
    return found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

YAML_TEXT = st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn", "Zl", "Zp"), exclude_characters="\ufeff")


class TestJson:
    @given(VALUES, st.sampled_from([None, 2, "\t"]))
    def test_is_what_json_says(self, value, indent):
        assert plain(parse_json(json.dumps(value, indent=indent))) == value

    def test_lines(self):
        node = parse_json('\n{"a": 1,\n\t"b":\n  [true,\n   {"c": null}, 5\n  ]}')
        assert lines(node) == {
            (): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 1): 5, ("b", 1, "c"): 5, ("b", 2): 5,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('{"a": 1,\n "b" 2}', "app.json:2: this is not JSON: Expecting ':' delimiter"),
            ('{"a": 1,\n\n}', "app.json:3: this is not JSON: Expecting property name"),
            ("", "app.json:1: this is not JSON: Expecting value"),
            ('{"a": NaN}', "app.json: this is not JSON: NaN is no number of JSON"),
            ('{"a": 1,\n "a": 2}', "app.json:2: the key 'a' is there twice, first in line 1; remove one"),
            ("[" * 100_000, "app.json: it is nested too deep"),
        ],
    )
    def test_what_is_not(self, problems, text, told):
        (problem,) = problems(text, "app.json")
        # Newer Pythons say more of what they expect.
        assert problem.startswith(told) or told.split("Expecting")[0] in problem
        assert problem.endswith("[config.syntax]")


class Quoting(yaml.SafeDumper):
    """Quotes all texts: PyYAML leaves some bare that are numbers in YAML 1.2."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


class TestYaml:
    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(YAML_TEXT),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(YAML_TEXT), inner, max_size=4),
        max_leaves=12,
    ))  # fmt: skip
    def test_is_what_yaml_says(self, value):
        assert plain(parse_yaml(yaml.dump(value, Dumper=Quoting, allow_unicode=True))) == value

    def test_lines_are_those_of_keys_and_items(self):
        node = parse_yaml("# what it is\na: 1\nb:\n  - true\n  - c: |\n      text\n      more\n    d: {e: f}\n")
        assert lines(node) == {
            (): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 1): 5, ("b", 1, "c"): 5, ("b", 1, "d"): 8, ("b", 1, "d", "e"): 8,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("no", "no"), ("off", "off"), ("yes", "yes"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01"), ("1_000", "1_000"),
            ("true", True), ("~", None), ("", None), ("0x1f", 31), ("0o17", 15), ("017", 17), ("-3", -3), ("1.5", 1.5),
            (".5", 0.5), ("1e3", 1000.0), (".inf", float("inf")), ("-.inf", float("-inf")), ("'8'", "8"), ('"true"', "true"),
            ("!!str 8", "8"), ("!!int 8", 8), ("!!float 8", 8.0), ("!!null ~", None), ("1.2.3", "1.2.3"), ("openai:gpt-5", "openai:gpt-5"),
        ],
    )  # fmt: skip
    def test_scalars_are_those_of_yaml_1_2(self, text, value):
        got = parse_yaml(f"a: {text}").value["a"].value
        assert (got, type(got)) == (value, type(value))

    def test_aliases_are_written_out(self):
        assert plain(parse_yaml("a: &x {b: 1}\nc: *x\nd: [*x]\n")) == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}]}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("a: 1\nb: c: d\n", "app.yaml:2: this is not YAML: mapping values are not allowed here"),
            ("a:\n\t- 1\n", "app.yaml:2: this is not YAML: while scanning for the next token, found character '\\t'"),
            ("a: [1,\n", "app.yaml:2: this is not YAML: while parsing a flow node"),
            ("a: 'x\n", "app.yaml:2: this is not YAML: while scanning a quoted scalar"),
            ("a: *x\n", "app.yaml:1: this is not YAML: found undefined alias 'x'"),
            ("a: 1\nb: \x07\n", "app.yaml:2: this is not YAML: special characters are not allowed"),
            ("a: 1\na: 2\n", "app.yaml:2: the key 'a' is there twice, first in line 1; remove one"),
            ("a:\n  1: x\n", "app.yaml:2: a key is not text; put it in quotes"),
            ("a:\n  ? [1]\n  : x\n", "app.yaml:2: a key is not text; put it in quotes"),
            ("a: 1\n---\nb: 1\n", "app.yaml:3: a second document begins here; a config is one document: remove the '---'"),
            ("a: &x\n  b: *x\n", "app.yaml:2: an alias stands inside of what it stands for; write it out"),
            ("a: !!python/object/apply:os.system ['id']\n", "app.yaml:1: the tag !!python/object/apply:os.system is not known"),
            ("a: 1\nb: !secret x\n", "app.yaml:2: the tag !secret is not known here; write a plain value"),
            ("a: !!set {x}\n", "app.yaml:1: the tag !!set is not known here"),
            ("a: !!int x\n", "app.yaml:1: what is tagged !!int is none"),
            ("a: " + "1" * 5000, "app.yaml:1: the number has too many digits"),
            ("a: " + "[" * 5000, "app.yaml: it is nested too deep; make it flatter"),
        ],
    )  # fmt: skip
    def test_what_is_not(self, problems, text, told):
        (problem,) = problems(text)
        assert problem.startswith(told)
        assert problem.endswith("[config.syntax]")


class TestFiles:
    def test_that_are_missing(self, write):
        write("app_name: x", "apps.yaml")
        with pytest.raises(ConfigError) as caught:
            load_config("app.yaml")
        assert str(caught.value) == "app.yaml: there is no such file; did you mean 'apps.yaml'? [config.not_found]"

    def test_in_a_directory_that_is_missing(self, home):
        with pytest.raises(ConfigError) as caught:
            load_config(home / "nowhere" / "app.yaml")
        assert caught.value.code == "config.not_found"

    def test_of_another_kind(self, write):
        with pytest.raises(ConfigError, match=r"app.toml: this is no config; the name of one ends with .yaml, .yml, .json"):
            load_config(write("", "app.toml"))

    def test_that_are_directories(self, home):
        (home / "app.yaml").mkdir()
        with pytest.raises(ConfigError, match=r"app.yaml: it cannot be read: Is a directory") as caught:
            load_config("app.yaml")
        assert caught.value.code == "config.unreadable"

    def test_that_are_not_utf8(self, home):
        (home / "app.yaml").write_bytes("app_name: café".encode("latin-1"))
        with pytest.raises(ConfigError, match=r"app.yaml: it is not UTF-8: .*; save it as such") as caught:
            load_config("app.yaml")
        assert caught.value.code == "config.unreadable"

    def test_may_begin_with_a_mark_of_windows(self, home):
        (home / "app.yaml").write_bytes("\ufeffapp_name: a\r\nagents: {b: {model: test}}\r\n".encode())
        assert load_config("app.yaml").app_name == "a"

    @pytest.mark.parametrize(("name", "text"), [("app.yaml", ""), ("app.yaml", "# nothing\n"), ("app.json", "null")])
    def test_that_are_empty(self, problems, name, text):
        (problem,) = problems(text, name)
        assert "there is nothing in it; it needs at least app_name and agents" in problem

    def test_yaml_needs_pyyaml_and_json_nothing(self, write, monkeypatch):
        monkeypatch.delitem(sys.modules, "sojourn.builder.yamltext")
        monkeypatch.setitem(sys.modules, "yaml", None)
        with pytest.raises(Unsupported, match=r"pip install 'sojourn\[yaml\]'") as caught:
            load_config(write("app_name: a\nagents: {b: {model: test}}"))
        assert caught.value.code == "config.no_yaml"
        assert load_config(write('{"app_name": "a", "agents": {"b": {"model": "test"}}}', "app.json")).app_name == "a"

    def test_json_and_yaml_are_the_same(self, write):
        values = {"$schema": "docs/app.schema.json", "app_name": "a", "agents": {"b": {"model": "test", "retries": 3}}}
        written = [write(json.dumps(values, indent=4), "app.json"), write(yaml.safe_dump(values)), values]
        assert len({str(load_config(one).model_dump()) for one in written}) == 1


class TestMappings:
    def test_have_places_without_files(self, home):
        with pytest.raises(ConfigError) as caught:
            load_config({"app_name": "a", "agents": {"b": {"modle": "test", "model": "test"}}})
        assert str(caught.value) == "agents.b.modle: there is no such key here; did you mean 'model'? [config.unknown_key]"

    def test_have_keys_of_text(self, home):
        with pytest.raises(ConfigError, match="the key 1 is not text"):
            load_config({1: 2})

    @pytest.mark.parametrize("config", [None, 5, ["app.yaml"]])
    def test_nothing_else_is_a_config(self, config):
        with pytest.raises(InvalidInput, match="a config is the path of a file, a mapping or an AppConfig") as caught:
            load_config(config)
        assert caught.value.code == "config.invalid"

    def test_of_plain_values(self):
        assert plain(node_of({"a": (1, [2])})) == {"a": [1, [2]]}
        assert node_of(1) == Node(1, None)


def test_errors_pickle(home):
    with pytest.raises(ConfigError) as caught:
        load_config({"app_name": 1, "agents": {}})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.problems, copy.code, str(copy)) == (caught.value.problems, caught.value.code, str(caught.value))
    assert len(copy.problems) == 2
    assert copy.details.count("\n") == 1
