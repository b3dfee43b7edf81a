"""``GradientCache.accumulate`` on float32 gradients."""

from dataclasses import dataclass
from functools import partial

import torch

import hullft_ops
from benchmarks import parameters
from benchmarks.recorder import Recorder


@dataclass(frozen=True)
class Case:
    tensors: int
    total: int
    beta: float

    def __str__(self) -> str:
        return f"{self.tensors}x-{self.total / 1e6:.3g}M-beta{self.beta:g}"


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(3, 3000, 0.0), Case(3, 3000, 1.0)]
    return [Case(148, 124_000_000, 0.0), Case(148, 124_000_000, 1.0)]


def test_accumulate(case: Case, recorder: Recorder, device: torch.device) -> None:
    shapes = parameters.even_shapes(case.tensors, case.total)
    params = [torch.zeros(shape, device=device) for shape in shapes]
    gradients = parameters.random_tensors(shapes, 1e-3, device, seed=0)
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = gradient
    cache = hullft_ops.GradientCache(params)
    cache.accumulate(0, beta=0.0)
    cache.accumulate(0, beta=case.beta)
    copies = [torch.empty_like(gradient) for gradient in gradients]

    def foreach() -> None:
        if case.beta == 0:
            torch._foreach_copy_(copies, gradients)
        else:
            torch._foreach_mul_(copies, case.beta)
            torch._foreach_add_(copies, gradients)

    torch._foreach_copy_(copies, gradients)
    foreach()
    for ours, theirs in zip(cache.gradients(0).values(), copies, strict=True):
        assert torch.equal(ours, theirs)
    recorder.ours(partial(cache.accumulate, 0, beta=case.beta))
    recorder.peer("torch foreach", foreach)
