"""A reference desk over the standard library, as agents that a language model drives.

    sojourn run examples/llm_desk.py "How do I parse JSON?"
    sojourn run examples/llm_desk.py --model llama3.2 --base-url http://127.0.0.1:11434/v1

Without options it needs a key (OPENAI_API_KEY). The same as a config is examples/support_desk/app.yaml.
"""

from __future__ import annotations

import os

from sojourn import InMemoryMemoryService, LlmAgent, RunConfig, RunnerConfig, tool
from sojourn.agents.llm.builtin import load_memory, save_memory
from support_desk import library

MODEL = os.environ.get("DESK_MODEL") or "openai:gpt-5-mini"
SETTINGS = {"max_tokens": 1000}

run_example = tool(require_approval=True, timeout=20)(library.run_example)  # it runs code

finder = LlmAgent(
    name="finder",
    model=MODEL,
    model_settings=SETTINGS,
    description="Finds what the library has for a task.",
    instruction="""\
Find what the standard library has for the user's task with search, and answer with one or two names and what they do. Put
what you recommend on the user's reading list with note.
""",
    tools=[library.search, library.note],
)

explainer = LlmAgent(
    name="explainer",
    model=MODEL,
    model_settings=SETTINGS,
    description="Explains a module, class or function.",
    instruction="""\
Explain what the user asks about from its docstring, which read gives you. If the user wants to see it work, use
run_example.
""",
    tools=[library.read, run_example, library.note],
)

librarian = LlmAgent(
    name="librarian",
    model=MODEL,
    model_settings=SETTINGS,
    description="Finds out what a question is about.",
    instruction="""\
You are at the reference desk of Python's standard library. Find out what the user wants to know. Questions on how to do
something are for 'finder', questions on how something named works are for 'explainer': hand over to them. Remember with
save_memory what the user says about their work.
""",
    tools=[save_memory, load_memory],
    sub_agents=[finder, explainer],
)

app = RunnerConfig(
    app_name="support_desk",
    agent=librarian,
    memory_service=InMemoryMemoryService(),
    memory_ingest="on_run_end",
    run_config=RunConfig(max_turns=12, timeout=120),
)
