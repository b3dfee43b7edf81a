"""A function captured as a CUDA graph."""

from collections.abc import Callable, Sequence

import torch

_WARM_UPS = 2
# In a row, so that Python's cost of a call and the wait at the end hardly count.
REPLAYS = 50


class Graph:
    """A captured function without arguments. On the CPU it is called again instead."""

    def __init__(
        self, function: Callable[[], Sequence[torch.Tensor]], device: torch.device
    ) -> None:
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

    def replay_in_a_row(self) -> None:
        """`REPLAYS` times."""
        for _ in range(REPLAYS):
            self.replay()
