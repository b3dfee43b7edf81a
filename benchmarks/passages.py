"""A store of real text of a length, and an embedder that needs no model.

A machine with a GPU may have neither FAISS nor an embedder's weights.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hullft_ops.ttft import Embedder, MemoryStore

# Least and most tokens of a passage, drawn evenly on a logarithmic scale.
LENGTHS = {"300": (280, 320), "short": (20, 100)}


class TrigramEmbedder:
    """How often each three bytes follow each other, hashed into ``dim`` counts."""

    name = "benchmarks/trigrams"
    dim = 384

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], unit rows."""
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
            trigrams = codes[:-2] * 65_536 + codes[1:-1] * 256 + codes[2:]
            np.add.at(row, trigrams * 2_654_435_761 % 2**32 % self.dim, 1)
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


class TorchStore(MemoryStore):
    """Searched by torch."""

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores, positions = (torch.as_tensor(queries) @ self.embeddings.T).topk(k)
        return scores, positions


def build_store(
    tokenizer: PreTrainedTokenizerBase,
    embedder: Embedder,
    mix: str,
    count: int,
) -> tuple[TorchStore, str]:
    """A store of ``count`` passages of torch's source code, and a prompt beside them.

    The mix gives the lengths, in tokens.
    """
    cut = _cut(tokenizer, _tokens(tokenizer), LENGTHS[mix])
    prompt, *texts = islice(cut, 1 + count)
    embeddings = torch.from_numpy(embedder.encode(texts))
    return TorchStore(texts, embeddings, embedder.name), prompt


def _tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    for path in sorted(Path(torch.nn.modules.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield from tokenizer(text, truncation=False, verbose=False)["input_ids"]


def _cut(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterator[int], lengths: tuple[int, int]
) -> Iterator[str]:
    random = np.random.default_rng(0)
    low, high = np.log(lengths)
    while piece := list(islice(tokens, round(np.exp(random.uniform(low, high))))):
        yield str(tokenizer.decode(piece))
