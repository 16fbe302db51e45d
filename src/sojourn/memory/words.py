"""Text as the words that a lexical search compares."""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no spaces between words: kana, Han, Hangul, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"([{_UNSPACED}]+)|([^\W_{_UNSPACED}]+)")
_ASCII_TOKEN = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared: without case, accents and the endings of English plurals.

    Of scripts without spaces, each character and each pair of neighbours count as a word.
    """
    if text.isascii():
        return [_singular(token) for token in _ASCII_TOKEN.findall(text.lower())]
    words: list[str] = []
    for unspaced, token in _TOKEN.findall(_fold(text)):
        if unspaced:
            words += unspaced
            words += (unspaced[i : i + 2] for i in range(len(unspaced) - 1))
        else:
            words.append(_singular(token))
    return words


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(c for c in decomposed if unicodedata.category(c)[0] != "M")
    # Casefolding again: what a compatibility form decomposes to may have capitals.
    return unicodedata.normalize("NFC", bare.casefold())


def _singular(word: str) -> str:
    if len(word) < 4 or word[-1] != "s" or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y" if len(word) > 4 else word[:-1]
    if word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    return word[:-1]
