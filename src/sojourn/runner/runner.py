"""The Runner: drives runs of one app's agents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sojourn import platform
from sojourn.agents.base import Agent, close_agents
from sojourn.agents.context import not_configured
from sojourn.agents.current import Lineage, find_current_run
from sojourn.agents.live import LiveRequestQueue
from sojourn.agents.source import AgentSource
from sojourn.artifact.service import ArtifactService
from sojourn.content import Content
from sojourn.engine.limiter import Limiter, Limits
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, NotFound, SojournError, Unavailable, Unsupported
from sojourn.event import USER, Event, EventActions
from sojourn.ids import check_id
from sojourn.memory.service import MemoryService
from sojourn.page import Page
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.run.store import NewRun, Store
from sojourn.run.types import Interrupt, RunQuery, RunRecord
from sojourn.run.usage import UserUsage
from sojourn.runner import lifecycle, spill
from sojourn.runner.answering import answers_in, give_answer
from sojourn.runner.bounds import check_metadata
from sojourn.runner.config import RunnerConfig
from sojourn.runner.dispatch import Dispatcher
from sojourn.runner.handle import EventStream, Run
from sojourn.runner.hub import Hub
from sojourn.runner.lifecycle import CloseReport, Closing, Load
from sojourn.runner.observe import Observer
from sojourn.runner.plugins import change
from sojourn.runner.repeating import check_last, check_repeatable, repeated_message
from sojourn.runner.seeding import seed, turns_of
from sojourn.runner.services import Services
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey
from sojourn.store.rules import run_conflict

logger = logging.getLogger("sojourn.run")

Message = str | Content
"""What a user says."""


class Runner:
    """Runs an app's agents for its users.

    `Runner(RunnerConfig(…))` and `Runner(**the same fields)` are the same. It works as it is: with the
    first run it starts on a database, it takes up what an earlier process left unfinished there. Entered
    (`async with runner:`), it does so at once, and is closed at the end.

    Args:
        config: What it is made of.
        **fields: The fields of `RunnerConfig`, instead.

    Raises:
        InvalidInput: `runner.invalid` for fields that are missing, unknown or given twice; what `RunnerConfig` says.
    """

    def __init__(self, config: RunnerConfig | None = None, /, **fields: Any) -> None:
        if config is not None and fields:
            raise InvalidInput("give a RunnerConfig or its fields, not both", code="runner.invalid")
        if config is None:
            try:
                config = RunnerConfig(**fields)
            except TypeError as error:
                known = ", ".join(RunnerConfig.__dataclass_fields__)
                raise InvalidInput(f"a Runner takes {known}: {error}", code="runner.invalid") from None
        self.config = config
        self._services = Services(config)
        limits = Limits(config.max_concurrency, config.max_concurrency_per_user, config.max_queue, config.queue_timeout)
        self.dispatcher = Dispatcher(self._services, limits, config.propagate)
        self._entered = False
        self._closing: Closing | None = None

    @property
    def app_name(self) -> str:
        """The app."""
        return self._services.app_name

    @property
    def agent(self) -> Agent:
        """The root agent.

        Raises:
            Unsupported: `runner.agent_per_user` if each user has one.
        """
        if self._services.agent is None:
            raise Unsupported("this Runner has an agent per user, and none for all", code="runner.agent_per_user")
        return self._services.agent

    @property
    def agent_source(self) -> AgentSource | None:
        """Where each user's agent comes from; None if all have the same."""
        return self._services.agent_source

    @property
    def store(self) -> Store:
        """The store of sessions and runs."""
        return self._services.store

    session_service = store

    @property
    def artifacts(self) -> ArtifactService | None:
        """The artifact service, if there is one."""
        return self._services.artifacts

    @property
    def memory(self) -> MemoryService | None:
        """The memory service, if there is one."""
        return self._services.memory

    @property
    def hub(self) -> Hub:
        """What this Runner shares with others on its store."""
        return self.dispatcher.hub

    @property
    def limiter(self) -> Limiter:
        """Who executes and who waits."""
        return self.dispatcher.limiter

    def streams(self, record: RunRecord) -> bool:
        """Whether a run's readers are sent pieces of messages."""
        return self._services.run_config(record).streaming_mode is not StreamingMode.NONE

    @property
    def load(self) -> Load:
        """What there is to do for this Runner, in this process."""
        return lifecycle.load_of(self.dispatcher)

    def add_observer(self, observer: Observer) -> None:
        """Has an observer told what this Runner does from now on; twice is fine."""
        if observer not in self._services.observers:
            self._services.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Tells an observer nothing more; twice is fine."""
        if observer in self._services.observers:
            self._services.observers.remove(observer)

    async def check_store(self) -> None:
        """Asks the store something small, to see whether it answers.

        Raises:
            Unavailable: It does not.
        """
        try:
            await self.store.get_run(self.app_name, "-", "-")
        except NotFound:
            pass

    # -- starting runs ----------------------------------------------------------------------------------------------

    def run(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        create_session: bool = True,
        state_delta: dict[str, Any] | None = None,
    ) -> EventStream:
        """Runs the agent on a message and gives what it says.

        The run is attached: leaving the loop cancels it, unless it waits for a person.

        Args:
            user_id: The user.
            session_id: The session; created if missing.
            new_message: What the user says.
            run_config: Fields that differ from the Runner's own.
            run_id: Makes it idempotent per (app, user): the same id and message again follow the same run.
            create_session: False to raise `NotFound`, `session.not_found`, for a session that does not exist.
            state_delta: State keys to set, together with the message and before the agent begins. `temp:` keys are not stored;
                the run's first attempt has them. With an answer to a question, they are set just before it is stored.

        Raises:
            InvalidInput: `id.invalid`, `message.invalid`, `event.too_large`, `run.metadata_too_large`, `state.invalid_key`,
                `json.invalid`.
            LimitExceeded: `limit.queue_full`, `user.max_tokens`; nothing is recorded.
            Conflict: `run.conflict`, `session.busy`, `run.nested_session`, `store.in_use`, `store.client_only`.
            Unavailable: `store.unavailable`, `runner.closed`.
            SojournError: At the end, the coded error of a failed or cancelled run.
        """

        def start() -> Any:
            return self._submit(
                user_id,
                session_id,
                new_message,
                run_config=run_config,
                run_id=run_id,
                attached=True,
                create_session=create_session,
                state_delta=state_delta,
            )

        return EventStream(start, lambda run: self.dispatcher.leave(run.record))

    run_async = run

    async def start(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        create_session: bool = True,
        state_delta: dict[str, Any] | None = None,
    ) -> Run:
        """Starts a detached run: it goes on whether or not anybody follows it, and is resumed after a crash.

        Takes the same arguments and raises the same errors as `run`.

        Returns:
            The run, recorded, and begun if its turn and a slot were free.
        """
        return await self._submit(
            user_id,
            session_id,
            new_message,
            run_config=run_config,
            run_id=run_id,
            attached=False,
            create_session=create_session,
            state_delta=state_delta,
        )

    async def start_attached(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        slot_freed: Callable[[], None] | None = None,
    ) -> Run:
        """Starts an attached run and gives its handle; the caller promises to `leave` it.

        Args:
            user_id: The user.
            session_id: The session.
            new_message: What the user says.
            run_config: Fields that differ from the Runner's own.
            run_id: As for `run`.
            slot_freed: For a caller that holds a slot of this Runner's limiter and lets the run use it: called when the run's
                code has ended, or will never run.
        """
        return await self._submit(
            user_id, session_id, new_message, run_config=run_config, run_id=run_id, attached=True, slot_freed=slot_freed
        )

    def run_live(
        self,
        user_id: str,
        session_id: str,
        live_request_queue: LiveRequestQueue,
        *,
        run_config: RunConfig | None = None,
        create_session: bool = True,
    ) -> EventStream:
        """Runs the agent while the user goes on sending, and gives what both say.

        The run begins at once, with a message that says nothing: what the user sends comes to the agent as `ctx.live`, and what
        of it is stored is among the events given here, by `user`. Besides, readers are given audio and transcripts in the
        making (`LivePartial`). The run ends when its agent does; `live_request_queue.close()` tells it that nothing more comes.

        It is attached: leaving the loop cancels it, and it does not survive its process (`run.lost`). It cannot wait for a
        person (`live.cannot_wait`), and is not repeated by `retry` without a new message.

        Args:
            user_id: The user.
            session_id: The session; created if missing.
            live_request_queue: What the user sends; one for each run.
            run_config: Fields that differ from the Runner's own; `streaming_mode` is `BIDI` in any case.
            create_session: False to raise `NotFound`, `session.not_found`, for a session that does not exist.

        Raises:
            Conflict: `live.queue_in_use`, and what else `run` raises.
        """

        def start() -> Any:
            return self.start_live(
                user_id, session_id, live_request_queue, run_config=run_config, create_session=create_session
            )

        return EventStream(start, lambda run: self.dispatcher.leave(run.record))

    async def start_live(
        self,
        user_id: str,
        session_id: str,
        live_request_queue: LiveRequestQueue,
        *,
        run_config: RunConfig | None = None,
        create_session: bool = True,
    ) -> Run:
        """Starts a live run and gives its handle; the caller promises to `leave` it. See `run_live`."""
        live_request_queue.claim()
        bidi = RunConfig(streaming_mode=StreamingMode.BIDI)
        if run_config is not None:
            bidi = run_config.model_copy(update={"streaming_mode": StreamingMode.BIDI})
        return await self._submit(
            user_id, session_id, None, run_config=bidi, run_id=None, attached=True, create_session=create_session,
            requests=live_request_queue,
        )  # fmt: skip

    async def leave(self, run: Run) -> None:
        """Leaves an attached run: cancels it unless it has ended or waits for a person, and waits for its end.

        A detached run, such as one that went on with an answer, goes on, and is not waited for.
        """
        self.dispatcher.leave(run.record)
        if run.record.attached:
            await run.settled()

    async def _submit(
        self,
        user_id: str,
        session_id: str,
        message: Message | None,
        *,
        run_config: RunConfig | None,
        run_id: str | None,
        attached: bool,
        create_session: bool = True,
        state_delta: dict[str, Any] | None = None,
        slot_freed: Callable[[], None] | None = None,
        repeated: RunRecord | None = None,
        as_stored: bool = False,
        requests: LiveRequestQueue | None = None,
    ) -> Run:
        key = SessionKey(self.app_name, user_id, session_id).check()
        # What opens a live run says nothing.
        content = _content(message) if requests is None else None
        delta = StateDelta.of_values(state_delta)
        hub = self.dispatcher.ready()
        if self.store.shared and self.dispatcher.recovered_in != hub.generation:
            # Whoever executes runs of a database knows that nobody else does: what is unfinished there is nobody's.
            await self.recover()
        if content is not None and content.parts[0].function_response is not None and repeated is None:
            run: Run | None = None
            given_answers = await answers_in(self.store, key, content)
            if changes := delta.durable().values:
                await self.store.patch_session(
                    app_name=key.app_name, user_id=user_id, session_id=session_id, state_delta=changes
                )
            for n, answer in enumerate(given_answers, 1):
                # Should a later answer be refused, the caller's slot must not be in use by the run of an earlier one.
                lent = slot_freed if n == len(given_answers) else None
                run = await self._answer(answer.run_id, answer.interrupt_id, answer.value, user_id, lent)
            assert run is not None, "there is one answer for each part"
            return run
        services = self._services
        # A message that is repeated as it is stored has been through the hooks.
        for hook in () if as_stored or content is None else services.plugins.on_user_message:
            content = await change(hook, key, content, gives=Content) or content
        config = services.merge(run_config)
        check_metadata(config.custom_metadata, config.max_event_bytes)
        lineage = _lineage(key, attached)
        given = run_id is not None
        run_id = check_id(run_id, "run_id") if run_id is not None else platform.new_id()
        event = Event.unchecked(
            {
                "id": platform.new_id(),
                "run_id": run_id,
                "author": USER,
                "timestamp": platform.now(),
                "content": content,
                "ordinal": 0,
                **({"actions": EventActions(state_delta=changes)} if (changes := delta.durable().values) else {}),
            }
        )
        large = spill.is_large(event, config.max_event_bytes)
        retry_of = repeated.id if repeated is not None else None
        refusal = await self._token_refusal(user_id)
        asks_first = large or config.when_busy == "replace" or refusal is not None
        if given and asks_first and content is not None and (known := await self._known(key, run_id, content, retry_of)):
            if slot_freed is not None:
                self.dispatcher.lend_slot(known.record.uid, slot_freed)
            return known
        if refusal is not None:
            raise refusal
        if large or config.when_busy == "replace":
            # Nothing may be kept or cancelled for a run that is refused.
            self.dispatcher.check_room(key, lineage)
            if repeated is not None:
                await check_repeatable(self.store, repeated)
        if large:
            event = await self._spill_message(key, event, config, create_session)
        new = NewRun(
            id=run_id,
            key=key,
            message=event,
            config=run_config.overrides() if run_config is not None else {},
            attached=attached,
            create_session=create_session,
            reject_if_busy=config.when_busy == "reject",
            retry_of=retry_of,
            custom_metadata=config.custom_metadata,
        )
        if config.when_busy == "replace":
            await self._replace(key)
        try:
            record, live = await self.dispatcher.submit(new, lineage, slot_freed, delta.transient(), requests)
        except SojournError as error:
            if large and not isinstance(error, Unavailable):
                await self._take_back(key, event)
            raise
        if large and record.message.id != event.id:
            await self._take_back(key, event)
        return Run(self, record, live)

    async def _token_refusal(self, user_id: str) -> LimitExceeded | None:
        """Why a user may start no run; None if tokens are left, or are not bounded."""
        if self._services.tokens is None:
            return None
        tokens = self._services.tokens.of(user_id)
        await tokens.refresh()
        return tokens.refusal()

    async def _known(self, key: SessionKey, run_id: str, content: Content, retry_of: str | None) -> Run | None:
        """The run recorded under this id, if there is one: submitting it again must do nothing else.

        Raises:
            Conflict: `run.conflict` if it was for something else.
        """
        try:
            record = await self.store.get_run(self.app_name, run_id, key.user_id)
        except NotFound:
            return None
        digest = (record.message.custom_metadata or {}).get(spill.DIGEST)
        same = record.message.content == content if digest is None else digest == spill.digest(content)
        if record.key != key or not same or record.retry_of != retry_of:
            raise run_conflict(run_id)
        return Run(self, record, self.hub.live.get(record.uid))

    async def _replace(self, key: SessionKey) -> None:
        """Cancels the session's queued and running runs."""
        query = RunQuery(key.app_name, key.user_id, key.session_id, (RunStatus.QUEUED, RunStatus.RUNNING))
        for record in (await self.store.list_runs(query, limit=1000)).items:
            await self.dispatcher.cancel(record, "replaced by a later run of its session")

    async def _spill_message(self, key: SessionKey, event: Event, config: RunConfig, create: bool) -> Event:
        """Moves what is too large in a user's message to artifacts of its session."""
        if self.artifacts is None:
            raise InvalidInput(
                "the message is too large for an event and there is no artifact service to keep its parts",
                code="event.too_large",
            )
        session = await self.get_session(key.user_id, key.session_id, create=create)
        if event.content is not None:
            event = event.evolve(custom_metadata={spill.DIGEST: spill.digest(event.content)})
        try:
            return await spill.spill(event, self.artifacts, session, config.max_event_bytes)
        except SojournError:
            await self._take_back(key, event)
            raise

    async def _take_back(self, key: SessionKey, event: Event) -> None:
        """Deletes what was moved to artifacts for a message that was not recorded."""
        assert self.artifacts is not None, "something was moved"
        try:
            await spill.take_back(event.id, self.artifacts, await self.get_session(key.user_id, key.session_id))
        except SojournError as error:
            logger.warning("what a refused message of session %s has left in artifacts was not deleted: %s", key, error)

    # -- people -----------------------------------------------------------------------------------------------------

    async def answer(self, run_id: str, interrupt_id: str, value: Any, *, user_id: str | None = None) -> Run:
        """Answers a question that a run waits for. The run goes on: before the session's queued runs, after the running one.

        An answer is taken whatever its user has spent; the run then fails with `user.max_tokens` at its next model call.

        Args:
            run_id: The run.
            interrupt_id: The question.
            value: The answer.
            user_id: The user; needed only if several users have a run of this id.

        Returns:
            The run. The same answer again changes nothing.

        Raises:
            NotFound: `run.not_found`, `interrupt.not_found`.
            InvalidInput: `interrupt.invalid_answer`, `interrupt.answer_too_large`, `run.ambiguous`.
            Conflict: `interrupt.conflict`, `interrupt.closed`.
        """
        return await self._answer(run_id, interrupt_id, value, user_id)

    async def _answer(
        self, run_id: str, interrupt_id: str, value: Any, user_id: str | None, slot_freed: Callable[[], None] | None = None
    ) -> Run:
        """Answers a question; a run that goes on with it here uses the caller's slot, if one is lent."""
        hub = self.dispatcher.ready()
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        try:
            max_bytes = self._services.run_config(record).max_event_bytes
            answered = await give_answer(self.store, record, interrupt_id, value, max_bytes=max_bytes)
            record = answered.record
            job = hub.jobs.get(record.uid)
            if job is not None:
                # Only the attempt that asked has not heard of it; a later one has, however late this reply is.
                asked_it = job.execution is not None and job.execution.attempt == record.attempt
                job.answered = job.answered or (asked_it and answered.recorded and record.status is RunStatus.QUEUED)
            elif record.status is RunStatus.QUEUED and await self.dispatcher.may_execute() and record.uid not in hub.jobs:
                self.dispatcher.deliver(record, ahead=True, slot_freed=slot_freed)
                slot_freed = None
        except (asyncio.CancelledError, Unavailable):
            # It may be stored, and then the run goes on, whatever becomes of whoever gave the answer.
            hub.spawn(self.dispatcher.watch_waiting(record))
            raise
        if slot_freed is not None:
            self.dispatcher.lend_slot(record.uid, slot_freed)
        live = hub.live.get(record.uid)
        return Run(self, record, live, start_pos=record.last_pos)

    # -- watching and changing runs ---------------------------------------------------------------------------------

    async def follow(self, run_id: str, *, user_id: str | None = None) -> Run:
        """A handle of a run, wherever it is executed.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous`.
        """
        self.hub.bind()
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        return Run(self, record, self.hub.live.get(record.uid))

    async def cancel(self, run_id: str, *, user_id: str | None = None, reason: str = "cancelled by its caller") -> RunRecord:
        """Asks for a run's end, from any process.

        A queued or waiting run is cancelled at once and never starts. A running one gets one `CancelledError` and
        `cancel_grace` seconds; wait for its end with `Run.wait`. A finished one is left as it is.

        Returns:
            The record after the request.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous`.
        """
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        return await self.dispatcher.cancel(record, reason)

    async def retry(
        self,
        run_id: str,
        new_message: Message | None = None,
        *,
        user_id: str | None = None,
        run_config: RunConfig | None = None,
        new_run_id: str | None = None,
        attached: bool = False,
        drop_later: bool = False,
    ) -> Run:
        """Runs a finished run again, in its place: with the same message (regenerate), or with another one (edit).

        The run and all that were submitted to its session after it cease to count: what they said, messages included, is out
        of history and memory, and the next run starts where the repeated one did. It stays in the log as superseded, and the
        old runs still give their events, frames and results. What they changed in the state stays, and so do artifacts.

        That happens with the append that puts the new message in the log. If the new run must wait for its turn, the old ones
        count until it begins; if it never begins, nothing has happened.

        Args:
            run_id: The run to repeat. Whether it completed, failed or was cancelled does not matter.
            new_message: What the user says instead; None for the same again.
            user_id: The user; needed only if several users have a run of this id.
            run_config: Fields that differ from the Runner's own; those of the repeated run if omitted.
            new_run_id: Makes it idempotent: the same call again follows the same new run.
            attached: Whether the new run ends when its caller goes, who promises to `leave` it.
            drop_later: Whether runs that came after it may cease to count. A new message says so by itself; to try again what
                failed long ago is mostly not meant like that.

        Returns:
            The new run. Its `record.retry_of` is `run_id`.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous`, `message.invalid`, and what else `run` raises.
            LimitExceeded: `limit.queue_full`, `user.max_tokens`; nothing is recorded.
            Conflict: `run.not_finished` if the run, or one that was submitted to the session after it, is queued, running or
                waiting; `run.has_later` if one came after it, without a new message and `drop_later`; `run.superseded` if it
                does not count any more; `run.conflict` if `new_run_id` was used for something
                else.
        """
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        if new_message is None and not drop_later and record.superseded_by is None:
            await check_last(self.store, record)
        config = run_config or (RunConfig.model_validate(record.config) if record.config else None)
        return await self._submit(
            record.user_id, record.session_id, repeated_message(record, new_message), run_config=config, run_id=new_run_id,
            attached=attached, repeated=record, as_stored=new_message is None,
        )  # fmt: skip

    async def list_runs(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        status: Sequence[RunStatus] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> Page[RunRecord]:
        """Lists the app's runs, newest submitted first."""
        return await self.store.list_runs(RunQuery(self.app_name, user_id, session_id, tuple(status)), limit=limit, after=after)

    async def list_interrupts(self, *, user_id: str | None = None, session_id: str | None = None) -> list[Interrupt]:
        """Lists the open questions to people, oldest first."""
        return await self.store.list_interrupts(self.app_name, user_id=user_id, session_id=session_id)

    async def usage(self, user_id: str, since: float | None = None) -> UserUsage:
        """What a user has spent in this app, in all runs there ever were, those of deleted sessions included.

        Args:
            user_id: The user; one that is not known has spent nothing.
            since: Leaves out the hours (UTC) that were over by then: seconds since the epoch. None for all.

        Returns:
            The sums (`total`), and the hours that they are made of (`buckets`).

        Raises:
            InvalidInput: `id.invalid`.
        """
        return await self.store.user_usage(self.app_name, user_id, since)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def get_session(self, user_id: str, session_id: str, *, create: bool = False) -> Session:
        """Reads a session.

        Args:
            user_id: The user.
            session_id: The session.
            create: Create it if it is missing.

        Raises:
            NotFound: `session.not_found`.
        """
        key = SessionKey(self.app_name, user_id, session_id).check()
        app, user, session = key
        try:
            return await self.store.get_session(app_name=app, user_id=user, session_id=session)
        except NotFound:
            if not create:
                raise
        try:
            return await self.store.create_session(app_name=app, user_id=user, session_id=session)
        except SojournError:
            return await self.store.get_session(app_name=app, user_id=user, session_id=session)

    async def create_session(
        self,
        user_id: str,
        session_id: str | None = None,
        *,
        state: dict[str, Any] | None = None,
        events: Sequence[Event] = (),
    ) -> Session:
        """Creates a session, and puts a conversation into it that took place somewhere else.

        Of the events, author, content and time are taken over. Each thing that the user said becomes a completed run, with what
        was said next.

        Args:
            user_id: The user.
            session_id: Its id; a new one is made if omitted.
            state: First values.
            events: What was said, in order; the user begins.

        Raises:
            AlreadyExists: `session.exists`.
            InvalidInput: `session.seed_refused` for events that do or ask something, or that begin with an agent's;
                `event.too_large`, `id.invalid`, `state.invalid_key`, `json.invalid`. No session is created then.
        """
        root = self._services.agent
        turns = turns_of(events, root.name if root is not None else "agent")
        if turns:
            hub = self.dispatcher.ready()
            if self.store.shared and self.dispatcher.recovered_in != hub.generation:
                await self.recover()
        session = await self.store.create_session(app_name=self.app_name, user_id=user_id, session_id=session_id, state=state)
        try:
            max_bytes = self._services.merge(None).max_event_bytes
            await seed(self.store, self.artifacts, session, turns, max_bytes)
        except BaseException:
            await asyncio.shield(self.delete_session(user_id, session.id))
            raise
        return session

    async def delete_session(self, user_id: str, session_id: str) -> Session:
        """Deletes a session with its events, runs, state and artifacts; a run under way is stopped.

        Memories of it stay, but once this returns this Runner adds none any more: what it was adding is broken off.

        Raises:
            NotFound: `session.not_found`.
        """
        key = SessionKey(self.app_name, user_id, session_id).check()
        session = await self.store.delete_session(app_name=key.app_name, user_id=user_id, session_id=session_id)
        for job in [j for j in self.hub.jobs.values() if j.live.record.key == key]:
            await self.hub.closed(job)
        if self._services.ingest is not None:
            await self._services.ingest.end_additions(key)
        if self.artifacts is not None:
            await self.artifacts.delete_session_artifacts(spill.scope_of(session))
        return session

    async def add_session_to_memory(self, user_id: str, session_id: str) -> None:
        """Adds what was said in a session to the user's memory; adding it again replaces what was added before.

        Raises:
            NotFound: `session.not_found`.
            Unsupported: `memory.not_configured`.
        """
        if self._services.ingest is None:
            raise not_configured("memory")
        await self._services.ingest.add_session(SessionKey(self.app_name, user_id, session_id).check())

    async def forget_memories(self, user_id: str, *, session_id: str | None = None) -> None:
        """Removes what memory has of a user, or only what came from one of their sessions.

        What is being added of that is broken off or waited for, and what could not be added is not made up for: nothing that
        was said in runs that have ended comes back by itself. That holds for all Runners of this event loop that have this
        memory service object. Runs that end later are added as ever, and so are sessions by `add_session_to_memory`.

        Args:
            user_id: The user.
            session_id: Only entries of this session.

        Raises:
            InvalidInput: `id.invalid`.
            Unsupported: `memory.not_configured`.
        """
        if self._services.ingest is None:
            raise not_configured("memory")
        check_id(user_id, "user_id")
        if session_id is not None:
            check_id(session_id, "session_id")
        await self._services.ingest.forget(self.app_name, user_id, session_id)

    # -- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.recover()
        self._entered = True
        self.hub.enter()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def recover(self) -> list[RunRecord]:
        """Takes up the app's runs that an earlier process left unfinished.

        Entering the Runner does this, and so does the first run that it starts on a store that processes share.

        Detached runs go on (`on_crash="resume"`) or fail with `run.lost`; attached ones fail, as their readers are gone; a run
        whose process has died three times fails with `run.crash_loop`. Waiting runs stay as they are.

        Returns:
            The runs taken up.

        Raises:
            Conflict: `store.in_use` if another process executes this store's runs; `store.client_only` if the store was opened
                so as never to do so.
        """
        return await lifecycle.recover(self.dispatcher)

    async def close(self, grace: float = 10.0) -> CloseReport:
        """Drains, then suspends, then reports. Closing twice is fine.

        New runs are refused at once. Runs under way get `grace` seconds to come to their end; then they are interrupted:
        detached ones go back to queued and go on when a Runner of the app is entered again. Services that this Runner was
        given stay open; users' agents are closed with it.

        Called again while it closes, it gives the runs no more than this grace from now on, and waits as well.

        Args:
            grace: Seconds.
        """
        if self._closing is not None and not self._closing.report.done():
            self._closing.bound(grace)
            return await asyncio.shield(self._closing.report)
        if self.dispatcher.closed:
            return CloseReport()
        self.dispatcher.closed = True
        closing = self._closing = Closing()
        closing.bound(grace)
        report = CloseReport()
        try:
            report = await lifecycle.close(self.dispatcher, closing)
            return report
        finally:
            if self._entered:
                self.hub.leave()
            self.hub.stop_watching()
            if self._services.agent_source is not None:
                await self._services.agent_source.close()
            if self._services.agent is not None:
                await close_agents(self._services.agent)
            if self._services.owns_store:
                await self.store.close()
            closing.report.set_result(report)


def _content(message: object) -> Content:
    if isinstance(message, str):
        if not message:
            raise InvalidInput("the message is empty; give text or Content with parts", code="message.invalid")
        try:
            return Content.of(message)
        except ValueError:
            raise InvalidInput("the message holds a lone surrogate, which is not text", code="message.invalid") from None
    if isinstance(message, Content):
        if not message.parts:
            raise InvalidInput("the message has no parts; give text or Content with parts", code="message.invalid")
        if message.get_function_calls():
            raise InvalidInput("a message of a user cannot call functions; give text, bytes or files", code="message.invalid")
        answers = len(message.get_function_responses())
        if answers and answers < len(message.parts):
            raise InvalidInput(
                "function responses answer questions; give them in a message of their own, without text", code="message.invalid"
            )
        return message if message.role else message.model_copy(update={"role": USER})
    raise InvalidInput(f"the message must be text or Content, not {type(message).__name__}", code="message.invalid")


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
