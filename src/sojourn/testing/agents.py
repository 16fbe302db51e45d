"""Testing an agent of one's own, and agents that do as they are told.

Two lines test an agent, whatever it is made of:

    result = await run_agent(greeter, "Hello", state={"user:name": "Ann"})
    assert result.text == "Hello, Ann!"

The agent runs in a real Runner on stores in memory. What goes wrong is in the result, not raised:

    assert (await run_agent(greeter, "")).error.code == "agent.failed"

Questions to people are answered by key, and a Runner keeps a conversation going:

    result = await run_agent(booking, "To Rome", answers={"confirm": True})
    result = await run_agent(result.runner, "And back")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

from sojourn.agents.base import Agent, Yielded
from sojourn.agents.context import Context
from sojourn.content import Content
from sojourn.errors import NotFound, SojournError
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.run.types import Interrupt
from sojourn.runner.answers import answers as is_answer
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner

Line = Yielded | BaseException | Callable[[Context], Any]
"""What a `ScriptedAgent` does at one point: say something, raise, or call a function of the context."""


class ScriptedAgent(Agent):
    """Does what its script says, in order, the same in every run.

        helper = ScriptedAgent("Let me see. ", lambda ctx: ctx.transfer_to("billing"), name="helper")

    Args:
        *script: Text, content and events are yielded; exceptions are raised; functions are called with the context, awaited
            if they give an awaitable, and what they return is yielded unless it is None.
        name: Its name.
        **options: As for `Agent`.

    Attributes:
        contexts: The context of each time it ran.
    """

    def __init__(self, *script: Line, name: str = "scripted", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.script = script
        self.contexts: list[Context] = []

    async def run(self, ctx: Context) -> AsyncIterator[Yielded]:
        """Does all of the script."""
        self.contexts.append(ctx)
        for line in self.script:
            if isinstance(line, BaseException):
                raise line
            said: Any = line
            if callable(line):
                said = line(ctx)
                if isawaitable(said):
                    said = await said
            if said is not None:
                yield said


@dataclass(slots=True)
class AgentResult:
    """What became of a run of `run_agent`.

    Attributes:
        events: What the agents said, as it stands in the log: whole messages that count, in order.
        text: The text of the last final response; empty if there is none.
        output: Its structured output; None if it has none.
        state: The session's state afterwards, `user:` and `app:` keys included.
        error: Why the run failed or was cancelled, or why it could not be started; None if it completed or waits.
        interrupts: The questions it waits for.
        run: The run's handle; None if it could not be started.
        runner: The Runner, for a next message in the same session.
    """

    runner: Runner
    events: list[Event] = field(default_factory=list)
    text: str = ""
    output: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    error: SojournError | None = None
    interrupts: list[Interrupt] = field(default_factory=list)
    run: Run | None = None

    @property
    def status(self) -> RunStatus | None:
        """The run's status; None if it could not be started."""
        return self.run.status if self.run is not None else None


async def run_agent(
    agent: Agent | Runner,
    message: str | Content,
    *,
    state: Mapping[str, Any] | None = None,
    answers: Mapping[str, Any] | None = None,
    user_id: str = "user",
    session_id: str = "session",
    run_config: RunConfig | None = None,
    **fields: Any,
) -> AgentResult:
    """Runs an agent on a message, to its end or until it waits for an answer that was not given.

    Args:
        agent: The agent, or a Runner, such as `AgentResult.runner`, which then takes no `fields`.
        message: What the user says.
        state: What the session's state is to hold beforehand; keys that are not named stay as they are.
        answers: Answers to the agent's questions, by the key that it gives to `ctx.ask`. The same answer is given each
            time.
        user_id: The user.
        session_id: The session; created if missing.
        run_config: Fields that differ from the Runner's own.
        **fields: Fields of `RunnerConfig`: services, plugins, and so on. All is in memory if they are omitted.

    Raises:
        InvalidInput: What `Runner` and the state say of arguments that cannot be.
    """
    runner = agent if isinstance(agent, Runner) else Runner(agent=agent, **{"app_name": "test", **fields})
    result = AgentResult(runner)
    if state:
        await _prepare(runner, user_id, session_id, state)
    try:
        result.run = await runner.start(user_id, session_id, message, run_config=run_config)
    except SojournError as error:
        result.error = error
        return result
    await _answer_all(result, answers or {})
    await _collect(result)
    return result


async def _prepare(runner: Runner, user_id: str, session_id: str, state: Mapping[str, Any]) -> None:
    app, store = runner.app_name, runner.store
    try:
        await store.patch_session(app_name=app, user_id=user_id, session_id=session_id, state_delta=dict(state))
    except NotFound:
        await store.create_session(app_name=app, user_id=user_id, session_id=session_id, state=dict(state))


async def _answer_all(result: AgentResult, answers: Mapping[str, Any]) -> None:
    """Answers the run's questions as often as it asks one whose answer is known."""
    while result.run is not None and (await result.run.wait()).status is RunStatus.WAITING:
        run = result.run
        result.interrupts = await run.interrupts()
        known = [i for i in result.interrupts if _own_key(i) in answers]
        if not known:
            return
        for interrupt in known:
            result.run = await result.runner.answer(run.id, interrupt.id, answers[_own_key(interrupt)], user_id=run.user_id)
    result.interrupts = []


def _own_key(interrupt: Interrupt) -> str:
    """The key that the agent gave, without the agent's path."""
    return interrupt.key.rpartition("/")[2]


async def _collect(result: AgentResult) -> None:
    run = result.run
    assert run is not None
    try:
        async for event in run.events(partials=False):
            if isinstance(event, Event):
                result.events.append(event)
    except SojournError as error:
        result.error = error
    for event in result.events:
        if is_answer(event):
            result.text, result.output = event.text, event.output
    try:
        result.state = (await result.runner.get_session(run.user_id, run.session_id)).state
    except NotFound as error:
        result.error = result.error or error
