"""Questions of runs to people, and their answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import JSONResponse, Response

from sojourn.server.access import CallerDep
from sojourn.server.jsonbody import JsonRoute
from sojourn.server.runs.access import AppName, TargetDep, UserId
from sojourn.server.runs.models import GiveAnswer, InterruptList, RunInfo
from sojourn.server.runs.views import interrupt_view, run_view

router = APIRouter(tags=["interrupts"], route_class=JsonRoute)


@router.get("/interrupts", response_model=InterruptList, summary="List open questions")
async def list_interrupts(
    caller: CallerDep,
    app_name: AppName = None,
    user_id: UserId = None,
    session_id: Annotated[str | None, Query(alias="sessionId", description="Only those of a session.")] = None,
) -> Response:
    """Lists what the caller's runs ask, oldest first; an operator's are everybody's."""
    runner = caller.runner(app_name)
    asked = await runner.list_interrupts(user_id=caller.scope(user_id), session_id=session_id)
    return JSONResponse({"items": [interrupt_view(interrupt) for interrupt in asked]})


@router.get("/runs/{runId}/interrupts", response_model=InterruptList, summary="List a run's open questions")
async def list_interrupts_of_run(target: TargetDep) -> Response:
    """Lists what a run waits for, oldest first."""
    run = await target.runner.follow(target.record.id, user_id=target.record.user_id)
    return JSONResponse({"items": [interrupt_view(interrupt) for interrupt in await run.interrupts()]})


@router.post("/runs/{runId}/interrupts/{interruptId}:answer", response_model=RunInfo, summary="Answer a question")
async def answer_interrupt(
    target: TargetDep,
    interrupt_id: Annotated[str, Path(alias="interruptId", description="The question.")],
    body: GiveAnswer,
) -> Response:
    """Answers a question, exactly once: the same answer again changes nothing, another one is a conflict.

    The run goes on with it, and waits again if it has other open questions that it cannot do without.
    """
    record = target.record
    run = await target.runner.answer(record.id, interrupt_id, body.answer, user_id=record.user_id)
    return JSONResponse(run_view(run.record))
