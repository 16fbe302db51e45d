"""Values for tests of stores in one short call each: keys, runs, events, questions, answers; and what tests do most.

    run = await start(store, "r1")                                     # a session, a run, its first attempt
    await write(store, run, event(run, 1, "Hi.", state={"n": 1}))      # one append
    await write(store, run, move=Move.COMPLETE)

Ids and texts have fixed defaults, so that a failing test prints the same values each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sojourn import platform
from sojourn.content import Content, Part
from sojourn.event import ASK_CALL, USER, Event, EventActions
from sojourn.run.status import Move
from sojourn.run.store import Answered, Appended, Batch, Begun, Fence, NewRun, RunStore
from sojourn.run.types import Interrupt, RunError, RunRecord, Step
from sojourn.session.types import SessionKey

APP_NAME = "shop"
USER_ID = "alice"
SESSION_ID = "s1"
AGENT = "helper"


def session_key(session_id: str = SESSION_ID, *, user_id: str = USER_ID, app_name: str = APP_NAME) -> SessionKey:
    """The key of a session; without arguments that of the session that all builders use by default."""
    return SessionKey(app_name, user_id, session_id)


def message(run_id: str, text: str = "Hello", *, state: Mapping[str, Any] | None = None) -> Event:
    """What the user says to open a run.

    Args:
        run_id: The run.
        text: The words.
        state: State keys set with it.
    """
    actions = EventActions(state_delta=dict(state)) if state else EventActions()
    return Event(
        id=f"{run_id}:message", run_id=run_id, author=USER, timestamp=platform.now(), content=Content.of(text), actions=actions
    )


def new_run(run_id: str = "r1", key: SessionKey | None = None, text: str = "Hello", **fields: Any) -> NewRun:
    """A run to submit.

    Args:
        run_id: Its id.
        key: Its session; `session_key()` if omitted.
        text: What the user says.
        fields: Other fields of `NewRun`.
    """
    if "message" not in fields:
        fields["message"] = message(run_id, text)
    return NewRun(id=run_id, key=key or session_key(), **fields)


def event(
    run: RunRecord,
    ordinal: int,
    text: str | None = None,
    *,
    branch: str | None = None,
    calls: Sequence[str] = (),
    responses: Sequence[str] = (),
    state: Mapping[str, Any] | None = None,
    deleted: Sequence[str] = (),
    increments: Mapping[str, int | float] | None = None,
    summary_until: int | None = None,
    **fields: Any,
) -> Event:
    """An event that an attempt writes.

    Args:
        run: The record of the attempt: gives run id and attempt.
        ordinal: Its number in (run, branch), from 1.
        text: What is said.
        branch: The parallel branch.
        calls: Ids of function calls.
        responses: Ids of the calls it answers.
        state: State keys set.
        deleted: State keys deleted.
        increments: State keys and what is added to them.
        summary_until: Makes it a summary.
        fields: Other fields of `Event`.
    """
    parts = [Part(text=text)] if text is not None else []
    parts += [Part.from_function_call("look_up", {"about": id_}, id=id_) for id_ in calls]
    parts += [Part.from_function_response("look_up", {"result": f"about {id_}"}, id=id_) for id_ in responses]
    changes = {"state_delta": state, "state_deleted": deleted, "state_increments": increments}
    actions: dict[str, Any] = {name: value for name, value in changes.items() if value}
    if summary_until is not None:
        actions["summary_until"] = summary_until
    fields.setdefault("id", f"{run.id}:{branch or ''}:{ordinal}:{run.attempt}")
    fields.setdefault("author", AGENT)
    fields.setdefault("content", Content("model", tuple(parts)) if parts else None)
    return Event(
        run_id=run.id,
        timestamp=platform.now(),
        actions=EventActions(**actions),
        branch=branch,
        ordinal=ordinal,
        attempt=run.attempt,
        **fields,
    )


def question_event(run: RunRecord, ordinal: int, interrupt_id: str, *, branch: str | None = None) -> Event:
    """The function call that stands in the log for a question."""
    part = Part.from_function_call(ASK_CALL, {"prompt": "Sure?"}, id=interrupt_id)
    content = Content("model", (part,))
    return event(run, ordinal, branch=branch, content=content, long_running_tool_ids=(interrupt_id,))


def question(interrupt_id: str = "q1", **fields: Any) -> Interrupt:
    """A question to a person.

    Args:
        interrupt_id: Its id, which is also its key unless `fields` has one.
        fields: Other fields of `Interrupt`.
    """
    values: dict[str, Any] = {"key": interrupt_id, "digest": "digest", "prompt": "Sure?", "created_at": platform.now()}
    return Interrupt(id=interrupt_id, **{**values, **fields})


def answer_event(run: RunRecord, interrupt_id: str, value: Any, *, branch: str | None = None) -> Event:
    """The function response that stands in the log for an answer."""
    part = Part.from_function_response(ASK_CALL, {"result": value}, id=interrupt_id)
    return Event(
        id=f"{run.id}:answer:{interrupt_id}",
        run_id=run.id,
        author=USER,
        timestamp=platform.now(),
        content=Content("user", (part,)),
        branch=branch,
    )


def step(key: str, result: Any = None, **fields: Any) -> Step:
    """A step that was done."""
    return Step(key=key, result=result, **fields)


def failure(code: str = "agent.failed", text: str = "it broke") -> RunError:
    """Why a run failed."""
    return RunError(code, text)


def fence(run: RunRecord) -> Fence:
    """The right to write that belongs to the attempt a record tells of."""
    return Fence(run.uid, run.attempt)


# -- what tests do most -------------------------------------------------------------------------------------------------


async def start(
    store: RunStore, run_id: str = "r1", key: SessionKey | None = None, text: str = "Hello", **fields: Any
) -> RunRecord:
    """Submits a run and begins its first attempt; takes what `new_run` takes."""
    return (await store.submit(new_run(run_id, key, text, **fields), begin=True)).record


async def write(store: RunStore, run: RunRecord, *events: Event, **fields: Any) -> Appended:
    """Appends a batch.

    Args:
        store: Where.
        run: The record of the attempt that writes.
        events: The batch's events.
        fields: Other fields of `Batch`.
    """
    return await store.append(fence(run), Batch(events=list(events), **fields))


async def ask(store: RunStore, run: RunRecord, ordinal: int, interrupt_id: str = "q1", **fields: Any) -> Appended:
    """Asks a person and lets the run wait; `fields` are those of `question`."""
    asked = question(interrupt_id, **fields)
    return await write(store, run, question_event(run, ordinal, interrupt_id), interrupts=[asked], move=Move.WAIT)


async def reply(store: RunStore, run: RunRecord, interrupt_id: str = "q1", value: Any = "yes") -> Answered:
    """Answers a question."""
    return await store.answer(run.uid, interrupt_id, value, answer_event(run, interrupt_id, value))


async def next_attempt(store: RunStore, run: RunRecord) -> Begun:
    """Lets the process of a running run die and begins the attempt after it."""
    await store.requeue_lost(run.uid)
    return await store.begin(run.uid)


async def finished(store: RunStore, run_id: str = "r1", key: SessionKey | None = None, *texts: str) -> RunRecord:
    """Runs a run to its end, with one event per text."""
    run = await start(store, run_id, key)
    events = [event(run, n, text) for n, text in enumerate(texts, 1)]
    return (await write(store, run, *events, move=Move.COMPLETE)).record


def attempt(run: RunRecord, number: int) -> RunRecord:
    """The record as another attempt of the run has it: to write as a zombie, or as one that has not begun."""
    return run.evolve(attempt=number)
