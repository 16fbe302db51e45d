"""Finds the entries that fit a query best, exactly, without looking at all of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sojourn.memory.bm25 import rarity
from sojourn.memory.fusion import fused
from sojourn.memory.lexical import weights_of
from sojourn.memory.qdrant.engine import MEANING, WORDS, Engine, Hit, Ranking, Vector, Where
from sojourn.memory.qdrant.points import entry_of, term_of
from sojourn.memory.rules import copied, marks_of, meets
from sojourn.memory.types import Memory, MemoryFilter

MAX_WORDS = 256
"""Different words of a query that are looked for; what comes after them is not."""

_FIRST = 64
"""Points that are asked for at first, by words and by meaning."""

_MORE = 4
"""How many times as many are asked for when these do not settle it."""

_COSINE_DIGITS = 5
"""Digits that count of a cosine: embedders round equal texts differently."""

_CLOSE = 1e-4
"""Scores by what the engine gives, in single precision, are nearer than this to those that are returned."""


@dataclass(slots=True)
class Question:
    """What is to be found.

    Attributes:
        words: The words of the query, each once.
        meaning: Its vector; None if only words count.
        model: The embedder that made it.
        where: Which points may be found.
        filter: What their entries must meet; `where` lets some more through.
        limit: At most this many.
        min_score: Only such with at least this score.
    """

    words: Sequence[str]
    meaning: Vector | None
    model: str | None
    where: Where
    filter: MemoryFilter | None
    limit: int
    min_score: float | None


@dataclass(slots=True)
class _Candidates:
    """Points that may be among the best, by id: the engine's scores, and what points beyond them can have at most."""

    by_words: dict[str, Hit] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    words_beyond: float = 0.0
    cosine_beyond: float = 0.0


class Search:
    """One search.

    The engine ranks by words and by meaning apart; what is sought is the order by both together. The first points of either
    ranking are taken, and more of them until no point that is in neither can be among the best: its scores are at most those
    that the rankings end with.
    """

    def __init__(self, engine: Engine, question: Question) -> None:
        self._engine = engine
        self._question = question
        self._terms = {term_of(word): word for word in question.words[:MAX_WORDS]}
        self._rarities: dict[str, float] = {}
        self._best = 0.0
        # Points that `where` let through, and whose entries are not to be found after all.
        self._unfit: set[str] = set()

    async def run(self) -> list[Memory]:
        """The entries that were found, best first."""
        limit = self._question.limit
        size = max(_FIRST, 2 * limit)
        found = await self._candidates(size)
        self._rarities = await self._weigh(found)
        self._best = math.fsum(self._rarities.values())
        while True:
            await self._complete(found)
            scores = self._scores(found)
            ceiling = self._fused(found.words_beyond, found.cosine_beyond)
            wanted = self._wanted(scores)
            if 0 < ceiling >= wanted - _CLOSE:
                size *= _MORE
                found = await self._candidates(size)
                continue
            chosen = {id for id, score in scores.items() if score >= wanted - _CLOSE}
            entries = await self._entries(chosen, found)
            unfit = chosen - entries.keys()
            if not unfit or len(entries) >= limit:
                return sorted(entries.values(), key=lambda entry: (-(entry.score or 0.0), -entry.timestamp, entry.id))[:limit]
            self._unfit |= unfit

    async def _candidates(self, size: int) -> _Candidates:
        """The first points by words and by meaning."""
        question, found = self._question, _Candidates()
        rankings = [self._by_words(question.where, size)]
        if question.meaning is not None:
            rankings.append(self._by_meaning(question.where, size))
        by_words, *by_meaning = await self._engine.rank(rankings)
        found.by_words = {hit.id: hit for hit in by_words}
        found.words_beyond = by_words[-1].score if len(by_words) == size else 0.0
        for hits in by_meaning:
            found.cosines = {hit.id: hit.score for hit in hits}
            found.cosine_beyond = max(hits[-1].score, 0.0) if len(hits) == size else 0.0
        return found

    async def _complete(self, found: _Candidates) -> None:
        """Adds the other score of points that only one ranking had, if they can be among the best with it."""
        if self._question.meaning is None:
            return
        least = self._wanted(self._scores(found)) - _CLOSE
        only_words = tuple(
            id
            for id, hit in found.by_words.items()
            if found.cosine_beyond and id not in found.cosines and self._fused(hit.score, found.cosine_beyond) >= least
        )
        only_meaning = tuple(
            id
            for id, cosine in found.cosines.items()
            if found.words_beyond and id not in found.by_words and self._fused(found.words_beyond, cosine) >= least
        )
        where = self._question.where
        rankings = []
        if only_words:
            rankings.append(self._by_meaning(replace(where, ids=only_words), len(only_words)))
        if only_meaning:
            rankings.append(self._by_words(replace(where, ids=only_meaning), len(only_meaning)))
        if not rankings:
            return
        for ranking, hits in zip(rankings, await self._engine.rank(rankings), strict=True):
            if ranking.using == MEANING:
                found.cosines.update((hit.id, hit.score) for hit in hits)
            else:
                found.by_words.update((hit.id, hit) for hit in hits)

    def _by_words(self, where: Where, limit: int) -> Ranking:
        return Ranking(WORDS, dict.fromkeys(self._terms, 1.0), where, limit, with_words=True)

    def _by_meaning(self, where: Where, limit: int) -> Ranking:
        meaning, model = self._question.meaning, self._question.model
        assert meaning is not None
        assert model is not None
        return Ranking(MEANING, meaning, replace(where, equal=(*where.equal, ("model", model))), limit)

    # -- how rare words are -----------------------------------------------------------------------------------------

    async def _weigh(self, found: _Candidates) -> dict[str, float]:
        """How rare each word is among all entries of the owner.

        The engine does not tell. It tells, though, what a point scores by a single word, which is that times how much the
        point has of the word.
        """
        everything = Where(self._question.where.owner)
        having: dict[int, str] = {}
        for hit in found.by_words.values():
            for term in hit.words.keys() & self._terms.keys():
                having.setdefault(term, hit.id)
        probes = []
        for term in self._terms:
            where = replace(everything, ids=(having[term],)) if term in having else everything
            probes.append(Ranking(WORDS, {term: 1.0}, where, 1, with_words=True))
        total = await self._engine.count(everything)
        answers = await self._engine.rank(probes)
        return {
            word: rarity(_texts_with(term, hits, total), total)
            for (term, word), hits in zip(self._terms.items(), answers, strict=True)
        }

    # -- scores -----------------------------------------------------------------------------------------------------

    def _scores(self, found: _Candidates) -> dict[str, float]:
        scores = {}
        for id in (found.by_words.keys() | found.cosines.keys()) - self._unfit:
            hit = found.by_words.get(id)
            score = self._fused(hit.score if hit else 0.0, found.cosines.get(id, 0.0))
            if score > 0:
                scores[id] = score
        return scores

    def _wanted(self, scores: Mapping[str, float]) -> float:
        """The score that the last of the best has at least, if they are among these."""
        # As many more as there were in vain: however many of these there are, there are few rounds.
        limit, least = self._question.limit + len(self._unfit), self._question.min_score or 0.0
        return max(heapq.nlargest(limit, scores.values())[-1], least) if len(scores) >= limit else least

    def _fused(self, words: float, cosine: float) -> float:
        share = min(words / self._best, 1.0)
        return share if self._question.meaning is None else fused(share, cosine)

    def _exact(self, entry: Memory, cosine: float) -> float:
        weights = weights_of(entry.text)
        words = math.fsum(self._rarities[word] * weights.get(word, 0.0) for word in self._rarities)
        return self._fused(words, round(min(cosine, 1.0), _COSINE_DIGITS))

    async def _entries(self, ids: Collection[str], found: _Candidates) -> dict[str, Memory]:
        """The entries of these points that are to be found, with their scores."""
        payloads = await self._engine.retrieve(list(ids), ("entry",))
        least, filter = self._question.min_score, self._question.filter
        entries = {}
        for id, payload in payloads.items():
            entry = entry_of(payload)
            score = self._exact(entry, found.cosines.get(id, 0.0))
            if (
                score > 0
                and (least is None or score >= least)
                and (filter is None or meets(entry, filter, marks_of(filter.metadata)))
            ):
                entries[id] = copied(entry, score=score)
        return entries


def _texts_with(term: int, hits: Sequence[Hit], total: int) -> int:
    """How many of the owner's texts have a word, by what a point scores that has it."""
    if not hits:
        return 0
    weight = hits[0].words.get(term)
    if not weight:
        return 1
    # The engine computes rarity by the same formula, in single precision: the number of texts is what it is nearest to.
    return min(max(round((total + 1) / math.exp(hits[0].score / weight) - 0.5), 1), max(total, 1))
