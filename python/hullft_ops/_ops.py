"""The operators as this package calls them, and their fake kernels.

Importing this module loads the extension, which registers the operators. torch raises their
``std::invalid_argument`` as a ValueError up to 2.13 and as a RuntimeError in 2.15. `call` raises a
ValueError with each, and torch's own error if CUDA runs out of memory. In a compiled graph torch
calls the operator itself, so its error stays.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from hullft_ops import _C, _checks  # noqa: F401 (the import of _C registers the operators)
from hullft_ops._autograd import Undifferentiable, gradients

ops = torch.ops.hullft_ops

# csrc/cuda_host/context.* begins errors about the device, not about an argument, like this.
_OF_THE_DEVICE = (
    "CUDA error: ",
    "this torch was built without CUDA",
    "no current stream of ",
)
# csrc/host/allocation.h begins its errors like this.
_NO_MEMORY = "hullft_ops: CUDA out of memory: "


def _in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def has_values(tensor: Tensor) -> bool:
    """Whether they can be read here without waiting for a device."""
    is_traced = torch.compiler.is_compiling() or _is_transformed()
    return not is_traced and _checks.is_plain([tensor]) and tensor.is_cpu


def _is_differentiated(op: str, arguments: Sequence[Any]) -> bool:
    if _in_forward_mode():
        return True
    if _is_transformed():
        # Tensors that vmap makes do not say what they require.
        if op in gradients or torch.compiler.is_compiling():
            return True
        transforms = {level.key() for level in _functorch.get_interpreter_stack()}
        return transforms != {_functorch.TransformType.Vmap}
    if op not in gradients or not torch.is_grad_enabled():
        return False
    pool, query, *_ = arguments
    return bool(pool.requires_grad or query.requires_grad)


def call(op: str, *arguments: Any, **options: Any) -> Any:
    """The results of the operator that a public function is named for."""
    operator = getattr(ops, op)
    if not options and _is_differentiated(op, arguments):
        operator = partial(gradients.get(op, Undifferentiable).apply, op)
    if torch.compiler.is_compiling():
        from hullft_ops import _in_graph  # noqa: F401 (slow to import)

        if _in_forward_mode() and not _is_transformed():
            # A graph drops tangents.
            operator = torch.compiler.disable(operator)  # type: ignore[no-untyped-call]
        return operator(*arguments, **options)
    try:
        return operator(*arguments, **options)
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        message, _, _ = str(error).partition("\n")
        if message.startswith(_NO_MEMORY):
            raise torch.OutOfMemoryError(message.replace("hullft_ops", op, 1)) from None
        reason = message.removeprefix(f"{op}: ")
        if reason == message or reason.startswith(_OF_THE_DEVICE):
            raise
        raise ValueError(message) from None


def call_batched(
    op: str,
    pool: Tensor,
    *queries: Tensor,
    candidates: Tensor | None = None,
    **options: Any,
) -> Sequence[Tensor]:
    """The operator's results. Only a batch gives the last of ``queries`` two dimensions.

    The options come in the schema's order, candidates last: torch takes 1.6 us to match the names
    of fw_select's.
    """
    is_batch = queries[-1].dim() > 1
    if not is_batch:
        queries = tuple([query.unsqueeze(0) for query in queries])
    if candidates is not None:
        options["candidates"] = candidates if is_batch else candidates.unsqueeze(0)
    results: Sequence[Tensor] | Tensor
    results = call(op, pool, *queries, *options.values())
    if isinstance(results, Tensor):
        results = [results]
    if is_batch:
        return results
    if results[0].requires_grad or _in_forward_mode() or _is_transformed():
        return [result.squeeze(0) for result in results]
    # In place: a view of each result would take as long as the smallest solve.
    return [result.squeeze_(0) for result in results]


Columns = tuple[list[Tensor], ...]  # a list for each argument of an operator


def by_device(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[Columns]:
    """The columns of the rows, for each device of the first column in turn."""
    devices: dict[torch.device, list[tuple[Tensor, ...]]] = {}
    for row in rows:
        devices.setdefault(row[0].device, []).append(row)
    for of_device in devices.values():
        yield tuple(list(column) for column in zip(*of_device, strict=True))


def local(tensor: Any) -> Tensor:
    """The local part of a DTensor, which may be empty. Any other tensor comes back unchanged.

    A sharding rule for the operators would not work. torch protects the placements of only the
    first argument that an operator writes.
    """
    here: Tensor = tensor.to_local() if _checks.is_sharded(tensor) else tensor
    return here


def locals_of(columns: Columns) -> Columns:
    """The local parts of all columns; the first says whether there are DTensors."""
    if _checks.is_plain(columns[0]):
        return columns
    return tuple([local(tensor) for tensor in column] for column in columns)


def call_in_place(op: str, columns: Columns, **options: Any) -> None:
    """Runs an operator on local parts. It writes all columns but the second, the gradients."""
    here = locals_of(columns)
    call(op, *here, **options)
    if here is not columns:
        count_writes(chain(columns[0], *columns[2:]))


def count_writes(tensors: Iterable[Tensor]) -> None:
    """Count the writes of DTensors. A DTensor and its local part have separate versions."""
    torch.autograd.graph.increment_version(
        [t for t in tensors if _checks.is_sharded(t)]
    )


# A schema names an operator's results, and the names say what a fake kernel returns: one value a
# query, or one for each selected row, of int64 or of the dtype of weights.
_FOR_EACH_ROW = ("indices", "weights", "counts", "picks", "variance")
_INT64 = ("indices", "counts", "support_size", "num_iter", "picks", "vertex")


def _fake(name: str, schema: Any) -> Callable[..., Any]:
    names = [argument.name for argument in schema.arguments]

    def fake_kernel(*positional: Any, **keywords: Any) -> Any:
        arguments = keywords | dict(zip(names, positional, strict=False))
        if not schema.returns:
            return None
        pool = arguments[names[0]]
        for argument, value in arguments.items():
            if isinstance(value, Tensor) and value.device != pool.device:
                raise ValueError(
                    f"{name}: {argument} is on {value.device}, {names[0]} is on {pool.device}"
                )
        if name in ("integerize", "lstsq_adjoint"):
            dtype = torch.int64 if name == "integerize" else torch.float64
            return pool.new_empty(arguments["weights"].shape, dtype=dtype)
        real = torch.float64 if pool.dtype == torch.float64 else torch.float32
        batch = arguments["query"].shape[0]
        results = []
        for result in schema.returns:
            many = result.name in _FOR_EACH_ROW
            # Least squares have a weight for each row of the pool.
            rows = arguments.get("n_select", pool.shape[-2])
            shape = (batch, rows) if many else (batch,)
            dtype = torch.int64 if result.name in _INT64 else real
            results.append(pool.new_empty(shape, dtype=dtype))
        return tuple(results)

    return fake_kernel


def _vmap_rule(operator: Any) -> Callable[..., Any]:
    """Several batches become one: ``register_vmap`` calls this with a dimension of each tensor.

    The first argument may be shared by the batch, all others have one value a query. A
    pool with candidates has to be shared.
    """

    def run(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
        n = info.batch_size

        def first(x: Any, dim: int | None) -> Any:  # [n, ...]
            if not isinstance(x, Tensor):
                return x
            return x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)

        pool, *others = map(first, arguments, in_dims)
        batch = others[0].shape[1]
        if pool.dim() == 3 and in_dims[0] is None:
            pool = arguments[0]
        elif pool.dim() == 3:
            pool = pool.repeat_interleave(batch, dim=0)
        else:
            pool = pool.flatten(0, 1)
        others = [x.flatten(0, 1) if isinstance(x, Tensor) else x for x in others]
        results = operator(pool, *others)
        return tree_map(lambda x: x.view(n, batch, *x.shape[1:]), results), 0

    return run


def _counting_versions(operator: Any) -> Callable[..., None]:
    """Count the writes. A backward pass that needs the old values must fail, as with torch's own
    operators."""
    written = [
        i
        for i, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def run(
        keys: torch._C.DispatchKeySet, *lists: Sequence[Tensor], **options: Any
    ) -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            operator.redispatch(
                keys & torch._C._after_ADInplaceOrView_keyset, *lists, **options
            )
        for i in written:
            torch.autograd.graph.increment_version(lists[i])

    return run


_library = torch.library.Library("hullft_ops", "IMPL")  # type: ignore[no-untyped-call]
for _full_name in torch._C._dispatch_get_all_op_names():
    _namespace, _, _name = _full_name.partition("::")
    if _namespace != "hullft_ops":
        continue
    _operator = getattr(ops, _name).default
    torch.library.register_fake(_full_name, _fake(_name, _operator._schema))
    if _operator._schema.returns:
        torch.library.register_vmap(_full_name, _vmap_rule(_operator))
        # No output of a selection has a gradient. torch's own kernel for operators without a
        # derivative would claim one, and warn when a backward pass loses it.
        _library.impl(  # type: ignore[no-untyped-call]
            _name, torch.library.fallthrough_kernel, "Autograd"
        )
    elif _operator._schema.is_mutable:
        _library.impl(  # type: ignore[no-untyped-call]
            _name, _counting_versions(_operator), "ADInplaceOrView", with_keyset=True
        )
