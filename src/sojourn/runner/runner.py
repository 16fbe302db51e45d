"""The Runner: drives runs of one app's agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from sojourn.agents.base import Agent, close_agents
from sojourn.agents.context import not_configured
from sojourn.agents.live import LiveRequestQueue
from sojourn.agents.source import AgentSource
from sojourn.artifact.service import ArtifactService
from sojourn.data.care import DataCare
from sojourn.engine.limiter import Limiter, Limits
from sojourn.errors import InvalidInput, NotFound, Unsupported
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.service import MemoryService
from sojourn.page import Page
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.run.store import Store
from sojourn.run.types import Interrupt, RunQuery, RunRecord
from sojourn.run.usage import UserUsage
from sojourn.runner.config import RunnerConfig
from sojourn.runner.delivery import keeping, lifecycle
from sojourn.runner.delivery.dispatch import Dispatcher
from sojourn.runner.delivery.hub import Hub
from sojourn.runner.delivery.lifecycle import CloseReport, Closing, Load
from sojourn.runner.handle import EventStream, Run
from sojourn.runner.observe import Observer
from sojourn.runner.services import Services
from sojourn.runner.submitting import sessions
from sojourn.runner.submitting.message import Message
from sojourn.runner.submitting.repeating import check_last, repeated_message
from sojourn.runner.submitting.submission import Submission, Submitter
from sojourn.session.types import Session, SessionKey


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
        self._submitter = Submitter(self.dispatcher)
        self._keeping = keeping.keeping_of(self.dispatcher, config.retention)
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
        return self.dispatcher.admission.limiter

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
            return self._submit(Submission(
                user_id, session_id, new_message, run_config, run_id,
                attached=True, create_session=create_session, state_delta=state_delta,
            ))  # fmt: skip

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
        return await self._submit(Submission(
            user_id, session_id, new_message, run_config, run_id, create_session=create_session, state_delta=state_delta
        ))  # fmt: skip

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
            Submission(user_id, session_id, new_message, run_config, run_id, attached=True, slot_freed=slot_freed)
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
        return await self._submit(Submission(
            user_id, session_id, None, bidi, attached=True, create_session=create_session, requests=live_request_queue
        ))  # fmt: skip

    async def leave(self, run: Run) -> None:
        """Leaves an attached run: cancels it unless it has ended or waits for a person, and waits for its end.

        A detached run, such as one that went on with an answer, goes on, and is not waited for.
        """
        self.dispatcher.leave(run.record)
        if run.record.attached:
            await run.settled()

    async def _submit(self, submission: Submission) -> Run:
        record, live, start_pos = await self._submitter.submit(submission)
        if self._keeping is not None:
            self._keeping.start()
        return Run(self, record, live, start_pos=start_pos)

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
        record, live, start_pos = await self._submitter.answer(run_id, interrupt_id, value, user_id)
        return Run(self, record, live, start_pos=start_pos)

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
            Gone: `run.trimmed` if retention has removed the run's message and there is no new one.
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
        return await self._submit(Submission(
            record.user_id, record.session_id, repeated_message(record, new_message), config, new_run_id,
            attached=attached, repeated=record, as_stored=new_message is None,
        ))  # fmt: skip

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
        return await sessions.get_session(self.store, self._key(user_id, session_id), create=create)

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
        return await sessions.create_session(self.dispatcher, user_id, session_id, state, events)

    async def delete_session(self, user_id: str, session_id: str) -> Session:
        """Deletes a session with its events, runs, state and artifacts; a run under way is stopped.

        If the artifacts cannot be removed, it raises what their service says, and the session is gone: they are removed when a
        Runner of the app is entered again, or by `Runner.data.prune`, if the store supports retention. A session of more than
        100,000 events goes in parts: if that is cut off, call it again.

        Memories of it stay, but once this returns this Runner adds none any more: what it was adding is broken off.

        Raises:
            NotFound: `session.not_found`.
        """
        return await sessions.delete_session(self.dispatcher, self._key(user_id, session_id))

    async def add_session_to_memory(self, user_id: str, session_id: str) -> None:
        """Adds what was said in a session to the user's memory; adding it again replaces what was added before.

        Raises:
            NotFound: `session.not_found`.
            Unsupported: `memory.not_configured`.
        """
        if self._services.ingest is None:
            raise not_configured("memory")
        await self._services.ingest.add_session(self._key(user_id, session_id))

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

    def _key(self, user_id: str, session_id: str) -> SessionKey:
        return SessionKey(self.app_name, user_id, session_id).check()

    @property
    def data(self) -> DataCare:
        """The care of data: prune, report, export, erase, back up. It is for operators: nothing in it asks who calls.

        Raises:
            Unsupported: `data.unsupported` if the store does not support retention.
        """
        return keeping.data_of(self.dispatcher)

    # -- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.recover()
        self._entered = True
        self.hub.enter()
        if self._keeping is not None:
            self._keeping.start()
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
        if self.dispatcher.admission.closed:
            return CloseReport()
        self.dispatcher.admission.closed = True
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
