"""Putting a model back exactly as it was."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hullft_ops.ttft.model.loss import stop_listening
from hullft_ops.ttft.model.patches import put_back_forwards

T = TypeVar("T")


class ModelSnapshot:
    """A copy of the parameters that finetuning changes. It keeps its memory from use to use.

    Args:
        model: the model.
        trained: the parameters that will change, each once.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        self._model = model
        self._trained: list[torch.Tensor] = list(trained)
        self._saved: list[torch.Tensor] = []
        self._kept: _Kept | None = None

    @property
    def saved(self) -> Sequence[torch.Tensor]:
        """The values of the trained parameters from before, between `save` and `restore`."""
        return self._saved

    def save(self) -> None:
        """Copy the trained parameters, note everything else, and detach the gradients.

        Raises:
            RuntimeError: a trained parameter has lost its storage.
        """
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self._trained:
                if parameter.numel() and not parameter.untyped_storage().nbytes():
                    raise RuntimeError(
                        "TestTimeFinetuner: the storage of a trained parameter "
                        f"{list(parameter.shape)} is gone: load the model again"
                    )
            if not all(map(_alike, self._saved, self._trained)) or not self._saved:
                self._saved = [torch.empty_like(parameter) for parameter in self._trained]
            # torch refuses an empty list.
            if self._trained:
                torch._foreach_copy_(self._saved, self._trained)
            kept = _Kept(self._model, self._trained)
        self._kept = kept
        # Detached, not zeroed: a backward pass must not add to a gradient that the caller holds.
        for parameter in self._trained:
            parameter.grad = None
        for merges in kept.merges:
            merges.watch()

    def restore(self) -> list[str]:
        """Put everything back. If a call is cut short, the next call does all of it.

        The trained parameters and all buffers come back bit for bit. They are copied into their own
        storage, so every alias (tied weights, an optimizer) sees it. Gradients, ``requires_grad``
        flags, modes, plain attributes of modules and their configurations, and replaced or removed
        parameters come back too. If the model was cast, moved or resized meanwhile, so does the
        storage of every parameter.

        Frozen parameters have no copy. A write to one is noticed if torch counts it (in
        ``_version``), which it does not for ``.data``, ``.numpy()`` or another alias.

        Returns:
            What could not be put back: a parameter or buffer that lost its storage, a frozen
            parameter with a write that torch counted, merged adapters, and modules that were added,
            removed, replaced or given another class. Everything else is back.
        """
        kept = self._kept
        if kept is None:
            return []
        changes: list[str] = []
        for record in kept.in_order():
            try:
                changes += record.restore()
            # Whatever one raises, the others are put back.
            except Exception as error:
                changes.append(f"{record.name}: {error}")
        changes += self._copy_back(kept)
        # An interrupt in the middle of training may have left them behind.
        put_back_forwards(self._model)
        stop_listening(self._trained)
        # A caller's autocast holds copies of the adapted weights.
        torch.clear_autocast_cache()
        self._kept = None
        return changes

    def _copy_back(self, kept: "_Kept") -> list[str]:
        names = {id(record.tensor): record.name for record in kept.parameters}
        gone = {id(record.tensor) for record in kept.parameters if record.is_gone()}
        pairs = [
            (parameter, saved)
            for parameter, saved in zip(self._trained, self._saved, strict=True)
            if id(parameter) not in gone
        ]
        changes: list[str] = []
        with torch.no_grad():
            try:
                if pairs:
                    torch._foreach_copy_([one for one, _ in pairs], [other for _, other in pairs])
            except RuntimeError:
                for parameter, saved in pairs:
                    try:
                        parameter.copy_(saved)
                    except RuntimeError as error:
                        changes.append(f"{names[id(parameter)]}: {error}")
        return changes


def _alike(saved: torch.Tensor, parameter: torch.Tensor) -> bool:
    """False once the model has been moved or cast."""
    return saved.dtype == parameter.dtype and saved.device == parameter.device


class _Kept:
    """A model's structure and everything in it, except the copies of trained parameters."""

    def __init__(self, model: nn.Module, trained: Sequence[torch.Tensor]) -> None:
        own = set(map(id, trained))
        self.parameters = [
            _Parameter(name, parameter, is_frozen=id(parameter) not in own)
            for name, parameter in model.named_parameters()
        ]
        modules = list(model.named_modules())
        self.modules = [_Module(name, module) for name, module in modules]
        self.attributes = [_Attributes(name, found) for name, found in _attributes(modules)]
        self.merges = [
            _Merges(name, module)
            for name, module in modules
            if isinstance(getattr(module, "merged_adapters", None), list)
        ]

    def in_order(self) -> "list[_Parameter | _Module | _Attributes | _Merges]":
        return [*self.modules, *self.parameters, *self.attributes, *self.merges]


class _Parameter:
    """A parameter's storage, gradient and flag; if it is frozen, also its count of writes."""

    def __init__(self, name: str, tensor: torch.Tensor, *, is_frozen: bool) -> None:
        self.name = name
        self.tensor = tensor
        self._bytes = tensor.untyped_storage().nbytes()
        self._requires_grad = tensor.requires_grad
        # For frozen parameters too: a cast of the model would replace the gradients.
        self._gradient = tensor.grad
        self._data = [(one, one.detach()) for one in (tensor, tensor.grad) if one is not None]
        # A parameter made in inference mode counts no writes.
        self._version = tensor._version if is_frozen and not tensor.is_inference() else None

    def restore(self) -> Iterator[str]:
        with torch.inference_mode(False):
            for tensor, data in self._data:
                # model.half() and model.to() put other data into parameters and gradients.
                if _place(tensor) != _place(data):
                    tensor.data = data
        if self.tensor.requires_grad != self._requires_grad:
            self.tensor.requires_grad_(self._requires_grad)
        self.tensor.grad = self._gradient
        if self.is_gone():
            yield f"{self.name}: its storage is gone"
        if self._version is not None and self._version != self.tensor._version:
            yield f"{self.name}: it is frozen, and was written to"

    def is_gone(self) -> bool:
        """Whether a copy into its storage would write past its end."""
        return self.tensor.untyped_storage().nbytes() < self._bytes


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(frozen=True)
class _Buffer:
    tensor: torch.Tensor
    copy: torch.Tensor
    bytes: int


class _Module:
    """A module's children, parameters and buffers, with the content of the buffers."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self._module = module
        self._class = type(module)
        self._children = dict(module._modules.items())
        self._parameters = dict(module._parameters.items())
        # A forward may also fill one that was None.
        self._buffers = {
            key: None
            if buffer is None
            else _Buffer(buffer, buffer.clone(), buffer.untyped_storage().nbytes())
            for key, buffer in module._buffers.items()
        }

    def restore(self) -> Iterator[str]:
        edits = list(self._edits())
        yield from edits
        if not edits:
            # load_state_dict(assign=True) may have replaced them.
            _refill(self._module._parameters, self._parameters)
        for key, kept in self._buffers.items():
            if not edits:
                self._put_back(key, None if kept is None else kept.tensor)
            if kept is not None:
                yield from self._copy_back(key, kept)

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
        if children.keys() == self._children.keys() and list(children) != list(self._children):
            yield f"the modules of {self.name or 'the model'} are in another order"
        for key in dict(self._module._parameters.items()).keys() - self._parameters.keys():
            yield (
                f"parameter {self._path(key)} was added: a finetuner made after that can train it"
            )

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _put_back(self, key: str, buffer: torch.Tensor | None) -> None:
        # A module may have put another tensor in its place, as dynamic RoPE does.
        if key in self._module._buffers:
            setattr(self._module, key, buffer)
        else:
            self._module._buffers[key] = buffer

    def _copy_back(self, key: str, kept: _Buffer) -> Iterator[str]:
        if kept.tensor.untyped_storage().nbytes() < kept.bytes:
            yield f"{self._path(key)}: its storage is gone"
            return
        # A needless write would disturb a graph that holds the buffer. Comparing stalls a GPU.
        if kept.tensor.device.type == "cpu" and torch.equal(kept.tensor, kept.copy):
            return
        try:
            with torch.no_grad():
                kept.tensor.copy_(kept.copy)
        except RuntimeError as error:
            # No element of an expanded buffer can be written, so none has changed.
            if not torch.equal(kept.tensor, kept.copy):
                yield f"{self._path(key)}: {error}"


def _refill(mapping: dict[str, T], items: dict[str, T]) -> None:
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
    """The plain values that a module or a configuration keeps beside parameters and buffers.

    A module's mode is one. A forward may change such a value together with a buffer, as dynamic
    RoPE changes its frequencies and their number of positions. Restoring only one of them would
    make another model.
    """

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name = name
        self._attributes = attributes
        self._names = set(attributes)
        self._values: list[tuple[str, Any, Any]] = [
            (key, value, _items(value))
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


def _items(value: object) -> list[Any] | dict[Any, Any] | None:
    if isinstance(value, list):
        return list(value)
    return dict(value) if isinstance(value, dict) else None


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


def _attributes(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The attributes of each module, and of each configuration once, because modules share it."""
    once: dict[int, dict[str, Any]] = {}
    for name, module in modules:
        yield name, vars(module)
        configuration = getattr(vars(module).get("config"), "__dict__", None)
        # A class's own mapping cannot be written to.
        if isinstance(configuration, dict):
            once[id(configuration)] = configuration
    yield from (("config", found) for found in once.values())


class _Watched(list[str]):
    """PEFT's list of the adapters that a layer has merged. It notes whether it ever changed."""

    changed = False

    def append(self, name: str) -> None:
        self.changed = True
        super().append(name)


class _Merges:
    """Watches for merges: PEFT adds adapters to frozen weights and subtracts them with rounding."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name = name
        self._layer = layer
        self._merged: list[str] = layer.merged_adapters
        self._before = list(self._merged)
        self._watched = _Watched(self._merged)

    def watch(self) -> None:
        self._layer.merged_adapters = self._watched

    def restore(self) -> Iterator[str]:
        self._merged[:] = self._watched
        self._layer.merged_adapters = self._merged
        if self._watched.changed or self._before != self._merged:
            yield f"{self.name}: adapters were merged into its frozen weights, or unmerged"
