"""Bad input to sift_select: errors name the argument, what was wanted, what came."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops
from problems import ON_VALUES, make_problem

POOL, QUERY = make_problem(0, 2, 6, 4, torch.float32)
CANDIDATES = torch.zeros(2, 2, dtype=torch.int64)
NAN, INF = float("nan"), float("inf")


def poisoned(
    tensor: torch.Tensor, index: tuple[int, ...], value: float
) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def sift(
    pool: object = POOL, query: object = QUERY, n: object = 3, **options: object
) -> object:
    return hullft_ops.sift_select(pool, query, n, **options)  # type: ignore[arg-type]


TYPE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "pool": (
        lambda: sift([[1.0]]),
        "sift_select: pool must be a torch.Tensor, got list",
    ),
    "query": (
        lambda: sift(query=QUERY.double()),
        "query is torch.float64, pool is torch.float32",
    ),
    "n": (lambda: sift(n=3.0), "n_select must be an int, got float"),
    "noise": (lambda: sift(noise="1"), "noise must be a number, got str"),
    "candidates": (
        lambda: hullft_ops.sift_select_indexed(
            POOL[0], torch.ones(2, 2).int(), QUERY, 3
        ),
        "sift_select_indexed: candidates must be int64, got torch.int32",
    ),
}
VALUE_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "dim": (
        lambda: sift(query=QUERY[:, :3]),
        "sift_select: query has dim 3, pool has dim 4",
    ),
    "batch": (
        lambda: sift(query=QUERY[:1]),
        "pool has a batch of 2, query a batch of 1",
    ),
    "no targets": (
        lambda: sift(query=QUERY[:, None][:, :0]),
        r"query has no targets, got shape \[2, 0, 4\]",
    ),
    "query rank": (
        lambda: sift(query=QUERY[None, None]),
        r"query must have shape \[d\], \[B, d\] or \[B, m, d\], got \[1, 1, 2, 4\]",
    ),
    "indexed query rank": (
        lambda: hullft_ops.sift_select_indexed(
            POOL[0], torch.zeros(2).long(), QUERY[0, 0], 3
        ),
        r"query must have shape \[d\], \[B, d\] or \[B, m, d\], got \[\]",
    ),
    "empty": (lambda: sift(POOL[:, :0]), r"pool is empty, got shape \[2, 0, 4\]"),
    "n": (lambda: sift(n=0), "n_select must be in 1"),
    "noise 0": (lambda: sift(noise=0.0), "noise must be finite and > 0, got 0.0"),
    "noise < 0": (lambda: sift(noise=-1), "noise must be finite and > 0, got -1"),
    "noise nan": (lambda: sift(noise=NAN), "noise must be finite and > 0, got nan"),
    "noise inf": (lambda: sift(noise=INF), "noise must be finite and > 0, got inf"),
    "embeddings rank": (
        lambda: hullft_ops.sift_select_indexed(
            POOL, torch.zeros(2, 2).long(), QUERY, 3
        ),
        r"embeddings must have shape \[M, d\], got \[2, 6, 4\]",
    ),
    "candidates of several targets": (
        lambda: hullft_ops.sift_select_indexed(
            POOL[0], CANDIDATES[:1], QUERY[:, None], 3
        ),
        r"candidates \[1, 2\] and query \[2, 1, 4\] must both have the same batch or none",
    ),
    "candidates batch": (
        lambda: hullft_ops.sift_select_indexed(
            POOL[0], torch.zeros(2).long(), QUERY, 3
        ),
        "must both have the same batch or none",
    ),
}
BAD_VALUES: dict[str, tuple[Callable[[], object], str]] = {
    "candidates": (
        lambda: hullft_ops.sift_select_indexed(
            POOL[0], torch.tensor([[0, -7], [1, 2]]), QUERY, 3
        ),
        r"candidates\[0, 1\] is -7, embeddings has 6 rows",
    ),
    "sizes": (
        lambda: sift(pool_sizes=torch.tensor([6, 7])),
        r"pool_sizes\[1\] is 7, must be in 1..6",
    ),
    "nan": (
        lambda: sift(poisoned(POOL, (1, 2, 3), NAN)),
        "sift_select: pool has NaN or infinity in row 2 for query 1",
    ),
    "inf": (
        lambda: sift(poisoned(POOL, (0, 5, 0), INF), QUERY * 0),
        "pool has NaN or infinity in row 5 for query 0",
    ),
    "query nan": (
        lambda: sift(query=poisoned(QUERY, (1, 0), NAN)),
        r"query\[1\] has NaN or infinity",
    ),
    "target nan": (
        lambda: sift(query=poisoned(torch.stack([QUERY, QUERY], 1), (1, 1, 0), NAN)),
        r"query\[1\] has NaN or infinity",
    ),
    "overflow": (
        lambda: sift(POOL.double() * 1e200, QUERY.double()),
        "finite but their inner products overflow",
    ),
    # Every score is infinity by infinity, and the last lanes of a vector have no candidate.
    "variance and noise overflow": (
        lambda: hullft_ops.sift_select(
            torch.ones(3, 1).double() * 1e154,
            torch.ones(1).double() * 1e154,
            9,
            noise=1.7e308,
        ),
        "finite but their inner products overflow",
    ),
    "variance overflows float32": (
        lambda: sift(POOL * 1e10, QUERY * 1e25),
        "finite but their inner products overflow",
    ),
}
RAW = torch.ops.hullft_ops
RAW_ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "rank": (
        lambda: RAW.sift_select(POOL, QUERY[0], 3),
        "sift_select: query must have 2 or 3 dimensions, got 1",
    ),
    "indexed rank": (
        lambda: RAW.sift_select_indexed(POOL[0], CANDIDATES, QUERY[None, None], 3),
        "query must have 2 or 3 dimensions, got 4",
    ),
    "dim": (
        lambda: RAW.sift_select(POOL, QUERY[:, :2], 3),
        "query has dim 2, pool has dim 4",
    ),
    "targets": (
        lambda: RAW.sift_select(POOL, QUERY[:, None][:, :0], 3),
        "query has no targets",
    ),
    "noise": (
        lambda: RAW.sift_select(POOL, QUERY, 3, 0.0),
        "noise must be finite and > 0, got 0",
    ),
    "noise without a reciprocal": (
        lambda: RAW.sift_select(POOL, QUERY, 3, 1e-310),
        "noise must have a reciprocal, got 1e-310",
    ),
    "n": (lambda: RAW.sift_select(POOL, QUERY, 0), "n_select must be in 1"),
    "candidates": (
        lambda: RAW.sift_select_indexed(POOL[0], torch.zeros(1, 2).long(), QUERY, 3),
        "candidates has batch 1, query has batch 2",
    ),
}


@pytest.mark.refusal("public")
@pytest.mark.parametrize("case", TYPE_ERRORS)
def test_type_error(case: str) -> None:
    call, message = TYPE_ERRORS[case]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.refusal("public")
@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_value_error(case: str) -> None:
    call, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(case: str) -> None:
    call, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.refusal("operator")
@pytest.mark.parametrize("case", RAW_ERRORS)
def test_operators_called_directly_check_too(case: str) -> None:
    call, message = RAW_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
