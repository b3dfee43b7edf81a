"""Putting a model back exactly as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hullft_ops._terminal import listed


@contextmanager
def restored(
    model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
) -> Iterator[list[Tensor]]:
    """Restore the model at the end of the body, even after an exception or Ctrl-C.

    The trained parameters, buffers, gradients, ``requires_grad`` flags and the attributes of
    modules, such as training modes, get the same bits as before, in the same storage, and torch its
    grad mode. Other changes stay. In the body the parameters have no gradients.

    Args:
        model: the model that contains ``trained``.
        trained: the parameters that the body changes.
        copies: memory for their copies, filled on the first call and used again by later ones.

    Yields:
        The values of ``trained`` from before, in the same order. Do not change them.

    Raises:
        RuntimeError: the body has put another kind of tensor in a tensor's place, such as one on
            the meta device. All others are restored.
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
        except KeyboardInterrupt:
            # It may have been cut short. It can be repeated.
            state.put_back()
            raise


@dataclass(frozen=True)
class _Parameter:
    """``values`` is the tensor itself, whatever the body makes of the parameter; None if frozen."""

    name: str
    parameter: nn.Parameter
    values: Tensor | None
    gradient: Tensor | None
    requires_grad: bool
    hooks: set[int]

    def put_back(self) -> None:
        if self.values is not None:
            # The body may have given it another shape.
            self.parameter.data = self.values
        self.parameter.requires_grad_(self.requires_grad)
        self.parameter.grad = self.gradient
        hooks = self.parameter._post_accumulate_grad_hooks or {}
        for key in hooks.keys() - self.hooks:
            # Ctrl-C has cut off its removal.
            del hooks[key]


@dataclass(frozen=True)
class _Buffer:
    name: str
    module: nn.Module
    buffer: Tensor
    values: Tensor
    content: Tensor

    def put_back(self) -> None:
        # A module may have put another tensor in its place, as dynamic RoPE does.
        self.module._buffers[self.name.rpartition(".")[-1]] = self.buffer
        self.buffer.data = self.values
        self.buffer.copy_(self.content)


class _State:
    def __init__(
        self, model: nn.Module, trained: Sequence[nn.Parameter], copies: list[Tensor]
    ) -> None:
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Writing to these counts as writing to the parameters.
            self._values: list[Tensor] = [parameter.detach() for parameter in trained]
            if _places(copies) != _places(trained):
                copies[:] = [torch.empty_like(parameter) for parameter in trained]
            if copies:  # torch refuses an empty list
                torch._foreach_copy_(copies, self._values)
            self._copies = copies
            self._parts: list[_Parameter | _Buffer] = [
                *self._parameters(model, trained),
                *_buffers(model),
            ]
        # Ctrl-C at the end of a `torch.no_grad` leaves it as it is.
        self._records_gradients = torch.is_grad_enabled()
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]

    def _parameters(
        self, model: nn.Module, trained: Sequence[nn.Parameter]
    ) -> Iterator[_Parameter]:
        positions = {id(parameter): i for i, parameter in enumerate(trained)}
        for name, parameter in model.named_parameters():
            position = positions.get(id(parameter))
            yield _Parameter(
                name,
                parameter,
                None if position is None else self._values[position],
                parameter.grad,
                parameter.requires_grad,
                set(parameter._post_accumulate_grad_hooks or ()),
            )

    def put_back(self) -> None:
        names = []
        with torch.inference_mode(False), torch.no_grad():
            if self._copies:
                torch._foreach_copy_(self._values, self._copies)
            for part in self._parts:
                try:
                    part.put_back()
                except RuntimeError:
                    names.append(part.name)
        for module, attributes in self._attributes:
            vars(module).update(attributes)
        torch.set_grad_enabled(self._records_gradients)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()
        if names:
            raise RuntimeError(
                f"adapted: {listed(names)} cannot be restored: the with block put another kind of "
                "tensor there; everything else is as before"
            )


def _buffers(model: nn.Module) -> Iterator[_Buffer]:
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                values = buffer.detach()
                yield _Buffer(
                    f"{prefix}.{name}", module, buffer, values, buffer.clone()
                )


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    return [(tensor.dtype, tensor.device) for tensor in tensors]
