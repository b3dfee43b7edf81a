"""Bits per byte of a causal language model on whole texts."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 512
STRIDE = 256


@dataclass
class Score:
    nats: float = 0.0
    scored_bytes: int = 0

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * self.scored_bytes)


def _windows(length: int) -> Iterator[tuple[int, int, int]]:
    """Spans (start, first scored, end) that score each token but the first exactly once."""
    scored, start = 1, 0
    while scored < length:
        end = min(start + WINDOW, length)
        yield start, scored, end
        scored, start = end, start + STRIDE


@torch.inference_mode()
def _nats(model: PreTrainedModel, ids: torch.Tensor) -> float:
    total = 0.0
    for start, scored, end in _windows(len(ids)):
        logits = model(ids[None, start : end - 1]).logits[0, scored - start - 1 :]
        loss = torch.nn.functional.cross_entropy(
            logits.float(), ids[scored:end], reduction="sum"
        )
        total += loss.item()
    return total


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Score:
    """The first token has no context: neither its loss nor its bytes are counted."""
    result = Score()
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) < 2:
            continue
        # A byte-level token is spelt with one character a byte.
        first_token_bytes = len(tokenizer.convert_ids_to_tokens(ids[0]))
        result.nats += _nats(model, torch.tensor(ids))
        result.scored_bytes += len(text.encode()) - first_token_bytes
    return result
