"""BERT sentence encoders, run with numpy: what `sentence-transformers` computes, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

Floats = npt.NDArray[np.float32]

_BATCH_TOKENS = 1024
"""Tokens, padding included, that go through the model at once."""


class Bert:
    """A model, read from its `config.json`, `model.safetensors` and `tokenizer.json`.

    Args:
        files: The directory of these files.
    """

    def __init__(self, files: Path) -> None:
        config = json.loads((files / "config.json").read_text())
        limits = json.loads((files / "sentence_bert_config.json").read_text())
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._epsilon: float = config["layer_norm_eps"]
        self._tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
        self._tokenizer.enable_truncation(limits["max_seq_length"])
        self._tokenizer.no_padding()
        self._weights = _safetensors(files / "model.safetensors")

    def vectors(self, texts: Sequence[str]) -> Floats:
        """The mean of what the model says of a text's tokens, for each text."""
        encodings = self._tokenizer.encode_batch(list(texts))
        vectors = np.empty((len(texts), self._weights["embeddings.word_embeddings.weight"].shape[1]), dtype=np.float32)
        for batch in _batches(encodings):
            vectors[batch] = self._means([encodings[i] for i in batch])
        return vectors

    def _means(self, encodings: Sequence[Encoding]) -> Floats:
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.zeros((len(encodings), longest), dtype=np.int64)
        mask = np.zeros((len(encodings), longest), dtype=np.float32)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        said = self._encoded(ids, mask)
        means: Floats = (said * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
        return means

    def _encoded(self, ids: npt.NDArray[np.int64], mask: Floats) -> Floats:
        weights = self._weights
        x: Floats = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x += weights["embeddings.token_type_embeddings.weight"][0]
        x = self._normal(x, "embeddings.LayerNorm")
        hidden_from_padding = (1 - mask)[:, None, None, :] * np.float32(-1e9)
        for layer in range(self._layers):
            at = f"encoder.layer.{layer}"
            x = self._normal(x + self._attention(x, hidden_from_padding, at), f"{at}.attention.output.LayerNorm")
            wide = _gelu(self._dense(x, f"{at}.intermediate.dense"))
            x = self._normal(x + self._dense(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        return x

    def _attention(self, x: Floats, hidden: Floats, at: str) -> Floats:
        batch, length, size = x.shape
        per_head = size // self._heads

        def heads(name: str) -> Floats:
            split: Floats = self._dense(x, f"{at}.attention.self.{name}").reshape(batch, length, self._heads, per_head)
            return split.transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(per_head**0.5) + hidden
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ heads("value")).transpose(0, 2, 1, 3).reshape(batch, length, size)
        return self._dense(mixed, f"{at}.attention.output.dense")

    def _dense(self, x: Floats, name: str) -> Floats:
        # One product of two matrices: numpy hands stacks of small ones to BLAS one by one.
        flat = x.reshape(-1, x.shape[-1]) @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        dense: Floats = flat.reshape(*x.shape[:-1], -1)
        return dense

    def _normal(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        normal: Floats = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normal


def _batches(encodings: Sequence[Encoding]) -> list[list[int]]:
    """Which texts go through the model together: those of about the same length, so that little is padded."""
    batches: list[list[int]] = []
    for i in sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids)):
        if not batches or (len(batches[-1]) + 1) * len(encodings[i].ids) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _gelu(x: Floats) -> Floats:
    # numpy has no error function: Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    error = np.copysign(1 - tail * np.exp(-z * z), x)
    activated: Floats = np.float32(0.5) * x * (1 + error)
    return activated


def _safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file: a header in JSON, its length in front, then the numbers. They are read when they are used."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    numbers = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    tensors: dict[str, Any] = {}
    for name, told in header.items():
        if name != "__metadata__" and told["dtype"] == "F32":
            begin, end = told["data_offsets"]
            tensors[name] = np.frombuffer(numbers[begin:end], dtype="<f4").reshape(told["shape"])
    return tensors
