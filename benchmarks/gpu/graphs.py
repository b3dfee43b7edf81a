"""Every operator captured in a CUDA graph, and replayed on other data.

Capture forbids synchronisation and allocation outside torch's allocator; the replay must give the
bits of an eager call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.calls import calls

_WARM_UPS = 2


class Graph:
    """A function without arguments, captured; on the CPU it is called again instead."""

    def __init__(self, function: Callable[[], Sequence[torch.Tensor]], device: torch.device):
        self._function = function
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


def run(device: torch.device, *, small: bool) -> dict[str, Any]:
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
                    raise RuntimeError(f"{name}: a replayed graph differs from an eager call")
            fresh.check(out)
    return {"captured": list(first)}
