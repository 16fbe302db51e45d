"""Removes from a bucket what nobody can reach any more."""

from __future__ import annotations

from collections.abc import Iterable

from sojourn import platform
from sojourn.artifact.s3.bucket import Bucket, Entry, together
from sojourn.artifact.s3.keys import Place
from sojourn.artifact.s3.log import Log, is_mark, new_mark
from sojourn.artifact.s3.version import StoredVersion
from sojourn.errors import Unavailable

ORPHAN_SECONDS = 3600.0
"""Bytes that no entry names after this time belong to a save that will not finish."""


async def clean(bucket: Bucket, place: Place, older_than: float, *, marks: bool = False) -> int:
    """Removes what is hidden or orphaned at a place; returns how many objects that were.

    Hidden versions that are young become marks.

    Args:
        bucket: Where.
        place: Where in it.
        older_than: Orphaned bytes, and entries, go only if they are older, in seconds.
        marks: Whether the marks of deleted artifacts go, too.
    """
    before = platform.now() - older_than
    # Bytes are listed first: those of a save that finishes meanwhile are named by an entry in the other listing.
    data = _by_artifact(place, await bucket.entries(place.data))
    entries = _by_artifact(place, await bucket.entries(place.versions))
    removed = 0
    for artifact in data.keys() | entries.keys():
        log = Log.of(entries.get(artifact, []))
        gone = await _named(bucket, artifact, log.hidden)
        left = [entry for entry in data.get(artifact, []) if entry.key not in gone]
        gone += await _orphans(bucket, artifact, log, left, before)
        # The bytes go first: until then, the entries tell which they are. Then what a mark hides, and at last the mark.
        old = [entry.key for entry in log.hidden if entry.modified < before]
        mark = [artifact.at(log.end - 1)] if marks and log.marked_at is not None and log.marked_at < before else []
        for keys in (gone, old, mark):
            await bucket.delete(keys)
            removed += len(keys)
        young = [entry for entry in log.hidden if entry.modified >= before and not is_mark(entry.size)]
        await together(lambda entry: bucket.replace(entry.key, new_mark()), young)
    return removed


async def _named(bucket: Bucket, artifact: Place, entries: Iterable[Entry]) -> list[str]:
    """The keys of the bytes that entries name, of those that can be read."""
    bodies = await bucket.get_all(entry.key for entry in entries if not is_mark(entry.size))
    return [key for body in bodies if (key := _data_key(artifact, body)) is not None]


async def _orphans(bucket: Bucket, artifact: Place, log: Log, data: list[Entry], before: float) -> list[str]:
    """The keys of old bytes that no entry names."""
    old = {entry.key for entry in data if entry.modified < before}
    # Each version names one object: if there are no more than versions, none is an orphan.
    if not old or len(data) <= log.versions:
        return []
    bodies = await bucket.get_all(artifact.at(position) for position in range(log.first, log.end))
    named = {None if body is None else _data_key(artifact, body) for body in bodies}
    # Who knows what an entry names that cannot be read, or has just been deleted.
    return [] if None in named else sorted(key for key in old if key not in named)


def _data_key(artifact: Place, body: bytes | None) -> str | None:
    """The key of the bytes that an entry names; None for a mark, and for what cannot be read."""
    if body is None or is_mark(len(body)):
        return None
    try:
        return StoredVersion.read(body, 0, "/".join(artifact.below)).key(artifact)
    except Unavailable:
        return None


def _by_artifact(place: Place, entries: list[Entry]) -> dict[Place, list[Entry]]:
    found: dict[Place, list[Entry]] = {}
    for entry in entries:
        artifact = place.of(entry.key)
        if artifact is not None:
            found.setdefault(artifact, []).append(entry)
    return found
