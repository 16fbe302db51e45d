"""Plugins: code of the operator's that is called around runs, agents, steps and events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sojourn.content import Content
from sojourn.errors import AgentError, SojournError
from sojourn.event import Event
from sojourn.run.types import RunRecord
from sojourn.session.types import SessionKey

if TYPE_CHECKING:
    from sojourn.agents.context import Context

logger = logging.getLogger("sojourn.plugins")


class Plugin:
    """Override what you need; what is not overridden costs nothing.

    Hooks that come before something may change it, and an exception in one fails the run with `plugin.failed`. Hooks that come
    after something only observe: an exception in one is logged, and the run's outcome stays what it was.
    """

    name: str = ""

    async def on_user_message(self, key: SessionKey, message: Content) -> Content | None:
        """Before a run is recorded. Returns a message in place of the user's, or None."""

    async def before_run(self, ctx: Context) -> Content | None:
        """Before the first agent of each attempt. Returns an answer in place of running any agent, or None."""

    async def before_agent(self, ctx: Context) -> Content | None:
        """Before each agent and its own callbacks. Returns what is said in place of running it, or None."""

    async def after_agent(self, ctx: Context, error: BaseException | None) -> None:
        """After each agent, also when something was said in its place, and when it failed, was stopped or asked a person."""

    async def before_step(self, ctx: Context, key: str) -> None:
        """Before a step is done; not for a step whose result is known."""

    async def after_step(self, ctx: Context, key: str, error: BaseException | None) -> None:
        """After a step was done or failed."""

    async def on_event(self, ctx: Context | None, event: Event) -> Event | None:
        """Before an event is stored. Returns one in place of it (its identity is kept), or None.

        Pieces of a message have been sent to readers by then, unless the run's streaming mode is `NONE`; readers who have not
        been given them get only the event if that begins otherwise. What this raises for is not stored. It is asked again for
        the pieces that the event stood for; if it raises then, at the end of a failing run, an empty event is stored.

        The context is None for events that the runner writes itself.
        """

    async def after_run(self, record: RunRecord, error: BaseException | None) -> None:
        """After an attempt has ended and its outcome is stored: completed, failed, cancelled, dropped, or waiting."""


_HOOKS = (
    "on_user_message", "before_run", "before_agent", "after_agent", "before_step", "after_step", "on_event", "after_run",
)  # fmt: skip


class PluginChain:
    """The overridden hooks of all plugins, by name, each in order."""

    __slots__ = _HOOKS

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        for hook in _HOOKS:
            methods = [getattr(p, hook) for p in plugins if getattr(type(p), hook) is not getattr(Plugin, hook)]
            setattr(self, hook, tuple(methods))

    on_user_message: tuple[Any, ...]
    before_run: tuple[Any, ...]
    before_agent: tuple[Any, ...]
    after_agent: tuple[Any, ...]
    before_step: tuple[Any, ...]
    after_step: tuple[Any, ...]
    on_event: tuple[Any, ...]
    after_run: tuple[Any, ...]


async def observe(hooks: tuple[Any, ...], *args: Any) -> None:
    """Calls hooks that only observe: each is called, and what one raises is logged."""
    for hook in hooks:
        try:
            await hook(*args)
        except Exception:
            logger.exception("plugin hook %s failed; the run goes on", getattr(hook, "__qualname__", hook))


async def change(hook: Any, *args: Any, gives: type[Any] = object) -> Any:
    """Calls a hook that may change what follows.

    Args:
        hook: The hook.
        *args: What it is called with.
        gives: What it may return besides None.

    Raises:
        AgentError: `plugin.failed` if it raises anything but a coded error, or returns something else.
    """
    try:
        given = await hook(*args)
        if given is not None and not isinstance(given, gives):
            raise TypeError(f"it returned a {type(given).__name__}, not a {gives.__name__}")
        return given
    except SojournError:
        raise
    except Exception as error:
        name = getattr(hook, "__qualname__", repr(hook))
        logger.exception("plugin hook %s failed", name)
        raise AgentError(f"plugin hook {name} raised {type(error).__name__}", code="plugin.failed") from error
