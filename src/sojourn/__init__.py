"""Sojourn: the Python runtime for agents."""

from sojourn.agent.base import Agent
from sojourn.agent.context import Context
from sojourn.agent.current import current_run, current_session
from sojourn.agent.function import FunctionAgent, agent
from sojourn.agent.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.content import Blob, Content, FileData, FunctionCall, FunctionResponse, Part
from sojourn.errors import RunCancelled, RunWaiting, SojournError
from sojourn.event import Event, EventActions, Partial
from sojourn.manager import SessionManager, UserSession
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.run.types import Frame, Interrupt, RunRecord
from sojourn.runner.config import RunnerConfig
from sojourn.runner.handle import Run
from sojourn.runner.plugins import Plugin
from sojourn.runner.runner import Runner
from sojourn.session.state import State
from sojourn.session.types import Session, SessionKey
from sojourn.store.inmemory import InMemorySessionService

__all__ = [
    "Agent",
    "Blob",
    "Content",
    "Context",
    "Event",
    "EventActions",
    "FileData",
    "Frame",
    "FunctionAgent",
    "FunctionCall",
    "FunctionResponse",
    "InMemorySessionService",
    "Interrupt",
    "LoopAgent",
    "ParallelAgent",
    "Part",
    "Partial",
    "Plugin",
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
    "UserSession",
    "agent",
    "current_run",
    "current_session",
]
