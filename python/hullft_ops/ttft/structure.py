"""What a model is made of, put back: modules, parameters, adapters and parametrizations.

Of the values in them see `snapshot`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


@contextmanager
def modules_restored(model: nn.Module) -> Iterator[None]:
    """Of every module its children: as they were, under their names and in their order."""
    kept = [(module, dict(module._modules.items())) for module in model.modules()]
    try:
        yield
    finally:
        for module, children in kept:
            for name in children.keys() - module._modules.keys():
                # What has taken the name would be found first.
                vars(module).pop(name, None)
                module._parameters.pop(name, None)
                module._buffers.pop(name, None)
            _refill(module._modules, children)


def _refill(mapping: dict[str, T], items: dict[str, T]) -> None:
    """Make the mapping that of the items, in their order."""
    now = dict(mapping.items())
    if list(now) != list(items):
        mapping.clear()
        mapping.update(items)
        return
    for name, item in items.items():
        # Code that was compiled for the model watches such mappings.
        if now[name] is not item:
            mapping[name] = item


@contextmanager
def adapters_restored(model: nn.Module) -> Iterator[None]:
    """What PEFT keeps of its adapters beside modules, in mappings by an adapter's name."""
    kept = [(mapping, dict(mapping)) for mapping in _by_adapter(model)]
    try:
        yield
    finally:
        for mapping, items in kept:
            _refill(mapping, items)


def _by_adapter(model: nn.Module) -> Iterator[dict[str, Any]]:
    for module in model.modules():
        attributes = vars(module)
        if isinstance(module, nn.ParameterDict):
            yield module._keys
        if "peft_config" in attributes:
            yield attributes["peft_config"]
        if "merged_adapters" in attributes:
            for name, value in attributes.items():
                if isinstance(value, dict) and not name.startswith("_"):
                    yield value


@contextmanager
def parametrizations_restored(model: nn.Module) -> Iterator[None]:
    """Beside children and parameters these are a class of the module's own, with properties."""
    kept = [(module, type(module), _parametrized(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, own, before in kept:
            now = _parametrized(module)
            if now.keys() == before.keys():
                continue
            if type(module) is own:
                for name in now.keys() - before.keys():
                    delattr(own, name)
            module.__class__ = own
            for name in before.keys() - now.keys():
                setattr(own, name, before[name])
                module._parameters.pop(name, None)
                module._buffers.pop(name, None)


def _parametrized(module: nn.Module) -> dict[str, Any]:
    """The properties that compute the module's parametrized tensors, by name."""
    if "parametrizations" not in module._modules:
        return {}
    properties = vars(type(module))
    lists: Any = module._modules["parametrizations"]
    return {name: properties[name] for name in lists if name in properties}


@contextmanager
def parameters_restored(model: nn.Module) -> Iterator[None]:
    kept = [(module, dict(module._parameters.items())) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in kept:
            # As load_state_dict(assign=True) puts others in their place. What is computed by now,
            # as by a hook that normalizes weights, stays off.
            back = {
                name: parameter
                for name, parameter in parameters.items()
                if name in module._parameters or not is_computed(module, name)
            }
            added = {n: p for n, p in module._parameters.items() if n not in back}
            _refill(module._parameters, {**back, **added})


def is_computed(module: nn.Module, name: str) -> bool:
    return name in vars(module) or hasattr(type(module), name)
