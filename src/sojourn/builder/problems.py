"""What is wrong with a config: where, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sojourn.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a config. Its texts hold no value that came from the environment, and no key.

    Attributes:
        message: What is wrong, and the remedy.
        code: As of errors.
        file: The file, as it was named; empty for a config that was given as a mapping.
        line: Counted from 1; None if it is about no line of a file.
        key: The place in the config, for example `agents.desk.model`; empty for the whole.
    """

    message: str
    code: str
    file: str = ""
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(InvalidInput):
    """A config that cannot be used.

    Attributes:
        problems: All that was found, in the order of the file; the error's code and message are the first one's.
        details: All of them, one a line, if there are several; empty otherwise.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        # The sort is stable: what stands on one line stays in the order in which it was found.
        ranked = sorted(problems, key=lambda p: p.line or 0)
        first = ranked[0]
        more = f" (and {len(ranked) - 1} more)" if len(ranked) > 1 else ""
        super().__init__(f"{first}{more}", code=first.code)
        self.problems: tuple[Problem, ...] = tuple(ranked)
        self.details = "\n".join(map(str, ranked)) if more else ""
