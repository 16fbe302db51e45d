"""What callers hand in: messages that become runs, and answers with which runs go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sojourn import platform
from sojourn.agents.current import Lineage, find_current_run
from sojourn.agents.live import LiveRequestQueue
from sojourn.content import Content
from sojourn.errors import Conflict, InvalidInput, NotFound, SojournError, Unavailable
from sojourn.event import USER, Event, EventActions
from sojourn.ids import check_id
from sojourn.page import MAX_PAGE
from sojourn.run.config import RunConfig
from sojourn.run.live import LiveRun
from sojourn.run.status import RunStatus
from sojourn.run.store import NewRun
from sojourn.run.types import RunQuery, RunRecord
from sojourn.runner.attempt import spill
from sojourn.runner.bounds import check_metadata
from sojourn.runner.delivery import lifecycle
from sojourn.runner.delivery.dispatch import Dispatcher
from sojourn.runner.plugins import change
from sojourn.runner.submitting.answering import answers_in, give_answer
from sojourn.runner.submitting.message import Message, content_of
from sojourn.runner.submitting.repeating import check_repeatable
from sojourn.runner.submitting.sessions import get_session
from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.rules import run_conflict

logger = logging.getLogger("sojourn.run")


@dataclass(slots=True)
class Submission:
    """A message, and how it is to become a run; see `Runner.run`.

    Attributes:
        user_id: The user.
        session_id: The session.
        message: What the user says; what opens a live run says nothing.
        run_config: Fields that differ from the Runner's own.
        run_id: Makes it idempotent.
        attached: Whether the run ends when its caller goes.
        create_session: Whether the session is created if missing.
        state_delta: State keys to set with the message.
        slot_freed: For a run that uses a slot of its caller's; see `Runner.start_attached`.
        repeated: The run in whose place this one comes; its message is none that answers a question.
        as_stored: Whether the message is that of the repeated run, which has been through the hooks.
        requests: What the user sends meanwhile, for a live run.
    """

    user_id: str
    session_id: str
    message: Message | None
    run_config: RunConfig | None = None
    run_id: str | None = None
    attached: bool = False
    create_session: bool = True
    state_delta: dict[str, Any] | None = None
    slot_freed: Callable[[], None] | None = None
    repeated: RunRecord | None = None
    as_stored: bool = False
    requests: LiveRequestQueue | None = None


class Accepted(NamedTuple):
    """The run that came of something that was handed in.

    Attributes:
        record: Its record.
        live: The live run, if this process executes it.
        start_pos: After which frame its reader begins.
    """

    record: RunRecord
    live: LiveRun | None
    start_pos: int = 0


class Submitter:
    """Checks what callers hand in, and has it recorded and brought to execution.

    Args:
        dispatcher: Who brings it to execution.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._services = dispatcher.services
        self._store = dispatcher.store

    async def submit(self, given: Submission) -> Accepted:
        """Records a run, or follows the one that is recorded under its id; a message of answers is given to those who asked.

        Raises:
            SojournError: See `Runner.run`.
        """
        key = SessionKey(self._dispatcher.app_name, given.user_id, given.session_id).check()
        content = content_of(given.message) if given.requests is None else None
        delta = StateDelta.of_values(given.state_delta)
        await lifecycle.ready(self._dispatcher)
        if content is not None and content.parts[0].function_response is not None and given.repeated is None:
            return await self._answer_all(key, content, delta, given.slot_freed)
        if not given.as_stored and content is not None:
            for hook in self._services.plugins.on_user_message:
                content = await change(hook, key, content, gives=Content) or content
        config = self._services.merge(given.run_config)
        check_metadata(config.custom_metadata, config.max_event_bytes)
        lineage = _lineage(key, given.attached)
        new = _new_run(given, key, content, config, delta.durable().values if delta else {})
        large = spill.is_large(new.message, config.max_event_bytes)
        replaces = config.when_busy == "replace"
        tokens = self._services.tokens
        refusal = await tokens.refusal(given.user_id) if tokens is not None else None
        if given.run_id is not None and (large or replaces or refusal is not None) and (known := await self._known(new)):
            if given.slot_freed is not None:
                self._dispatcher.admission.lend_slot(known.record.uid, given.slot_freed)
            return known
        if refusal is not None:
            raise refusal
        if large or replaces:
            # Nothing may be kept or cancelled for a run that is refused.
            self._dispatcher.admission.check_room(given.user_id, lineage)
            if given.repeated is not None:
                await check_repeatable(self._store, given.repeated)
        if large:
            new = replace(new, message=await self._spill(new, config.max_event_bytes))
        if replaces:
            await self._cancel_earlier(key)
        try:
            record, live = await self._dispatcher.submit(new, lineage, given.slot_freed, delta.transient(), given.requests)
        except SojournError as error:
            if large and not isinstance(error, Unavailable):
                await self._take_back(new)
            raise
        if large and record.message.id != new.message.id:
            await self._take_back(new)
        return Accepted(record, live)

    async def _known(self, new: NewRun) -> Accepted | None:
        """The run recorded under this id, if there is one: submitting it again must do nothing else.

        Raises:
            Conflict: `run.conflict` if it was for something else.
        """
        content = new.message.content
        if content is None:
            return None
        try:
            record = await self._store.get_run(new.key.app_name, new.id, new.key.user_id)
        except NotFound:
            return None
        digest = (record.message.custom_metadata or {}).get(spill.DIGEST)
        same = record.message.content == content if digest is None else digest == spill.digest(content)
        if record.key != new.key or not same or record.retry_of != new.retry_of:
            raise run_conflict(new.id)
        return Accepted(record, self._dispatcher.hub.live.get(record.uid))

    async def _cancel_earlier(self, key: SessionKey) -> None:
        """Cancels the session's queued and running runs."""
        query = RunQuery(key.app_name, key.user_id, key.session_id, (RunStatus.QUEUED, RunStatus.RUNNING))
        page = await self._store.list_runs(query, limit=MAX_PAGE)
        while True:
            for record in page.items:
                await self._dispatcher.cancel(record, "replaced by a later run of its session")
            if page.next is None:
                return
            page = await self._store.list_runs(query, limit=MAX_PAGE, after=page.next)

    async def _spill(self, new: NewRun, max_bytes: int) -> Event:
        """Moves what is too large in a user's message to artifacts of its session."""
        artifacts, event = self._services.artifacts, new.message
        if artifacts is None:
            raise InvalidInput(
                "the message is too large for an event and there is no artifact service to keep its parts",
                code="event.too_large",
            )
        session = await get_session(self._store, new.key, create=new.create_session)
        if event.content is not None:
            event = event.evolve(custom_metadata={spill.DIGEST: spill.digest(event.content)})
        try:
            return await spill.spill(event, artifacts, session, max_bytes)
        except SojournError:
            await self._take_back(new)
            raise

    async def _take_back(self, new: NewRun) -> None:
        """Deletes what was moved to artifacts for a message that was not recorded."""
        assert self._services.artifacts is not None, "something was moved"
        try:
            session = await get_session(self._store, new.key, create=False)
            await spill.take_back(new.message.id, self._services.artifacts, session)
        except SojournError as error:
            logger.warning("what a refused message of session %s has left in artifacts was not deleted: %s", new.key, error)

    # -- answers ----------------------------------------------------------------------------------------------------

    async def _answer_all(
        self, key: SessionKey, content: Content, delta: StateDelta, slot_freed: Callable[[], None] | None
    ) -> Accepted:
        """Gives the answers that a message consists of; returns the run that goes on with the last one."""
        given_answers = await answers_in(self._store, key, content)
        if changes := delta.durable().values:
            app, user, session = key
            await self._store.patch_session(app_name=app, user_id=user, session_id=session, state_delta=changes)
        accepted: Accepted | None = None
        for n, answer in enumerate(given_answers, 1):
            # Should a later answer be refused, the caller's slot must not be in use by the run of an earlier one.
            lent = slot_freed if n == len(given_answers) else None
            accepted = await self.answer(answer.run_id, answer.interrupt_id, answer.value, key.user_id, lent)
        assert accepted is not None, "there is one answer for each part"
        return accepted

    async def answer(
        self, run_id: str, interrupt_id: str, value: Any, user_id: str | None, slot_freed: Callable[[], None] | None = None
    ) -> Accepted:
        """Answers a question; a run that goes on with it here uses the caller's slot, if one is lent.

        Raises:
            SojournError: See `Runner.answer`.
        """
        dispatcher = self._dispatcher
        hub = dispatcher.admission.ready()
        record = await self._store.get_run(dispatcher.app_name, check_id(run_id, "run_id"), user_id)
        try:
            max_bytes = self._services.run_config(record).max_event_bytes
            answered = await give_answer(self._store, record, interrupt_id, value, max_bytes=max_bytes)
            record = answered.record
            job = hub.jobs.get(record.uid)
            if job is not None:
                # Only the attempt that asked has not heard of it; a later one has, however late this reply is.
                asked_it = job.execution is not None and job.execution.attempt == record.attempt
                job.answered = job.answered or (asked_it and answered.recorded and record.status is RunStatus.QUEUED)
            elif (
                record.status is RunStatus.QUEUED
                and await dispatcher.may_execute()
                and record.uid not in hub.jobs
                and dispatcher.deliver(record, ahead=True, slot_freed=slot_freed)
            ):
                slot_freed = None
        except (asyncio.CancelledError, Unavailable):
            # It may be stored, and then the run goes on, whatever becomes of whoever gave the answer.
            hub.spawn(dispatcher.watch_waiting(record))
            raise
        if slot_freed is not None:
            dispatcher.admission.lend_slot(record.uid, slot_freed)
        return Accepted(record, hub.live.get(record.uid), record.last_pos)


def _new_run(given: Submission, key: SessionKey, content: Content | None, config: RunConfig, changes: dict[str, Any]) -> NewRun:
    """What is recorded of a submission."""
    run_id = check_id(given.run_id, "run_id") if given.run_id is not None else platform.new_id()
    event = Event.unchecked(
        {
            "id": platform.new_id(),
            "run_id": run_id,
            "author": USER,
            "timestamp": platform.now(),
            "content": content,
            "ordinal": 0,
            **({"actions": EventActions(state_delta=changes)} if changes else {}),
        }
    )
    return NewRun(
        id=run_id,
        key=key,
        message=event,
        config=given.run_config.overrides() if given.run_config is not None else {},
        attached=given.attached,
        create_session=given.create_session,
        reject_if_busy=config.when_busy == "reject",
        retry_of=given.repeated.id if given.repeated is not None else None,
        custom_metadata=config.custom_metadata,
    )


def _lineage(key: SessionKey, attached: bool) -> Lineage:
    """The runs that wait for a run started here."""
    parent = find_current_run()
    if parent is None or not attached:
        return Lineage()
    if key in parent.lineage.sessions:
        raise Conflict(
            f"a run of session {key} starts an attached run in the same session and would wait for itself; use another "
            "session, ctx.run_agent, or start()",
            code="run.nested_session",
        )
    return parent.lineage
