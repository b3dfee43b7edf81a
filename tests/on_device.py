"""Runs the operators elsewhere than where a test's tensors are.

The tests make their tensors on the CPU and compare with an oracle there. ``Elsewhere`` takes the
place of the operators' CPU kernels, so that every call, compiled or by ``ReplayAdam``
too, reaches the implementation under test: on a GPU, whole storages are mirrored there (views,
strides, overlaps and freed storages stay what they are) and what was written comes back.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map, tree_map_only

Operator = torch._ops.OpOverload
Runner = Callable[[Operator, dict[str, Any]], object]
NAMESPACE = "hullft_ops"


def operators() -> list[Operator]:
    """Every operator of the package."""
    names = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(NAMESPACE)
    ]
    return [
        getattr(getattr(torch.ops, NAMESPACE), name.split("::")[1]).default
        for name in names
    ]


class Mirror:
    """Copies of tensors on a device, one for each storage."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._storages: dict[
            int, tuple[torch.UntypedStorage, torch.UntypedStorage]
        ] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        there = self._storage(tensor.untyped_storage())
        size = there.nbytes()
        mirrored = torch.empty(0, dtype=tensor.dtype, device=self._device)
        mirrored.set_(there, tensor.storage_offset(), tensor.size(), tensor.stride())
        if there.nbytes() != size:  # set_ made room for a storage that was shrunk
            there.resize_(size)

        return mirrored

    def bring_back(self, tensor: torch.Tensor) -> None:
        here, there = self._storages[tensor.untyped_storage()._cdata]
        here.copy_(there)

    def _storage(self, here: torch.UntypedStorage) -> torch.UntypedStorage:
        if here._cdata not in self._storages:
            there = torch.UntypedStorage(here.nbytes(), device=self._device)
            if here.nbytes():
                there.copy_(here)

            self._storages[here._cdata] = here, there

        return self._storages[here._cdata][1]


def of_its_tensors(operator: Operator, arguments: dict[str, Any]) -> object:
    """What the operator does where its tensors are."""
    return operator(**arguments)


def cpu_kernels() -> Runner:
    """The CPU's own kernels, as they are now: also while ``elsewhere`` is in their place."""
    kernels = {
        operator: torch.library.get_kernel(operator, "CPU") for operator in operators()
    }
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda operator, arguments: kernels[operator].call_boxed(keys, **arguments)


# Step counts stay where ``torch.optim.Adam`` keeps them; a number of steps lies beside them.
ON_THE_CPU = ("steps", "repeats_tensor")


def on_device(device: torch.device, run_there: Runner = of_its_tensors) -> Runner:
    """Runs an operator on copies of its tensors on the device."""

    def run(operator: Operator, arguments: dict[str, Any]) -> object:
        mirror = Mirror(device)

        def there(value: object) -> object:
            local = isinstance(value, torch.Tensor) and value.device.type == "cpu"
            return mirror.of(value) if local else value

        moved = {
            name: value if name in ON_THE_CPU else tree_map(there, value)
            for name, value in arguments.items()
        }
        result = run_there(operator, moved)

        for argument in operator._schema.arguments:
            if argument.alias_info is not None and argument.name not in ON_THE_CPU:
                for tensor in arguments[argument.name]:
                    if tensor.numel():
                        mirror.bring_back(tensor)

        return tree_map_only(torch.Tensor, torch.Tensor.cpu, result)

    return run


def with_cuda_checks(operator: Operator, arguments: dict[str, Any]) -> object:
    """The CUDA implementation itself on CPU tensors: its checks come before it needs a GPU."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator._schema.name, "CUDA")

    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return operator.redispatch(keys, **arguments)


@contextmanager
def elsewhere(run: Runner) -> Iterator[None]:
    """While it lasts, ``run`` is what the operators do with CPU tensors."""
    library = torch.library.Library(NAMESPACE, "IMPL")

    def kernel_of(operator: Operator) -> Callable[..., object]:
        names = [argument.name for argument in operator._schema.arguments]

        def kernel(*args: object, **kwargs: object) -> object:
            return run(operator, dict(zip(names, args, strict=False)) | kwargs)

        return kernel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for operator in operators():
                name = operator._schema.name.split("::")[1]
                library.impl(name, kernel_of(operator), "CPU", allow_override=True)

        yield
    finally:
        library._destroy()
