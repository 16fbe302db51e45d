"""Log lines that say which request, run, session and user they are about, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from sojourn.agents.current import find_current_run
from sojourn.runner.observe import request_id

LogFormat = Literal["text", "json"]

_about: ContextVar[dict[str, Any] | None] = ContextVar("sojourn_log_about", default=None)

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every log record has; anything else was given with `extra`."""

_IDS = ("request_id", "app_name", "user_id", "session_id", "run_id", "attempt")


@contextmanager
def about_request(fields: dict[str, Any]) -> Iterator[None]:
    """Has the log lines of the block tell what is in `fields`, or comes into it later; see `note`."""
    token = _about.set(fields)
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: Any) -> None:
    """Adds to what the further log lines of this request tell: ids, never secrets."""
    about = _about.get()
    if about is not None:
        about.update(fields)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a log line is about: ids first, then what was given with `extra`."""
    found: dict[str, Any] = {}
    if (id_ := request_id.get()) is not None:
        found["request_id"] = id_
    run = find_current_run()
    if run is not None:
        app, user, session = run.session
        found.update(app_name=app, user_id=user, session_id=session, run_id=run.run_id, attempt=run.attempt)
    found.update(_about.get() or {})
    found.update((name, value) for name, value in vars(record).items() if name not in _OWN)
    return {name: found[name] for name in _IDS if name in found} | found


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, the ids, `extra`, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """A log line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _printable(json.dumps(line, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """A line for people, with the same fields behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """A log line, without the traceback that may follow it."""
        fields = " ".join(
            f"{name}={_word(str(value))}" for name, value in fields_of(record).items() if name not in ("method", "path")
        )
        return _printable(f"{super().formatMessage(record)}  {fields}".rstrip())


# Line ends, what terminals obey, and halves of characters, which cannot be written.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _printable(text: str) -> str:
    """Text on one line: people choose what is in ids and addresses, and are not to write log lines with them."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _word(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


@contextmanager
def logging_to(stream: TextIO | None = None, *, format: LogFormat = "text", level: int = logging.INFO) -> Iterator[None]:
    """Writes the log of the process to a stream while the block runs, in place of what is set up for it.

    Args:
        stream: Where; stderr if omitted.
        format: `text` for people, `json` for programs.
        level: What is written at least.
    """
    root, handler = logging.getLogger(), logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    before = root.handlers[:], root.level
    # Libraries tell of themselves at INFO what nobody asked for.
    quiet = {name: logging.getLogger(name).level for name in ("httpx", "httpcore", "uvicorn")}
    for name in quiet:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    root.handlers[:] = [handler]
    root.setLevel(level)
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        for name, was in quiet.items():
            logging.getLogger(name).setLevel(was)
