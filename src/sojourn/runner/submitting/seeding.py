"""Puts a conversation into a new session that took place somewhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sojourn import platform
from sojourn.artifact.service import ArtifactService
from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import USER, Event, EventActions
from sojourn.run.status import Move
from sojourn.run.store import Batch, Fence, NewRun, Store
from sojourn.runner.attempt import spill
from sojourn.session.types import Session

LATEST = 253_402_300_799
"""The last second of the year 9999, with which calendars end."""


def turns_of(events: Sequence[Event], agent: str) -> list[list[Event]]:
    """Events as turns: each begins with what the user said. Partial and empty ones are left out.

    Args:
        events: In order.
        agent: Who has said what has no author.

    Raises:
        InvalidInput: `session.seed_refused` for what only a run may write: function calls and responses, actions, questions;
            if it is not the user who begins; and for times outside of the calendar.
    """
    turns: list[list[Event]] = []
    for n, event in enumerate(events):
        _check(n, event)
        if event.partial or event.content is None or not event.content.parts:
            continue
        author = event.author or (USER if event.content.role == USER else agent)
        said = _said(event, event.content, author)
        if author == USER:
            turns.append([said])
        elif turns:
            turns[-1].append(said)
        else:
            raise _refused(n, f"was said by {author!r}; a conversation begins with what the user said")
    return turns


def _check(n: int, event: Event) -> None:
    if event.get_function_calls() or event.get_function_responses():
        raise _refused(n, "holds a function call or response; only runs make calls and answer them")
    if event.long_running_tool_ids:
        raise _refused(n, "has longRunningToolIds; only runs ask people")
    if not 0 <= event.timestamp <= LATEST:
        raise _refused(n, "was said at no time that there is; `timestamp` is in seconds since the epoch")
    if event.actions != EventActions():
        raise _refused(n, "has actions; only runs act. Give the state beside the events")


def _refused(n: int, why: str) -> InvalidInput:
    return InvalidInput(f"event {n} cannot be put into a new session: it {why}", code="session.seed_refused")


def _said(event: Event, content: Content, author: str) -> Event:
    """What is taken over of an event: who said what and when. Its id may be somebody else's."""
    when = event.timestamp or platform.now()
    return Event(id=platform.new_id(), author=author, timestamp=when, content=content)


async def seed(
    store: Store, artifacts: ArtifactService | None, session: Session, turns: Sequence[list[Event]], max_bytes: int
) -> None:
    """Stores each turn as a completed run.

    Args:
        store: Where the session is.
        artifacts: Where large parts go.
        session: A session that nobody else knows of yet.
        turns: As `turns_of` gives them.
        max_bytes: Size of an event.

    Raises:
        InvalidInput: `event.too_large` if there is no artifact service for what is large.
    """
    for turn in turns:
        run_id = platform.new_id()
        events = []
        for ordinal, said in enumerate(turn):
            event = said.evolve(run_id=run_id, ordinal=ordinal)
            if spill.is_large(event, max_bytes):
                if artifacts is None:
                    raise InvalidInput("an event is too large, and there is no artifact service", code="event.too_large")
                event = await spill.spill(event, artifacts, session, max_bytes)
            events.append(event)
        # Attached: should the process die in between, nobody is to run an agent on it.
        run = NewRun(id=run_id, key=session.key, message=events[0], attached=True, create_session=False)
        record = (await store.submit(run, begin=True)).record
        await store.append(Fence(record.uid, record.attempt), Batch(events=events[1:], move=Move.COMPLETE))
        # A store that never waits would keep the loop from everything else, however long the conversation.
        await asyncio.sleep(0)
