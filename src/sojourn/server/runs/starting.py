"""Starting runs, and repeating them, on behalf of clients: within the operator's bounds, and once per idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from sojourn import platform
from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import USER
from sojourn.run.config import RunConfig
from sojourn.run.types import RunRecord
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner
from sojourn.server.access import Caller
from sojourn.server.clientstate import check_client_state
from sojourn.server.runs.idempotency import Keyed, marked
from sojourn.server.runs.models import RetryRun, StartRun
from sojourn.server.telling import draining_error


class Started(NamedTuple):
    """The outcome: the run, and whether it was there already."""

    record: RunRecord
    known: bool


async def start(caller: Caller, body: StartRun, key: str | None) -> Started:
    """Starts a detached run.

    Raises:
        SojournError: What `Caller`, `Keyed` and `Runner.start` raise; `run_config.exceeds`, `message.too_many_parts`,
            `server.draining`.
    """
    runner, user = caller.runner(body.app_name), caller.user(body.user_id)
    keyed = Keyed.of(key, runner, user, "start", body)
    message = _checked(caller, body.new_message)
    state_delta = check_client_state(body.state_delta)
    options = body.run_config.within(runner.config.run_config)
    config = _config(options, marked(body.custom_metadata, keyed))
    # Sent again, a request that names no session must find the one that was made for it.
    made = keyed.run_id if keyed is not None else platform.new_id()
    session = made if body.session_id is None else body.session_id

    async def begin(run_id: str | None) -> Run:
        return await runner.start(user, session, message, run_config=config, run_id=run_id, state_delta=state_delta)

    return await _once(caller, runner, user, keyed, begin)


async def retry(caller: Caller, runner: Runner, repeated: RunRecord, body: RetryRun, key: str | None) -> Started:
    """Repeats a run, detached.

    Raises:
        SojournError: What `Caller`, `Keyed` and `Runner.retry` raise; `run_config.exceeds`, `message.too_many_parts`,
            `server.draining`.
    """
    user = repeated.user_id
    keyed = Keyed.of(key, runner, user, "retry", repeated.id, body)
    message = None if body.new_message is None else _checked(caller, body.new_message)
    if body.run_config is None:
        options = {name: value for name, value in repeated.config.items() if name != "custom_metadata"}
    else:
        options = body.run_config.within(runner.config.run_config)
    config = _config(options, marked(repeated.custom_metadata, keyed))

    async def begin(run_id: str | None) -> Run:
        return await runner.retry(
            repeated.id, message, user_id=user, run_config=config, new_run_id=run_id, drop_later=body.drop_later
        )

    return await _once(caller, runner, user, keyed, begin)


async def _once(
    caller: Caller, runner: Runner, user_id: str, keyed: Keyed | None, begin: Callable[[str | None], Awaitable[Run]]
) -> Started:
    async def begun(run_id: str | None) -> Started:
        if caller.serving.draining:
            raise draining_error()
        async with caller.serving.limits.room_for_run(runner, user_id):
            return Started((await begin(run_id)).record, False)

    if keyed is None:
        return await begun(None)
    # Of requests at once, each but the first finds the run that the first has started.
    async with caller.serving.starting.setdefault(keyed.run_id, asyncio.Lock()):
        known = await keyed.known(runner, user_id)
        return Started(known, True) if known is not None else await begun(keyed.run_id)


def _checked(caller: Caller, message: str | Content) -> str | Content:
    if isinstance(message, str):
        return message
    if message.get_function_responses():
        raise InvalidInput(
            "function responses answer questions; answer at /runs/{id}/interrupts/{interruptId}:answer", code="message.invalid"
        )
    caller.serving.limits.check_message(message)
    # Whoever calls is the user, whatever role the message gives itself.
    return message if message.role == USER else message.model_copy(update={"role": USER})


def _config(options: dict[str, Any], metadata: dict[str, Any] | None) -> RunConfig | None:
    fields = options if metadata is None else {**options, "custom_metadata": metadata}
    return RunConfig.model_validate(fields) if fields else None
