"""Putting a model back exactly as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def restored(
    model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
) -> Iterator[list[Tensor]]:
    """Restore the model at the end of the body, even after an exception or Ctrl-C.

    The trained parameters, buffers, gradients, ``requires_grad`` flags and training modes get the
    same bits as before, in the same storage, and torch its modes. A storage that the body has
    cut grows back. Other changes stay. In the body the parameters have no gradients.

    Args:
        model: the model that contains ``trained``.
        trained: the parameters that the body changes.
        copies: memory for their copies, filled on the first call and used again by later ones.

    Yields:
        The values of ``trained`` from before, in the same order. Do not change them.
    """
    state = _State(model, trained, copies)
    try:
        for parameter in model.parameters():
            # Detached, not zeroed: a backward pass must not add to a gradient that is kept.
            parameter.grad = None
        yield copies
    finally:
        try:
            state.put_back()
        except BaseException:
            # Ctrl-C may have cut it short. It can be repeated.
            state.put_back()
            raise


class _State:
    def __init__(
        self, model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
    ) -> None:
        self._modes = _Modes(next(model.parameters()).device.type)
        self._trained: list[Tensor] = list(trained)
        self._copies = copies
        self._parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        self._modules = [(module, _values_of(module)) for module in model.modules()]
        self._buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if _places(copies) != _places(trained):
                copies[:] = [torch.empty_like(parameter) for parameter in trained]
            if copies:  # torch refuses an empty list
                torch._foreach_copy_(copies, self._trained)
            for module, _ in self._modules:
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        self._buffers.append((module, name, buffer, buffer.clone()))
        written = [*trained, *(buffer for _, _, buffer, _ in self._buffers)]
        storages = [tensor.untyped_storage() for tensor in written]
        self._storages = [(storage, storage.nbytes()) for storage in storages]

    def put_back(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for storage, size in self._storages:
                # A copy trusts the tensor's shape: past the end it would corrupt the heap.
                if storage.nbytes() < size:
                    storage.resize_(size)
            if self._copies:
                torch._foreach_copy_(self._trained, self._copies)
            for parameter, gradient, requires_grad in self._parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
            for module, name, buffer, content in self._buffers:
                # A module may have put another tensor in its place, as dynamic RoPE does.
                module._buffers[name] = buffer
                buffer.copy_(content)
        for module, values in self._modules:
            vars(module).update(values)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()
        self._modes.put_back()


class _Modes:
    """torch's modes in this thread, which Ctrl-C at the end of a `torch.no_grad` or an autocast
    leaves as they are."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._records_gradients = torch.is_grad_enabled()
        self._casts = torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device)
        # In how many autocasts this is: only the end of the last one clears their cache.
        self._depth = torch.autocast_increment_nesting() - 1
        torch.autocast_decrement_nesting()

    def put_back(self) -> None:
        torch.set_grad_enabled(self._records_gradients)
        torch.set_autocast_enabled(self._device, self._casts)
        torch.set_autocast_dtype(self._device, self._dtype)
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > self._depth:
            pass


def _values_of(module: nn.Module) -> dict[str, Any]:
    """The training mode, and what a module keeps beside its buffers.

    Dynamic RoPE keeps there for how many positions its frequencies are.
    """
    if not module._buffers:
        return {"training": module.training}
    values = vars(module).items()
    return {name: v for name, v in values if isinstance(v, int | float | Tensor)}


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    return [(tensor.dtype, tensor.device) for tensor in tensors]
