"""``ReplayAdam.step(repeats=r)`` against r steps of torch's Adam, float32."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import hullft_ops
from benchmarks import parameters, peers
from benchmarks.recorder import Recorder
from hullft_ops.ttft import keep_freed_memory

TIMES_ONE_STEP = "times one step"
DIFFERENCE = "largest difference from torch, of the allowed"
_LR = 5e-5
# A machine with 16 GiB has room for two optimizers, a peer's and ours, of this many parameters.
_MOST_IN_TURNS = 200_000_000
_BUFFERS_READ = 4  # parameter, gradient, two moments
_BUFFERS_WRITTEN = 3  # all but the gradient


@dataclass(frozen=True)
class Case:
    tensors: int
    total: int
    repeats: int
    gpt2: bool = False

    def __str__(self) -> str:
        model = "gpt2-" if self.gpt2 else ""
        return f"{model}{self.tensors}x-{self.total / 1e6:.3g}M-r{self.repeats}"

    def shapes(self) -> list[torch.Size]:
        if self.gpt2:
            return parameters.gpt2_shapes()
        return parameters.even_shapes(self.tensors, self.total)


def _gpt2_case(repeats: int) -> Case:
    total = sum(shape.numel() for shape in parameters.gpt2_shapes())
    return Case(parameters.GPT2_TENSORS, total, repeats, gpt2=True)


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(3, 3000, 1), Case(3, 3000, 4)]
    if grid == "quick":
        return [_gpt2_case(1), _gpt2_case(4)]
    found = [_gpt2_case(r) for r in (1, 2, 4, 8)]
    found += [Case(t, 16_000_000, r) for t in (1, 20, 300) for r in (1, 4)]
    found += [Case(20, total, r) for total in (1_000_000, 124_000_000) for r in (1, 4)]
    return [*found, Case(20, 500_000_000, 1), Case(20, 500_000_000, 4)]


def test_replay(case: Case, recorder: Recorder, device: torch.device) -> None:
    measure_replay(case, recorder, device)
    assert recorder.comparison.facts[DIFFERENCE] <= 1


def measure_replay(case: Case, recorder: Recorder, device: torch.device) -> None:
    # Pages differ in speed, so all sides must use the same ones.
    keep_freed_memory()
    shapes = case.shapes()
    gradients = parameters.random_tensors(shapes, 1e-3, device, seed=1)

    def fresh() -> list[torch.Tensor]:
        made = parameters.random_tensors(shapes, 0.02, device, seed=0)
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient
        return made

    expected = _time_ours(case, recorder, fresh())
    if case.total > _MOST_IN_TURNS:
        recorder.let_go()
    # Each peer is gone before the next one comes.
    names = peers.adams([], _LR)
    off = [_time_peer(case, recorder, name, fresh(), expected) for name in names]
    recorder.fact(DIFFERENCE, max(off))
    del expected
    _time_sweep(case, recorder, fresh())


def _time_ours(
    case: Case, recorder: Recorder, params: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The parameters after the first call."""
    optimizer = hullft_ops.ReplayAdam(params, lr=_LR)
    optimizer.step(repeats=case.repeats)
    stepped = [parameter.clone() for parameter in params]
    recorder.ours(lambda: optimizer.step(repeats=case.repeats))
    if case.repeats > 1:
        recorder.times(TIMES_ONE_STEP, optimizer.step)
    return stepped


def _time_peer(
    case: Case,
    recorder: Recorder,
    name: str,
    params: list[torch.Tensor],
    expected: list[torch.Tensor],
) -> float:
    """The largest difference of a parameter from ours, as a share of what rounding may cause."""
    step = _steps(peers.adams(params, _LR)[name](), case.repeats)
    step()
    # Each side rounds a parameter below 1/8 to float32 by up to 2^-28 a step.
    tolerance = case.repeats * (2 * 2**-28 + 1e-4 * _LR)
    off = max(
        (ours - theirs).abs().max().item()
        for ours, theirs in zip(expected, params, strict=True)
    )
    recorder.peer(name, step)
    return off / tolerance


def _steps(optimizer: torch.optim.Optimizer, repeats: int) -> Callable[[], None]:
    def step() -> None:
        for _ in range(repeats):
            optimizer.step()

    return step


def _time_sweep(case: Case, recorder: Recorder, params: list[torch.Tensor]) -> None:
    """Read the gradient; read and write three buffers of the parameters' size in place."""
    swept = torch.cat([parameter.flatten() for parameter in params])
    words = swept.view(torch.int32)

    def sweep() -> None:
        words.amax()
        for _ in range(_BUFFERS_WRITTEN):
            swept.neg_()

    recorder.sweep(sweep, (_BUFFERS_READ + _BUFFERS_WRITTEN) * swept.numel() * 4)
