"""The history window, put in the order in which a model must read it."""

from __future__ import annotations

from collections.abc import Callable, Container

from sojourn.content import Content, FunctionResponse, Part
from sojourn.event import USER, Event
from sojourn.session.types import History


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
    """Which events a branch sees: its own, those of the branches around it, and those outside of any."""
    if branch is None:
        return lambda event: True
    return lambda event: event.branch is None or branch == event.branch or branch.startswith(event.branch + ".")
