"""Finetuning for a prompt, against the loops of `benchmarks.loops`: only training and restoring.

GPT-2 with random weights trains on random tokens, so it needs only torch and transformers: no
datastore, no embedder, no tokenizer. Everything runs in this process, on one model.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.bench_ttft import (
    LR,
    Case,
    allowed_differences,
    autocast_of,
    loops,
    parameter_differences,
)
from benchmarks.gpu.goals import goal
from benchmarks.memory import parameter_buffers
from benchmarks.passages import LENGTHS
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace
from hullft_ops.ttft import Support
from hullft_ops.ttft.model.snapshot import ModelSnapshot
from hullft_ops.ttft.training.checks import trainable_parameters
from hullft_ops.ttft.training.steps import StageClock
from hullft_ops.ttft.training.trainer import SupportTrainer


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(2.0, 3, 20)
    model = random_gpt2(device, small)
    measured: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for case in _cases(small):
        comparison = Comparison("ttft", str(case), asdict(case))
        _measure(case, Recorder(None, device, pace, comparison), model, device)
        measured.append(asdict(comparison))
        goals += [
            goal(comparison, *allowed) for allowed in allowed_differences(case).items()
        ]
        yield {"comparisons": measured, "goals": goals}


def random_gpt2(device: torch.device, small: bool) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(_small_config() if small else GPT2Config())
    nn.Module.to(model, device)
    # Ours trains without dropout, so the loops do too.
    model.train(False)
    return model


def _cases(small: bool) -> list[Case]:
    if small:
        return [Case("gpt2", 4, lengths="short", texts=4)]
    sizes = (20, 50)
    return [
        Case("gpt2", n, texts=n, dtype=dtype)
        for n in sizes
        for dtype in (None, "bfloat16")
    ]


def _small_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=300, n_positions=128, n_embd=64, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip


def _measure(
    case: Case, recorder: Recorder, model: GPT2LMHeadModel, device: torch.device
) -> None:
    support = random_support(case, model.config.vocab_size)
    trained = trainable_parameters(model)
    base = [parameter.detach().clone() for parameter in trained]
    snapshot = ModelSnapshot(model, trained)
    trainer = SupportTrainer(
        model, trained, lr=LR, order="grouped", schedule="constant", max_grad_norm=None,
        autocast=autocast_of(case),
    )  # fmt: skip

    def train() -> StageClock:
        refreshes, clock = [case.refresh] * len(support.counts), StageClock(device)
        trainer.train(
            support.input_ids, support.indices, support.counts, refreshes, clock
        )
        return clock

    def adapt() -> None:
        snapshot.save()
        train()
        snapshot.restore()

    buffers = parameter_buffers(model, support, adapt, device, autocast_of(case))
    recorder.fact("parameter-sized buffers", buffers)
    snapshot.save()
    clock = train()
    adapted = [parameter.detach().clone() for parameter in trained]
    snapshot.restore()
    recorder.ours(adapt)
    for stage in ("forward", "backward", "step"):
        recorder.fact(f"{stage}, seconds", clock.seconds(stage))
    differences: list[dict[str, float]] = []
    for name, finetune in loops(case, model).items():
        loop = partial(
            finetune,
            model,
            support.input_ids,
            support.counts,
            refresh=case.refresh,
            lr=LR,
        )

        def restored(loop: partial[None] = loop) -> None:
            loop()
            _restore(trained, base)

        loop()
        found = [parameter.detach().clone() for parameter in trained]
        _restore(trained, base)
        differences.append(parameter_differences(model, base, adapted, found))
        recorder.peer(name, restored)
    for fact in differences[0]:
        recorder.fact(fact, max(difference[fact] for difference in differences))


def random_support(case: Case, vocabulary: int) -> Support:
    """``case.n_select`` steps spread at random over ``case.texts`` texts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(case.texts, (case.n_select,), generator=generator)
    counts = sorted(
        (count for count in drawn.bincount().tolist() if count), reverse=True
    )
    low, high = LENGTHS[case.lengths]
    lengths = torch.randint(low, high + 1, (len(counts),), generator=generator).tolist()
    texts = [
        torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths
    ]
    weights = [count / case.n_select for count in counts]
    return Support(list(range(len(counts))), weights, counts, 0.0, 0.0, texts)


def _restore(parameters: list[nn.Parameter], base: list[torch.Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), base)
    for parameter in parameters:
        parameter.grad = None
