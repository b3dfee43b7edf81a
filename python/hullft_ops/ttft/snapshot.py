"""Putting a model back exactly as it was."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hullft_ops.ttft.structure import (
    adapters_restored,
    is_computed,
    modules_restored,
    parameters_restored,
    parametrizations_restored,
)


class ModelSnapshot:
    """A copy of the parameters that finetuning changes, its memory kept from use to use.

    Args:
        model: the model.
        trained: those of its parameters that will change, each once.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        self._model = model
        self._trained: list[torch.Tensor] = list(trained)
        self._saved: list[torch.Tensor] = []

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the model back on exit, whatever the exit.

        The trained parameters and all buffers come back bit for bit, copied into the storage they
        came from, so that every alias of one (tied weights, an optimizer) sees it. So do
        gradients, ``requires_grad`` flags, the modes of the modules, plain values that modules
        and their configurations keep as attributes, parameters that were replaced or removed,
        modules that were replaced, added or removed and, where the model was cast, moved or
        resized meanwhile, the storage of every parameter. Of frozen parameters there is no copy.

        Raises:
            RuntimeError: the storage of a parameter or a buffer is gone, a frozen parameter was
                written to, or adapters were merged into frozen ones; the message names them, and
                all others are back.
        """
        self._save()
        # A stack runs every one of these, the last first, whatever another raises.
        with ExitStack() as stack:
            # A caller's autocast holds copies of the weights as they were in between.
            stack.callback(torch.clear_autocast_cache)
            stack.enter_context(_attributes_restored(self._model))
            stack.enter_context(_frozen_unchanged(self._model, self._trained))
            stack.enter_context(_flags_restored(self._model))
            stack.enter_context(_gradients_restored(self._model, self._trained))
            stack.enter_context(_buffers_restored(self._model))
            stack.callback(self._restore)
            stack.enter_context(_storages_restored(self._model))
            stack.enter_context(parameters_restored(self._model))
            stack.enter_context(_merges_undone(self._model))
            stack.enter_context(adapters_restored(self._model))
            stack.enter_context(modules_restored(self._model))
            stack.enter_context(parametrizations_restored(self._model))
            yield

    def _save(self) -> None:
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if not all(map(_alike, self._saved, self._trained)) or not self._saved:
                self._saved = [torch.empty_like(parameter) for parameter in self._trained]
            torch._foreach_copy_(self._saved, self._trained)

    def _restore(self) -> None:
        with torch.no_grad():
            try:
                torch._foreach_copy_(self._trained, self._saved)
            except RuntimeError:
                self._restore_each()

    def _restore_each(self) -> None:
        """Whatever can be restored, where something cannot."""
        names: dict[torch.Tensor, str] = {p: name for name, p in self._model.named_parameters()}
        failed: list[str] = []
        for parameter, saved in zip(self._trained, self._saved, strict=True):
            try:
                parameter.copy_(saved)
            except RuntimeError as error:
                failed.append(f"{names.get(parameter, 'one that the model lost')}: {error}")
        _check_restored(failed, len(self._trained), "parameters")


def _check_restored(failed: list[str], count: int, what: str) -> None:
    if failed:
        raise RuntimeError(
            f"TestTimeFinetuner: {len(failed)} of {count} {what} could not be restored, "
            f"load the model again: {'; '.join(failed)}"
        )


def _alike(saved: torch.Tensor, parameter: torch.Tensor) -> bool:
    """False once the model has been moved or cast."""
    return saved.dtype == parameter.dtype and saved.device == parameter.device


class _Merged(list[str]):
    """PEFT's list of the adapters that a layer has merged, and whether there were others."""

    changed = False

    def append(self, name: str) -> None:
        self.changed = True
        super().append(name)


@contextmanager
def _merges_undone(model: nn.Module) -> Iterator[None]:
    """PEFT's layers add their adapters to frozen weights, and subtract them again, rounded."""
    layers: list[tuple[str, Any, list[str], _Merged]] = [
        (name, module, module.merged_adapters, _Merged(module.merged_adapters))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "merged_adapters", None), list)
    ]
    for _, layer, _, watched in layers:
        layer.merged_adapters = watched
    try:
        yield
    finally:
        for _, layer, merged, watched in layers:
            if watched != merged:
                # While the adapters are still those that were added.
                layer.unmerge()
            layer.merged_adapters = merged
        changed = [name for name, _, _, watched in layers if watched.changed]
        if changed:
            raise RuntimeError(
                f"TestTimeFinetuner: adapters were merged in the with block; {len(changed)} layers "
                f"have frozen weights that are rounded, {changed[0]} for one: load the model again"
            )


@contextmanager
def _frozen_unchanged(model: nn.Module, trained: Sequence[torch.Tensor]) -> Iterator[None]:
    own = set(trained)
    frozen = [
        (name, parameter, parameter._version)
        for name, parameter in model.named_parameters()
        # Those made in inference mode count no writes.
        if parameter not in own and not parameter.is_inference()
    ]
    try:
        yield
    finally:
        written = [
            f"{name}: it is frozen, and was written to"
            for name, parameter, version in frozen
            if parameter._version != version
        ]
        _check_restored(written, len(frozen), "frozen parameters")


@contextmanager
def _storages_restored(model: nn.Module) -> Iterator[None]:
    with torch.inference_mode(False):
        storages = [
            (tensor, tensor.detach())
            for parameter in model.parameters()
            for tensor in (parameter, parameter.grad)
            if tensor is not None
        ]
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, data in storages:
                # model.half() and model.to() put other data into parameters and gradients.
                if not _same_storage(tensor, data):
                    tensor.data = data


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.data_ptr(), one.dtype, one.shape, one.stride()) == (
        other.data_ptr(),
        other.dtype,
        other.shape,
        other.stride(),
    )


@contextmanager
def _flags_restored(model: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _gradients_restored(model: nn.Module, trained: Sequence[torch.Tensor]) -> Iterator[None]:
    # Of the frozen ones too: a cast of the model would put others in their place.
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        # Taken off, not zeroed: a backward pass must not add to what the caller holds.
        for parameter in trained:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    # A forward may also fill one that was None.
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        failed: list[str] = []
        for module, name, buffer, saved in buffers:
            # A module may have put another tensor in its place, as dynamic RoPE does.
            if name in module._buffers or is_computed(module, name):
                setattr(module, name, buffer)
            else:
                module._buffers[name] = buffer
            if buffer is None or saved is None:
                continue
            try:
                with torch.no_grad():
                    buffer.copy_(saved)
            except RuntimeError as error:
                # Of an expanded one no element can be written, nor could have been.
                if not torch.equal(buffer, saved):
                    failed.append(f"{name} of a {type(module).__name__}: {error}")
        _check_restored(failed, len(buffers), "buffers")


_PLAIN = (bool, int, float, str, type(None), torch.Tensor)


def _is_plain(value: object) -> bool:
    """Lists of names too, as PEFT's of the active adapters; others may be somebody's records."""
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, _PLAIN)


@contextmanager
def _attributes_restored(model: nn.Module) -> Iterator[None]:
    """Of every module and its configuration, the plain values kept beside parameters and buffers.

    Its mode is one. A forward may change both together, as dynamic RoPE does its frequencies and
    for how many positions they are: one without the other would be another model.
    """
    owners = [(attributes, set(attributes)) for attributes in _attributes(model)]
    kept = [
        (attributes, name, value, list(value) if isinstance(value, list) else None)
        for attributes, _ in owners
        for name, value in attributes.items()
        if _is_plain(value)
    ]
    try:
        yield
    finally:
        for attributes, names in owners:
            # A forward may ask for whether there is one, and with it for a module that is gone.
            for name in attributes.keys() - names:
                if _is_plain(attributes[name]):
                    del attributes[name]
        for attributes, name, value, items in kept:
            # What has become a function since, or a module's compiled self, is somebody's.
            if not _is_plain(attributes.get(name)):
                continue
            if items is not None:
                value[:] = items
            attributes[name] = value


def _attributes(model: nn.Module) -> list[dict[str, Any]]:
    """Of each module, and once of each configuration, which modules share."""
    of_modules = [vars(module) for module in model.modules()]
    configurations = [getattr(found.get("config"), "__dict__", None) for found in of_modules]
    # That of a class cannot be written to.
    once = {id(found): found for found in configurations if isinstance(found, dict)}
    return [*of_modules, *once.values()]
