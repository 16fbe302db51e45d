"""How well an entry fits a query by its words and by its meaning, as one number."""

from __future__ import annotations

import math


def fused(words: float, cosine: float) -> float:
    """The score of an entry, from 0 to 1.

    It is the quadratic mean of the two, in which the larger one counts for more: the common words that a sentence happens to
    share with a query do not move what the meaning is sure of, and a rare name that is found does not need its consent. Both
    have a scale of their own, on which 0 is unrelated and 1 the same, so there is nothing to tune; and unlike a sum of ranks,
    the score of an entry does not depend on which others there are.

    Args:
        words: How much of the query the entry has, from 0 to 1, words weighed by how rare they are.
        cosine: That of the angle between the vectors; below 0 counts as unrelated.
    """
    return math.sqrt((words * words + max(cosine, 0.0) ** 2) / 2)
