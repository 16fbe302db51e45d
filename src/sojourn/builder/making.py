"""What the making of a config's parts shares: the config, what is wrong with it, and what is made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sojourn.builder.dotted import load_dotted
from sojourn.builder.problems import ConfigError, Problem
from sojourn.builder.schema import AppConfig
from sojourn.builder.source import KeyPath
from sojourn.errors import SojournError

T = TypeVar("T")


@dataclass(slots=True)
class Making:
    """One making of a config.

    Attributes:
        config: The config.
        shared: What the builder keeps from one making to the next, by name: services.
        problems: What is wrong, found so far.
        cause: What code of the config's own raised first.
    """

    config: AppConfig
    shared: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    cause: BaseException | None = None

    def tried(self, path: KeyPath, make: Callable[[], T]) -> T | None:
        """What a function makes; None if it raises, which is noted as a problem of a place."""
        try:
            with self.at(path):
                return make()
        except ConfigError as error:
            self.problems.extend(error.problems)
            self.cause = self.cause or error.__cause__
        return None

    @contextmanager
    def at(self, path: KeyPath) -> Iterator[None]:
        """Makes coded errors problems of a place, unless they are of one already.

        Raises:
            ConfigError: In place of any other coded error, with its code.
        """
        try:
            yield
        except ConfigError:
            raise
        except SojournError as error:
            raise self.config.source.error(path, error.message, code=error.code) from error.__cause__

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made under a name before, or is made now."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    def loaded(self, path: KeyPath, dotted: str) -> Any:
        """What a dotted name stands for; see `load_dotted`."""
        return load_dotted(self.config.source, path, dotted)

    def function(self, path: KeyPath, dotted: str) -> Callable[..., Any]:
        """The function that a dotted name stands for.

        Raises:
            ConfigError: `config.not_importable`, `config.wrong_kind`.
        """
        value = self.loaded(path, dotted)
        if not callable(value):
            raise self.wrong_kind(path, dotted, value, "a function")
        return value  # type: ignore[no-any-return]

    def functions(self, path: KeyPath, dotted: list[str]) -> list[Callable[..., Any]]:
        """The functions that dotted names stand for."""
        return [self.function((*path, index), name) for index, name in enumerate(dotted)]

    def wrong_kind(self, path: KeyPath, dotted: str, value: object, wanted: str) -> ConfigError:
        """The error for a dotted name that stands for something else than it should."""
        given = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        return self.config.source.error(path, f"{dotted} is {given}; name {wanted}", code="config.wrong_kind")

    def check(self) -> None:
        """Raises what is wrong.

        Raises:
            ConfigError: If anything is.
        """
        if self.problems:
            # What several agents use is tried for each of them.
            raise ConfigError(list(dict.fromkeys(self.problems))) from self.cause
