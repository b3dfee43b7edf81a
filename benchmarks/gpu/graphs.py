"""Every operator captured in a CUDA graph, and replayed on other data.

Capture forbids synchronisation and allocation outside torch's allocator. The replay must give the
same bits as an eager call.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.operators import Call, calls
from benchmarks.gpu.tasks import Task
from benchmarks.timing import Pace, measure
from hullft_ops import ReplayAdam

_WARM_UPS = 2
_TIMED_REPLAYS = 50


class Graph:
    """A captured function without arguments. On the CPU it is called again instead."""

    def __init__(
        self, function: Callable[[], Sequence[torch.Tensor]], device: torch.device
    ) -> None:
        self._function, self._device = function, device
        self._captured: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self.outputs = function()
            return
        side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream(device).wait_stream(side)
        self._captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._captured):
            self.outputs = function()

    def replay(self) -> Sequence[torch.Tensor]:
        if self._captured is None:
            self.outputs = self._function()
        else:
            self._captured.replay()
        return self.outputs

    def seconds(self) -> float:
        """Seconds of a replay in a row, timed by the device, without Python's cost of a call."""
        self.replay()
        if self._captured is None:
            return measure(self.replay, Pace(0.0, 2, 2))
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_TIMED_REPLAYS):
            self.replay()
        end.record()
        torch.cuda.synchronize(self._device)
        return float(start.elapsed_time(end)) / 1e3 / _TIMED_REPLAYS


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    first, second = calls(seed=0, small=small), calls(seed=100, small=small)
    for name, call in first.items():
        yield name, partial(_check_replay, call, second[name], device)
    yield "ReplayAdam, capturable", partial(_check_optimizer, device)


def _check_replay(
    call: Call, other: Call, device: torch.device, findings: Findings
) -> None:
    static = call.on(device)
    graph = Graph(partial(call.run, *static), device)
    for fresh in (other, call):
        for tensor, values in zip(static, fresh.inputs, strict=True):
            tensor.copy_(values)
        replayed = [tensor.cpu() for tensor in graph.replay()]
        eager = [tensor.cpu() for tensor in fresh.run(*fresh.on(device))]
        for output, expected in zip(replayed, eager, strict=True):
            assert torch.equal(output, expected), "a replay differs from an eager call"


def _check_optimizer(device: torch.device, findings: Findings) -> None:
    """Captured steps must keep counting, and read a rate and a gradient that change meanwhile."""
    start = torch.linspace(-1, 1, 3000).bfloat16()
    params = [start.clone().to(device).requires_grad_() for _ in range(2)]
    gradients = [torch.zeros_like(param) for param in params]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    rate = torch.tensor(1e-2, device=device)
    captured = ReplayAdam([params[0]], lr=rate, capturable=True, rounding_seed=3)
    eager = ReplayAdam([params[1]], lr=1e-2, rounding_seed=3)

    def step() -> list[torch.Tensor]:
        captured.step(repeats=2)
        return [params[0].detach()]

    graph = Graph(step, device)
    captured.reset()
    params[0].data.copy_(start)
    for i in range(3):
        for gradient in gradients:  # in the captured memory
            gradient.copy_(torch.linspace(-i, 2, start.numel()))
        rate.fill_(1e-2 / (i + 1))
        eager.param_groups[0]["lr"] = rate.item()
        (replayed,) = graph.replay()
        eager.step(repeats=2)
        expected = params[1].detach().cpu()
        assert torch.equal(replayed.cpu(), expected), f"captured steps {i} differ"
