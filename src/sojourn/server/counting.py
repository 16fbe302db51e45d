"""How many runs there are of a kind."""

from __future__ import annotations

from collections.abc import Sequence

from sojourn.page import MAX_PAGE
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner


async def count_runs(runner: Runner, status: Sequence[RunStatus], at_most: int, user_id: str | None = None) -> int:
    """Counts runs of an app.

    Args:
        runner: The Runner of the app.
        status: Those with one of these.
        at_most: Where to stop.
        user_id: Whose; None for those of all users.
    """
    count, after = 0, None
    while count < at_most:
        limit = min(at_most - count, MAX_PAGE)
        page = await runner.list_runs(user_id=user_id, status=status, limit=limit, after=after)
        count, after = count + len(page.items), page.next
        if after is None:
            break
    return count
