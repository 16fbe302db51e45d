"""Finding a run or a session by its id, in whichever app of the database it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sojourn.cli.listing import all_sessions
from sojourn.cli.options import apps_in_question
from sojourn.errors import InvalidInput, NotFound
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.session.types import Session

T = TypeVar("T")


async def find_run(store: Store, run_id: str, app_name: str | None, user_id: str | None) -> RunRecord:
    """The run of this id.

    Args:
        store: Where to look.
        run_id: The id.
        app_name: The app; None for whichever has it.
        user_id: The user; None for whoever has it.

    Raises:
        NotFound: `run.not_found`; `app.not_found` if the database has no such app, or none at all.
        InvalidInput: `run.ambiguous` if several apps, or several users of one, have such a run; `id.invalid`.
    """
    apps = await apps_in_question(store, app_name)
    found = [record for app in apps for record in await _runs_of(store, app, run_id, user_id)]
    having = ", ".join(record.app_name for record in found)
    several = InvalidInput(f"several apps have a run {run_id!r}: {having}; say which with --app", code="run.ambiguous")
    return _the_only(found, NotFound(f"{_none(apps)} a run {run_id!r}", code="run.not_found"), several)


async def _runs_of(store: Store, app_name: str, run_id: str, user_id: str | None) -> list[RunRecord]:
    try:
        return [await store.get_run(app_name, run_id, user_id)]
    except NotFound:
        return []
    except InvalidInput as error:
        if error.code != "run.ambiguous":
            raise
        raise InvalidInput(
            f"several users of app {app_name!r} have a run {run_id!r}; say which with --user", code="run.ambiguous"
        ) from error


async def find_session(store: Store, session_id: str, app_name: str | None, user_id: str | None) -> Session:
    """The session of this id.

    Args:
        store: Where to look.
        session_id: The id.
        app_name: The app; None for whichever has it.
        user_id: The user; None for whoever has it.

    Raises:
        NotFound: `session.not_found`; `app.not_found` if the database has no such app, or none at all.
        InvalidInput: `session.ambiguous` if several apps or users have such a session; `id.invalid`.
    """
    apps = await apps_in_question(store, app_name)
    found = [session for app in apps for session in await _sessions_of(store, app, session_id, user_id)]
    whose = f" of user {user_id!r}" if user_id is not None else ""
    none = NotFound(f"{_none(apps)} a session {session_id!r}{whose}", code="session.not_found")
    return _the_only(found, none, _ambiguous(session_id, found))


async def _sessions_of(store: Store, app_name: str, session_id: str, user_id: str | None) -> list[Session]:
    if user_id is None:
        return [s for s in await all_sessions(store, app_name, None, 0) if s.id == session_id]
    try:
        return [await store.get_session(app_name=app_name, user_id=user_id, session_id=session_id)]
    except NotFound:
        return []


def _ambiguous(session_id: str, found: Sequence[Session]) -> InvalidInput:
    apps = {s.app_name for s in found}
    if len(apps) == 1:
        having = f"users have a session {session_id!r}: {', '.join(sorted(s.user_id for s in found))}; say which with --user"
    else:
        whose = ", ".join(f"{s.app_name} (user {s.user_id})" for s in found)
        more = " and --user" if len(apps) < len(found) else ""
        having = f"apps have a session {session_id!r}: {whose}; say which with --app{more}"
    return InvalidInput(f"several {having}", code="session.ambiguous")


def _the_only(found: Sequence[T], none: NotFound, several: InvalidInput) -> T:
    """What was found; `none` or `several` is raised if it is not one."""
    if not found:
        raise none
    if len(found) > 1:
        raise several
    return found[0]


def _none(apps: Sequence[str]) -> str:
    return f"app {apps[0]!r} does not have" if len(apps) == 1 else f"none of the apps {', '.join(apps)} has"
