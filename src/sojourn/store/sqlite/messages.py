"""The messages that opened the runs under way: every append returns one, and none of them ever changes."""

from __future__ import annotations

import sqlite3

from sojourn.event import Event
from sojourn.store.rows import message_of

MAX_MESSAGES = 4096
"""Messages kept at once."""

MAX_CHARACTERS = 16_384
"""Of a longer message, reading it again costs less than the memory it takes."""


class Messages:
    """Keeps the short messages of runs that have not ended in memory, for the one thread that writes."""

    def __init__(self) -> None:
        self._messages: dict[int, Event] = {}

    def put(self, run_uid: int, message: Event) -> None:
        """Keeps the message of a run."""
        # Of one whose transaction was rolled back, there may be a message yet: its key is used again.
        self._messages.pop(run_uid, None)
        if sum(len(part.text or "") for part in (message.content.parts if message.content else ())) > MAX_CHARACTERS:
            return
        self._messages[run_uid] = message
        if len(self._messages) > MAX_MESSAGES:
            del self._messages[next(iter(self._messages))]

    def get(self, conn: sqlite3.Connection, run_uid: int) -> Event:
        """The message of a run, from the database if it is not kept. It is not to be changed."""
        message = self._messages.get(run_uid)
        if message is None:
            (body,) = conn.execute(_MESSAGE, (run_uid,)).fetchone()
            message = message_of(body)
            self.put(run_uid, message)
        return message

    def forget(self, run_uid: int) -> None:
        """Drops the message of a run that has ended, or waits, or is not executed by who asked."""
        self._messages.pop(run_uid, None)


_MESSAGE = """
    SELECT coalesce(r.message, m.body) FROM runs r LEFT JOIN events m ON m.sid = r.sid AND m.seq = r.first_seq WHERE r.uid = ?
"""
