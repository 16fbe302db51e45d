"""What is done to the data of sessions and users as a whole, by those who run an app."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from sojourn.artifact.service import ArtifactService
from sojourn.data import erasing, pruning, reporting
from sojourn.data.erasing import Erased
from sojourn.data.pruning import Pruned, Retention
from sojourn.data.reporting import StorageReport
from sojourn.data.services import Services, SupportsScrub, retaining
from sojourn.ids import check_id
from sojourn.memory.service import MemoryService
from sojourn.run.store import Store
from sojourn.session.types import SessionKey

if TYPE_CHECKING:
    from sojourn.data.backup import Backup


class DataCare:
    """Prunes, measures, exports, erases and backs up what services keep.

    It is for operators: nothing here asks who calls. Each method may be called in any process that has the same data, also
    while another one executes runs, by several at once, and again after it was broken off: it then does what is left. It closes
    nothing that it was given.

    `Runner.data` is one on a Runner's services, which also ends what the Runner is doing for what is removed.

    Args:
        store: Sessions and runs.
        artifacts: Their artifacts; None if there are none.
        memory: What is remembered of users; None if nothing is.
        stop: Called with each session that `erase` has removed, to end what this process still does for it.
        forget: Called in place of `memory.forget` with an app and a user.

    Raises:
        Unsupported: `data.unsupported` if the store does not support retention.
    """

    def __init__(
        self,
        store: Store,
        *,
        artifacts: ArtifactService | None = None,
        memory: MemoryService | None = None,
        stop: Callable[[SessionKey], Awaitable[None]] | None = None,
        forget: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        async def forget_all(app_name: str, user_id: str) -> None:
            if memory is not None:
                await memory.forget(app_name, user_id)

        self._services = Services(retaining(store), artifacts, memory, stop or _nothing, forget or forget_all)

    async def prune(
        self,
        app_name: str,
        retention: Retention,
        *,
        user_id: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Pruned:
        """Removes what has been kept long enough, in small transactions, so that nobody waits for long.

        Sessions that nobody has used for `ttl` go as by `Runner.delete_session`, with their artifacts. Of the others, runs that
        are too old or too many go: their events, steps and questions. Their records stay, and so do state, artifacts, memory
        and what was spent. What stays besides is told by `SupportsRetention`: runs that have not ended, the newest summary,
        calls without a response. Reading what was removed raises `Gone`, `cursor.trimmed`.

        Args:
            app_name: The app.
            retention: How long it is kept.
            user_id: Only this user's.
            stopped: Asked between two transactions whether to end early.

        Returns:
            What was removed.

        Raises:
            InvalidInput: `id.invalid`.
        """
        return await pruning.prune(self._services, app_name, retention, user_id, stopped)

    async def report(
        self, app_name: str | None = None, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> StorageReport:
        """Tells how much is kept, session by session, largest first.

        All sessions are measured for each page; what is written meanwhile may move a session from one page to another.

        Args:
            app_name: The app; None for all.
            user_id: Only this user's.
            limit: At most this many sessions, 1 to 1,000.
            after: `Page.next` of the page before.

        Raises:
            InvalidInput: `id.invalid`, `page.invalid`.
        """
        apps = await self._services.store.list_apps() if app_name is None else [check_id(app_name, "app_name")]
        return await reporting.report(self._services, apps, user_id, limit, after)

    async def export(self, user_id: str, *, apps: Sequence[str] | None = None) -> AsyncIterator[bytes]:
        """Gives all that is kept of a user, as the pieces of a ZIP archive, in memory that does not grow with it.

        The format is told in `docs/data.md`. What is written meanwhile may or may not be in it.

        Args:
            user_id: The user.
            apps: Only these apps; all in which anything of theirs is kept, if omitted.

        Raises:
            InvalidInput: `id.invalid`.
        """
        # Few who run agents need this, and what it takes.
        from sojourn.data.exporting import export

        async for piece in export(self._services, user_id, await self._apps_of(user_id, apps)):
            yield piece

    async def erase(self, user_id: str, *, apps: Sequence[str] | None = None, scrub: bool = True) -> Erased:
        """Removes all that is kept of a user: sessions with events and runs, state, artifacts, memory, and what was spent.

        Runs under way are fenced first: they can store nothing from then on. If the process dies in between, or something
        fails, the same call again does the rest. `app:` state is the app's, and stays.

        Args:
            user_id: The user.
            apps: Only these apps; all in which anything of theirs is kept, and all that have sessions, if omitted.
            scrub: Whether the files of store and memory are rewritten at the end, so that no copy is left in their unused
                parts. Until that is done, who writes must wait: on SQLite, about a second for 100 MB.

        Raises:
            InvalidInput: `id.invalid`.
            Conflict: `data.user_active` if a session of theirs was created meanwhile; erase again once nobody writes for them.
            Unavailable: Something could not be removed; erase again.
        """
        check_id(user_id, "user_id")
        found = await self._apps_of(user_id, apps)
        if apps is None:
            # Artifacts and memories may be in apps where the store has nothing of the user.
            found = sorted({*found, *await self._services.store.list_apps()})
        erased = await erasing.erase(self._services, user_id, found)
        if scrub:
            if isinstance(self._services.memory, SupportsScrub):
                await self._services.memory.scrub()
            await self._services.store.scrub()
        return erased

    async def backup(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> Backup:
        """Writes a copy of a SQLite store as it is at this moment, while it is in use.

        It appears under its name whole, checked and on the disk, or not at all, with the permissions of the database.
        Artifacts in files are not in it. `restore_backup` brings it back.

        Args:
            target: The copy. Its directory must exist.
            overwrite: Whether to replace a file of that name.

        Raises:
            AlreadyExists: `data.target_exists`.
            NotFound: `store.not_found` if the store has no file yet.
            Unsupported: `data.backup_unsupported` for another store.
            Unavailable: It could not be written; `store.corrupt` if the store is damaged.
        """
        # The same.
        from sojourn.data.backup import back_up

        return await back_up(self._services.store, target, overwrite=overwrite)

    async def _apps_of(self, user_id: str, apps: Sequence[str] | None) -> list[str]:
        check_id(user_id, "user_id")
        if apps is None:
            return await self._services.store.apps_of_user(user_id)
        return [check_id(app_name, "app_name") for app_name in apps]


async def _nothing(_: SessionKey) -> None:
    """What is called where nothing needs to be stopped."""
