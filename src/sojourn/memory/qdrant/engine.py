"""What the service asks of an engine: the one in this process, or a server."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

WORDS: Final = "words"
"""The sparse vector of a point: how much its text has of each of its words."""

MEANING: Final = "meaning"
"""The dense vector of a point, which is missing as long as its text could not be embedded."""

KEYWORDS = ("session_id", "author", "marks", "model", "origin")
"""Fields of the payload that are compared as they are, beside `owner`."""

TIME = "at"
"""The field of the payload by which points are listed: whole microseconds, for the engine reads fractions back inexactly."""

BY_HAND = "hand"
BY_EVENT = "event"
"""Where an entry comes from (`origin`): entries that events became are replaced with them."""

Vector: TypeAlias = "array[float]"
Payload = dict[str, Any]


@dataclass(slots=True)
class Point:
    """What is stored of an entry.

    Attributes:
        id: A UUID.
        payload: Its fields.
        words: By the number of a word, how much the text has of it.
        meaning: The vector of the text.
    """

    id: str
    payload: Payload
    words: Mapping[int, float]
    meaning: Vector | None = None


@dataclass(slots=True, frozen=True)
class Where:
    """Which points are meant: those that meet all of it. There is none without an owner.

    Attributes:
        owner: Whose they are.
        equal: Fields that have a value. Of a field with several values, one of them is meant.
        ids: Only points with one of these ids.
        except_ids: Only points with other ids than these.
        except_model: Only points that have no vector of this embedder.
        since: Only points with this time or a later one, in microseconds.
        until: Only points with this time or an earlier one, in microseconds.
    """

    owner: str
    equal: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] | None = None
    except_ids: tuple[str, ...] = ()
    except_model: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(slots=True, frozen=True)
class Ranking:
    """A question for the points that are nearest to a vector, the nearest first.

    Attributes:
        using: Which of their vectors.
        vector: By number of a word, or the dense one.
        where: Which points.
        limit: At most this many.
        with_words: Whether their sparse vectors are wanted, too.
    """

    using: Literal["words", "meaning"]
    vector: Mapping[int, float] | Vector
    where: Where
    limit: int
    with_words: bool = False


@dataclass(slots=True)
class Hit:
    """A point that was found.

    Attributes:
        id: Its id.
        score: How near it is. By words: the sum over the words of how much it has of each times how rare that is among the
            points of the owner. By meaning: the cosine.
        words: Its sparse vector, if wanted.
    """

    id: str
    score: float
    words: dict[int, float] = field(default_factory=dict)


class Engine(Protocol):
    """Keeps points. What it raises is a `SojournError`; a call that writes has an outcome when it ends, and readers see it."""

    async def upsert(self, points: Sequence[Point]) -> None:
        """Stores points, each in place of the one with its id."""
        ...

    async def replace(self, points: Mapping[Where, Point]) -> None:
        """Stores points, each in place of the one with its id, if that is there and meets the condition when it is written."""
        ...

    async def delete(self, where: Where) -> None:
        """Removes points."""
        ...

    async def rank(self, rankings: Sequence[Ranking]) -> list[list[Hit]]:
        """Answers questions, all in one go. The answers are exact."""
        ...

    async def count(self, where: Where) -> int:
        """How many points there are."""
        ...

    async def scroll(self, where: Where, limit: int, fields: Sequence[str]) -> list[Payload]:
        """At most `limit` points, the latest time first, in any order among those of one time."""
        ...

    async def retrieve(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Payload]:
        """Fields of the points with these ids, as far as they exist, by id."""
        ...

    async def close(self) -> None:
        """Lets go of what it has opened. Closing twice is fine."""
        ...
