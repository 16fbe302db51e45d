"""What an attempt does once: steps, and questions to people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from itertools import accumulate
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.agents.context import MODEL_STEP, Context, StepAround, step_around
from sojourn.agents.question import Question
from sojourn.errors import AgentError, Conflict, SojournError
from sojourn.run.store import Begun
from sojourn.run.types import Interrupt, RunError, Step
from sojourn.runner.bounds import check_result
from sojourn.runner.observe import step_span
from sojourn.runner.plugins import PluginChain, change, observe

Record = Callable[[Context, Sequence[Step]], Awaitable[None]]
"""Stores steps; returns when they are durable."""


class Journal:
    """What the attempts of a run have done and asked so far, and how this one adds to it.

    Args:
        begun: The run as the attempt found it.
        plugins: Whose hooks are called around steps.
        max_result_bytes: How large the result of a step may be as JSON.
    """

    def __init__(self, begun: Begun, plugins: PluginChain, max_result_bytes: int) -> None:
        self._attempt = begun.record.attempt
        self._max_result_bytes = max_result_bytes
        self._plugins = plugins
        self._steps: dict[str, Step] = {s.key: s for s in begun.steps}
        self._done: set[str] = set()
        # What steps gave whose append was refused or not answered: to be stored if the agent tries again.
        self._unstored: dict[str, Any] = {}
        self._interrupts = {i.key: i for i in begun.interrupts if i.status in ("open", "answered")}
        self._asked: set[str] = set()
        # Ids of interrupts whose append was refused or not answered: the next append that asks them is to hold them.
        self._unstored_interrupts: set[str] = set()

    async def step(self, ctx: Context, key: str, fn: Callable[[], Any], record: Record) -> Any:
        """Does a side effect, or returns what it gave before; see `Context.step`.

        Args:
            ctx: Whose step it is.
            key: Its name.
            fn: Does it.
            record: Stores steps; not kept, as it belongs to who keeps this.
        """
        path = ctx.path(key)
        if path in self._done:
            raise Conflict(
                f"step {path!r} was done before in this attempt; give each step of an agent a key of its own",
                code="step.duplicate_key",
            )
        self._done.add(path)
        if self.is_done(path):
            return jsonvalue.copy(self._steps[path].result)
        for hook in self._plugins.before_step:
            await change(hook, ctx, key)
        started = platform.now()
        error: BaseException | None = None
        try:
            # What is done stays done, whatever becomes of the append: it may be stored, and its reply lost.
            if path in self._unstored:
                result = self._unstored[path]
            else:
                with step_span(key):
                    result = await self._result(ctx, key, path, fn, record, started)
            self._unstored[path] = result
            await record(ctx, [Step(path, "done", result, None, self._attempt, started, platform.now())])
            del self._unstored[path]
        except BaseException as e:
            error = e
            if path in self._unstored:
                self._done.discard(path)
            raise
        finally:
            if self._plugins.after_step:
                await observe(self._plugins.after_step, ctx, key, error)
            error = None
        return jsonvalue.copy(result)

    async def _result(self, ctx: Context, key: str, path: str, fn: Callable[[], Any], record: Record, started: float) -> Any:
        """Does a side effect; records that it has failed, if it has."""
        try:
            result = await self._done_inside(ctx, key, fn)
            result = jsonvalue.copy(result, where=f"the result of step {path!r}")
            check_result(path, result, self._max_result_bytes)
        except Exception as e:
            # What has failed may be tried again under the same key.
            self._done.discard(path)
            failed = e if isinstance(e, SojournError) else AgentError(f"{type(e).__name__}: {e}", code="step.failed")
            await record(ctx, [Step(path, "failed", None, RunError.of(failed), self._attempt, started, platform.now())])
            raise
        return result

    async def _done_inside(self, ctx: Context, key: str, fn: Callable[[], Any]) -> Any:
        """Calls what does a side effect, as code that is inside of the step."""
        token = step_around.set(StepAround(ctx, key, ctx.step_branch(key)))
        try:
            result = fn()
            return await result if isawaitable(result) else result
        finally:
            step_around.reset(token)

    def is_done(self, path: str) -> bool:
        """Whether an earlier attempt has done a step."""
        known = self._steps.get(path)
        return known is not None and known.status == "done"

    def turns_over(self, scope: str) -> int:
        """How many calls of models are recorded that this attempt does not come by again.

        They are those of agents that have handed over, and of agents that ran inside of a step that is done.

        Args:
            scope: The path of the agent that has the run now.
        """
        return sum(self._is_over(key, scope) for key in self._steps if key.rpartition("/")[2].startswith(MODEL_STEP))

    def _is_over(self, path: str, scope: str) -> bool:
        if scope and not path.startswith(f"{scope}/"):
            return True
        return any(map(self.is_done, accumulate(path.split("/")[:-1], "{}/{}".format)))

    def ask(self, ctx: Context, questions: Sequence[Question]) -> list[tuple[Interrupt, bool]]:
        """The interrupts of questions, and whether each is asked for the first time; see `Context.ask_all`.

        Raises:
            Conflict: `interrupt.duplicate_key`.
            InvalidInput: `json.invalid` if prompt or schema are not JSON values.
        """
        # If one is refused, none counts as asked.
        digests: dict[str, str] = {}
        for question in questions:
            path = ctx.path(question.key)
            if path in self._asked or path in digests:
                raise Conflict(
                    f"question {path!r} was asked before in this attempt; give each question of an agent a key of its own",
                    code="interrupt.duplicate_key",
                )
            digests[path] = question.digest()
        self._asked.update(digests)
        return [self._interrupt(q, path, digest) for q, (path, digest) in zip(questions, digests.items(), strict=True)]

    def take_back(self, asked: Sequence[tuple[Interrupt, bool]]) -> None:
        """Lets questions be asked again whose append was refused or not answered."""
        self._asked.difference_update(interrupt.key for interrupt, _ in asked)
        self._unstored_interrupts.update(interrupt.id for interrupt, new in asked if new)

    def _interrupt(self, question: Question, path: str, digest: str) -> tuple[Interrupt, bool]:
        known = self._interrupts.get(path)
        if known is not None and known.digest == digest:
            # The same id again: it may be stored, and its reply lost.
            new = known.id in self._unstored_interrupts
            self._unstored_interrupts.discard(known.id)
            return known, new
        now = platform.now()
        asked = self._interrupts[path] = Interrupt(
            id=platform.new_id(),
            key=path,
            digest=digest,
            prompt=jsonvalue.copy(question.prompt, where="prompt"),
            schema=jsonvalue.copy(question.schema, where="schema"),
            created_at=now,
            expires_at=None if question.expires is None else now + question.expires,
            kind=question.kind,
            call_id=None if question.call is None else question.call.id,
        )
        return asked, True
