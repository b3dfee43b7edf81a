"""Loads the extension, which registers the operators, and gives each its fake kernel.

A fake kernel says what an operator returns (shapes, dtypes, devices) without computing it:
``torch.compile``, ``torch.export`` and fake tensors need nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hullft_ops import _C, _checks  # noqa: F401 (the import of _C registers the operators)

SelectionTensors = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]

# Of a selection, and the picks with the variance after each.
SiftTensors = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]


def _check_tensors(
    op: str, first_name: str, first: torch.Tensor, **others: torch.Tensor | None
) -> None:
    """One meta tensor among others brings a call here, where nothing would be computed.

    torch takes None for any tensor of a schema.
    """
    for name, tensor in {first_name: first, **others}.items():
        if tensor is None:
            raise TypeError(f"hullft_ops: {name} must be a torch.Tensor, got NoneType")
        _checks.check_device(op, name, tensor, first_name, first)


def _given(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _check_lists(
    op: str, lists: Mapping[str, Sequence[torch.Tensor]], scalars: Mapping[str, torch.Tensor]
) -> None:
    """Of each name's tensors; scalars may lie on the CPU too."""
    named = [pair for name, tensors in lists.items() for pair in _entries(name, tensors).items()]
    named += [(name, tensor) for name, tensor in scalars.items() if tensor.device.type != "cpu"]
    for name, tensor in named:
        _checks.check_device(op, name, tensor, "the first tensor", named[0][1])


def _entries(name: str, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)}


def _selection(pool: torch.Tensor, query: torch.Tensor, n_select: int) -> SelectionTensors:
    batch = query.shape[0]
    real = torch.float64 if pool.dtype == torch.float64 else torch.float32

    def rows(dtype: torch.dtype) -> torch.Tensor:
        return pool.new_empty((batch, n_select), dtype=dtype)

    def scalars(dtype: torch.dtype) -> torch.Tensor:
        return pool.new_empty((batch,), dtype=dtype)

    return (
        rows(torch.int64),
        rows(real),
        rows(torch.int64),
        scalars(torch.int64),
        scalars(real),
        scalars(real),
        scalars(torch.int64),
    )


def _sift_selection(pool: torch.Tensor, query: torch.Tensor, n_select: int) -> SiftTensors:
    selection = _selection(pool, query, n_select)
    indices, weights = selection[:2]
    return (*selection, torch.empty_like(indices), torch.empty_like(weights))


@torch.library.register_fake("hullft_ops::fw_select")
def _fake_fw_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    _check_tensors("fw_select", "pool", pool, query=query, **_given(pool_sizes=pool_sizes))
    return _selection(pool, query, n_select)


@torch.library.register_fake("hullft_ops::fw_select_indexed")
def _fake_fw_select_indexed(
    embeddings: torch.Tensor,
    candidates: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    others = {"candidates": candidates, "query": query, **_given(pool_sizes=pool_sizes)}
    _check_tensors("fw_select_indexed", "embeddings", embeddings, **others)
    return _selection(embeddings, query, n_select)


@torch.library.register_fake("hullft_ops::knn_select")
def _fake_knn_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    _check_tensors("knn_select", "pool", pool, query=query, **_given(pool_sizes=pool_sizes))
    return _selection(pool, query, n_select)


@torch.library.register_fake("hullft_ops::sift_select")
def _fake_sift_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    noise: float = 0.01,
    pool_sizes: torch.Tensor | None = None,
) -> SiftTensors:
    _check_tensors("sift_select", "pool", pool, query=query, **_given(pool_sizes=pool_sizes))
    return _sift_selection(pool, query, n_select)


@torch.library.register_fake("hullft_ops::sift_select_indexed")
def _fake_sift_select_indexed(
    embeddings: torch.Tensor,
    candidates: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    noise: float = 0.01,
    pool_sizes: torch.Tensor | None = None,
) -> SiftTensors:
    others = {"candidates": candidates, "query": query, **_given(pool_sizes=pool_sizes)}
    _check_tensors("sift_select_indexed", "embeddings", embeddings, **others)
    return _sift_selection(embeddings, query, n_select)


@torch.library.register_fake("hullft_ops::integerize")
def _fake_integerize(
    support: torch.Tensor,
    query: torch.Tensor,
    weights: torch.Tensor,
    n_select: int,
    swap_passes: int = 2,
    support_sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    others = {"query": query, "weights": weights, **_given(support_sizes=support_sizes)}
    _check_tensors("integerize", "support", support, **others)
    return support.new_empty(weights.shape, dtype=torch.int64)


@torch.library.register_fake("hullft_ops::adam_replay_")
def _adam_replay(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    steps: list[torch.Tensor],
    *,
    repeats: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    lr_tensor: torch.Tensor | None = None,
    seed: int | None = None,
) -> None:
    """Writes to its arguments and returns nothing."""
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    scalars = _entries("steps", steps) | _given(lr_tensor=lr_tensor)
    _check_lists("adam_replay_", lists, scalars)


@torch.library.register_fake("hullft_ops::adam_replay_check")
def _adam_replay_check(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    steps: list[torch.Tensor],
    lr_tensors: list[torch.Tensor],
) -> None:
    """Returns nothing."""
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    scalars = _entries("steps", steps) | _entries("lr_tensors", lr_tensors)
    _check_lists("adam_replay_check", lists, scalars)


@torch.library.register_fake("hullft_ops::grad_accumulate_")
def _grad_accumulate(
    caches: list[torch.Tensor],
    grads: list[torch.Tensor],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    """Writes to its arguments and returns nothing."""
    _check_lists("grad_accumulate_", {"caches": caches, "grads": grads}, {})


@torch.library.register_fake("hullft_ops::fw_lmo")
def _fake_fw_lmo(
    pool: torch.Tensor,
    query: torch.Tensor,
    current: torch.Tensor,
    pool_sizes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    others = {"query": query, "current": current, **_given(pool_sizes=pool_sizes)}
    _check_tensors("fw_lmo", "pool", pool, **others)
    batch = (query.shape[0],)
    real = torch.float64 if pool.dtype == torch.float64 else torch.float32
    return (
        pool.new_empty(batch, dtype=torch.int64),
        pool.new_empty(batch, dtype=real),
        pool.new_empty(batch, dtype=real),
        pool.new_empty(batch, dtype=real),
    )


# No output of a selection has a gradient. torch's own kernel for operators without a derivative
# would say that they have one, and warn when a backward pass loses it.
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

ops = torch.ops.hullft_ops


def _counting_versions(name: str) -> Callable[..., None]:
    """A backward through a graph that saved what is written must fail, as after torch's own."""
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
