"""Removing what runs consisted of, a few at a time: what `SupportsRetention` says of `trim_session` and `drop_session`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sojourn.postgres.tables import Tables
from sojourn.run.retention import Dropped, Trimmed
from sojourn.session.types import SessionKey
from sojourn.store.postgres import state
from sojourn.store.postgres.text import indexed
from sojourn.store.rows import MAX_INTEGER, links_of, message_body, message_of
from sojourn.store.rules import without_words
from sojourn.store.trimming import Candidate, choose

_SESSION = "SELECT sid, uid, event_count, updated_at FROM {schema}.sessions WHERE app_name = $1 AND user_id = $2 AND id = $3"
_LOCK = f"{_SESSION} FOR UPDATE"

# -- which ------------------------------------------------------------------------------------------------------------

# Of a session $1: what may go by its age ($2), or because all of it is not newer than an event ($3), or because it has no
# events and was submitted before a run ($4); but for the runs $5.
_MAY_GO = """
    SELECT r.uid, x.events FROM {schema}.runs r CROSS JOIN LATERAL (
        SELECT count(*) AS events, max(e.seq) AS newest FROM {schema}.events e WHERE e.run_uid = r.uid
    ) x
    WHERE r.sid = $1 AND r.finished_at IS NOT NULL AND NOT r.trimmed AND r.uid <> ALL ($5::bigint[]) AND (
        r.finished_at < $2
        OR CASE WHEN r.first_seq IS NULL THEN r.uid < $4 ELSE r.first_seq <= $3 AND x.newest <= $3 END
    )
"""
_OLDEST_FIRST = f"{_MAY_GO} AND r.uid > $6 ORDER BY r.uid LIMIT $7::bigint"
_SOME = f"{_MAY_GO} AND r.uid = ANY ($6::bigint[])"
_NEXT = "SELECT run_uid FROM {schema}.events WHERE sid = $1 AND seq > $2 ORDER BY seq LIMIT 1"
_PINNED = """
    (
        SELECT run_uid FROM {schema}.events
        WHERE sid = $1 AND summary_until IS NOT NULL AND superseded = 0 ORDER BY seq DESC LIMIT 1
    )
    UNION
    SELECT e.run_uid FROM {schema}.calls c JOIN {schema}.events e ON e.sid = c.sid AND e.seq = c.seq WHERE c.sid = $1 AND c.open
"""
_BODIES = """
    SELECT run_uid, seq, body FROM {schema}.events WHERE run_uid = ANY ($1::bigint[]) AND superseded = 0
        AND (strpos(body, '"functionCall"') > 0 OR strpos(body, '"functionResponse"') > 0)
"""
# The runs of the other halves, beside the run that asks.
_CALLERS = """
    SELECT DISTINCT x.run_uid, e.run_uid AS other
    FROM unnest($2::bigint[], $3::text[], $4::bigint[]) AS x (run_uid, call_id, seq)
    CROSS JOIN LATERAL (
        SELECT max(c.seq) AS seq FROM {schema}.calls c
        WHERE c.sid = $1 AND c.call_id = x.call_id AND c.is_call AND c.seq < x.seq
    ) c
    JOIN {schema}.events e ON e.sid = $1 AND e.seq = c.seq AND e.run_uid <> x.run_uid
"""
_ANSWERERS = """
    SELECT DISTINCT x.run_uid, e.run_uid AS other
    FROM unnest($2::bigint[], $3::text[], $4::bigint[]) AS x (run_uid, call_id, seq)
    CROSS JOIN LATERAL (
        SELECT min(c.seq) AS until FROM {schema}.calls c
        WHERE c.sid = $1 AND c.call_id = x.call_id AND c.is_call AND c.seq > x.seq
    ) n
    JOIN {schema}.calls r ON r.sid = $1 AND r.call_id = x.call_id AND NOT r.is_call AND r.seq > x.seq
        AND (n.until IS NULL OR r.seq <= n.until)
    JOIN {schema}.events e ON e.sid = $1 AND e.seq = r.seq AND e.run_uid <> x.run_uid
"""


class Link(NamedTuple):
    """A function call or a response, in an event of a run that counts."""

    run_uid: int
    is_call: bool
    call_id: str
    seq: int


class _Found:
    """Runs of a session that were read, for who chooses what is removed."""

    def __init__(self) -> None:
        self.oldest: list[Candidate] = []
        self.runs: dict[int, Candidate | None] = {}
        self.others: dict[int, set[int]] = {}
        self.links: list[Link] = []

    def candidates(self) -> Iterable[Candidate]:
        return self.oldest

    def candidate(self, run_uid: int) -> Candidate | None:
        return self.runs[run_uid]

    def partners(self, run_uid: int) -> Iterable[int]:
        return self.others[run_uid]


class _Reader:
    """Reads what may go of a session."""

    def __init__(self, db: Tables, sid: int, bounds: Sequence[float | int | list[int]]) -> None:
        self._db = db
        self._sid = sid
        self._bounds = bounds

    @classmethod
    async def of(cls, db: Tables, sid: int, event_count: int, keep_events: int | None, ended_before: float | None) -> _Reader:
        """A reader with these bounds."""
        floor, oldest_kept = -1, 0
        if keep_events is not None:
            floor = event_count - keep_events
            kept = await db.value(_NEXT, sid, max(floor, 0))
            oldest_kept = MAX_INTEGER if kept is None else kept
        pinned = [uid for (uid,) in await db.all(_PINNED, sid)]
        return cls(db, sid, (float("-inf") if ended_before is None else ended_before, floor, oldest_kept, pinned))

    async def oldest(self, after: int, limit: int) -> list[Candidate]:
        """The oldest runs that may go, after one."""
        return [Candidate(*row) for row in await self._db.all(_OLDEST_FIRST, self._sid, *self._bounds, after, limit)]

    async def complete(self, found: _Found) -> None:
        """Reads what belongs to the runs that were found, and what belongs to that."""
        new = [one.uid for one in found.oldest]
        found.runs.update((one.uid, one) for one in found.oldest)
        while new:
            links = await self._links(new)
            found.links += links
            for uid in new:
                found.others[uid] = set()
            for sql, is_call in ((_CALLERS, False), (_ANSWERERS, True)):
                asked = [link for link in links if link.is_call is is_call]
                columns = [one.run_uid for one in asked], [one.call_id for one in asked], [one.seq for one in asked]
                for uid, other in await self._db.all(sql, self._sid, *columns) if asked else ():
                    found.others[uid].add(other)
            unknown = list({other for uid in new for other in found.others[uid]} - found.runs.keys())
            found.runs.update(dict.fromkeys(unknown))
            new = []
            if unknown:
                some = [Candidate(*row) for row in await self._db.all(_SOME, self._sid, *self._bounds, unknown)]
                found.runs.update((one.uid, one) for one in some)
                new = [one.uid for one in some]

    async def _links(self, uids: Collection[int]) -> list[Link]:
        return await _links(self._db, uids)


async def _links(db: Tables, uids: Collection[int]) -> list[Link]:
    return [
        Link(run_uid, is_call, indexed(call_id), seq)
        for run_uid, seq, body in await db.all(_BODIES, list(uids))
        for is_call, call_id in links_of(message_of(body).content)
    ]


# -- trimming ---------------------------------------------------------------------------------------------------------

_REMEMBER = """
    UPDATE {schema}.sessions SET trimmed_seq = greatest(
        trimmed_seq, (SELECT coalesce(max(seq), 0) FROM {schema}.events WHERE run_uid = ANY ($2::bigint[]))
    ) WHERE sid = $1
"""
_UNLINK = "DELETE FROM {schema}.calls WHERE sid = $1 AND call_id = $2 AND is_call = $3 AND seq = $4"
_OF_RUNS = tuple(
    f"DELETE FROM {{schema}}.{table} WHERE run_uid = ANY ($1::bigint[])" for table in ("undo", "steps", "interrupts", "events")
)
_MESSAGES = """
    SELECT r.uid, coalesce(r.message, m.body) FROM {schema}.runs r
    LEFT JOIN {schema}.events m ON m.sid = r.sid AND m.seq = r.first_seq WHERE r.uid = ANY ($1::bigint[])
"""
_EMPTY = """
    UPDATE {schema}.runs SET message = $2, custom_metadata = NULL, trimmed = true, has_asked = false, has_undo = false
    WHERE uid = $1
"""


async def may_trim(db: Tables, key: SessionKey, keep_events: int | None, ended_before: float | None) -> bool:
    """Whether `trim` with these bounds may remove anything."""
    row = await db.one(_SESSION, *key)
    if row is None:
        return False
    return bool(await (await _Reader.of(db, row["sid"], row["event_count"], keep_events, ended_before)).oldest(0, 1))


async def trim(db: Tables, key: SessionKey, keep_events: int | None, ended_before: float | None, limit: int) -> Trimmed:
    """What `trim_session` does."""
    row = await db.one(_LOCK, *key)
    if row is None:
        return Trimmed(0, 0, False)
    sid = row["sid"]
    reader = await _Reader.of(db, sid, row["event_count"], keep_events, ended_before)
    chosen, more, found = await _chosen(reader, limit)
    if not chosen:
        return Trimmed(0, 0, False)
    uids = [one.uid for one in chosen]
    bodies = [(uid, message_body(without_words(message_of(body)))) for uid, body in await db.all(_MESSAGES, uids)]
    gone = set(uids)
    await _remove_events(db, sid, uids, [link for link in found.links if link.run_uid in gone])
    await db.run_all(_EMPTY, bodies)
    return Trimmed(len(uids), sum(one.events for one in chosen), more)


async def _chosen(reader: _Reader, limit: int) -> tuple[list[Candidate], bool, _Found]:
    """What to remove, with all that was read for it; whether there is more."""
    chosen: list[Candidate] = []
    all_found = _Found()
    after, page = 0, limit + 1
    while True:
        found = _Found()
        oldest = await reader.oldest(after, page)
        gone = {one.uid for one in chosen}
        found.oldest = [one for one in oldest if one.uid not in gone]
        await reader.complete(found)
        if chosen:
            # The limit was not reached by what was read, and is no reason to end: only whether others may go is asked.
            more = bool(choose(found, 1)[0])
        else:
            chosen, more = choose(found, limit)
            all_found = found
        if more or len(oldest) < page:
            return chosen, more, all_found
        # None of the rest of these may go without others that have to stay.
        after = oldest[-1].uid


async def _remove_events(db: Tables, sid: int, uids: Sequence[int], links: Iterable[Link]) -> None:
    """Removes what runs consisted of, and remembers it."""
    await db.run(_REMEMBER, sid, uids)
    unlinked = [(sid, link.call_id, link.is_call, link.seq) for link in links]
    if unlinked:
        await db.run_all(_UNLINK, unlinked)
    for statement in _OF_RUNS:
        await db.run(statement, uids)


# -- dropping ---------------------------------------------------------------------------------------------------------

_OF_SESSION = """
    SELECT r.uid, (SELECT count(*) FROM {schema}.events e WHERE e.run_uid = r.uid), r.finished_at IS NULL
    FROM {schema}.runs r WHERE r.app_name = $1 AND r.user_id = $2 AND r.sid = $3
    ORDER BY r.finished_at IS NOT NULL, r.uid LIMIT $4::bigint
"""
_UNFINISHED = "SELECT count(*) FROM {schema}.runs WHERE app_name = $1 AND sid = $2 AND finished_at IS NULL"
_DELETE_RUNS = "DELETE FROM {schema}.runs WHERE uid = ANY ($1::bigint[])"
_REST = tuple(f"DELETE FROM {{schema}}.{table} WHERE sid = $1" for table in ("calls", "events", "sessions"))
_NOTE = "INSERT INTO {schema}.dropped_sessions (uid, app_name, user_id, id) VALUES ($1, $2, $3, $4)"


async def drop(db: Tables, key: SessionKey, idle_since: float | None, limit: int) -> tuple[Dropped, list[int]]:
    """What `drop_session` does; also gives the runs that are removed."""
    row = await db.one(_LOCK, *key)
    if row is None:
        return Dropped("gone"), []
    sid = row["sid"]
    unfinished = await db.value(_UNFINISHED, key.app_name, sid)
    if idle_since is not None and (unfinished or row["updated_at"] >= idle_since):
        return Dropped("kept"), []
    rows = await db.all(_OF_SESSION, key.app_name, key.user_id, sid, unfinished + limit + 1)
    uids: list[int] = []
    events, size, more = 0, 0, False
    for uid, count, is_unfinished in rows:
        if uids and not is_unfinished and size >= limit:
            more = True
            break
        uids.append(uid)
        events += count
        size += 0 if is_unfinished else max(count, 1)
    await _remove_events(db, sid, uids, await _links(db, uids) if uids else [])
    await db.run(_DELETE_RUNS, uids)
    if more:
        return Dropped("more", len(uids), events, unfinished), uids
    await db.run("DELETE FROM {schema}.state WHERE owner = $1", state.owner_text((), sid))
    for statement in _REST:
        await db.run(statement, sid)
    await db.run(_NOTE, row["uid"], *key)
    return Dropped("gone", len(uids), events, unfinished), uids
