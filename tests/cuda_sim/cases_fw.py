"""Frank-Wolfe: every variant, with whole Gram matrices and with columns."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch.nn.functional import pad

from cuda_sim.checks import (
    SMALL_SHARED,
    case,
    case_of_values,
    check_equals,
    check_failed,
    check_ragged,
    check_same,
    check_scaled,
    hull_problem,
    permutations,
    problems_of_bad_values,
    problems_of_parts,
    scaled_problems,
)
from cuda_sim.library import CONSTRAINTS, Launch, Library
from hullft_ops import reference
from problems import VARIANTS, AnySelection, of_query

SIZES = (
    (1, 1, 3),
    (2, 3, 1),
    (31, 8, 7),
    (33, 20, 12),
    (65, 33, 9),
    (130, 64, 20),
    (257, 17, 6),
)
"""Candidates, dimension, n_select: on both sides of a warp, a tile of rows, a Gram tile, a block,
a vector load and a chunk of d."""

WAYS: dict[str, dict[str, bool]] = {
    "warp": {"gram": True},
    "block": {"gram": True, "warp": False},
    "columns": {"gram": False},
}
"""Who takes the steps, and where columns come from."""

EDGES = (
    (1, 1, 3),
    (31, 8, 7),
    (32, 9, 8),
    (33, 20, 12),
    (255, 12, 9),
    (256, 12, 9),
)
"""Sizes on both sides of a lane's slots and of the largest pool that one warp takes."""


def launches(seed: int) -> Iterator[Launch]:
    """Every way, with two warps a block."""
    for way in WAYS.values():
        yield Launch(seed, threads=64, **way)


def kernels(seed: int) -> Iterator[tuple[str, Launch]]:
    """Variants of both kernels in all of their ways: for "corrective" no warp takes the steps."""
    for launch in launches(seed):
        yield "vanilla", launch

    for gram in (True, False):
        yield "corrective", Launch(seed, gram, 64)


def fw_matches(
    library: Library,
    dtype: torch.dtype,
    variant: str,
    launch: Launch,
    sizes: Iterable[tuple],
) -> None:
    steps = {"vanilla": 40, "corrective": 4}[variant]
    for candidates, dim, n_select in sizes:
        pool, query = hull_problem(candidates, 2, candidates, dim, dtype)
        options = {"variant": variant, "max_iter": steps}
        answer = library.frank_wolfe(pool, query, n_select, launch=launch, **options)

        for b in range(2):
            expected = reference.fw_select(pool[b], query[b], n_select, **options)
            check_equals(of_query(answer, b), expected)


@case
def fw_gram(library: Library, seed: int) -> None:
    launch = Launch(seed, gram=True, warp=False)
    fw_matches(library, torch.float32, "vanilla", launch, SIZES[:4])
    # Half a block: the emulator takes its time for each thread.
    launch = Launch(seed, gram=True, warp=False, threads=128)
    fw_matches(library, torch.float32, "vanilla", launch, SIZES[4:6])


@case
def fw_warp(library: Library, seed: int) -> None:
    """Each lane's slots, none, some or all of them in use; more warps than the one that steps."""
    for threads, sizes in ((64, EDGES[::2]), (96, EDGES[1::2])):
        launch = Launch(seed, gram=True, threads=threads)
        fw_matches(library, torch.float32, "vanilla", launch, sizes)


@case
def fw_warp_converges(library: Library, seed: int) -> None:
    """Past many refreshed sums, and where every step needs the residual from the rows."""
    launch = Launch(seed, gram=True, threads=64)
    pool, outside = hull_problem(8, 1, 70, 12, torch.float64)
    weights = torch.softmax(5 * pool[..., 0], -1)
    inside = (weights.unsqueeze(-1) * pool).sum(1)

    for query in (outside, inside):
        options = {"max_iter": 90, "tol": 1e-9}
        answer = library.frank_wolfe(pool, query, 30, launch=launch, **options)
        expected = reference.fw_select(pool[0], query[0], 30, **options)
        check_equals(of_query(answer, 0), expected)


@case
def fw_full_support_tail(library: Library, seed: int) -> None:
    """Rows of 18 float32 that start every 20: vectors, and a tail of two."""
    problem = hull_problem(3, 1, 9, 18, torch.float32)
    pool, query = (pad(rows, (0, 2))[..., :18] for rows in problem)
    launch = Launch(seed, gram=False, threads=64)
    answer = library.frank_wolfe(pool, query, 4, launch=launch)
    expected = reference.fw_select(pool[0], query[0], 4)

    check_equals(of_query(answer, 0), expected)


@case_of_values
def fw_ties(library: Library, seed: int) -> None:
    """Equal rows, in the shares of one thread and of others: the lowest index wins."""
    for dtype in (torch.float32, torch.float64):
        pool = torch.zeros(1, 100, 4, dtype=dtype)
        pool[0, :, 1] = 1
        pool[0, [6, 38, 70, 95]] = torch.tensor([1.0, 0, 0, 0], dtype=dtype)
        query = torch.tensor([[2.0, 0, 0, 0]], dtype=dtype)

        for launch in launches(seed):
            answer = library.frank_wolfe(pool, query, 3, launch=launch)
            assert answer.indices[0].tolist() == [6, -1, -1]


@case
def fw_failures(library: Library, seed: int) -> None:
    """A query that cannot be solved says so, and its neighbours do not notice."""
    for variant, launch in kernels(seed):
        options = {"variant": variant, "launch": launch}
        for pool, query in problems_of_bad_values():
            answer = library.frank_wolfe(pool, query, 4, max_iter=9, **options)
            expected = reference.fw_select(
                pool[0], query[0], 4, max_iter=9, variant=variant
            )
            check_equals(of_query(answer, 0), expected)
            check_failed(of_query(answer, 1), 4)
            check_failed(of_query(answer, 2), 4)

        pool, query = hull_problem(1, 2, 20, 8, torch.float32)
        pool[1] *= 1e30
        answer = library.frank_wolfe(pool, query * 1e10, 4, **options)

        check_failed(of_query(answer, 1), 4)


@case
def fw_ragged(library: Library, seed: int) -> None:
    def check(answer: AnySelection, rows: torch.Tensor, query: torch.Tensor) -> None:
        check_equals(answer, reference.fw_select(rows, query, 6))

    for launch in launches(seed):
        select = partial(library.frank_wolfe, n_select=6, launch=launch)
        check_ragged(select, check, partial(check_failed, n_select=6))


@case
def fw_shared(library: Library, seed: int) -> None:
    """A pool that queries share selects with the bits of its copies."""
    pools, query = hull_problem(6, 20, 33, 12, torch.float32)
    copies = pools[:1].repeat(20, 1, 1)
    for variant in ("vanilla", "corrective"):
        options = {"variant": variant, "max_iter": 20, "launch": Launch(seed)}
        shared = library.frank_wolfe(pools[0], query, 6, **options)
        check_same(shared, library.frank_wolfe(copies, query, 6, **options))


@case
def fw_stopping(library: Library, seed: int) -> None:
    """max_iter = 0, a query inside the hull, gap_tol, one row for all units, and n_select = 1."""
    rules = (
        {"max_iter": 0},
        {"gap_tol": 0.05},
        {"tol": 0.4},
        {"tol": 0.0},
        {"max_support": 1},
    )
    for dtype, launch in product((torch.float32, torch.float64), launches(seed)):
        pool, query = hull_problem(5, 1, 20, 8, dtype)
        for rule, n_select in product(rules, (1, 6)):
            answer = library.frank_wolfe(pool, query, n_select, launch=launch, **rule)
            expected = reference.fw_select(pool[0], query[0], n_select, **rule)

            check_equals(of_query(answer, 0), expected)

        inside = pool[:, 3].contiguous()
        answer = library.frank_wolfe(pool, inside, 6, launch=launch)

        assert answer.indices[0].tolist() == [3, -1, -1, -1, -1, -1]
        assert answer.num_iter.item() == 0
        assert answer.residual.item() == 0


SCALED = (
    (1, "block", 0.0),
    (7, "columns", 0.7),
    (7, "warp", 1e-5),
    (7, "warp", 0.7),
)
"""n_select, who takes the steps, and tol."""


@case_of_values
def fw_scaled(library: Library, seed: int) -> None:
    """Powers of two change nothing but the scale. Equal rows, a query in its pool and a large tol
    reach the thresholds."""
    for pool, query, scales in scaled_problems(12, 24, 10):
        pool[:, 1::2] = pool[:, ::2]
        query[0] = pool[0, 3]

        for variant, (n_select, way, tol) in product(VARIANTS, SCALED):
            launch = Launch(seed, threads=64, **WAYS[way])
            options = {"variant": variant, "tol": tol, "launch": launch}
            expected = library.frank_wolfe(pool, query, n_select, **options)

            for scale in scales:
                answer = library.frank_wolfe(
                    scale * pool,
                    scale * query,
                    n_select,
                    **options,
                )

                check_scaled(answer, expected, scale)


@case
def fw_parts(library: Library, seed: int) -> None:
    """A batch in parts gives the bits of the whole: own pools, shared ones, rows in place. Fewer
    rows than units."""
    for variant, whole in kernels(seed):
        options = {"n_select": 9, "max_support": 6, "variant": variant}
        in_parts = replace(whole, max_workspace_bytes=14_000)
        one_by_one = replace(
            whole,
            max_shared_bytes=SMALL_SHARED,
            max_workspace_bytes=1,
        )

        for problem in problems_of_parts():
            expected = library.frank_wolfe(**options, **problem, launch=whole)

            assert expected.support_size[[0, 2, 4]].min() > 1

            for launch in (in_parts, one_by_one):
                answer = library.frank_wolfe(**options, **problem, launch=launch)
                check_same(answer, expected)


@case
def fw_rounds(library: Library, seed: int) -> None:
    """Columns of the device give the bits of a block's own, in rounds that are too few or empty:
    own pools with a NaN, rows in place with one out of range, and one query that sees nothing."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        pool, query = hull_problem(8, 3, 70, 12, dtype)
        pool[1, 5, 3] = float("nan")
        sizes = torch.tensor([70, 33, 0])
        candidates = permutations(3, 70)
        candidates[1, 3] = -1
        own = {"pool": pool, "query": query, "sizes": sizes}
        in_place = {**own, "pool": pool[0], "candidates": candidates}
        alone = {"pool": pool[:1], "query": query[:1]}
        block = Launch(seed, gram=False, threads=64, sms=3, rounds=0)
        for rounds in (1, 4, 20):
            device = replace(block, rounds=rounds)
            for problem, variant in product((own, in_place, alone), VARIANTS):
                options = {**problem, "n_select": 9, "variant": variant}
                expected = library.frank_wolfe(**options, launch=block)

                assert expected.support_size[0] > 4

                answer = library.frank_wolfe(**options, launch=device)
                check_same(answer, expected)

            for problem, constraint in product((own, alone), CONSTRAINTS):
                expected = library.lstsq(constraint, **problem, launch=block)
                answer = library.lstsq(constraint, **problem, launch=device)
                check_same(answer, expected)


@case
def fw_large_support(library: Library, seed: int) -> None:
    """A support whose Gram matrix has no room in shared memory."""
    pool = torch.eye(80).unsqueeze(0)
    query = (1.5 - permutations(1, 80) / 80) ** 3
    query /= query.sum()
    launch = Launch(seed, gram=True, threads=64)
    answer = library.frank_wolfe(pool, query, 60, launch=launch)
    expected = reference.fw_select(pool[0], query[0], 60)

    assert answer.support_size.item() == 60

    check_equals(of_query(answer, 0), expected)
