"""Questions of agents to people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sojourn import jsonvalue
from sojourn.content import FunctionCall, Part
from sojourn.event import ASK_CALL, CONFIRM_CALL, CREDENTIAL_CALL
from sojourn.run.types import InterruptKind

_CALLS: dict[InterruptKind, str] = {"confirm": CONFIRM_CALL, "credential": CREDENTIAL_CALL}


def call_of(kind: InterruptKind) -> str:
    """The name of the function call by which questions of a kind stand in the log."""
    return _CALLS.get(kind, ASK_CALL)


@dataclass(slots=True, frozen=True)
class Question:
    """What an agent asks a person.

    Attributes:
        key: Names it within the agent's run.
        prompt: What to show; any JSON value.
        schema: JSON schema of the answer; None for any JSON value.
        expires: Seconds until the run fails with `interrupt.expired`; None for never.
        kind: As `Interrupt.kind`.
        call: The function call that waits for the answer, if one does.
    """

    key: str
    prompt: Any
    schema: dict[str, Any] | None = None
    expires: float | None = None
    kind: InterruptKind = "input"
    call: FunctionCall | None = None

    def digest(self) -> str:
        """Hash of all that the answer depends on: another digest is another question."""
        asked = [self.prompt, self.schema]
        if self.kind != "input":
            asked.append(self.kind)
        if self.call is not None:
            asked += [self.call.id, self.call.name, self.call.args]
        return hashlib.sha256(jsonvalue.canonical(asked).encode()).hexdigest()

    def to_part(self, interrupt_id: str) -> Part:
        """The question as a function call, the form in which it stands in the log."""
        args: dict[str, Any]
        if self.kind == "confirm":
            # google-adk's clients show what they find here.
            args = {"toolConfirmation": {"hint": self.prompt, "confirmed": False}}
        elif self.kind == "credential":
            args = {"functionCallId": self.call.id if self.call is not None else self.key, "authConfig": self.prompt}
        else:
            args = {"key": self.key, "message": self.prompt}
            if self.schema is not None:
                args["response_schema"] = self.schema
        if self.call is not None:
            args["originalFunctionCall"] = self.call.to_wire()
        return Part.from_function_call(call_of(self.kind), args, id=interrupt_id)
