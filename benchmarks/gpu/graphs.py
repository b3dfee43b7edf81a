"""Every operator captured in a CUDA graph, and replayed on other data.

Capture forbids synchronisation and allocation outside torch's allocator. The replay must give the
same bits as an eager call.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu.calls import calls
from benchmarks.timing import Pace, measure
from hullft_ops import ReplayAdam

REPLAY_SECONDS = "seconds of a graph's replay"
_WARM_UPS = 2
_TIMED_REPLAYS = 50


class Graph:
    """A captured function without arguments. On the CPU it is called again instead."""

    def __init__(
        self, function: Callable[[], Sequence[torch.Tensor]], device: torch.device
    ):
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
            return measure(self.replay, Pace(0.0, 2, 2)).seconds
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_TIMED_REPLAYS):
            self.replay()
        end.record()
        torch.cuda.synchronize(self._device)
        return float(start.elapsed_time(end)) / 1e3 / _TIMED_REPLAYS


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    first, second = calls(seed=0), calls(seed=100)
    for name, call in first.items():
        static = call.on(device)
        graph = Graph(lambda call=call, static=static: call.run(*static), device)  # type: ignore[misc]
        for fresh in (second[name], call):
            for tensor, values in zip(static, fresh.inputs.values(), strict=True):
                tensor.copy_(values)
            out = [tensor.cpu() for tensor in graph.replay()]
            eager = [tensor.cpu() for tensor in fresh.run(*fresh.on(device))]
            for found, wanted in zip(out, eager, strict=True):
                if not torch.equal(found, wanted):
                    raise RuntimeError(
                        f"{name}: a replayed graph differs from an eager call"
                    )
            fresh.check(out)
    _check_optimizer(device)
    yield {"captured": [*first, "ReplayAdam, capturable"]}


def _check_optimizer(device: torch.device) -> None:
    """Captured steps must keep counting, and read a rate and a gradient that change meanwhile."""
    start = torch.linspace(-1, 1, 3000).bfloat16()
    optimizers, params = [], []
    rate = torch.tensor(1e-2, device=device)
    for capturable in (True, False):
        param = start.clone().to(device).requires_grad_()
        param.grad = torch.zeros_like(param)
        params.append(param)
        optimizers.append(
            ReplayAdam(
                [param],
                lr=rate if capturable else 1e-2,
                capturable=capturable,
                rounding_seed=3,
            )
        )
    captured, eager = optimizers

    def step() -> list[torch.Tensor]:
        captured.step(repeats=2)
        return [params[0].detach()]

    graph = Graph(step, device)
    captured.reset()
    params[0].data.copy_(start)
    for i in range(3):
        for param in params:
            param.grad = _filled(param, i)
        rate.fill_(1e-2 / (i + 1))
        eager.param_groups[0]["lr"] = rate.item()
        (found,) = graph.replay()
        eager.step(repeats=2)
        if not torch.equal(found.cpu(), params[1].detach().cpu()):
            raise RuntimeError(f"ReplayAdam: captured steps {i} differ from eager ones")


def _filled(param: torch.Tensor, i: int) -> torch.Tensor:
    """The gradient with other values, in the memory that a graph has captured."""
    if param.grad is None:
        raise RuntimeError("ReplayAdam: the parameter has lost its gradient")
    return param.grad.copy_(torch.linspace(-i, 2, param.numel()).to(param.grad))
