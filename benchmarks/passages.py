"""A datastore of real text, with passages of several mixes of length."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from hullft_ops.ttft import Datastore
from hullft_ops.ttft.evaluation.corpus import installed_corpus
from hullft_ops.ttft.store.embedding import Embedder

# Least and most tokens of a passage, drawn evenly on a logarithmic scale.
LENGTHS = {"300": (280, 320), "short": (20, 100), "mixed": (20, 500)}


def build_store(
    tokenizer: PreTrainedTokenizerBase,
    embedder: Embedder,
    mix: str,
    count: int,
    path: Path,
) -> tuple[Datastore, str]:
    """A datastore of ``count`` passages, and a held-out passage to adapt to.

    The text is the source of installed packages, cut to the lengths of the mix.
    """
    corpus = installed_corpus()
    tokens = _tokens(tokenizer, [passage.text for passage in corpus.store])
    texts = list(islice(_cut(tokenizer, tokens, LENGTHS[mix]), count))
    return Datastore.build(texts, embedder, path, progress=False), corpus.held_out[
        0
    ].text


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[int]:
    for text in texts:
        yield from tokenizer(text, truncation=False, verbose=False)["input_ids"]


def _cut(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterator[int], lengths: tuple[int, int]
) -> Iterator[str]:
    random = np.random.default_rng(0)
    low, high = np.log(lengths)
    while piece := list(islice(tokens, round(np.exp(random.uniform(low, high))))):
        yield str(tokenizer.decode(piece))
