"""Training passes as CUDA graphs: captured once for each length of text, then replayed.

Tests replay stand-ins on the CPU. Nobody has captured a pass on a GPU yet.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.models.attention import can_pad
from hullft_ops.ttft.models.forwards import is_observed
from hullft_ops.ttft.steps import StageClock

# Trains on a text, counts its stages on the clock, and returns the loss.
Pass = Callable[[Tensor, StageClock], Tensor]
# Records a call without running it. Returns a graph, whose ``replay()`` runs the call, and its
# result, which each replay fills.
Capture = Callable[[Callable[[], Tensor]], tuple[Any, Tensor]]


class PassGraphs:
    """The graphs of one model's passes, in one memory pool, which ``new_capture`` makes.

    A snapshot restores a model in place, so a graph serves one prompt after the other, until a
    tensor of the model or of the optimizer moves, or other adapters are active.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        new_capture: Callable[[], Capture] | None = None,
    ) -> None:
        self._model, self._trained = model, trained
        self._new_capture = new_capture or partial(_capture_on, model.device)
        self._capture: Capture | None = None
        # The graph, the text that it reads and the loss that it writes.
        self._captured: dict[Hashable, tuple[Any, Tensor, Tensor]] = {}
        self._state: list[object] = []
        self._failure = self._warned = ""

    @property
    def count(self) -> int:
        """How many kinds of passes are captured."""
        return len(self._captured)

    def can_serve(self, optimizer: torch.optim.Optimizer) -> bool:
        """Drop graphs that no longer fit. False, after a warning, if passes cannot be captured."""
        if why := self._failure or _obstacle(self._model):
            self._warn(why)
            return False
        if (state := _state(self._model, optimizer)) != self._state:
            self._drop()
            self._state = state
        return True

    def run(
        self, kind: Hashable, text: Tensor, one_pass: Pass, clock: StageClock
    ) -> Tensor:
        """Replay the pass of this kind, as the stage "forward", or run it and capture it.

        Passes of one kind differ only in values of tensors. They leave no gradients behind.
        """
        if kind not in self._captured:
            # A capture cannot load kernels. This call does.
            loss = one_pass(text, clock)
            if not self._failure:
                self._add(kind, text.clone(), one_pass)
            return loss
        graph, read, loss = self._captured[kind]
        with clock.of("forward"):
            read.copy_(text)
            graph.replay()
        # torch counts no write of a replay.
        torch.autograd.graph.increment_version(self._trained)
        return loss

    def _add(self, kind: Hashable, text: Tensor, one_pass: Pass) -> None:
        torch.clear_autocast_cache()  # a replay must cast the weights again
        self._capture = self._capture or self._new_capture()
        try:
            # Nobody can read events that were captured, so they go to a clock of their own.
            graph, loss = self._capture(
                partial(one_pass, text, StageClock(torch.device("cpu")))
            )
            self._captured[kind] = graph, text, loss
        except RuntimeError as error:
            self._failure = str(error).partition("\n")[0]
            self._drop()
            self._warn(self._failure)
            # They lie in the pool of the capture that was cut short.
            for parameter in self._trained:
                parameter.grad = None

    def _drop(self) -> None:
        # torch refuses a pool whose graphs are all gone.
        self._captured, self._capture = {}, None

    def _warn(self, why: str) -> None:
        if why != self._warned:
            self._warned = why
            warnings.warn(
                f"TestTimeFinetuner: training uses no CUDA graphs: {why}", stacklevel=2
            )


def _capture_on(device: torch.device) -> Capture:
    pool = torch.cuda.graph_pool_handle()
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(device),
            # torch would leave its stream current if the capture fails.
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(
                graph, pool, stream, "thread_local"
            ),  # other threads may call CUDA
        ):
            loss = run()
        return graph, loss

    return capture


def _obstacle(model: "PreTrainedModel") -> str | None:
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    if len(devices) > 1:
        return f"the model is on {len(devices)} devices"
    if not can_pad(model):
        return "its attention or its positions change with the length of a text"
    for parameter in model.parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return "a parameter has hooks"
    if any(is_observed(module) for module in model.modules()):
        return "a module has hooks or a patched forward"
    return None


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    """What graphs depend on and nobody passes to them."""
    moments = chain.from_iterable(state.values() for state in optimizer.state.values())
    state: list[object] = []
    for tensor in chain(model.parameters(), model.buffers(), moments):
        place = tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.requires_grad
        state.append(place)
    for module in model.modules():
        # Which of PEFT's adapters are active, and how they are scaled.
        if hasattr(module, "base_layer"):
            for name in ("disable_adapters", "active_adapters", "scaling"):
                state.append(str(getattr(module, name, None)))
    return state
