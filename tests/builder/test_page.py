"""docs/config.md: its configs are ones, and it has every key."""

import re
from pathlib import Path

import pytest

from sojourn.builder.load import load_config
from sojourn.builder.references import BUILTIN_TOOLS
from sojourn.builder.schema import (
    AgentConfig,
    AppConfig,
    FunctionAgentConfig,
    InstructionConfig,
    LimitsConfig,
    LlmAgentConfig,
    LoopAgentConfig,
    McpServerConfig,
    ModelConfig,
    ServicesConfig,
    ToolConfig,
)

PAGE = (Path(__file__).parent.parent.parent / "docs" / "config.md").read_text(encoding="utf-8")
CONFIGS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ROWS = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("text", CONFIGS)
def test_its_configs_are_ones(write, text):
    assert load_config(write(text), environ={"TICKETS_TOKEN": "t"}).agents


def test_there_are_some():
    assert len(CONFIGS) > 4


@pytest.mark.parametrize(
    "section",
    [AppConfig, ModelConfig, ToolConfig, McpServerConfig, AgentConfig, LlmAgentConfig, LoopAgentConfig, FunctionAgentConfig,
     ServicesConfig, LimitsConfig, InstructionConfig],
)  # fmt: skip
def test_it_has_every_key(section):
    in_text = {"kind", "function", "max_iterations"}
    assert section.model_fields.keys() - in_text <= ROWS


def test_it_has_every_built_in_tool():
    assert all(f"`{name}`" in PAGE for name in BUILTIN_TOOLS)
