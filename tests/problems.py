"""Random selection problems, and one batch query checked against the definitions."""

import torch

import hullft_ops
from hullft_ops import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REACH = {torch.float64: 60, torch.float32: 40, torch.bfloat16: 40, torch.float16: 6}
"""Powers of two up to which, and down to whose reciprocal, entries may be scaled."""
ON_VALUES = "values are checked on the CPU alone; on CUDA bad ones show in the outputs"
VARIANTS = ["vanilla", "away", "pairwise"]


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
    noise = torch.randn(
        batch, candidates, dim, generator=generator, dtype=torch.float64
    )
    pool = query.unsqueeze(1) + spread * noise / dim**0.5
    pool = pool / pool.norm(dim=-1, keepdim=True)
    order = (pool @ query.unsqueeze(-1)).squeeze(-1).argsort(dim=-1, descending=True)
    pool = pool.gather(1, order.unsqueeze(-1).expand_as(pool))
    return pool.to(dtype), query.to(dtype)


def without_small_entries(tensor: torch.Tensor) -> torch.Tensor:
    """Entries that no scale of REACH makes subnormal."""
    return tensor.masked_fill(tensor.abs() < 2.0**-8, 0)


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
    assert (
        selection.weights[:m].double() - expected.weights
    ).abs().max() <= weight_tolerance
    assert abs(selection.residual.item() - expected.residual) <= weight_tolerance
    assert abs(selection.gap.item() - expected.gap) <= weight_tolerance


def of_query(selection: hullft_ops.Selection, b: int) -> hullft_ops.Selection:
    return hullft_ops.Selection(*(tensor[b] for tensor in selection))


def assert_consistent(
    pool: torch.Tensor,
    query: torch.Tensor,
    selection: hullft_ops.Selection,
    n_select: int,
) -> None:
    """What must hold of any batched answer, whichever path the variant took to it."""
    found = selection.indices >= 0
    assert torch.equal(found.sum(-1), selection.support_size)
    assert (selection.counts >= 0).all()
    assert (selection.counts.sum(-1) == n_select).all()
    assert (selection.weights >= 0).all()
    assert (selection.weights.double().sum(-1) - 1).abs().max() < 1e-6
    assert (selection.weights.diff(dim=-1) <= 0).all()
    rows = selection.indices.clamp(min=0)
    picked = pool.double().gather(1, rows.unsqueeze(-1).expand(-1, -1, pool.shape[-1]))
    residual = query.double() - torch.einsum(
        "bnd,bn->bd", picked, selection.weights.double()
    )
    assert (residual.norm(dim=-1) - selection.residual.double()).abs().max() < 1e-6
    correlation = torch.einsum("bkd,bd->bk", pool.double(), residual)
    mean = (query.double() - residual).mul(residual).sum(-1)
    gap = correlation.max(-1).values - mean
    assert (gap - selection.gap.double()).abs().max() < 1e-6
