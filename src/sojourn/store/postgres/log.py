"""Writing the log of a session: events, and the index of the function calls in them."""

from __future__ import annotations

from collections.abc import Collection

from sojourn.postgres.tables import Tables
from sojourn.store.numbering import Numbered
from sojourn.store.postgres.text import indexed
from sojourn.store.rows import BY_ATTEMPT, links_of, message_of

_INSERT = """
    INSERT INTO {schema}.events (sid, seq, run_uid, pos, ordinal, path, attempt, supersedes, summary_until, body)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
_LINK = "SELECT {schema}.link($1, $2, $3::boolean[], $4::text[])"


async def write(db: Tables, sid: int, run_uid: int, event: Numbered) -> None:
    """Stores an event and keeps the index of calls."""
    (_, body, path, links, _, summary_until), seq, attempt, pos, ordinal, supersedes = event
    await db.run(_INSERT, sid, seq, run_uid, pos, ordinal, indexed(path), attempt, supersedes, summary_until, body)
    if links:
        await db.run(_LINK, sid, seq, [is_call for is_call, _ in links], [indexed(call_id) for _, call_id in links])


_SUPERSEDE = "UPDATE {schema}.events SET superseded = $3 WHERE sid = $1 AND seq = ANY ($2::bigint[]) RETURNING seq, body"
_UNLINK = "DELETE FROM {schema}.calls WHERE sid = $1 AND call_id = $2 AND is_call = $3 AND seq = $4"
_REOPEN = """
    UPDATE {schema}.calls SET open = seq > (
        SELECT coalesce(max(r.seq), 0) FROM {schema}.calls r WHERE r.sid = $1 AND r.call_id = $2 AND NOT r.is_call
    ) WHERE sid = $1 AND call_id = $2 AND is_call
"""


async def supersede(db: Tables, sid: int, seqs: Collection[int], by: int = BY_ATTEMPT) -> None:
    """Takes events out of what counts, and their calls and responses out of the index; `by` is `BY_ATTEMPT` or `BY_RUN`."""
    touched: set[str] = set()
    for seq, body in await db.all(_SUPERSEDE, sid, list(seqs), by):
        if '"functionCall"' in body or '"functionResponse"' in body:
            for is_call, call_id in links_of(message_of(body).content):
                touched.add(indexed(call_id))
                await db.run(_UNLINK, sid, indexed(call_id), is_call, seq)
    for call_id in sorted(touched):
        await db.run(_REOPEN, sid, call_id)
