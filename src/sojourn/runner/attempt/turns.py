"""Model calls: which are refused because the run has made, or the run or its user has spent, as much as is allowed."""

from __future__ import annotations

from sojourn.errors import LimitExceeded
from sojourn.runner.tokens import UserTokens


def check_turns(run_id: str, made: int, most: int) -> None:
    """Refuses the model call with which a run has made more than `max_turns`, with `run.max_turns`."""
    if made > most:
        raise LimitExceeded(
            f"run {run_id!r} has made {most} model calls, the limit; raise RunConfig.max_turns if that is intended",
            code="run.max_turns",
            retryable=False,
        )


def check_tokens(run_id: str, spent: int, most: int | None, user: UserTokens | None) -> None:
    """Refuses a model call that neither the run nor its user has tokens for, with `run.max_tokens` or `user.max_tokens`.

    Args:
        run_id: The run.
        spent: Tokens it has spent.
        most: How many it may spend; None for no bound.
        user: What its user has spent; None for no bound.
    """
    if most is not None and spent >= most:
        raise LimitExceeded(
            f"run {run_id!r} has spent {spent} tokens, {most} are allowed; raise RunConfig.max_tokens if that is intended",
            code="run.max_tokens",
            retryable=False,
        )
    refusal = user.refusal() if user is not None else None
    if refusal is not None:
        raise refusal
