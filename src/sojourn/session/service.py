"""The seam for sessions."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from sojourn.event import Event
from sojourn.page import Page
from sojourn.session.types import History, Session, SessionKey


@runtime_checkable
class SessionService(Protocol):
    """Creates, reads, changes and deletes sessions.

    Rules for all methods:

    - Ids are checked first (`InvalidInput`, `id.invalid`), those of filters too; values are checked before anything is
      written.
    - Ids are compared character by character: no case folding, normalization or trimming.
    - What goes in or comes out is a copy: changing an argument afterwards, or a result, changes nothing stored.
    - Each write is atomic. When a call returns, the write is as durable as the backend promises.
    - Cancelling a call that writes may or may not prevent the write; it never leaves half of it.
    - A store that fails raises `Unavailable`; that is never reported as "absent". No driver's error crosses the seam:
      it is the `__cause__`.
    - Any task, and any number of tasks at once, may call any method.
    """

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        """Creates a session.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: Its id; a new one is made if omitted.
            state: First values. `user:` and `app:` keys go to their scopes; `temp:` keys are dropped.

        Raises:
            AlreadyExists: `session.exists`; nothing is changed, the given state included.
            InvalidInput: `id.invalid`, `state.invalid_key`, `json.invalid`.
        """
        ...

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        """Reads a session with its state merged from all scopes.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: Its id.
            events: How many of the newest events that count to include, whether a summary covers them or not.

        Raises:
            NotFound: `session.not_found`.
            InvalidInput: `page.invalid` for a negative number.
        """
        ...

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        """Lists sessions, newest created first, without state and events.

        The order is that in which the store recorded them, whatever the clock said; `created_at` decides nothing.

        A session created or deleted between two pages neither repeats nor hides another.

        Args:
            app_name: The app.
            user_id: Only this user's; all users' if omitted.
            limit: At most this many, 1 to 1,000.
            after: `Page.next` of the page before.

        Raises:
            InvalidInput: `page.invalid` for a limit or a token that cannot be.
        """
        ...

    async def list_apps(self) -> list[str]:
        """Lists the apps that have sessions, in the order of their code points; the cost depends on the number of apps."""
        ...

    async def patch_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:
        """Sets and deletes state keys from outside a run; a key in both arguments is deleted.

        The change is visible to runs that start afterwards; a run under way keeps its snapshot and wins or loses key by
        key, by who writes last.

        Raises:
            NotFound: `session.not_found`.
            InvalidInput: `state.invalid_key`, `json.invalid`.
        """
        ...

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        """Deletes a session with its events, runs, steps, interrupts and session-scoped state.

        `user:` and `app:` state stays, and so does what the user has spent. A run under way is fenced by this: its next write
        raises `Fenced`. The same id can be created again at once and starts empty. Artifacts are kept elsewhere:
        `Runner.delete_session` removes them too.

        Returns:
            The session as it was.

        Raises:
            NotFound: `session.not_found`.
        """
        ...

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        """Reads events in the order of `seq`.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: The session.
            after: Only events with a greater `seq`.
            limit: At most this many, 1 to 1,000.
            superseded: Whether to include those that no longer count.

        Raises:
            NotFound: `session.not_found`.
            Gone: `cursor.trimmed` if retention has removed what comes after this position; see `SupportsRetention`.
            InvalidInput: `page.invalid`.
        """
        ...

    async def history(self, key: SessionKey, limit: int | None) -> History:
        """Reads a window of the events that count; its cost depends on the window, not on the session's length.

        Args:
            key: The session.
            limit: How many of the newest events; None for all. Where a summary is recorded, the window holds only events
                with a greater `seq` than the newest summary's `summary_until`.

        Returns:
            The window, and the events pinned to it where they lie before it: function calls without a response yet, the
            newest summary, and whatever it takes that no call or response in window and pins is without its other half.
            All of them count. A call is answered by every response with its id up to the next call with that id; calls
            and responses without an id belong to nothing.

        Raises:
            NotFound: `session.not_found`.
            InvalidInput: `page.invalid` for a negative limit.
        """
        ...
