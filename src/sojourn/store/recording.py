"""A run as it is recorded."""

from __future__ import annotations

from typing import NamedTuple

from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord
from sojourn.store.prepared import Submission
from sojourn.store.rows import MAX_INTEGER, Row, load

NEW_RUN = (
    "sid, id, app_name, user_id, no, status, attempt, agent, start_agent, first_seq, message, config, attached, last_pos, "
    "retry_of, custom_metadata, created_at, started_at"
)
"""The columns that `row_of_new` gives."""


class Place(NamedTuple):
    """Where a run is recorded: the row of its session, with the numbers that the run gets in it."""

    sid: int
    uid: str
    active_agent: str | None
    created_at: float
    event_count: int
    run_no: int
    trimmed_seq: int


class Repeat(NamedTuple):
    """A run that takes the place of another.

    Attributes:
        id: Its id.
        retry_of: The id of the run it repeats.
        uid: The store's own key; beyond all others of its session if it is still to be recorded.
    """

    id: str
    retry_of: str
    uid: int = MAX_INTEGER


def row_of_new(new: Submission, place: Place, begin: bool, now: float) -> Row:
    """The columns `NEW_RUN` of a run."""
    run, (app_name, user_id, _) = new.run, new.run.key
    status, attempt, agent, first_seq, message, last_pos, started_at = (
        ("running", 1, place.active_agent, place.event_count, None, 1, now)
        if begin
        else ("queued", 0, None, None, new.entry.body, 0, None)
    )
    return (
        place.sid, run.id, app_name, user_id, place.run_no, status, attempt, agent, agent, first_seq, message, new.config,
        run.attached, last_pos, run.retry_of, new.custom_metadata, now, started_at,
    )  # fmt: skip


def record_of_new(new: Submission, place: Place, uid: int, begin: bool, now: float) -> RunRecord:
    """The record of a run; `uid` is the store's own key."""
    run, key = new.run, new.run.key
    return RunRecord(
        uid=uid,
        id=run.id,
        app_name=key.app_name,
        user_id=key.user_id,
        session_id=key.session_id,
        session_uid=place.uid,
        no=place.run_no,
        status=RunStatus.RUNNING if begin else RunStatus.QUEUED,
        message=new.message.snapshot(),
        attempt=int(begin),
        agent=place.active_agent if begin else None,
        config=load(new.config),
        attached=run.attached,
        last_pos=int(begin),
        retry_of=run.retry_of,
        start_agent=place.active_agent if begin else None,
        message_seq=place.event_count if begin else None,
        custom_metadata=None if new.custom_metadata is None else load(new.custom_metadata),
        created_at=now,
        started_at=now if begin else None,
    )
