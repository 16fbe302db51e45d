"""Which run, session and user the calling code works for, by context variables: anywhere below a run, threads included."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from sojourn.errors import NotFound
from sojourn.session.types import SessionKey


class Lineage(NamedTuple):
    """A run and those that wait for it, as far as they must not wait for each other.

    Attributes:
        sessions: Their sessions.
        limiters: The limiters whose slots they hold.
    """

    sessions: tuple[SessionKey, ...] = ()
    limiters: tuple[object, ...] = ()


@dataclass(slots=True, frozen=True)
class CurrentRun:
    """The run that the calling code works for.

    Attributes:
        run_id: Its id.
        session: Its session.
        attempt: Its attempt.
        lineage: Itself and the runs that started it and wait for it.
    """

    run_id: str
    session: SessionKey
    attempt: int
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def user_id(self) -> str:
        """The user."""
        return self.session.user_id


_current: ContextVar[CurrentRun | None] = ContextVar("sojourn_current_run", default=None)


def current_run() -> CurrentRun:
    """The run that the calling code works for.

    Raises:
        NotFound: `run.none_current` outside of any run.
    """
    run = _current.get()
    if run is None:
        raise NotFound(
            "no run is current here; current_run() works inside agents, tools and callbacks", code="run.none_current"
        )
    return run


def current_session() -> SessionKey:
    """The session of the current run.

    Raises:
        NotFound: `run.none_current` outside of any run.
    """
    return current_run().session


def find_current_run() -> CurrentRun | None:
    """The current run, or None outside of any."""
    return _current.get()


def set_current_run(run: CurrentRun | None) -> None:
    """Sets the current run of the running context; for the runner."""
    _current.set(run)
