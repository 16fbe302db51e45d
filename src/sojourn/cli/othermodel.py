"""`--model`: another model for the agents of a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from sojourn.agents.base import Agent
from sojourn.errors import InvalidInput, SojournError, Unsupported

LOCAL = "--model llama3.2 --base-url http://127.0.0.1:11434/v1"
"""The options for a local model: one that Ollama serves."""


@contextmanager
def missing_keys_explained() -> Iterator[None]:
    """Adds to the error of a missing key which options a local model needs."""
    try:
        yield
    except SojournError as error:
        if error.code == "model.no_key":
            error.message += f"; on the command line: {LOCAL}"
        raise


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model that takes the place of those that a target's agents have.

    Attributes:
        name: `provider:name`, or with `base_url` the name that the server there knows it by.
        base_url: Address of a server that speaks OpenAI's protocol.
    """

    name: str
    base_url: str | None = None

    @classmethod
    def of(cls, model: str | None, base_url: str | None) -> OtherModel | None:
        """What the options `--model` and `--base-url` say; None if nothing.

        Raises:
            BadParameter: There is an address and no model.
        """
        if model is None and base_url is not None:
            raise typer.BadParameter("it says where a model is; give --model, too", param_hint="--base-url")
        return None if model is None else cls(model, base_url)

    @property
    def words(self) -> list[str]:
        """The options again."""
        return ["--model", self.name, *(["--base-url", self.base_url] if self.base_url is not None else [])]

    def give_to(self, root: object, spec: str) -> None:
        """Has the agents of a target use it.

        Args:
            root: The root agent.
            spec: The target.

        Raises:
            InvalidInput: `target.no_model` if no agent there has a model; `model.unknown`, `model.no_key`, `model.invalid`.
            Unsupported: `model.not_installed`.
        """
        try:
            from sojourn.builder.models import use_model
        except ImportError as error:
            if error.name != "pydantic_ai":
                raise
            raise Unsupported(str(error), code="model.not_installed") from error
        with missing_keys_explained():
            given = use_model(root, self.name, self.base_url) if isinstance(root, Agent) else []
        if not given:
            message = f"{spec} has no agent that a model drives, so --model changes nothing; leave it out"
            raise InvalidInput(message, code="target.no_model")
