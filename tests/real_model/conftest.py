"""Servers of the model, and agents that it drives."""

import pytest

from sojourn.agents.llm.agent import LlmAgent
from tests.real_model.support import HERE, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server of the model, as it is."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def calling_server(tmp_path_factory):
    """A server that makes the model call tools if it is told to."""
    with serving(tmp_path_factory.mktemp("server"), HERE / "calls.jinja") as running:
        yield running


@pytest.fixture
async def helper():
    """Makes agents that the model of a server drives, and that say the same each time."""
    models = []

    def make(server, **options):
        settings = {"temperature": 0, "max_tokens": 24, **options.pop("model_settings", {})}
        defaults = {"model": "smollm2", "base_url": server.base_url} if "model" not in options else {}
        agent = LlmAgent(name="helper", model_settings=settings, **defaults, **options)
        models.append(agent.resolved_model())
        return agent

    yield make
    for model in models:
        async with model:
            pass  # leaving it closes its connections
