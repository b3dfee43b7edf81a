"""Keeping a model for one caller, and putting it back exactly as it was."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hullft_ops.ttft.models.checks import unwrapped
from hullft_ops.ttft.models.modes import ThreadModes, restore_modes
from hullft_ops.ttft.signals import at_exit, signal_safe

# The thread that has each model at the moment. A tuple, so that each call has its own.
_callers: "WeakKeyDictionary[nn.Module, tuple[int]]" = WeakKeyDictionary()


@signal_safe
def exclusive(model: Any, *, adapts: bool = False) -> Iterator[None]:
    """Keep other threads from the model in the body. Nobody waits.

    The wrappers of PEFT and ``torch.compile`` and the model within them are one. Whoever has a
    model may read it again, to score it within an adaptation, but not adapt it.

    Raises:
        RuntimeError: the model is in use elsewhere, or, to adapt it, here.
    """
    key = unwrapped(model)
    caller = (threading.get_ident(),)
    with at_exit(partial(_release, key, caller)):
        # One operation, which no other thread can come between.
        holder = _callers.setdefault(key, caller)
        if holder != caller or (adapts and holder is not caller):
            place = "here" if holder == caller else "in another thread"
            raise RuntimeError(
                f"TestTimeFinetuner: the model is in use {place} already: leave that with block "
                "first, or use a copy of the model"
            )
        yield


def _release(key: nn.Module, caller: tuple[int]) -> None:
    # A call that was refused, or that is within another, must not end the other.
    if _callers.get(key) is caller:
        del _callers[key]


@signal_safe
def restored(
    model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
) -> Iterator[list[Tensor]]:
    """Restore the model at the end of the body, even after an exception or Ctrl-C.

    The trained parameters, buffers, gradients, ``requires_grad`` flags and training modes get the
    same bits as before, in the same storage, and this thread its grad mode and autocast. Other
    changes stay. In the body the parameters have no gradients.

    Args:
        model: the model that contains ``trained``.
        trained: the parameters that the body changes.
        copies: memory for their copies, filled on the first call and used again by later ones.

    Yields:
        The values of ``trained`` from before, in the same order. Do not change them.
    """
    device = next(model.parameters()).device
    with at_exit(ThreadModes(device).put_back):
        state = _State(model, trained, copies)
        with at_exit(state.put_back):
            for parameter in model.parameters():
                # Detached, not zeroed: a backward pass must not add to a gradient that is kept.
                parameter.grad = None
            yield copies


class _State:
    def __init__(
        self, model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
    ) -> None:
        self._copies = copies
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Writing to these counts as writing to the parameters.
            self._values: list[Tensor] = [parameter.detach() for parameter in trained]
            if _places(copies) != _places(trained):
                copies[:] = [torch.empty_like(parameter) for parameter in trained]
            if copies:  # torch refuses an empty list
                torch._foreach_copy_(copies, self._values)
            self._parameters = [
                (parameter, parameter.detach(), parameter.grad, parameter.requires_grad)
                for parameter in model.parameters()
            ]
            self._buffers = [
                (module, name, buffer, buffer.clone())
                for module in model.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None
            ]
        self._modes = [(module, module.training) for module in model.modules()]

    def put_back(self) -> None:
        # In inference mode too, parameters count what is written to them.
        with torch.no_grad():
            if self._copies:
                torch._foreach_copy_(self._values, self._copies)
            for parameter, values, gradient, requires_grad in self._parameters:
                if requires_grad:
                    # The body may have given it another shape.
                    parameter.data = values
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
            for module, name, buffer, content in self._buffers:
                # A module may have put another tensor in its place, as dynamic RoPE does.
                module._buffers[name] = buffer
                buffer.copy_(content)
        restore_modes(self._modes)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    return [(tensor.dtype, tensor.device) for tensor in tensors]
