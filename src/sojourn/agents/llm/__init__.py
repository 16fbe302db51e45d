"""Agents that a language model drives."""

from importlib.util import find_spec

if find_spec("pydantic_ai") is None:
    raise ImportError("agents driven by a language model need pydantic-ai: pip install 'sojourn[llm]'", name="pydantic_ai")
