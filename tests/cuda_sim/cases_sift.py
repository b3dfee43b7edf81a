"""SIFT: picks, variances and the selection they make."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from cuda_sim.checks import (
    SMALL_SHARED,
    case,
    case_of_values,
    check_empty,
    check_equals,
    check_failed,
    check_ragged,
    check_same,
    check_scaled,
    hull_problem,
    problems_of_bad_values,
    problems_of_parts,
    scaled_problems,
)
from cuda_sim.library import Launch, Library
from hullft_ops import SiftSelection, reference
from problems import of_query
from sift_checks import assert_sift_within_float32

SIFT_SIZES = (
    (1, 1, 3),
    (2, 3, 1),
    (33, 20, 6),
    (65, 33, 9),
    (130, 18, 12),
)
"""Candidates, dimension, n_select."""


def check_sift(
    sift: SiftSelection, pool: torch.Tensor, query: torch.Tensor, noise: float = 0.01
) -> None:
    """One query: the oracle's picks in float64, in float32 each within rounding of the best."""
    if pool.dtype != torch.float64:
        assert_sift_within_float32(sift, pool, query, noise)
        return

    expected = reference.sift_select(pool, query, len(sift.picks), noise=noise)
    expected_variance = torch.tensor(expected.variance, dtype=torch.float64)
    error = sift.variance - expected_variance

    assert sift.picks.tolist() == expected.picks
    assert error.abs().max() <= 1e-10

    check_equals(sift.selection, expected.selection)


def sift_matches(
    library: Library,
    dtype: torch.dtype,
    launch: Launch,
    sizes: Iterable[tuple],
    noise: float = 0.1,
) -> None:
    for candidates, dim, n_select in sizes:
        pool, query = hull_problem(candidates, 2, candidates, dim, dtype)
        answer = library.sift(pool, query, n_select, noise=noise, launch=launch)

        for b in range(2):
            check_sift(of_query(answer, b), pool[b], query[b], noise)


@case
def sift(library: Library, seed: int) -> None:
    for gram in (True, False):
        sift_matches(library, torch.float64, Launch(seed, gram), SIFT_SIZES)
        sift_matches(library, torch.float32, Launch(seed, gram, 64), SIFT_SIZES[2:4])

    sift_matches(library, torch.bfloat16, Launch(seed, False, 64), SIFT_SIZES[2:3])
    sift_matches(library, torch.float16, Launch(seed, True, 64), SIFT_SIZES[2:3])


@case
def sift_repeats(library: Library, seed: int) -> None:
    """Much noise: the same rows again and again, more picks than rows."""
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        sift_matches(library, torch.float64, launch, [(5, 6, 70)], noise=1.0)


@case
def sift_targets(library: Library, seed: int) -> None:
    """Four targets, each at a multiple of 16 bytes or only the first of a query; the rows are."""
    for dim in (8, 9):
        pool, targets = hull_problem(11, 8, 40, dim, torch.float64)
        for dtype in (torch.float64, torch.float32):
            query = targets.view(2, 4, dim).to(dtype)
            wide = torch.zeros(2, 40, 12, dtype=dtype)
            rows = wide[..., :dim].copy_(pool[:2])
            launch = Launch(seed, False, 64)
            answer = library.sift(rows, query, 6, noise=0.1, launch=launch)

            for b in range(2):
                check_sift(of_query(answer, b), rows[b], query[b], 0.1)


@case
def sift_ragged(library: Library, seed: int) -> None:
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        select = partial(library.sift, n_select=6, launch=launch)
        check_ragged(select, check_sift, check_sift_failed)


@case
def sift_empty_targets(library: Library, seed: int) -> None:
    """Without candidates the mean target's norm is left, and the variance of all targets."""
    pool, _ = hull_problem(2, 2, 9, 12, torch.float32)
    targets = hull_problem(3, 2, 3, 12, torch.float32)[0]
    sizes = torch.tensor([0, 9])
    answer = library.sift(pool, targets, 4, sizes=sizes, launch=Launch(seed))

    check_empty(of_query(answer, 0), targets[0].mean(0))

    assert (answer.picks[0] == -1).all()
    assert torch.allclose(answer.variance[0], targets[0].square().sum(), rtol=1e-6)


def check_sift_failed(sift: SiftSelection) -> None:
    check_failed(sift, len(sift.picks))

    assert (sift.picks == -1).all()
    assert sift.variance.isnan().all()


@case
def sift_failures(library: Library, seed: int) -> None:
    """A query that cannot be solved says so, and its neighbours do not notice."""
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        for pool, query in problems_of_bad_values():
            answer = library.sift(pool, query, 4, launch=launch)
            check_sift(of_query(answer, 0), pool[0], query[0])
            check_sift_failed(of_query(answer, 1))
            check_sift_failed(of_query(answer, 2))

        pool, query = hull_problem(1, 2, 20, 8, torch.float32)
        pool[1] *= 1e-20  # float32 does not hold one by the square and the noise
        query[1] *= 1e10
        answer = library.sift(pool, query, 4, noise=1e-50, launch=launch)

        check_sift_failed(of_query(answer, 1))


@case_of_values
def sift_scaled(library: Library, seed: int) -> None:
    """With the noise by its square, a power of two changes nothing but the scale."""
    for pool, query, scales in scaled_problems(13, 24, 10):
        targets = torch.stack([query, query.flip(0)], dim=1)
        for q, gram in ((query, True), (targets, False)):
            launch = Launch(seed, gram, 64)
            expected = library.sift(pool, q, 7, noise=0.1, launch=launch)

            for scale in scales:
                answer = library.sift(
                    scale * pool,
                    scale * q,
                    7,
                    noise=0.1 * scale**2,
                    launch=launch,
                )

                check_scaled(answer, expected, scale)


@case
def sift_parts(library: Library, seed: int) -> None:
    """A batch in parts gives the bits of the whole: own pools, shared ones, rows in place."""
    for gram in (True, False):
        whole = Launch(seed, gram, 64)
        in_parts = replace(whole, max_workspace_bytes=15_000)
        one_by_one = replace(
            whole,
            max_shared_bytes=SMALL_SHARED // 2,
            max_workspace_bytes=1,
        )

        for problem in problems_of_parts():
            query = problem["query"]
            targets = torch.stack([query, query.flip(0)], dim=1)
            options = {**problem, "query": targets, "n_select": 6}
            expected = library.sift(**options, launch=whole)

            assert expected.support_size[[0, 2, 4]].min() > 1

            for launch in (in_parts, one_by_one):
                answer = library.sift(**options, launch=launch)
                check_same(answer, expected)
