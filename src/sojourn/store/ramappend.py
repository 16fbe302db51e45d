"""The append in RAM: what an attempt wrote, all or nothing."""

from __future__ import annotations

from typing import Any

from sojourn import platform
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Appended, Batch
from sojourn.session.state import StateDelta
from sojourn.store.planning import AppendPlan, Planner, add_counts, countable, plan_append, tokens_of, undoable
from sojourn.store.ramrecords import StoredRun, copy_interrupt, copy_step
from sojourn.store.ramstate import RamState
from sojourn.store.ramusage import RamLedger
from sojourn.store.rules import check_delta
from sojourn.store.staging import StagedState


def append(state: RamState, ledger: RamLedger, run: StoredRun, batch: Batch) -> Appended:
    """What `RunStore.append` does, for the attempt that may write."""
    session, record = run.session, run.record
    status = record.status if batch.move is None else move(record.status, batch.move, run_id=record.id)
    if batch.move is Move.WAIT and run.answered:
        status = RunStatus.QUEUED
    steps = [copy_step(s) for s in batch.steps]
    interrupts = [copy_interrupt(i) for i in batch.interrupts]
    change = _plan(state, run, batch, status)

    # All checks are done: from here on, things are written.
    if change.gone:
        run.supersede(change.gone)
    events = _write_events(run, change)
    if change.staged is not None:
        state.store(session, change.staged)
        if run.undo and not change.staged.rewritten:
            run.undo.extend(change.staged.undo)
        else:
            run.undo = change.staged.undo
    for step in steps:
        run.put_step(step)
    for interrupt in interrupts:
        run.ask(interrupt)
    _hand_over(run, batch)
    counts = tokens_of(change.events)
    _write_record(run, batch, change, status, counts)
    if spent := countable(counts):
        ledger.add(record.app_name, record.user_id, platform.now(), spent)
    since = batch.usage_since
    usage = None if since is None else ledger.read(record.app_name, record.user_id, since)
    return Appended(events, run.record.snapshot(), usage)


def _plan(state: RamState, run: StoredRun, batch: Batch, status: RunStatus) -> AppendPlan:
    record = run.record

    def stage() -> StagedState:
        return state.stage(run.session, (lambda: list(run.undo)) if undoable(record.attempt, status) else None)

    return plan_append(
        Planner(record.id, record.attempt, run),
        batch,
        [StateDelta.of(e.actions) if e.actions.changes_state else None for e in batch.events],
        check_delta(batch.state) if batch.state else None,
        event_count=len(run.session.events),
        base_seq=run.base_seq,
        stage=stage,
    )


def _write_events(run: StoredRun, change: AppendPlan) -> list[Event | None]:
    seq, pos = len(run.session.events), run.record.last_pos
    events: list[Event | None] = []
    for event, stored, supersedes, _, answers in change.events:
        ordinal = event.ordinal or 0
        if stored is None:
            seq += 1
            pos += 1
            numbered = event.evolve(seq=seq, pos=pos, ordinal=ordinal, supersedes=supersedes)
            run.log(numbered.snapshot())
            events.append(numbered)
            for answer in answers:
                seq += 1
                run.log(answer.evolve(seq=seq))
        else:
            # Of what is stored, the attempt's own comes with its numbers: its caller has not seen them.
            known = run.find(event.branch, ordinal)
            events.append(known.snapshot() if known is not None and known.attempt == run.record.attempt else None)
    return events


def _hand_over(run: StoredRun, batch: Batch) -> None:
    if batch.agent is None:
        return
    record = run.record
    base_ordinal = (batch.events[-1].ordinal or 0) + 1 if batch.events else record.base_ordinal
    # An append that is repeated because its reply was lost hands over once.
    if (batch.agent, base_ordinal) != (record.agent, record.base_ordinal):
        run.record = record.evolve(agent=batch.agent, base_ordinal=base_ordinal, transfers=record.transfers + 1)
        run.session.active_agent = batch.agent
        run.base_seq = len(run.session.events)
        run.undo = ()


def _write_record(run: StoredRun, batch: Batch, change: AppendPlan, status: RunStatus, counts: dict[str, int]) -> None:
    """Stores what becomes of the run and its session."""
    record, now = run.record, platform.now()
    last_pos = record.last_pos + sum(planned.stored is None for planned in change.events)
    usage = add_counts(record.usage, counts) if counts else record.usage
    changes: dict[str, Any] = {"status": status, "usage": usage, "last_pos": last_pos}
    if batch.move is Move.REQUEUE and batch.died:
        changes["deaths"] = record.deaths + 1
    if status.terminal:
        changes.update(last_pos=last_pos + 1, error=batch.error, finished_at=now)
    run.record = record.evolve(**changes)
    if status.terminal and batch.move is not None:
        run.finish(batch.move)
    run.session.updated_at = now
