"""Merging experts into a model's weights, against one ``addmm_`` for each weight.

The peer's factors are concatenated and multiplied by the experts' weights before the time is taken.
Ours looks them up, checks them and does both each time.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from benchmarks.recorder import Recorder
from hullft_ops.ttft import keep_freed_memory
from hullft_ops.ttft.experts.folder import Experts, Factors
from hullft_ops.ttft.experts.merge import ExpertMerger, add
from hullft_ops.ttft.training.steps import StageClock

ADDMM = "addmm_ of concatenated factors"
DIFFERENCE = "largest difference from addmm_, relative"
_SCALE = 2.0


@dataclass(frozen=True)
class Case:
    """The linear layers of a Llama. 30 layers of 576 are SmolLM2-135M's."""

    layers: int
    hidden: int
    experts: int = 4
    rank: int = 16

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden}-E{self.experts}-r{self.rank}"

    def shapes(self) -> list[tuple[int, int]]:
        h, heads, inner = self.hidden, self.hidden // 3, 8 * self.hidden // 3
        layer = [
            (h, h),
            (heads, h),
            (heads, h),
            (h, h),
            (inner, h),
            (inner, h),
            (h, inner),
        ]
        return self.layers * layer


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(1, 24, 2, 3)]
    if grid == "quick":
        return [Case(30, 576)]
    return [
        Case(30, 576, experts, rank) for experts in (1, 4, 8) for rank in (8, 16, 32)
    ]


def test_experts(case: Case, recorder: Recorder, device: torch.device) -> None:
    # Pages differ in speed, so both sides must use the same ones.
    keep_freed_memory()
    model = _linear_layers(case, device)
    experts = _InMemory(case, model)
    weights = torch.softmax(torch.arange(case.experts, dtype=torch.float32), 0).tolist()
    trained = list(model.parameters())
    merger = ExpertMerger(
        cast(Any, model),
        trained,
        cast(Any, None),
        cast(Experts, experts),
        case.experts,
        1.0,
        None,
    )

    def ours() -> None:
        clock = StageClock(device)
        add(merger.read(range(case.experts), weights, clock), clock)

    others = [parameter.detach().clone() for parameter in trained]
    concatenated = experts.concatenated(weights, device)

    def peer() -> None:
        for other, (b, a) in zip(others, concatenated, strict=True):
            other.addmm_(b, a)

    ours()
    peer()
    off = max(
        float((one.detach() - other).norm() / other.norm())
        for one, other in zip(trained, others, strict=True)
    )
    recorder.fact(DIFFERENCE, off)
    recorder.ours(ours)
    recorder.peer(ADDMM, peer)
    assert off < 1e-6


class _InMemory:
    """Random factors under the weights' names, as `Experts` keeps those that it has read."""

    digest = "in memory"

    def __init__(self, case: Case, model: nn.Module) -> None:
        random = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> torch.Tensor:
            return 1e-3 * torch.randn(*shape, generator=random)

        self._updates = [
            {
                name: Factors(
                    draw(p.shape[0], case.rank), draw(case.rank, p.shape[1]), _SCALE
                )
                for name, p in model.named_parameters()
            }
            for _ in range(case.experts)
        ]

    def check(self, *arguments: object) -> None:
        """They are of the model."""

    def update(self, expert: int) -> dict[str, Factors]:
        return self._updates[expert]

    def concatenated(
        self, weights: list[float], device: torch.device
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for factors in zip(*(update.values() for update in self._updates), strict=True):
            b = [
                weight * f.scale * f.b
                for weight, f in zip(weights, factors, strict=True)
            ]
            a = [f.a for f in factors]
            found.append((torch.cat(b, 1).to(device), torch.cat(a).to(device)))
        return found


def _linear_layers(case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(columns, rows, bias=False) for rows, columns in case.shapes()]
    return nn.ModuleList(layers).to(device)
