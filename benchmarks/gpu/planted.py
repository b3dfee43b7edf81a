"""Training passes that cannot be captured: the failure must leave the process as it was."""

from typing import Any

import torch
from torch import nn

from benchmarks.bench_ttft import DIFFERENCE, Adapting, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.graphs import Graph
from benchmarks.gpu.kernels import GRAPH_LAUNCH, launched
from benchmarks.passages import TrigramEmbedder
from hullft_ops.replay import is_captured

# Of the same prompt, until its passes are captured and replayed.
ADAPTATIONS = 5


def repeated(eager: Adapting) -> tuple[list[torch.Tensor], float]:
    """Where an adaptation without graphs ends, and how far from that it ends the next times.

    torch's attention may add up in another order each time, and then Adam goes another way.
    """
    end, *others = (eager.end() for _ in range(3))
    return end, max(eager.apart(other, end) for other in others)


class Waiting(nn.Module):
    """A module that waits for the device, which no graph can: always, or only in a capture.

    If only in a capture, that fails in the middle of a pass.
    """

    def __init__(self, inner: nn.Module, always: bool) -> None:
        super().__init__()
        self.inner, self._always = inner, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._always or is_captured(x.device):
            x.sum().item()
        output: torch.Tensor = self.inner(x)
        return output


def plant(device: torch.device, always: bool, findings: Findings) -> None:
    """Adapt a model that cannot be captured. Nothing else may notice."""
    case = Case("gpt2-small", 4, lengths="short", texts=12)
    adapting = Adapting(case, device, TrigramEmbedder())
    expected, repetition = repeated(
        Adapting(case, device, TrigramEmbedder(), graphs=False)
    )
    allowed = max(case.allowed_difference, 2 * repetition)
    block: Any = adapting.model.get_submodule("transformer.h.0.mlp")
    block.act = Waiting(block.act, always)
    try:
        for _ in range(ADAPTATIONS):
            apart = adapting.apart(adapting.end(), expected)
    finally:
        block.act = block.act.inner
    findings.must(DIFFERENCE, apart, allowed)
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    drawn = torch.randn(8, device=device)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(8, device=device)), "the generator is stuck"
    (doubled,) = Graph(lambda: [2 * drawn], device).replay()
    assert torch.equal(doubled, 2 * drawn), "the next graph is wrong"
    fresh = Adapting(case, device, TrigramEmbedder())
    for _ in range(ADAPTATIONS):
        apart = fresh.apart(fresh.end(), expected)
    findings.must(f"{DIFFERENCE}, in the next graphs", apart, allowed)
    launches = launched(fresh.adapt, device)
    if device.type == "cuda":
        assert launches[GRAPH_LAUNCH].count, "no graph was replayed"
