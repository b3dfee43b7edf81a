"""Loads the extension, which registers the operators, and gives each its fake kernel.

A fake kernel says what an operator returns (shapes, dtypes, devices) without computing it:
``torch.compile``, ``torch.export`` and fake tensors need nothing else.
"""

import torch

from hullft_ops import _C  # noqa: F401 (its import registers the operators)

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


def _check_defined(**tensors: torch.Tensor | None) -> None:
    """torch takes None for any tensor of a schema."""
    for name, tensor in tensors.items():
        if tensor is None:
            raise TypeError(f"hullft_ops: {name} must be a torch.Tensor, got NoneType")


def _selection(pool: torch.Tensor, query: torch.Tensor, n_select: int) -> SelectionTensors:
    _check_defined(pool=pool, query=query)
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
    return _selection(embeddings, query, n_select)


@torch.library.register_fake("hullft_ops::knn_select")
def _fake_knn_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    return _selection(pool, query, n_select)


@torch.library.register_fake("hullft_ops::sift_select")
def _fake_sift_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    noise: float = 0.01,
    pool_sizes: torch.Tensor | None = None,
) -> SiftTensors:
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
    _check_defined(support=support, weights=weights)
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


@torch.library.register_fake("hullft_ops::grad_accumulate_")
def _grad_accumulate(
    caches: list[torch.Tensor],
    grads: list[torch.Tensor],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    """Writes to its arguments and returns nothing."""


@torch.library.register_fake("hullft_ops::fw_lmo")
def _fake_fw_lmo(
    pool: torch.Tensor,
    query: torch.Tensor,
    current: torch.Tensor,
    pool_sizes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_defined(pool=pool, query=query)
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
_autograd = torch.library.Library("hullft_ops", "IMPL")  # type: ignore[no-untyped-call]
for _name in _NOT_DIFFERENTIABLE:
    _autograd.impl(  # type: ignore[no-untyped-call]
        _name, torch.library.fallthrough_kernel, "Autograd"
    )

ops = torch.ops.hullft_ops
