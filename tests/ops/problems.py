"""Random selection problems, and one batch query checked against the definitions."""

from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from typing import Any, ParamSpec, TypeVar

import torch

import hullft_ops
from hullft_ops import reference

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
]
REACH = {
    torch.float64: 60,
    torch.float32: 40,
    torch.bfloat16: 40,
    torch.float16: 6,
}
"""Powers of two up to which, and down to whose reciprocal, entries may be scaled."""
ON_VALUES = "values are checked on the CPU alone; on CUDA bad ones show in the outputs"
VARIANTS = ["vanilla", "corrective"]
METHODS = [*VARIANTS, "sift", "knn"]
AnySelection = hullft_ops.Selection | hullft_ops.SiftSelection
P = ParamSpec("P")
T = TypeVar("T")


def remembered(oracle: Callable[P, T]) -> Callable[P, T]:
    """The same function, which solves a problem once, though every instruction set asks."""
    answers: dict[object, T] = {}

    @wraps(oracle)
    def remembering(*args: P.args, **options: P.kwargs) -> T:
        key = (*map(_key, args), *sorted(options.items()))
        if key not in answers:
            answers[key] = oracle(*args, **options)

        return answers[key]

    return remembering


def _key(argument: object) -> object:
    if not isinstance(argument, torch.Tensor):
        return argument

    numbers = argument.contiguous().view(torch.uint8).numpy()
    return argument.dtype, argument.shape, sha256(numbers).digest()


def make_problem(
    seed: int,
    batch: int,
    candidates: int,
    dim: int,
    dtype: torch.dtype = torch.float64,
    *,
    spread: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-norm pools around their queries, as a retriever returns them, nearest first."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    query = query / query.norm(dim=-1, keepdim=True)

    shape = (batch, candidates, dim)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    pool = query.unsqueeze(1) + spread * noise / dim**0.5
    pool = pool / pool.norm(dim=-1, keepdim=True)

    similarity = (pool @ query.unsqueeze(-1)).squeeze(-1)
    order = similarity.argsort(dim=-1, descending=True)
    pool = pool.gather(1, order.unsqueeze(-1).expand_as(pool))
    return pool.to(dtype), query.to(dtype)


def select(
    method: str,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    **options: Any,
) -> AnySelection:
    """By one of METHODS."""
    if method == "sift":
        return hullft_ops.sift_select(pool, query, n_select, **options)

    if method == "knn":
        return hullft_ops.knn_select(pool, query, n_select, **options)

    return hullft_ops.fw_select(pool, query, n_select, variant=method, **options)


def without_small_entries(tensor: torch.Tensor) -> torch.Tensor:
    """Entries that no scale of REACH makes subnormal."""
    return tensor.masked_fill(tensor.abs() < 2.0**-8, 0)


def assert_same_selection(
    selection: AnySelection, expected: AnySelection, device: torch.device
) -> None:
    """The same bits on the CPU.

    On CUDA a query of a batch and a query alone may have their products from other kernels, with
    sums in another order: the same choices, and reals up to rounding.
    """
    if device.type == "cpu":
        assert all(map(torch.equal, selection, expected))
        return

    tolerance = 1e-10 if selection.residual.dtype == torch.float64 else 2e-5
    for name, values in expected._asdict().items():
        if values.is_floating_point():
            error = (getattr(selection, name) - values).abs()
            assert (error <= tolerance).all(), name
        elif name != "num_iter":
            assert torch.equal(getattr(selection, name), values), name


def assert_equals_reference(
    selection: hullft_ops.Selection,
    expected: reference.ReferenceSelection,
    *,
    weight_tolerance: float = 1e-10,
) -> None:
    """One unbatched selection against the oracle: same indices, counts and steps."""
    m = len(expected.indices)

    assert selection.support_size.item() == m
    assert selection.indices[:m].tolist() == expected.indices.tolist()
    assert selection.counts[:m].tolist() == expected.counts.tolist()
    assert (selection.indices[m:] == -1).all()
    assert (selection.weights[m:] == 0).all()
    assert (selection.counts[m:] == 0).all()
    assert selection.num_iter.item() == expected.num_iter

    error = (selection.weights[:m].double() - expected.weights).abs()

    assert (error <= weight_tolerance).all()
    assert abs(selection.residual.item() - expected.residual) <= weight_tolerance
    assert abs(selection.gap.item() - expected.gap) <= weight_tolerance


def of_query(selection: AnySelection, b: int) -> AnySelection:
    return type(selection)(*(tensor[b] for tensor in selection))


def assert_consistent(
    pool: torch.Tensor,
    query: torch.Tensor,
    selection: AnySelection,
    n_select: int,
    bound: float,
) -> None:
    """What must hold of any batched answer, whichever path the method took to it.

    The bound is of squared lengths: a recurrence subtracts near-equal numbers.
    """
    indices, counts = selection.indices, selection.counts
    weights = selection.weights.double()
    chosen = indices >= 0

    assert torch.equal(chosen.sum(-1), selection.support_size)
    assert (selection.support_size >= 1).all()
    assert (indices < pool.shape[1]).all()
    assert (counts >= 0).all()
    assert (counts.sum(-1) == n_select).all()
    assert (counts[~chosen] == 0).all()
    assert (weights >= 0).all()
    assert (weights[~chosen] == 0).all()
    assert (weights.sum(-1) - 1).abs().max() <= 1e-6
    assert (weights.diff(dim=-1) <= 0).all()

    for row, used, times, units in zip(
        indices, chosen, counts, selection.multiset(), strict=True
    ):
        assert len(row[used].unique()) == used.sum()
        assert units.tolist() == row.repeat_interleave(times).tolist()

    wide = pool.double()
    rows = indices.clamp(min=0).unsqueeze(-1).expand(-1, -1, pool.shape[-1])
    mix = torch.einsum("bnd,bn->bd", wide.gather(1, rows), weights)
    left = query.double() - mix
    squared_error = selection.residual.double() ** 2 - left.square().sum(-1)

    assert squared_error.abs().max() <= bound

    largest = torch.einsum("bkd,bd->bk", wide, left).max(-1).values
    gap_error = largest - (left * mix).sum(-1) - selection.gap.double()

    assert gap_error.abs().max() <= bound
