"""``ReplayAdam.step(repeats=r)`` against r steps of torch's Adam, float32."""

from dataclasses import dataclass

import torch

import hullft_ops
from benchmarks import parameters, peers
from benchmarks.recorder import Recorder
from benchmarks.timing import Call

_LR = 5e-5
_BUFFERS_READ = 4  # parameter, gradient, two moments
_BUFFERS_WRITTEN = 3  # all but the gradient


@dataclass(frozen=True)
class Case:
    """``tensors`` equal vectors of ``total`` elements in all, or the parameters of GPT-2."""

    repeats: int
    tensors: int = parameters.GPT2_TENSORS
    total: int = parameters.GPT2_TOTAL
    gpt2: bool = True

    def __str__(self) -> str:
        model = "gpt2-" if self.gpt2 else ""
        return f"{model}{self.tensors}x-{self.total / 1e6:.3g}M-r{self.repeats}"

    @property
    def bytes_moved(self) -> int:
        """By a sweep in place, however many steps it takes."""
        return (_BUFFERS_READ + _BUFFERS_WRITTEN) * self.total * 4

    def shapes(self) -> list[torch.Size]:
        if self.gpt2:
            return parameters.gpt2_shapes()
        return parameters.even_shapes(self.tensors, self.total)


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(repeats, 3, 3000, gpt2=False) for repeats in (1, 4)]
    return [Case(1), Case(4)]


def test_replay(case: Case, recorder: Recorder, device: torch.device) -> None:
    _assert_as_torch(case, device)
    params = _with_gradients(case, device)
    optimizer = hullft_ops.ReplayAdam(params, lr=_LR)
    recorder.ours(lambda: optimizer.step(repeats=case.repeats))
    if case.repeats > 1:
        recorder.peer("one step of ours", optimizer.step)
    for name, make in peers.adams(_LR).items():
        # Each peer is gone before the next one comes.
        theirs = make(_with_gradients(case, device))
        recorder.peer(name, _steps(theirs, case.repeats))
        del theirs


def _assert_as_torch(case: Case, device: torch.device) -> None:
    ours, theirs = _with_gradients(case, device), _with_gradients(case, device)
    hullft_ops.ReplayAdam(ours, lr=_LR).step(repeats=case.repeats)
    _steps(torch.optim.Adam(theirs, lr=_LR), case.repeats)()
    # Each side rounds a parameter below 1/8 to float32 by up to 2^-28 a step.
    tolerance = case.repeats * (2 * 2**-28 + 1e-4 * _LR)
    errors = torch._foreach_norm(torch._foreach_sub(ours, theirs), float("inf"))
    assert torch.stack(errors).max() <= tolerance


def _with_gradients(case: Case, device: torch.device) -> list[torch.Tensor]:
    """The same parameters and gradients at every call."""
    params = parameters.random_tensors(case.shapes(), 0.02, device, seed=0)
    gradients = parameters.random_tensors(case.shapes(), 1e-3, device, seed=1)
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = gradient
    return params


def _steps(optimizer: torch.optim.Optimizer, repeats: int) -> Call:
    def step() -> None:
        for _ in range(repeats):
            optimizer.step()

    return step
