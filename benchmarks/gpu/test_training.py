"""Adapting GPT-2's architecture on the device, with CUDA graphs and without, against plain torch.

The weights are random, the embedder counts trigrams: nothing is downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from benchmarks.gpu.graph import Graph
from benchmarks.gpu.kernels import attention_kernels
from hullft_ops import ReplayAdam
from hullft_ops.replay import is_captured

if TYPE_CHECKING:
    from benchmarks import adapting
    from benchmarks.passages import TrigramEmbedder
else:
    adapting = pytest.importorskip("benchmarks.adapting", exc_type=ImportError)
    TrigramEmbedder = adapting.TrigramEmbedder

# Of the same prompt, until all of its passes are captured and replayed.
ADAPTATIONS = 5
# Of a gradient, relative to its norm: the rounding of one pass.
_GRADIENT_ERROR = {None: 1e-5, "bfloat16": 0.05}
# Between two adaptations without graphs, as a share of the change.
_REPETITION = {None: 0.01, "bfloat16": 0.2}
# An eps so large that a step of Adam is the gradient, times the rate / eps.
_EPS, _SCALE = 1e8, 2.0**10

with_graphs = pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])


def cases(grid: str) -> list["adapting.Case"]:
    if grid == "smoke":
        return [adapting.SMALL, replace(adapting.SMALL, dtype="bfloat16")]
    return [adapting.Case("gpt2"), adapting.Case("gpt2", dtype="bfloat16")]


def adapter(
    case: "adapting.Case", device: torch.device, **options: Any
) -> "adapting.Adapting":
    return adapting.Adapting(case, device, TrigramEmbedder(), **options)


def end_of_the_last(of: "adapting.Adapting") -> list[torch.Tensor]:
    for _ in range(ADAPTATIONS - 1):
        of.adapt()
    return of.end()


@with_graphs
def test_the_gradient_of_a_pass_is_that_of_float64(
    case: "adapting.Case",
    graphs: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adam = partial(ReplayAdam, eps=_EPS)
    monkeypatch.setattr("hullft_ops.ttft.training.ReplayAdam", adam)
    one_step = replace(case, n_select=1, refresh=1)
    ours = adapter(one_step, device, graphs=graphs, lr=_SCALE * _EPS)
    start = adapting.copies(ours.model)
    end = end_of_the_last(ours)

    exact = deepcopy(ours.model).double()
    tokens = torch.tensor([ours.support.input_ids[0]], device=device)
    exact(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    errors, norms = [], []
    for before, after, parameter in zip(start, end, exact.parameters(), strict=True):
        assert parameter.grad is not None
        gradient = (before.double() - after.double()) / _SCALE
        errors.append((gradient - parameter.grad).norm())
        norms.append(parameter.grad.norm())
    error = torch.stack(errors).norm() / torch.stack(norms).norm()
    print(f"relative error of the gradient: {error:.3g}")
    assert error <= _GRADIENT_ERROR[case.dtype]


@with_graphs
def test_an_adaptation_ends_where_plain_loops_end(
    case: "adapting.Case", graphs: bool, device: torch.device
) -> None:
    ours = adapter(case, device, graphs=graphs)
    for _ in range(ADAPTATIONS):
        ours.adapt()
    difference = ours.difference()
    print(f"difference, of the change: {difference:.3g}")
    assert difference <= case.allowed_difference(device)


def test_an_adaptation_ends_where_the_last_one_did(
    case: "adapting.Case", device: torch.device
) -> None:
    """torch's attention may add up in another order each time, and then Adam goes another way."""
    ours = adapter(case, device)
    end, *others = (ours.end() for _ in range(3))
    difference = max(ours.apart(other, end) for other in others)
    print(f"difference, of the change: {difference:.3g}")
    assert difference <= _REPETITION[case.dtype]


@contextmanager
def counted_replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The graphs that are replayed in the body, one after the other."""
    replays: list[object] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda.CUDAGraph, "replay", counted)
        yield replays


def test_every_pass_is_replayed_with_the_attention_that_it_has_without_graphs(
    case: "adapting.Case", device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, ours = adapter(case, device), adapter(case, device, graphs=True)
    for _ in range(ADAPTATIONS):
        ours.adapt()
    with (
        counted_replays(monkeypatch) as replays,
        ours.finetuner.adapted(ours.prompt) as adaptation,
    ):
        pass
    assert len(replays) == (adaptation.passes if device.type == "cuda" else 0)

    expected = attention_kernels(eager.adapt, device)
    assert expected or device.type == "cpu"
    assert attention_kernels(ours.adapt, device) == expected


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


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.filterwarnings("ignore:TestTimeFinetuner. training uses no CUDA graphs")
def test_nothing_notices_a_capture_that_fails(
    always: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = adapter(adapting.SMALL, device).end()
    allowed = adapting.SMALL.allowed_difference(device)
    ours = adapter(adapting.SMALL, device, graphs=True)
    block: Any = ours.model.get_submodule("transformer.h.0.mlp")
    block.act = Waiting(block.act, always)
    try:
        assert ours.apart(end_of_the_last(ours), expected) <= allowed
    finally:
        block.act = block.act.inner

    torch.manual_seed(0)
    drawn = torch.randn(8, device=device)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(8, device=device)), "the generator is stuck"

    (doubled,) = Graph(lambda: [2 * drawn], device).replay()
    assert torch.equal(doubled, 2 * drawn), "the next graph is wrong"

    fresh = adapter(adapting.SMALL, device, graphs=True)
    assert fresh.apart(end_of_the_last(fresh), expected) <= allowed
    with counted_replays(monkeypatch) as replays:
        fresh.adapt()
    assert replays or device.type == "cpu", "no graph was replayed"
