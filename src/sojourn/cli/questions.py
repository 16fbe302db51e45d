"""Questions of runs to people: how they are shown, read and answered at a console."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sojourn import jsonvalue
from sojourn.cli.options import is_default, shown
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.screen import Screen
from sojourn.errors import InvalidInput
from sojourn.run.types import Interrupt
from sojourn.runner.submitting.answering import check_answer

_KINDS = {"boolean": "yes or no", "string": "text", "integer": "a whole number", "number": "a number"}
_YES_NO = {"y": True, "yes": True, "n": False, "no": False}

_LEAVE = 'yes or no, or {"confirmed": false, "reason": "…"}'
"""What is answered to who asks for leave to call a tool."""


def prompt_text(prompt: Any) -> str:
    """A prompt as text; anything but text as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def schema_text(schema: dict[str, Any] | None) -> str:
    """What the answer must be, in words as far as that is short."""
    if schema is None:
        return ""
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(v, ensure_ascii=False) for v in schema["enum"])
    if set(schema) <= {"type", "title"} and isinstance(schema.get("type"), str):
        return _KINDS.get(schema["type"], f"a JSON {schema['type']}")
    return f"JSON that fits {json.dumps(schema, ensure_ascii=False)}"


def parse_answer(text: str, interrupt: Interrupt) -> Any:
    """The answer that a text stands for: JSON if it is JSON that fits the question, else the text itself.

    For a question of yes or no, and of who asks for leave to call a tool, `y`, `yes`, `n` and `no` stand for true and false.

    Raises:
        InvalidInput: `interrupt.invalid_answer` if neither fits the question's schema; `interrupt.invalid_schema`.
    """
    readings: list[Any] = []
    yes_or_no = interrupt.kind == "confirm" or (interrupt.schema or {}).get("type") == "boolean"
    if yes_or_no and text.strip().lower() in _YES_NO:
        readings.append(_YES_NO[text.strip().lower()])
    try:
        readings.append(jsonvalue.copy(json.loads(text, parse_constant=_not_json)))
    except (ValueError, RecursionError, InvalidInput):
        pass
    first: InvalidInput | None = None
    for value in (*readings, text):
        try:
            check_answer(interrupt, value)
        except InvalidInput as error:
            first = first or error
        else:
            return value
    assert first is not None
    raise first


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def show_question(screen: Screen, interrupt: Interrupt) -> None:
    """Shows what is asked, and what the answer must be."""
    screen.tell(f"? {prompt_text(interrupt.prompt)}")
    if expected := _LEAVE if interrupt.kind == "confirm" else schema_text(interrupt.schema):
        screen.note(f"  ({expected})")


@dataclass(frozen=True, slots=True)
class AnswerCommand:
    """How to give answers in another shell.

    Attributes:
        db: The database, as `--db` takes it.
        target: The target, so that the run goes on there and then; empty if it is not known.
        other_model: The model that the target's agents have in place of their own.
    """

    db: str
    target: str = ""
    other_model: OtherModel | None = None

    def line(self, interrupt: Interrupt, *, only: bool) -> str:
        """The command that answers a question; VALUE stands for the answer.

        Args:
            interrupt: The question.
            only: Whether it is the run's only open one, so that its id can be left out.
        """
        words = ["sojourn", "runs", "answer", interrupt.run_id, *([] if only else [interrupt.id]), "VALUE"]
        words += ["--app", interrupt.app_name]
        if self.target:
            words += ["--target", self.target, *(self.other_model.words if self.other_model is not None else ())]
        if not is_default(self.db):
            words += ["--db", shown(self.db)]
        return shlex.join(words)

    def show(self, screen: Screen, interrupts: Sequence[Interrupt]) -> None:
        """Shows the open questions of a run with the commands that answer them."""
        screen.tell("The run waits for a person.")
        for interrupt in interrupts:
            show_question(screen, interrupt)
            screen.tell(f"  {self.line(interrupt, only=len(interrupts) == 1)}")
