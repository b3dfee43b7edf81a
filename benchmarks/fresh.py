"""Timing in a separate process, where nothing that ours has set up helps or hinders."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.memory import forward_backward
from benchmarks.timing import Pace, Timing, measure, synchronised
from hullft_ops.ttft import keep_freed_memory

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ADAPTED = "adapted.pt"
_ROUNDS = 2


def in_fresh_process(call: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """The result of the call, run in a new interpreter with as many threads as this one."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
    ) as process:
        return process.submit(call, *args, **kwargs).result()


@dataclass(frozen=True)
class FinetuningLoop:
    """One of `benchmarks.loops` as a user runs it.

    Attributes:
        finetune: the loop, called with a model and the attributes from ``passages`` on.
        folder: has a saved model; the loop returns the adapted parameters through it.
        passages: tokens of each text.
        counts: steps for each text.
        refresh: steps per gradient.
        lr: Adam's learning rate.
    """

    finetune: Callable[..., None]
    folder: Path
    device: torch.device
    passages: Sequence[Sequence[int]]
    counts: Sequence[int]
    refresh: int
    lr: float

    def timed(self, pace: Pace) -> tuple[Timing, list[torch.Tensor]]:
        """The loop's time in a fresh process, and the adapted parameters.

        Two rounds are enough: a loop takes seconds, and two runs have warmed it up.
        """
        timing = in_fresh_process(self._measure, replace(pace, min_rounds=_ROUNDS))
        adapted: list[torch.Tensor] = torch.load(
            self.folder / _ADAPTED, map_location=self.device
        )
        return timing, adapted

    def _measure(self, pace: Pace) -> Timing:
        model = _load(self.folder, self.device)
        base = [parameter.detach().clone() for parameter in model.parameters()]

        def finetune() -> None:
            self.finetune(
                model, self.passages, self.counts, refresh=self.refresh, lr=self.lr
            )

        def restore() -> None:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), base)

        timing = measure(synchronised(finetune, self.device), pace, setup=restore)
        torch.save(
            [parameter.detach() for parameter in model.parameters()],
            self.folder / _ADAPTED,
        )
        return timing


def time_pass(
    folder: Path, tokens: Sequence[int], *, autocast: torch.dtype | None, keep: bool
) -> Timing:
    """A forward and backward pass on the CPU, in a fresh process.

    Args:
        folder: has a saved model.
        autocast: see `forward_backward`.
        keep: whether the process keeps the memory that it frees.
    """
    return in_fresh_process(_pass, folder, tokens, autocast, keep)


def _pass(
    folder: Path, tokens: Sequence[int], autocast: torch.dtype | None, keep: bool
) -> Timing:
    if keep:
        keep_freed_memory()
    one_pass = forward_backward(_load(folder, torch.device("cpu")), tokens, autocast)
    # The heap has its final size after a few passes.
    one_pass()
    return measure(one_pass, Pace(seconds=5.0, min_rounds=2, max_rounds=20))


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    nn.Module.to(model, device)
    # Ours trains without dropout, so this does too.
    model.train(False)
    return model
