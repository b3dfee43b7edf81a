"""Putting a model back exactly as it was."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hullft_ops.ttft.model.loss import stop_listening
from hullft_ops.ttft.model.patches import put_back_forwards


class ModelSnapshot:
    """Saves a model, and restores it. ``trained`` are the parameters that will change, each once.

    ``saved`` are their values at the last `save`. The memory of these copies is used again.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        self._model = model
        self._trained: list[torch.Tensor] = list(trained)
        self.saved: list[torch.Tensor] = []
        self._records: list[_Module | _Tensor | _Attributes | _Merges] = []

    def save(self) -> None:
        """Copy the trained parameters, note everything else, and detach the gradients. RuntimeError
        if a trained parameter has lost its storage."""
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self._trained:
                if parameter.numel() and not parameter.untyped_storage().nbytes():
                    raise RuntimeError(
                        "TestTimeFinetuner: the storage of a trained parameter "
                        f"{list(parameter.shape)} is gone: load the model again"
                    )
            # The model may have been moved or cast since the last time.
            held = (self.saved, self._trained)
            then, now = (
                [(one.dtype, one.device) for one in tensors] for tensors in held
            )
            if then != now:
                self.saved = [
                    torch.empty_like(parameter) for parameter in self._trained
                ]
            # torch refuses an empty list.
            if self._trained:
                torch._foreach_copy_(self.saved, self._trained)
            self._records = list(self._noted())
        # Detached, not zeroed: a backward pass must not add to a gradient that the caller holds.
        for parameter in self._trained:
            parameter.grad = None
        for record in self._records:
            if isinstance(record, _Merges):
                record.watch()

    def _noted(self) -> "Iterator[_Module | _Tensor | _Attributes | _Merges]":
        modules: dict[str, nn.Module] = dict(self._model.named_modules())
        copies = dict(zip(map(id, self._trained), self.saved, strict=True))
        for name, module in modules.items():
            yield _Module(name, module)
        for name, parameter in self._model.named_parameters():
            yield _Tensor(name, parameter, copies.get(id(parameter)))
        for name, buffer in self._model.named_buffers():
            yield _Tensor(name, buffer, buffer.clone())
        configurations: dict[int, dict[str, Any]] = {}
        for name, module in modules.items():
            yield _Attributes(name, vars(module))
            configuration: Any = getattr(vars(module).get("config"), "__dict__", None)
            # Modules share them. A class's own mapping cannot be written to.
            if isinstance(configuration, dict):
                configurations[id(configuration)] = configuration
            if isinstance(getattr(module, "merged_adapters", None), list):
                yield _Merges(name, module)
        for one in configurations.values():
            yield _Attributes("config", one)

    def restore(self) -> list[str]:
        """Put everything back. If a call is cut short, the next call does all of it.

        The trained parameters and all buffers are copied bit for bit into their own storage, so
        every alias (tied weights, an optimizer) sees it. Returns what is not undone: storage that
        is gone, merged adapters, a write to a frozen parameter that torch counts (not one through
        ``.data`` or ``.numpy()``), and modules that were added, removed, replaced or given another
        class.
        """
        if not self._records:
            return []
        changes: list[str] = []
        with torch.inference_mode(False), torch.no_grad():
            for record in self._records:
                try:
                    changes += record.restore()
                # Whatever one raises, the others are put back.
                except Exception as error:
                    changes.append(f"{record.name}: {error}")
        # An interrupt in the middle of training may have left them behind.
        put_back_forwards(self._model)
        stop_listening(self._trained)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()
        self._records = []
        return changes


def put(values: Iterable[torch.Tensor], parameters: Iterable[nn.Parameter]) -> None:
    """Copy the values into the parameters, whatever mode the caller is in."""
    # One by one: the values may be made while they are read, and would need a model's memory.
    with torch.inference_mode(False), torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    # A caller's autocast holds copies of the values before.
    torch.clear_autocast_cache()


class _Tensor:
    """The storage, gradient and flag of a parameter or buffer, and a copy of its content. A frozen
    parameter has no copy: its writes count."""

    def __init__(
        self, name: str, tensor: torch.Tensor, copy: torch.Tensor | None
    ) -> None:
        self.name = name
        self.tensor = tensor
        self._copy = copy
        self._bytes = tensor.untyped_storage().nbytes()
        self._requires_grad = tensor.requires_grad
        # For frozen parameters too: a cast of the model would replace the gradients.
        self._gradient = tensor.grad if tensor.is_leaf else None
        self._data = [
            (one, one.detach()) for one in (tensor, self._gradient) if one is not None
        ]
        # A parameter made in inference mode counts no writes.
        self._version = (
            tensor._version if copy is None and not tensor.is_inference() else None
        )

    def restore(self) -> Iterator[str]:
        for tensor, data in self._data:
            # model.half() and model.to() put other data into parameters and gradients.
            if _place(tensor) != _place(data):
                tensor.data = data
        if self.tensor.requires_grad != self._requires_grad:
            self.tensor.requires_grad_(self._requires_grad)
        if self.tensor.is_leaf:
            self.tensor.grad = self._gradient
        if self._version is not None and self._version != self.tensor._version:
            yield f"{self.name}: it is frozen, and was written to"
        # A copy into less storage would write past its end.
        if self.tensor.untyped_storage().nbytes() < self._bytes:
            yield f"{self.name}: its storage is gone"
        elif self._copy is not None:
            self._put_back(self._copy)

    def _put_back(self, copy: torch.Tensor) -> None:
        # A needless write would disturb a graph that holds a buffer. Comparing stalls a GPU.
        compares = (
            not isinstance(self.tensor, nn.Parameter) and copy.device.type == "cpu"
        )
        if compares and torch.equal(self.tensor, copy):
            return
        try:
            self.tensor.copy_(copy)
        except RuntimeError:
            # No element of an expanded buffer can be written, so none has changed.
            if not torch.equal(self.tensor, copy):
                raise


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class _Module:
    """A module's class, children, parameters and buffers."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self._module = module
        self._class = type(module)
        self._children = dict(module._modules.items())
        self._parameters = dict(module._parameters.items())
        # A forward may also fill one that was None.
        self._buffers = dict(module._buffers.items())

    def restore(self) -> Iterator[str]:
        edits = list(self._edits())
        yield from edits
        if not edits:
            # load_state_dict(assign=True) may have replaced them.
            _refill(self._module._parameters, self._parameters)
            for key, buffer in self._buffers.items():
                # A module may have put another tensor in its place, as dynamic RoPE does.
                self._module._buffers[key] = buffer

    def _edits(self) -> Iterator[str]:
        """Edits that cannot be undone."""
        if type(self._module) is not self._class:
            now = type(self._module).__name__
            yield f"{self.name} is a {now}, and was a {self._class.__name__}"
        children = dict(self._module._modules.items())
        for key in {**self._children, **children}:
            if key not in children:
                yield f"module {self._path(key)} was removed"
            elif key not in self._children:
                yield f"module {self._path(key)} was added"
            elif children[key] is not self._children[key]:
                yield f"module {self._path(key)} was replaced"
        if children.keys() == self._children.keys() and list(children) != list(
            self._children
        ):
            yield f"the modules of {self.name or 'the model'} are in another order"
        for key in (
            dict(self._module._parameters.items()).keys() - self._parameters.keys()
        ):
            yield (
                f"parameter {self._path(key)} was added: a finetuner made after that can train it"
            )

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _refill(mapping: dict[str, Any], items: Mapping[str, Any]) -> None:
    """Make the mapping hold exactly the items, in order."""
    now = dict(mapping.items())
    if list(now) != list(items):
        mapping.clear()
        mapping.update(items)
        return
    for name, item in items.items():
        # Code that was compiled for the model watches such mappings.
        if now[name] is not item:
            mapping[name] = item


class _Attributes:
    """The plain values of a module or a configuration, such as its mode. A forward may change one
    together with a buffer, as dynamic RoPE does: restoring only one would make another model."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name = name
        self._attributes = attributes
        self._names = set(attributes)
        self._values: list[tuple[str, Any, Any]] = [
            (key, value, value.copy() if isinstance(value, list | dict) else None)
            for key, value in attributes.items()
            if _is_plain(key, value)
        ]

    def restore(self) -> list[str]:
        now = self._attributes
        # A forward may check whether an attribute exists, and then use what it made with it.
        for key in now.keys() - self._names:
            if _is_plain(key, now[key]):
                del now[key]
        for key, value, items in self._values:
            # A name that has become a module stays one. A function belongs to somebody else.
            if key in now.get("_modules", ()) or not _is_plain(key, now.get(key)):
                continue
            if isinstance(value, list):
                value[:] = items
            elif isinstance(value, dict):
                _refill(value, items)
            now[key] = value
        return []


_SCALAR = (bool, int, float, str, type(None))


def _is_plain(name: str, value: object) -> bool:
    """Whether to keep the value. PEFT's list of active adapters and its scales count as plain."""
    if name == "merged_adapters":
        return False
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) for item in value)
    # Torch's own mappings, such as parameters and hooks, begin with an underscore.
    if isinstance(value, dict) and not name.startswith("_"):
        return all(isinstance(item, _SCALAR) for item in value.values())
    return isinstance(value, (*_SCALAR, torch.Tensor))


class _Merges(list[str]):
    """In place of PEFT's list of the adapters that a layer has merged, it notes whether it grew:
    PEFT adds adapters to frozen weights and subtracts them with rounding."""

    def __init__(self, name: str, layer: Any) -> None:
        self._merged: list[str] = layer.merged_adapters
        super().__init__(self._merged)
        self.name = name
        self._layer = layer
        self._before = list(self._merged)
        self._grew = False

    def watch(self) -> None:
        self._layer.merged_adapters = self

    def append(self, adapter: str) -> None:
        self._grew = True
        super().append(adapter)

    def restore(self) -> Iterator[str]:
        self._merged[:] = self
        self._layer.merged_adapters = self._merged
        if self._grew or self._before != self._merged:
            yield f"{self.name}: adapters were merged into its frozen weights, or unmerged"
