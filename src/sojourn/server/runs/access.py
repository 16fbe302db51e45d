"""Which run a request is about."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from fastapi import Depends, Path, Query

from sojourn.ids import check_id
from sojourn.run.types import RunRecord
from sojourn.runner.runner import Runner
from sojourn.server.access import Caller, CallerDep
from sojourn.server.operations.logs import note

AppName = Annotated[str | None, Query(alias="appName", description="The app; may be left out if the server has one.")]
"""Of a route: the app that a request names."""

UserId = Annotated[str | None, Query(alias="userId", description="The user, for a caller who may act for several.")]
"""Of a route: the user that a request names."""


class Target(NamedTuple):
    """The run that a request is about.

    Attributes:
        caller: Who asks.
        runner: The Runner of its app.
        record: The run, as stored.
    """

    caller: Caller
    runner: Runner
    record: RunRecord


async def target_of(
    caller: CallerDep,
    run_id: Annotated[str, Path(alias="runId", description="The run.")],
    app_name: AppName = None,
    user_id: UserId = None,
) -> Target:
    """The run that a request is about, if it is the caller's.

    Raises:
        NotFound: `run.not_found`, for somebody else's, too; `app.not_found`, `user.not_found`.
        InvalidInput: `id.invalid`, `app.missing`; `run.ambiguous` if several users have a run of this id and none is named.
    """
    runner = caller.runner(app_name)
    record = await runner.store.get_run(runner.app_name, check_id(run_id, "run_id"), caller.scope(user_id))
    note(session_id=record.session_id, run_id=record.id)
    return Target(caller, runner, record)


TargetDep = Annotated[Target, Depends(target_of)]
"""Of a route: the run that a request is about."""
