"""Which apps there are."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from sojourn.content import Value
from sojourn.runner.runner import Runner
from sojourn.server.access import CallerDep

router = APIRouter(tags=["adk"])


class AppInfo(Value):
    """An app.

    Attributes:
        name: Its name.
        root_agent_name: The agent that sessions begin with; the app's name where each user has an agent of their own.
        description: The agent's.
        language: Always `python`.
        is_computer_use: Always false.
    """

    name: str
    root_agent_name: str
    description: str
    language: Literal["python"]
    is_computer_use: bool


class AppList(Value):
    """The apps of a server."""

    apps: list[AppInfo]


@router.get("/list-apps", summary="List apps")
async def list_apps(
    caller: CallerDep, detailed: Annotated[bool, Query(description="Give objects instead of names.")] = False
) -> list[str] | AppList:
    """The names of the apps that this server serves; with `detailed=true` an object with more about each."""
    runners = caller.serving.runners
    return AppList(apps=[_info(runner) for runner in runners.values()]) if detailed else list(runners)


def _info(runner: Runner) -> AppInfo:
    root = runner.agent if runner.agent_source is None else None
    return AppInfo(
        name=runner.app_name,
        root_agent_name=root.name if root is not None else runner.app_name,
        description=root.description if root is not None else "",
        language="python",
        is_computer_use=False,
    )
