"""Training passes as CUDA graphs: captured once for each length of text, then replayed.

Tests replay stand-ins on the CPU. Nobody has captured a pass on a GPU yet.
"""

import gc
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.capture import Recorder
from hullft_ops.ttft.models.attention import can_pad
from hullft_ops.ttft.models.forwards import is_observed
from hullft_ops.ttft.steps import StageClock

# Trains on a text, counts its stages on the clock, and returns the loss.
TrainOnText = Callable[[Tensor, StageClock], Tensor]

# So many passes of a kind run before one is captured. The first loads kernels and compares heads,
# the second rehearses the capture, and few prompts bring a rare length back.
_EAGER_PASSES = 2
# The lengths of a context of 2,048 tokens. Each graph keeps the arguments of thousands of kernels.
_MOST_GRAPHS = 32


class PassGraphs:
    """The graphs of one model's passes, the most recent ones, in one pool of memory.

    A snapshot restores a model in place, so a graph serves one prompt after the other, until a
    tensor of the model or of the optimizer moves, other adapters are active, or torch is to
    multiply or attend in another way.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trained: Sequence[nn.Parameter],
        recorder: Recorder | None = None,
    ) -> None:
        self._model, self._trained = model, trained
        self._recorder = recorder or Recorder(model.device)
        # The graph, the text that it reads and the loss that it writes; the last used comes last.
        self._captured: OrderedDict[Hashable, tuple[Any, Tensor, Tensor]] = (
            OrderedDict()
        )
        self._eager_passes: Counter[Hashable] = Counter()
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
        self, kind: Hashable, text: Tensor, one_pass: TrainOnText, clock: StageClock
    ) -> Tensor:
        """Run a pass of this kind, or replay it as the stage "forward".

        Passes of one kind differ only in values of tensors. They leave no gradients behind.
        """
        if self._eager_passes[kind] == _EAGER_PASSES and kind not in self._captured:
            self._add(kind, text.clone(), one_pass)
        if self._failure:
            return one_pass(text, clock)
        if kind not in self._captured:
            return self._run_eagerly(kind, text, one_pass, clock)
        self._captured.move_to_end(kind)
        graph, read, loss = self._captured[kind]
        with clock.of("forward"):
            read.copy_(text)
            graph.replay()
        # torch counts no write of a replay.
        torch.autograd.graph.increment_version(self._trained)
        return loss

    def _run_eagerly(
        self, kind: Hashable, text: Tensor, one_pass: TrainOnText, clock: StageClock
    ) -> Tensor:
        """A pass that waits for the GPU does not count, unless it is the first."""
        with self._recorder.watched() as waits:
            if self._eager_passes[kind]:
                loss = self._recorder.rehearse(partial(one_pass, text, clock))
            else:
                loss = one_pass(text, clock)
        if not waits or not self._eager_passes[kind]:
            self._eager_passes[kind] += 1
        else:
            self._warn(f"a pass waits for the GPU: {waits[0]}")
        return loss

    def _add(self, kind: Hashable, text: Tensor, one_pass: TrainOnText) -> None:
        if len(self._captured) == _MOST_GRAPHS:
            oldest, _ = self._captured.popitem(last=False)
            del self._eager_passes[oldest]
        torch.clear_autocast_cache()  # a replay must cast the weights again
        # Autograd's nodes in cycles still accumulate on the stream of an eager pass.
        gc.collect()
        try:
            graph, loss = self._recorder.record(
                partial(_without_events, one_pass, text)
            )
            self._captured[kind] = graph, text, loss
        except RuntimeError as error:
            self._failure = str(error).partition("\n")[0]
        if self._failure:
            # Gradients and the error's frames hold tensors of the pool.
            for parameter in self._trained:
                parameter.grad = None
            gc.collect()
            self._drop()
            self._warn(self._failure)

    def _drop(self) -> None:
        self._captured.clear()
        self._eager_passes.clear()
        self._recorder.release()

    def _warn(self, why: str) -> None:
        if why != self._warned:
            self._warned = why
            warnings.warn(
                f"TestTimeFinetuner: training uses no CUDA graphs: {why}", stacklevel=2
            )


def _without_events(one_pass: TrainOnText, text: Tensor) -> Tensor:
    # Nobody can read events that were captured, so they go to a clock of their own.
    return one_pass(text, StageClock(torch.device("cpu")))


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
    """State that a graph bakes in."""
    moments = chain.from_iterable(state.values() for state in optimizer.state.values())
    cuda: Any = torch.backends.cuda
    state: list[object] = [
        # torch.set_float32_matmul_precision sets it too.
        cuda.matmul.fp32_precision,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    ]
    for tensor in chain(model.parameters(), model.buffers(), moments):
        place = tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.requires_grad
        state.append(place)
    for module in model.modules():
        # Which of PEFT's adapters are active, and how they are scaled.
        if hasattr(module, "base_layer"):
            for name in ("disable_adapters", "active_adapters", "scaling"):
                state.append(str(getattr(module, name, None)))
    return state
