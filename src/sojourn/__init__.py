"""Sojourn: the Python runtime for agents.

Everything a program needs is here. Each name is loaded when it is first used, so that importing the package costs nothing
that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sojourn.agents.base import Agent, Whole
    from sojourn.agents.context import Context
    from sojourn.agents.current import current_run, current_session
    from sojourn.agents.function import FunctionAgent, agent
    from sojourn.agents.live import LiveInput, LiveRequest, LiveRequestQueue
    from sojourn.agents.llm.agent import LlmAgent
    from sojourn.agents.llm.tool import Tool, ToolContext, tool
    from sojourn.agents.question import Question
    from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
    from sojourn.artifact.file import FileArtifactService
    from sojourn.artifact.inmemory import InMemoryArtifactService
    from sojourn.artifact.s3.service import S3ArtifactService
    from sojourn.builder.load import load_config
    from sojourn.builder.problems import ConfigError
    from sojourn.builder.schema import AppConfig
    from sojourn.builder.workflow import WorkflowBuilder
    from sojourn.content import Blob, Content, FileData, FunctionCall, FunctionResponse, Part
    from sojourn.data.pruning import Retention
    from sojourn.errors import RunCancelled, RunWaiting, SojournError
    from sojourn.event import CallDelta, Event, EventActions, LivePartial, Partial, Thought, Transcription
    from sojourn.launcher import Launcher
    from sojourn.manager import SessionManager, UserSession
    from sojourn.memory.database import DatabaseMemoryService
    from sojourn.memory.inmemory import InMemoryMemoryService
    from sojourn.memory.minilm import MiniLmEmbedder
    from sojourn.memory.openai import OpenAIEmbedder
    from sojourn.memory.qdrant.service import QdrantMemoryService
    from sojourn.memory.types import Memory, MemoryFilter
    from sojourn.run.config import RunConfig, StreamingMode
    from sojourn.run.status import RunStatus
    from sojourn.run.types import Frame, Interrupt, RunRecord
    from sojourn.runner.config import RunnerConfig
    from sojourn.runner.handle import Run
    from sojourn.runner.plugins import Plugin
    from sojourn.runner.runner import Runner
    from sojourn.session.state import State
    from sojourn.session.types import Session, SessionKey
    from sojourn.store.database import DatabaseSessionService
    from sojourn.store.inmemory import InMemorySessionService

_HOMES = {
    "sojourn.agents.base": (
        "Agent",
        "Whole",
    ),
    "sojourn.agents.context": ("Context",),
    "sojourn.agents.current": (
        "current_run",
        "current_session",
    ),
    "sojourn.agents.function": (
        "FunctionAgent",
        "agent",
    ),
    "sojourn.agents.live": (
        "LiveInput",
        "LiveRequest",
        "LiveRequestQueue",
    ),
    "sojourn.agents.llm.agent": ("LlmAgent",),
    "sojourn.agents.llm.tool": (
        "Tool",
        "ToolContext",
        "tool",
    ),
    "sojourn.agents.question": ("Question",),
    "sojourn.agents.workflow": (
        "LoopAgent",
        "ParallelAgent",
        "SequentialAgent",
    ),
    "sojourn.artifact.file": ("FileArtifactService",),
    "sojourn.artifact.inmemory": ("InMemoryArtifactService",),
    "sojourn.artifact.s3.service": ("S3ArtifactService",),
    "sojourn.builder.load": ("load_config",),
    "sojourn.builder.problems": ("ConfigError",),
    "sojourn.builder.schema": ("AppConfig",),
    "sojourn.builder.workflow": ("WorkflowBuilder",),
    "sojourn.content": (
        "Blob",
        "Content",
        "FileData",
        "FunctionCall",
        "FunctionResponse",
        "Part",
    ),
    "sojourn.data.pruning": ("Retention",),
    "sojourn.errors": (
        "RunCancelled",
        "RunWaiting",
        "SojournError",
    ),
    "sojourn.event": (
        "CallDelta",
        "Event",
        "EventActions",
        "LivePartial",
        "Partial",
        "Thought",
        "Transcription",
    ),
    "sojourn.launcher": ("Launcher",),
    "sojourn.manager": (
        "SessionManager",
        "UserSession",
    ),
    "sojourn.memory.database": ("DatabaseMemoryService",),
    "sojourn.memory.inmemory": ("InMemoryMemoryService",),
    "sojourn.memory.minilm": ("MiniLmEmbedder",),
    "sojourn.memory.openai": ("OpenAIEmbedder",),
    "sojourn.memory.qdrant.service": ("QdrantMemoryService",),
    "sojourn.memory.types": (
        "Memory",
        "MemoryFilter",
    ),
    "sojourn.run.config": (
        "RunConfig",
        "StreamingMode",
    ),
    "sojourn.run.status": ("RunStatus",),
    "sojourn.run.types": (
        "Frame",
        "Interrupt",
        "RunRecord",
    ),
    "sojourn.runner.config": ("RunnerConfig",),
    "sojourn.runner.handle": ("Run",),
    "sojourn.runner.plugins": ("Plugin",),
    "sojourn.runner.runner": ("Runner",),
    "sojourn.session.state": ("State",),
    "sojourn.session.types": (
        "Session",
        "SessionKey",
    ),
    "sojourn.store.database": ("DatabaseSessionService",),
    "sojourn.store.inmemory": ("InMemorySessionService",),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Without what needs an extra or is the command line: `from sojourn import *` works with the core alone, and is quick.
__all__ = [
    "Agent",
    "AppConfig",
    "Blob",
    "CallDelta",
    "ConfigError",
    "Content",
    "Context",
    "DatabaseMemoryService",
    "DatabaseSessionService",
    "Event",
    "EventActions",
    "FileArtifactService",
    "FileData",
    "Frame",
    "FunctionAgent",
    "FunctionCall",
    "FunctionResponse",
    "InMemoryArtifactService",
    "InMemoryMemoryService",
    "InMemorySessionService",
    "Interrupt",
    "LiveInput",
    "LivePartial",
    "LiveRequest",
    "LiveRequestQueue",
    "LoopAgent",
    "Memory",
    "MemoryFilter",
    "ParallelAgent",
    "Part",
    "Partial",
    "Plugin",
    "Question",
    "Retention",
    "Run",
    "RunCancelled",
    "RunConfig",
    "RunRecord",
    "RunStatus",
    "RunWaiting",
    "Runner",
    "RunnerConfig",
    "SequentialAgent",
    "Session",
    "SessionKey",
    "SessionManager",
    "SojournError",
    "State",
    "StreamingMode",
    "Thought",
    "Transcription",
    "UserSession",
    "Whole",
    "WorkflowBuilder",
    "agent",
    "current_run",
    "current_session",
    "load_config",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sojourn' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*__all__, *_HOME_OF})
