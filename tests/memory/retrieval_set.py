"""The retrieval set: sentences, questions, and how many questions find their sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sojourn.memory.types import Memory

DIRECTORY = Path(__file__).parent / "retrieval"
HALVES = ("keywords", "paraphrases")


class Question(NamedTuple):
    right: frozenset[str]
    text: str


def sentences() -> dict[str, str]:
    found = {}
    for file in sorted(DIRECTORY.glob("sentences/*.txt")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found[f"{file.stem}-{number:03}"] = line
    return found


def entries() -> list[Memory]:
    return [Memory(text, id=id, timestamp=1.0) for id, text in sentences().items()]


def questions(half: str) -> list[Question]:
    lines = (DIRECTORY / f"{half}.tsv").read_text().splitlines()
    split = (line.split("\t") for line in lines)
    return [Question(frozenset(ids.split(",")), text) for ids, text in split]


def stopwords() -> set[str]:
    return set((DIRECTORY / "stopwords.txt").read_text().split())


async def recall(service, half: str, app: str, user: str, *, at: int = 5) -> float:
    """The share of the questions whose right sentence is among the first that are found."""
    asked: Sequence[Question] = questions(half)
    hits = 0
    for question in asked:
        found = await service.search(app, user, question.text, limit=at)
        hits += any(entry.id in question.right for entry in found)
    return hits / len(asked)
