"""What is done to runs, as operations on a connection; `append` has a module of its own."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from sojourn import jsonvalue, platform
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Begun, NewRun, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.session.types import Page, SessionKey
from sojourn.store.rules import (
    cancelled,
    closed_by,
    found_state,
    interrupt_not_found,
    open_for,
    page_token,
    run_ambiguous,
    run_not_finished,
    run_not_found,
    same_input,
    session_busy,
    session_not_found,
)
from sojourn.store.sqlite import log, sessions, state
from sojourn.store.sqlite.log import Entry, message_entry_of
from sojourn.store.sqlite.rows import (
    INTERRUPT,
    RUN,
    RUNS,
    STEP,
    Row,
    dump,
    dump_error,
    dump_words,
    interrupt_of,
    load,
    record_of,
    session_of,
    step_of,
)

_BY_UID = f"SELECT {RUN} FROM {RUNS} WHERE r.uid = ?"
_BY_ID = f"SELECT {RUN} FROM {RUNS} WHERE r.app_name = ? AND r.id = ? AND r.user_id = ?"


def get(conn: sqlite3.Connection, run_uid: int) -> RunRecord:
    """A run by the store's key."""
    row = conn.execute(_BY_UID, (run_uid,)).fetchone()
    if row is None:
        raise run_not_found(str(run_uid))
    return record_of(row)


# -- submit -----------------------------------------------------------------------------------------------------------


class Submission(NamedTuple):
    """A run ready to be recorded: encoded and checked."""

    run: NewRun
    message: Event
    entry: Entry
    config: str
    custom_metadata: str | None


def submission_of(run: NewRun) -> Submission:
    """Encodes and checks a run.

    Raises:
        InvalidInput: `id.invalid`, `json.invalid`, `state.*`.
    """
    run.key.check()
    check_id(run.id, "run_id")
    message = run.message.snapshot()
    return Submission(
        run,
        message,
        message_entry_of(message),
        jsonvalue.encode(run.config, where="config") if run.config else "{}",
        None if run.custom_metadata is None else jsonvalue.encode(run.custom_metadata, where="custom_metadata"),
    )


# One row, whether or not the session or the run exist.
_SUBMIT = """
    SELECT s.sid, s.uid, s.event_count, s.run_no, s.active_agent, s.created_at, r.uid
    FROM (SELECT 1)
    LEFT JOIN sessions s ON s.app_name = ? AND s.user_id = ? AND s.id = ?
    LEFT JOIN runs r ON r.app_name = ? AND r.id = ? AND r.user_id = ?
"""
_BUSY = """
    SELECT id FROM runs INDEXED BY runs_unfinished
    WHERE app_name = ? AND sid = ? AND finished_at IS NULL AND status IN ('queued', 'running') LIMIT 1
"""
_INSERT = """
    INSERT INTO runs (
        sid, id, app_name, user_id, no, status, attempt, agent, first_seq, message, config, attached, last_pos, retry_of,
        custom_metadata, created_at, started_at
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def submit(conn: sqlite3.Connection, new: Submission, begin: bool) -> Submitted:
    """What `RunStore.submit` does."""
    run = new.run
    key = run.key
    app_name, user_id, _ = key
    sid, session_uid, event_count, run_no, active_agent, created_at, known = conn.execute(
        _SUBMIT, (*key, app_name, run.id, user_id)
    ).fetchone()
    if known is not None:
        record = get(conn, known)
        same_input(record, run)
        return Submitted(record, None, True)
    if sid is None and not run.create_session:
        raise session_not_found(key)
    repeated = _repeatable(conn, run, sid)
    if run.reject_if_busy and sid is not None:
        busy = conn.execute(_BUSY, (app_name, sid)).fetchone()
        if busy is not None:
            raise session_busy(key, busy[0])
    staged = state.stage_delta(conn, sid or 0, key, new.entry.delta) if begin and new.entry.delta else None

    now = platform.now()
    if sid is None:
        row = sessions.insert(conn, key, event_count=int(begin), run_no=1)
        sid, session_uid = row[0], row[1]
        run_no = event_count = 1
        created_at = now
    else:
        run_no += 1
        event_count += 1
        if begin:
            conn.execute(
                "UPDATE sessions SET run_no = ?, event_count = ?, updated_at = ? WHERE sid = ?", (run_no, event_count, now, sid)
            )
        else:
            conn.execute("UPDATE sessions SET run_no = ? WHERE sid = ?", (run_no, sid))
    if repeated is not None:
        log.supersede(conn, sid, _counting(conn, repeated))
    if staged is not None:
        state.store(conn, state.encode(staged, sid))
    status, attempt, agent, first_seq, message, last_pos, started_at = (
        (RunStatus.RUNNING, 1, active_agent, event_count, None, 1, now)
        if begin
        else (RunStatus.QUEUED, 0, None, None, new.entry.body, 0, None)
    )
    uid = conn.execute(
        _INSERT,
        (
            sid, run.id, app_name, user_id, run_no, status.value, attempt, agent, first_seq, message, new.config,
            int(run.attached), last_pos, run.retry_of, new.custom_metadata, now, started_at,
        ),
    ).lastrowid  # fmt: skip
    assert uid is not None
    record = RunRecord(
        uid=uid,
        id=run.id,
        app_name=app_name,
        user_id=user_id,
        session_id=key.session_id,
        session_uid=session_uid,
        no=run_no,
        status=status,
        message=new.message.snapshot(),
        attempt=attempt,
        agent=agent,
        config=load(new.config),
        attached=run.attached,
        last_pos=last_pos,
        retry_of=run.retry_of,
        custom_metadata=None if new.custom_metadata is None else load(new.custom_metadata),
        created_at=now,
        started_at=started_at,
    )
    if not begin:
        return Submitted(record, None, False)
    log.write(conn, sid, event_count, uid, new.entry, pos=None, ordinal=0, attempt=1)
    session = session_of(
        (sid, session_uid, *key, active_agent, event_count, created_at, now), state.read(conn, sid, app_name, user_id)
    )
    return Submitted(record, Begun(record, session, [], []), False)


def _repeatable(conn: sqlite3.Connection, run: NewRun, sid: int | None) -> int | None:
    """The finished run of this session that `run` repeats."""
    if run.retry_of is None:
        return None
    row = conn.execute(
        "SELECT uid, sid, finished_at FROM runs WHERE app_name = ? AND id = ? AND user_id = ?",
        (run.key.app_name, run.retry_of, run.key.user_id),
    ).fetchone()
    if row is None or row[1] != sid:
        raise run_not_found(run.retry_of)
    uid: int = row[0]
    if row[2] is None:
        raise run_not_finished(get(conn, uid))
    return uid


def _counting(conn: sqlite3.Connection, run_uid: int) -> list[int]:
    rows = conn.execute(
        "SELECT seq FROM events INDEXED BY events_by_run WHERE run_uid = ? AND superseded = 0", (run_uid,)
    ).fetchall()
    return [seq for (seq,) in rows]


# -- begin ------------------------------------------------------------------------------------------------------------


def begin(conn: sqlite3.Connection, run_uid: int) -> Begun:
    """What `RunStore.begin` does."""
    record = get(conn, run_uid)
    if record.status is RunStatus.QUEUED and record.cancel_requested is not None:
        record = close(conn, record, Move.CANCEL, cancelled(record))
    elif record.status in _BUSY_STATUS:
        move(record.status, Move.BEGIN, run_id=record.id)
        return _begin_first(conn, record) if record.attempt == 0 else _begin_again(conn, record)
    return Begun(record, sessions.get(conn, record.key, 0), [], [])


def _begin_first(conn: sqlite3.Connection, record: RunRecord) -> Begun:
    uid, key, now = record.uid, record.key, platform.now()
    sid, count, active_agent = conn.execute(
        "SELECT s.sid, s.event_count, s.active_agent FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?", (uid,)
    ).fetchone()
    entry = message_entry_of(record.message)
    writes = state.encode(state.stage_delta(conn, sid, key, entry.delta), sid)

    state.store(conn, writes)
    log.write(conn, sid, count + 1, uid, entry, pos=None, ordinal=0, attempt=1)
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (count + 1, now, sid))
    conn.execute(
        "UPDATE runs SET status = 'running', attempt = 1, agent = ?, first_seq = ?, message = NULL, last_pos = 1, "
        "started_at = ? WHERE uid = ?",
        (active_agent, count + 1, now, uid),
    )
    return Begun(get(conn, uid), sessions.get(conn, key, 0), [], [])


def _begin_again(conn: sqlite3.Connection, record: RunRecord) -> Begun:
    uid, key = record.uid, record.key
    conn.execute("UPDATE runs SET status = 'running', attempt = attempt + 1, answered = 0 WHERE uid = ?", (uid,))
    record = get(conn, uid)
    session = sessions.get(conn, key, 0)
    undo = state.read_undo(conn, uid, key)
    if undo:
        session = session.model_copy(update={"state": found_state(session.state, undo)})
    rows = conn.execute(f"SELECT {INTERRUPT} FROM interrupts i WHERE i.run_uid = ? ORDER BY i.n", (uid,)).fetchall()
    return Begun(record, session, steps(conn, uid), [interrupt_of(row, record.id, key) for row in rows])


# -- closing ----------------------------------------------------------------------------------------------------------


def close(conn: sqlite3.Connection, record: RunRecord, by: Move, error: RunError, *, attempt: int | None = None) -> RunRecord:
    """Makes a terminal move that no attempt makes."""
    status = closed_by(record, by)
    conn.execute(
        "UPDATE runs SET status = ?, attempt = ?, error = ?, last_pos = last_pos + 1, finished_at = ? WHERE uid = ?",
        (status.value, record.attempt if attempt is None else attempt, dump_error(error), platform.now(), record.uid),
    )
    state.drop_undo(conn, record.uid)
    drop_interrupts(conn, record.uid, by)
    return get(conn, record.uid)


def drop_interrupts(conn: sqlite3.Connection, run_uid: int, by: Move) -> None:
    """Closes the questions of a run that has ended, as `rules.dropped` says."""
    if by is Move.EXPIRE:
        conn.execute(
            "UPDATE interrupts SET status = 'expired' WHERE run_uid = ? AND status = 'open' AND expires_at <= ?",
            (run_uid, platform.now()),
        )
    conn.execute("UPDATE interrupts SET status = 'dropped' WHERE run_uid = ? AND status = 'open'", (run_uid,))


def take_over(conn: sqlite3.Connection, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.take_over` does."""
    record = get(conn, run_uid)
    return close(conn, record, by, error, attempt=record.attempt + 1) if record.status is RunStatus.RUNNING else record


def request_cancel(conn: sqlite3.Connection, run_uid: int, reason: str) -> RunRecord:
    """What `RunStore.request_cancel` does."""
    record = get(conn, run_uid)
    if not record.status.terminal and record.cancel_requested is None:
        conn.execute("UPDATE runs SET cancel_requested = ? WHERE uid = ?", (dump_words(reason), run_uid))
        record = get(conn, run_uid)
    return close(conn, record, Move.CANCEL, cancelled(record)) if record.status in _PENDING else record


def close_run(conn: sqlite3.Connection, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.close_run` does."""
    record = get(conn, run_uid)
    return close(conn, record, by, error) if record.status in _PENDING else record


def requeue_lost(conn: sqlite3.Connection, run_uid: int) -> RunRecord:
    """What `RunStore.requeue_lost` does."""
    record = get(conn, run_uid)
    if record.status is not RunStatus.RUNNING:
        return record
    status = move(record.status, Move.REQUEUE, run_id=record.id)
    conn.execute("UPDATE runs SET status = ?, deaths = deaths + 1 WHERE uid = ?", (status.value, run_uid))
    return get(conn, run_uid)


_BUSY_STATUS = (RunStatus.QUEUED, RunStatus.RUNNING)
_PENDING = (RunStatus.QUEUED, RunStatus.WAITING)


# -- answers ----------------------------------------------------------------------------------------------------------


def answer(conn: sqlite3.Connection, run_uid: int, interrupt_id: str, value: Any, entry: Entry) -> Answered:
    """What `RunStore.answer` does."""
    record = get(conn, run_uid)
    row = conn.execute(
        f"SELECT {INTERRUPT} FROM interrupts i WHERE i.run_uid = ? AND i.id = ?", (run_uid, interrupt_id)
    ).fetchone()
    if row is None:
        raise interrupt_not_found(record.id, interrupt_id)
    if not open_for(interrupt_of(row, record.id, record.key), value):
        return Answered(record, False)
    status = record.status
    if status is RunStatus.WAITING:
        status = move(status, Move.ANSWER, run_id=record.id)
    now = platform.now()
    sid, count = conn.execute(
        "SELECT s.sid, s.event_count FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?", (run_uid,)
    ).fetchone()
    log.write(conn, sid, count + 1, run_uid, entry, pos=None, ordinal=None, attempt=record.attempt)
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (count + 1, now, sid))
    conn.execute(
        "UPDATE interrupts SET status = 'answered', answer = ?, answered_at = ? WHERE run_uid = ? AND id = ?",
        (dump(value), now, run_uid, interrupt_id),
    )
    conn.execute("UPDATE runs SET status = ?, deaths = 0, attached = 0, answered = 1 WHERE uid = ?", (status.value, run_uid))
    return Answered(get(conn, run_uid), True)


# -- reads ------------------------------------------------------------------------------------------------------------


def get_by_id(conn: sqlite3.Connection, app_name: str, run_id: str, user_id: str | None) -> RunRecord:
    """What `RunStore.get_run` gives."""
    if user_id is not None:
        rows = conn.execute(_BY_ID, (app_name, run_id, user_id)).fetchall()
    else:
        rows = conn.execute(
            f"SELECT {RUN} FROM {RUNS} WHERE r.app_name = ? AND r.id = ? LIMIT 2", (app_name, run_id)
        ).fetchall()
    if not rows:
        raise run_not_found(run_id)
    if len(rows) > 1:
        raise run_ambiguous(run_id)
    return record_of(rows[0])


def list_page(conn: sqlite3.Connection, query: RunQuery, limit: int, after: str | None) -> Page[RunRecord]:
    """What `RunStore.list_runs` gives."""
    found, params = _listing(query)
    marks = ", ".join("?" for _ in query.status)
    status = f" AND status IN ({marks})" if query.status else ""
    inner = f"{found} AND uid < ?{status} ORDER BY uid DESC LIMIT ?"
    rows = conn.execute(
        f"SELECT {RUN} FROM {RUNS} WHERE r.uid IN ({inner}) ORDER BY r.uid DESC",
        (*params, sessions.key_after(after), *(s.value for s in query.status), limit + 1),
    ).fetchall()
    records = [record_of(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(records, page_token(records[-1].created_at, str(records[-1].uid)) if more else None)


def _listing(query: RunQuery) -> tuple[str, Row]:
    """The keys of the runs that a query asks for, whatever their status, by the index that finds them."""
    if query.status and not any(s.terminal for s in query.status):
        where = ["finished_at IS NULL", "app_name = ?"]
        index = "runs_unfinished"
    else:
        where = ["app_name = ?"]
        index = "runs_by_app" if query.user_id is None and query.session_id is None else "runs_by_session"
    params: list[Any] = [query.app_name]
    if query.user_id is not None:
        where.append("user_id = ?")
        params.append(query.user_id)
    if query.session_id is not None:
        where.append("sid IN (SELECT sid FROM sessions WHERE app_name = ? AND id = ?)")
        params += [query.app_name, query.session_id]
    return f"SELECT uid FROM runs INDEXED BY {index} WHERE {' AND '.join(where)}", tuple(params)


def unfinished(conn: sqlite3.Connection, app_name: str) -> list[RunRecord]:
    """What `RunStore.unfinished` gives."""
    rows = conn.execute(
        f"SELECT {RUN} FROM {RUNS} WHERE r.uid IN "
        "(SELECT uid FROM runs INDEXED BY runs_unfinished WHERE app_name = ? AND finished_at IS NULL)",
        (app_name,),
    ).fetchall()
    return sorted((record_of(row) for row in rows), key=lambda r: (r.key, r.no))


def steps(conn: sqlite3.Connection, run_uid: int) -> list[Step]:
    """The journal of a run."""
    rows = conn.execute(f"SELECT {STEP} FROM steps WHERE run_uid = ? ORDER BY id", (run_uid,)).fetchall()
    return [step_of(row) for row in rows]


def list_steps(conn: sqlite3.Connection, run_uid: int) -> list[Step]:
    """What `RunStore.list_steps` gives."""
    if conn.execute("SELECT 1 FROM runs WHERE uid = ?", (run_uid,)).fetchone() is None:
        raise run_not_found(str(run_uid))
    return steps(conn, run_uid)


def list_interrupts(
    conn: sqlite3.Connection,
    app_name: str,
    user_id: str | None,
    session_id: str | None,
    run_uid: int | None,
    open_only: bool,
) -> list[Interrupt]:
    """What `RunStore.list_interrupts` gives."""
    where = ["r.app_name = ?"]
    params: list[Any] = [app_name]
    for column, value in (("r.user_id", user_id), ("s.id", session_id), ("i.run_uid", run_uid)):
        if value is not None:
            where.append(f"{column} = ?")
            params.append(value)
    if open_only:
        where.append("i.status = 'open'")
    rows = conn.execute(
        f"SELECT r.id, s.app_name, s.user_id, s.id, {INTERRUPT} FROM interrupts i JOIN runs r ON r.uid = i.run_uid "
        f"JOIN sessions s ON s.sid = r.sid WHERE {' AND '.join(where)} ORDER BY i.created_at, i.run_uid, i.n",
        params,
    ).fetchall()
    return [interrupt_of(row[4:], row[0], SessionKey(*row[1:4])) for row in rows]
