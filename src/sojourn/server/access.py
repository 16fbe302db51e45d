"""Who may see and do what: the one place where routes learn whose request it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from sojourn.errors import Forbidden, InvalidInput, NotFound, Unauthorized
from sojourn.ids import check_id
from sojourn.runner.runner import Runner
from sojourn.server.auth.principal import Principal
from sojourn.server.limits import caller_key
from sojourn.server.operations.logs import note
from sojourn.server.serving import Serving, serving_of
from sojourn.session.types import SessionKey
from sojourn.store.rules import session_not_found


class Caller:
    """The caller of a route, and what the caller may reach.

    What belongs to somebody else is for the caller like what does not exist: these methods raise what the stores would raise
    for it, word for word, before anything is looked up. So neither the answer nor the time it takes tells whether it is there.
    """

    __slots__ = ("principal", "serving")

    def __init__(self, principal: Principal, serving: Serving) -> None:
        self.principal = principal
        self.serving = serving

    def runner(self, app_name: str | None) -> Runner:
        """The Runner of an app; see `Serving.runner`."""
        return self.serving.runner(app_name)

    def user(self, user_id: str | None) -> str:
        """The user in whose name a request acts.

        Args:
            user_id: As the request names it; None for the caller.

        Raises:
            NotFound: `user.not_found` for anybody but the caller, unless the caller may act for others.
            InvalidInput: `id.invalid`; `user.missing` if the request has to name one.
        """
        if user_id is None:
            if self.principal.user_id is None:
                raise InvalidInput("name the user", code="user.missing")
            return self.principal.user_id
        check_id(user_id, "user_id")
        if not self.principal.may_act_for(user_id):
            raise NotFound(f"there is no user {user_id!r} here", code="user.not_found")
        self._note_user(user_id)
        return user_id

    def session(self, app_name: str, user_id: str, session_id: str) -> SessionKey:
        """The session that a request is about; of the caller's own it is not said whether it exists.

        Args:
            app_name: The app, one that is served.
            user_id: Whose, as the request names it.
            session_id: The session.

        Raises:
            NotFound: `session.not_found` for anybody else's, unless the caller may act for others.
            InvalidInput: `id.invalid`.
        """
        key = SessionKey(app_name, user_id, session_id).check()
        if not self.principal.may_act_for(user_id):
            raise session_not_found(key)
        self._note_user(user_id)
        note(session_id=session_id)
        return key

    def scope(self, user_id: str | None) -> str | None:
        """The user whose things a request finds by their id; None for those of all users.

        Raises:
            NotFound: `user.not_found`, as `user`.
        """
        if user_id is None:
            return None if self.principal.admin else self.principal.user_id
        return self.user(user_id)

    def _note_user(self, user_id: str) -> None:
        # The log tells who calls; that an operator acts for somebody else, the run's own lines tell.
        if self.principal.user_id is None:
            note(user_id=user_id)

    def require_admin(self) -> None:
        """For what concerns all users.

        Raises:
            Forbidden: `auth.not_admin`.
        """
        if not self.principal.admin and self.principal.user_id is not None:
            raise Forbidden("this is for operators of the server", code="auth.not_admin")


_KNOWN = "sojourn.caller"


async def caller_of(connection: HTTPConnection) -> Caller:
    """The caller of a request or a WebSocket; the request counts, once, against the caller's rate.

    Raises:
        Unauthorized: Nobody is identified.
        LimitExceeded: `limit.rate`.
    """
    known: Caller | None = connection.scope.get(_KNOWN)
    if known is None:
        known = connection.scope[_KNOWN] = await _identified(connection)
    return known


async def _identified(connection: HTTPConnection) -> Caller:
    serving = serving_of(connection)
    try:
        principal = await serving.config.auth.authenticate(connection)
    except Unauthorized:
        # What is guessed at counts for its address: those who are identified there have rates of their own.
        serving.limits.count(connection, caller_key(connection, None))
        raise
    serving.limits.count(connection, caller_key(connection, principal.user_id))
    if principal.user_id is not None:
        note(user_id=principal.user_id)
    return Caller(principal, serving)


CallerDep = Annotated[Caller, Depends(caller_of)]
"""Of a route: its caller."""
