"""RunConfig: defaults, bounds, and what a record keeps of it."""

import json

import pytest
from pydantic import ValidationError

from sojourn.run.config import RunConfig, StreamingMode


def test_the_documented_defaults():
    config = RunConfig()
    assert config.model_dump() == {
        "streaming_mode": StreamingMode.SSE,
        "max_turns": 50,
        "max_tokens": None,
        "include_history": 200,
        "timeout": None,
        "max_transfers": 10,
        "when_busy": "enqueue",
        "on_crash": "resume",
        "inject_memory": None,
        "cancel_grace": 5.0,
        "max_event_bytes": 1_048_576,
        "save_live_blob": False,
        "custom_metadata": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"max_turns": 1},
        {"max_transfers": 0},
        {"include_history": 0},
        {"include_history": "all"},
        {"timeout": 0.001},
        {"cancel_grace": 0},
        {"inject_memory": 0},
        {"max_event_bytes": 1024},
        {"streaming_mode": "none"},
        {"streaming_mode": StreamingMode.BIDI},
        {"when_busy": "replace"},
        {"on_crash": "fail"},
        {"save_live_blob": True},
        {"custom_metadata": {"a": [None]}},
    ],
    ids=str,
)
def test_the_edge_of_what_is_allowed(fields):
    config = RunConfig(**fields)
    assert RunConfig(**json.loads(json.dumps(config.overrides()))) == config
    assert list(config.overrides()) == list(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_turns": 0},
        {"max_transfers": -1},
        {"include_history": -1},
        {"include_history": "some"},
        {"include_history": None},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"cancel_grace": -1},
        {"cancel_grace": float("nan")},
        {"inject_memory": -1},
        {"max_event_bytes": 1023},
        {"streaming_mode": "fax"},
        {"when_busy": "shrug"},
        {"on_crash": "ignore"},
        {"custom_metadata": {"a": float("nan")}},
        {"max_turn": 5},
    ],
    ids=str,
)
def test_what_is_not_allowed(fields):
    with pytest.raises(ValidationError):
        RunConfig(**fields)


def test_overrides_are_only_what_was_set_even_to_the_default():
    assert RunConfig().overrides() == {}
    assert RunConfig(max_turns=50, streaming_mode=StreamingMode.SSE).overrides() == {"max_turns": 50, "streaming_mode": "sse"}


def test_it_does_not_change():
    metadata = {"a": [1]}
    config = RunConfig(custom_metadata=metadata)
    metadata["a"].append(2)
    assert config.custom_metadata == {"a": [1]}
    config.overrides()["custom_metadata"]["a"].append(3)
    assert config.custom_metadata == {"a": [1]}
    with pytest.raises(ValidationError):
        config.max_turns = 3  # type: ignore[misc]
