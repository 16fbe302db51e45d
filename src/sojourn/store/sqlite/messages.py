"""The messages that opened recent runs: every append returns one, and none of them ever changes."""

from __future__ import annotations

import sqlite3

from sojourn.event import Event
from sojourn.store.sqlite.rows import message_of

MAX_MESSAGES = 4096


class Messages:
    """Keeps the newest messages in memory, for the one thread that writes."""

    def __init__(self) -> None:
        self._messages: dict[int, Event] = {}

    def put(self, run_uid: int, message: Event) -> None:
        """Keeps the message of a run."""
        self._messages[run_uid] = message
        if len(self._messages) > MAX_MESSAGES:
            del self._messages[next(iter(self._messages))]

    def get(self, conn: sqlite3.Connection, run_uid: int) -> Event:
        """The message of a run that has begun, from the database if it is not kept."""
        message = self._messages.get(run_uid)
        if message is None:
            (body,) = conn.execute(
                "SELECT m.body FROM runs r JOIN events m ON m.sid = r.sid AND m.seq = r.first_seq WHERE r.uid = ?", (run_uid,)
            ).fetchone()
            message = message_of(body)
            self.put(run_uid, message)
        return message.snapshot()
