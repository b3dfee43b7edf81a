"""The registered operators, as this package calls them, and code that their fake kernels share.

Importing this module loads the extension, which registers the operators. An operator throws
``std::invalid_argument`` for a bad value. torch raises that as a ValueError up to 2.13 and as a
RuntimeError in 2.15. Through this module it is always a ValueError. If CUDA runs out of memory, it
is torch's own error.

A fake kernel returns an operator's shapes, dtypes and devices without computing anything:
``torch.compile``, ``torch.export`` and fake tensors need nothing else. Each is beside its public
function.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from hullft_ops import _C, _checks  # noqa: F401 (the import of _C registers the operators)

F = TypeVar("F", bound=Callable[..., Any])

# Indices, weights, counts, support size, residual, gap and number of steps.
SelectionTensors = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]

ops = torch.ops.hullft_ops

# csrc/cuda_host/context.* begins errors about the device, not about an argument, like this.
_OF_THE_DEVICE = ("CUDA error: ", "this torch was built without CUDA", "no current stream of ")
# csrc/host/allocation.h begins its errors like this.
_NO_MEMORY = "hullft_ops: CUDA out of memory: "


def refusal(op: str, error: RuntimeError) -> ValueError | None:
    """The ValueError that the operator threw, or None if the error is of another kind."""
    message = str(error).splitlines()[0] if str(error) else ""
    prefix = f"{op}: "
    if type(error) is not RuntimeError or not message.startswith(prefix):
        return None
    if message.removeprefix(prefix).startswith(_OF_THE_DEVICE):
        return None
    return ValueError(message)


def no_memory(op: str, error: RuntimeError) -> torch.OutOfMemoryError | None:
    """The error of an operator that got no memory from CUDA, or None if it is of another kind."""
    if type(error) is not RuntimeError or not str(error).startswith(_NO_MEMORY):
        return None
    return torch.OutOfMemoryError(str(error).splitlines()[0].replace("hullft_ops", op, 1))


def _operator(name: str) -> Callable[..., Any]:
    packet = getattr(ops, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return packet(*arguments, **options)
        try:
            return packet(*arguments, **options)
        except RuntimeError as error:
            translated = refusal(name, error) or no_memory(name, error)
            if translated is None:
                raise
            raise translated from None

    return call


adam_replay_ = _operator("adam_replay_")
adam_replay_check = _operator("adam_replay_check")
fw_lmo = _operator("fw_lmo")
fw_select = _operator("fw_select")
fw_select_indexed = _operator("fw_select_indexed")
grad_accumulate_ = _operator("grad_accumulate_")
integerize = _operator("integerize")
knn_select = _operator("knn_select")
sift_select = _operator("sift_select")
sift_select_indexed = _operator("sift_select_indexed")


def register_fake(name: str) -> Callable[[F], F]:
    """Make the decorated function the operator's fake kernel."""
    decorator: Callable[[F], F] = torch.library.register_fake(f"hullft_ops::{name}")
    return decorator


def fake_selection(
    op: str,
    pool_name: str,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    **others: torch.Tensor | None,
) -> SelectionTensors:
    """The empty result of a selection for a batch of queries. ``others`` may be None."""
    check_same_device(op, pool_name, pool, query=query, **passed(**others))
    rows, batch = (query.shape[0], n_select), (query.shape[0],)
    real = real_of(pool)
    return (
        pool.new_empty(rows, dtype=torch.int64),
        pool.new_empty(rows, dtype=real),
        pool.new_empty(rows, dtype=torch.int64),
        pool.new_empty(batch, dtype=torch.int64),
        pool.new_empty(batch, dtype=real),
        pool.new_empty(batch, dtype=real),
        pool.new_empty(batch, dtype=torch.int64),
    )


def real_of(pool: torch.Tensor) -> torch.dtype:
    """The dtype of weights and residuals."""
    return torch.float64 if pool.dtype == torch.float64 else torch.float32


def passed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The optional tensors that a call passes."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_same_device(
    op: str, first_name: str, first: torch.Tensor, **others: torch.Tensor | None
) -> None:
    """Refuse a meta tensor among real ones. It brings a call here, and nothing would be computed.

    torch accepts None for any tensor of a schema.
    """
    for name, tensor in {first_name: first, **others}.items():
        if tensor is None:
            raise TypeError(f"hullft_ops: {name} must be a torch.Tensor, got NoneType")
        _checks.check_device(op, name, tensor, first_name, first)


def check_lists_on_one_device(
    op: str, lists: Mapping[str, Sequence[torch.Tensor]], scalars: Mapping[str, torch.Tensor]
) -> None:
    """`check_same_device` for lists of tensors. Scalars may also be on the CPU."""
    named = [pair for name, tensors in lists.items() for pair in numbered(name, tensors).items()]
    named += [(name, tensor) for name, tensor in scalars.items() if tensor.device.type != "cpu"]
    for name, tensor in named:
        _checks.check_device(op, name, tensor, "the first tensor", named[0][1])


def numbered(name: str, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a list, by their names in errors."""
    return {f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)}


# No output of a selection has a gradient. torch's own kernel for operators without a derivative
# would claim one, and warn when a backward pass loses it.
_NOT_DIFFERENTIABLE = (
    "fw_lmo",
    "fw_select",
    "fw_select_indexed",
    "integerize",
    "knn_select",
    "sift_select",
    "sift_select_indexed",
)
_WRITING = ("adam_replay_", "grad_accumulate_")


def _counting_versions(name: str) -> Callable[..., None]:
    """Count the writes. A backward pass that needs the old values must fail, as with torch's own
    operators."""
    operator = getattr(ops, name).default
    aliases = [argument.alias_info for argument in operator._schema.arguments]
    written = [i for i, alias in enumerate(aliases) if alias is not None and alias.is_write]

    def run(keys: torch._C.DispatchKeySet, *lists: Sequence[torch.Tensor], **options: Any) -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            operator.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *lists, **options)
        for i in written:
            torch.autograd.graph.increment_version(lists[i])

    return run


_library = torch.library.Library("hullft_ops", "IMPL")  # type: ignore[no-untyped-call]
for _name in _NOT_DIFFERENTIABLE:
    _library.impl(  # type: ignore[no-untyped-call]
        _name, torch.library.fallthrough_kernel, "Autograd"
    )
for _name in _WRITING:
    _library.impl(  # type: ignore[no-untyped-call]
        _name, _counting_versions(_name), "ADInplaceOrView", with_keyset=True
    )
