"""What an attempt does once: steps, and questions to people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.agents.context import Context
from sojourn.agents.question import Question
from sojourn.errors import Conflict, SojournError
from sojourn.run.store import Begun
from sojourn.run.types import Interrupt, RunError, Step
from sojourn.runner.plugins import PluginChain, change, observe

Record = Callable[[Context, Sequence[Step]], Awaitable[None]]
"""Stores steps; returns when they are durable."""


class Journal:
    """What the attempts of a run have done and asked so far, and how this one adds to it.

    Args:
        begun: The run as the attempt found it.
        plugins: Whose hooks are called around steps.
    """

    def __init__(self, begun: Begun, plugins: PluginChain) -> None:
        self._attempt = begun.record.attempt
        self._plugins = plugins
        self._steps: dict[str, Step] = {s.key: s for s in begun.steps}
        self._done: set[str] = set()
        self._interrupts = {i.key: i for i in begun.interrupts if i.status in ("open", "answered")}
        self._asked: set[str] = set()

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
        known = self._steps.get(path)
        if known is not None and known.status == "done":
            return jsonvalue.copy(known.result)
        for hook in self._plugins.before_step:
            await change(hook, ctx, key)
        started = platform.now()
        error: BaseException | None = None
        try:
            result = fn()
            if isawaitable(result):
                result = await result
            result = jsonvalue.copy(result, where=f"the result of step {path!r}")
            await record(ctx, [Step(path, "done", result, None, self._attempt, started, platform.now())])
        except Exception as e:
            error = e
            # What has failed may be tried again under the same key.
            self._done.discard(path)
            failure = RunError.of(e) if isinstance(e, SojournError) else RunError("step.failed", f"{type(e).__name__}: {e}")
            await record(ctx, [Step(path, "failed", None, failure, self._attempt, started, platform.now())])
            raise
        except BaseException as e:
            error = e
            raise
        finally:
            if self._plugins.after_step:
                await observe(self._plugins.after_step, ctx, key, error)
            error = None
        return jsonvalue.copy(result)

    def question(self, ctx: Context, question: Question) -> tuple[Interrupt, bool]:
        """The interrupt of a question, and whether it is asked for the first time; see `Context.ask`.

        Raises:
            Conflict: `interrupt.duplicate_key`.
            InvalidInput: `json.invalid` if prompt or schema are not JSON values.
        """
        path, digest = ctx.path(question.key), question.digest()
        if path in self._asked:
            raise Conflict(
                f"question {path!r} was asked before in this attempt; give each question of an agent a key of its own",
                code="interrupt.duplicate_key",
            )
        self._asked.add(path)
        known = self._interrupts.get(path)
        if known is not None and known.digest == digest:
            return known, False
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
