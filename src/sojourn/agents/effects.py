"""What was done besides saying something, kept until an event tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sojourn.event import EventActions
from sojourn.session.state import StateDelta


@dataclass(slots=True, frozen=True)
class Effects:
    """What somebody did with a context besides saying something; as JSON, it can be kept with a step's result.

    Attributes:
        state: Writes of state.
        artifacts: Artifacts saved, by name, with the version of the newest save.
        actions: What was set with `set_actions`.
        transfer: Whom the run is to be handed over to.
        ends: Whether the run is to end.
    """

    state: StateDelta | None = None
    artifacts: dict[str, int] | None = None
    actions: EventActions | None = None
    transfer: str | None = None
    ends: bool = False

    def to_json(self) -> dict[str, Any]:
        """An object with what was done, and no more: an empty one if nothing was."""
        fields: dict[str, Any] = {}
        if self.state:
            fields["state"] = EventActions(**self.state.as_actions()).to_wire()
        if self.artifacts:
            fields["artifacts"] = self.artifacts
        if self.actions is not None:
            fields["actions"] = self.actions.model_dump(mode="json", exclude_unset=True)
        if self.transfer is not None:
            fields["transfer"] = self.transfer
        if self.ends:
            fields["ends"] = True
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Effects:
        """What `to_json` gave, beside which other keys may stand."""
        state, actions = fields.get("state"), fields.get("actions")
        return cls(
            None if state is None else StateDelta.of_all(EventActions.model_validate(state)),
            fields.get("artifacts"),
            None if actions is None else EventActions.model_validate(actions),
            fields.get("transfer"),
            "ends" in fields,
        )


EFFECTS = frozenset(("state", "artifacts", "actions", "transfer", "ends"))
"""The keys of an `Effects` as JSON."""
