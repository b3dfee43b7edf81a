"""What the checks of every kernel share: register, problems, comparisons with the oracle."""

from collections.abc import Callable, Iterator

import torch

from cuda_sim.library import Library
from hullft_ops import Selection, reference
from problems import (
    REACH,
    AnySelection,
    assert_equals_reference,
    of_query,
    without_small_entries,
)

SMALL_SHARED = 2048
"""Less than any state here: the solve keeps it in global memory."""

CASES: dict[str, Callable[[Library, int], None]] = {}
"""Checks by name; the second argument is the schedule's seed."""

ABOUT_VALUES: set[str] = set()
"""Checks that touch memory as others do: the builds that look at accesses leave them out."""


def case(check: Callable[[Library, int], None]) -> Callable[[Library, int], None]:
    CASES[check.__name__] = check
    return check


def case_of_values(
    check: Callable[[Library, int], None],
) -> Callable[[Library, int], None]:
    ABOUT_VALUES.add(check.__name__)
    return case(check)


def hull_problem(
    seed: int, batch: int, candidates: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows in all directions and queries near their hull: many atoms, many drops."""
    random = {
        "generator": torch.Generator().manual_seed(seed),
        "dtype": torch.float64,
    }
    pool = torch.randn(batch, candidates, dim, **random)
    pool /= pool.norm(dim=-1, keepdim=True)

    weights = torch.rand(batch, candidates, **random) ** 6
    weights /= weights.sum(-1, keepdim=True)
    inside = (weights.unsqueeze(-1) * pool).sum(1)

    noise = torch.randn(batch, dim, **random) / dim**0.5
    query = inside + 0.3 * noise
    return pool.to(dtype), query.to(dtype)


def scaled_problems(
    seed: int, candidates: int, dim: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[float, float]]]:
    """A problem of each dtype, and powers of two by which its entries scale exactly."""
    for dtype, reach in REACH.items():
        pool, query = hull_problem(seed, 2, candidates, dim, dtype)
        scales = (2.0**-reach, 2.0**reach)
        yield without_small_entries(pool), without_small_entries(query), scales


def problems_of_bad_values() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Three queries: a value in the pool of the second, and in the third, is not finite."""
    for value in (float("nan"), float("inf"), -float("inf")):
        pool, query = hull_problem(1, 3, 20, 8, torch.float32)
        pool[1, 17, 3] = value
        query[2, 0] = value
        yield pool, query


def permutations(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [torch.randperm(size, generator=generator) for _ in range(count)]
    )


def problems_of_parts() -> Iterator[dict[str, torch.Tensor]]:
    """Five queries, one of them of a size out of range, over own pools, a shared one, and rows of
    it in place."""
    pool, query = hull_problem(4, 5, 40, 12, torch.float32)
    sizes = torch.tensor([30, 1, 29, 0, 31])
    candidates = permutations(5, 40)[:, :31].contiguous()
    separate = {"pool": pool, "query": query, "sizes": sizes}
    yield separate

    shared = {**separate, "pool": pool[0]}
    yield shared

    of_rows = {**shared, "candidates": candidates}
    yield of_rows


def check_ragged(
    select: Callable[..., AnySelection],
    check: Callable[[AnySelection, torch.Tensor, torch.Tensor], None],
    check_failed: Callable[[AnySelection], None],
) -> None:
    """Sizes, good and bad; own pools, a shared one, and rows of it in place."""
    pool, query = hull_problem(2, 5, 40, 12, torch.float64)
    sizes = torch.tensor([40, 1, 33, 0, 41])
    candidates = torch.stack([torch.arange(40).roll(b) for b in range(5)])
    candidates[1, 5] = -1  # past its size
    candidates[2, 32] = 40
    answer = select(pool, query, sizes=sizes)
    shared = select(pool[0], query, sizes=sizes)
    indexed = select(pool[0], query, sizes=sizes, candidates=candidates)

    for b, n in enumerate(sizes[:3].tolist()):
        check(of_query(answer, b), pool[b, :n], query[b])
        check(of_query(shared, b), pool[0, :n], query[b])

    for b, n in enumerate(sizes[:2].tolist()):
        check(of_query(indexed, b), pool[0, candidates[b, :n]], query[b])

    check_failed(of_query(indexed, 2))

    for ragged in (answer, shared, indexed):
        check_empty(of_query(ragged, 3), query[3])
        check_failed(of_query(ragged, 4))


def check_same(answer: AnySelection, expected: AnySelection) -> None:
    """The same bits, NaN for NaN."""
    for values, others in zip(answer, expected, strict=True):
        assert torch.equal(values.nan_to_num(-7), others.nan_to_num(-7))


def check_scaled(answer: AnySelection, expected: AnySelection, scale: float) -> None:
    """The same bits but for the scale."""
    factors = {"residual": scale, "gap": scale**2, "variance": scale**2}
    for name, values in answer._asdict().items():
        factor = factors.get(name, 1)
        assert torch.equal(values, getattr(expected, name) * factor)


def check_equals(answer: Selection, expected: reference.ReferenceSelection) -> None:
    """One query against the oracle: same indices, counts and steps."""
    tolerance = 1e-10 if answer.weights.dtype == torch.float64 else 2e-5
    assert_equals_reference(answer, expected, weight_tolerance=tolerance)


def check_empty(answer: AnySelection, query: torch.Tensor) -> None:
    """How a query [d] without candidates shows: nothing of it is explained."""
    assert (answer.indices == -1).all()
    assert (answer.counts == 0).all()
    assert (answer.weights == 0).all()
    assert abs(answer.residual.item() - query.double().norm().item()) < 1e-6
    assert answer.gap.item() == 0
    assert answer.support_size.item() == 0
    assert answer.num_iter.item() == 0


def check_failed(answer: AnySelection, n_select: int) -> None:
    """How a query that could not be solved shows."""
    assert (answer.indices == -1).all()
    assert answer.counts.tolist() == [n_select, *[0] * (n_select - 1)]
    assert answer.weights.isnan().all()
    assert answer.residual.isnan()
    assert answer.gap.isnan()
    assert answer.support_size.item() == 0
    assert answer.num_iter.item() == -1
