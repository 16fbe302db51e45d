"""What the routes of a server share: the Runners that it serves, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from sojourn.errors import InvalidInput, NotFound
from sojourn.runner.runner import Runner
from sojourn.server.config import ServerConfig
from sojourn.server.conversations import Conversations
from sojourn.server.following import Following
from sojourn.server.limits import Limits


class Serving:
    """One per app that `create_app` makes.

    Args:
        runners: The Runners, of different apps.
        config: How they are served.

    Attributes:
        config: How they are served.
        limits: How much callers may ask for.
        draining: Whether the server is about to end: it starts nothing new.
        following: Who follows which run.
        starting: Held by whoever starts the run of this id on behalf of a request with an idempotency key.
        conversations: The live runs.

    Raises:
        InvalidInput: `server.invalid` for no Runner, or for two of one app.
    """

    def __init__(self, runners: Sequence[Runner], config: ServerConfig) -> None:
        self._runners = {runner.app_name: runner for runner in runners}
        if not runners or len(self._runners) < len(runners):
            raise InvalidInput("a server serves one or several Runners, each of an app of its own", code="server.invalid")
        self.config = config
        self.limits = Limits(config)
        self.draining = False
        self.following = Following(config)
        self.starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.conversations = Conversations(config)

    @property
    def runners(self) -> Mapping[str, Runner]:
        """The Runners by app."""
        return self._runners

    def runner(self, app_name: str | None) -> Runner:
        """The Runner of an app.

        Args:
            app_name: The app; None for the only one.

        Raises:
            NotFound: `app.not_found`.
            InvalidInput: `app.missing` if it is not named and there are several.
        """
        if app_name is None:
            if len(self._runners) > 1:
                names = ", ".join(self._runners)
                raise InvalidInput(f"name the app, as `appName`; this server has {names}", code="app.missing")
            return next(iter(self._runners.values()))
        runner = self._runners.get(app_name)
        if runner is None:
            raise NotFound(f"there is no app {app_name!r} here", code="app.not_found")
        return runner

    async def drain(self, grace: float) -> None:
        """Starts nothing new from now on, and lets what is under way come to its end; then interrupts it.

        Runs that were interrupted go on when a Runner of their app is entered again; who follows them is told so. Called again,
        it gives them no more than the new grace.

        Args:
            grace: Seconds.
        """
        self.draining = True
        self.following.close()
        self.conversations.close()
        await asyncio.gather(*(runner.close(grace) for runner in self._runners.values()))


def serving_of(connection: HTTPConnection) -> Serving:
    """What the app of a request shares."""
    serving: Serving = connection.app.state.serving
    return serving
