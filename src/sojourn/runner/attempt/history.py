"""The history window, put in the order in which a model must read it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from sojourn.agents.context import IN_STEP
from sojourn.content import Content, FunctionResponse, Part
from sojourn.event import USER, Event
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.session.types import History


async def read(
    store: Store, record: RunRecord, branch: str | None, limit: int | None, ordinals: Mapping[str | None, int]
) -> list[Event]:
    """Reads the window of a run's session as an attempt of it sees it at this point.

    Args:
        store: Where the session is.
        record: The run.
        branch: Of the agent that reads it.
        limit: How many events; None for all.
        ordinals: What the attempt's next event is in each branch; 1 if nothing was said there.
    """
    found = await store.history(record.key, limit)
    waiting: set[str] = set()
    if any(e.long_running_tool_ids for e in (*found.pinned, *found.events)):
        app, user, session = record.key
        for interrupt in await store.list_interrupts(app, user_id=user, session_id=session):
            waiting.update((interrupt.id, interrupt.call_id or interrupt.id))
    seen = visible_to(branch)

    def keep(event: Event) -> bool:
        # What an earlier attempt said after this point has not been said yet by this one.
        ahead = event.run_id == record.id and event.ordinal is not None and event.ordinal >= ordinals.get(event.branch, 1)
        return seen(event) and not ahead

    return arrange(found, waiting, keep)


def arrange(history: History, open_calls: Container[str], keep: Callable[[Event], bool]) -> list[Event]:
    """Returns a window's events such that every call is directly followed by its response, without what only opens a live run.

    A response that came late is moved behind its call. A call without a response gets one that is not stored: `pending`
    if a person is still asked, else that there was none. Responses whose call is gone are left out.

    Args:
        history: The window and what is pinned to it.
        open_calls: Ids of the calls that still wait for a person.
        keep: Which events to consider.
    """
    events = [e for e in (*history.pinned, *history.events) if keep(e) and not e.is_opening()]
    if not any(e.get_function_calls() or e.get_function_responses() for e in events):
        return events
    responses: dict[str, Event] = {}
    for event in events:
        for response in _given(event):
            if response.id:
                responses[response.id] = event
    arranged: list[Event] = []
    placed: set[int] = set()
    for event in events:
        if event.seq in placed or _given(event):
            continue
        arranged.append(event)
        calls = [c for c in event.get_function_calls() if c.id]
        missing: list[Part] = []
        for call in calls:
            answer = responses.get(call.id or "")
            if answer is None:
                text = "pending" if call.id in open_calls else "no answer: the run ended before there was one"
                missing.append(Part.from_function_response(call.name, {"status": text}, id=call.id))
            elif answer.seq not in placed:
                arranged.append(answer)
                placed.add(answer.seq or 0)
        if missing:
            arranged.append(
                Event(
                    id=f"{event.id}:unanswered",
                    run_id=event.run_id,
                    author=USER,
                    timestamp=event.timestamp,
                    branch=event.branch,
                    content=Content("user", tuple(missing)),
                    custom_metadata={"synthetic": True},
                )
            )
    return arranged


def _given(event: Event) -> list[FunctionResponse]:
    """The responses in an event. What a user's message calls one is none: answers to questions are events of their own."""
    return [] if event.is_message() else event.get_function_responses()


def visible_to(branch: str | None) -> Callable[[Event], bool]:
    """Which events a branch sees: its own, those of the branches around it, and those outside of any.

    Inside of a step, such as a tool's call, that is what is seen around it, and what was said in the step. What was said
    inside of other steps is seen nowhere else: their results tell of it.
    """
    if branch is not None and any(not name.startswith(IN_STEP) for name in branch.split(".")):
        return lambda event: event.branch is None or is_within(branch, event.branch)
    return lambda event: event.branch is None or is_within(branch, _innermost_step(event.branch))


def is_within(branch: str | None, above: str | None) -> bool:
    """Whether a branch is another one or inside of it."""
    return above is None or branch == above or (branch or "").startswith(f"{above}.")


def _innermost_step(branch: str) -> str | None:
    """The branch of the innermost step that a branch is in."""
    names = branch.split(".")
    while names and not names[-1].startswith(IN_STEP):
        names.pop()
    return ".".join(names) or None
