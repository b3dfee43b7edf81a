"""What is timed in a process of its own: nothing that ours has set up helps it or is in its way."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peers import padded_cloning_finetune
from benchmarks.timing import Pace, Timing, measure, synchronised
from hullft_ops.ttft import keep_freed_memory
from hullft_ops.ttft.loss import MeanLoss

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ADAPTED = "adapted.pt"


def in_fresh_process(call: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """The call's result, from a new interpreter with as many threads as this one."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
    ) as process:
        return process.submit(call, *args, **kwargs).result()


def time_padded_loop(
    folder: Path,
    device: torch.device,
    passages: Sequence[Sequence[int]],
    counts: Sequence[int],
    refresh: int,
    lr: float,
    pace: Pace,
) -> tuple[Timing, list[torch.Tensor]]:
    """`padded_cloning_finetune` in a fresh process: its time, and the adapted parameters.

    Args:
        folder: with a saved model; the parameters come back through it.
    """
    timing = in_fresh_process(_padded_loop, folder, device, passages, counts, refresh, lr, pace)
    adapted: list[torch.Tensor] = torch.load(folder / _ADAPTED, map_location=device)
    return timing, adapted


def time_pass(folder: Path, tokens: Sequence[int], *, autocast: bool, keep: bool) -> Timing:
    """A forward and backward pass on the CPU, in a fresh process.

    Args:
        folder: with a saved model.
        autocast: to bfloat16.
        keep: whether the process keeps the memory that it frees.
    """
    return in_fresh_process(_pass, folder, tokens, autocast, keep)


def _padded_loop(
    folder: Path,
    device: torch.device,
    passages: Sequence[Sequence[int]],
    counts: Sequence[int],
    refresh: int,
    lr: float,
    pace: Pace,
) -> Timing:
    model = _load(folder, device)
    base = [parameter.detach().clone() for parameter in model.parameters()]

    def finetune() -> None:
        padded_cloning_finetune(
            model,
            passages,
            counts,
            refresh=refresh,
            lr=lr,
            max_length=model.config.n_positions,
        )

    def restore() -> None:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), base)

    timing = measure(synchronised(finetune, device), pace, setup=restore)
    torch.save([parameter.detach() for parameter in model.parameters()], folder / _ADAPTED)
    return timing


def _pass(folder: Path, tokens: Sequence[int], autocast: bool, keep: bool) -> Timing:
    if keep:
        keep_freed_memory()
    model = _load(folder, torch.device("cpu"))
    mean_loss, text = MeanLoss(model), torch.tensor(tokens)

    def forward_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = mean_loss(text)
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)

    # The heap has its final size after a few passes.
    forward_backward()
    return measure(forward_backward, Pace(seconds=5.0, min_rounds=2, max_rounds=20))


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nn.Module.to(model, device)
    # Without dropout, as ours trains.
    model.train(False)
    return model
