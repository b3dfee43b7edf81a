"""The kernels of one product or one decision: integerize, lmo, knn."""

import torch

from cuda_sim.checks import (
    case,
    case_of_values,
    check_empty,
    check_equals,
    check_failed,
    hull_problem,
    scaled_problems,
)
from cuda_sim.library import Launch, Library
from hullft_ops import reference
from problems import make_problem, of_query, remembered

reference_integerize = remembered(reference.integerize)


@case
def integerize(library: Library, seed: int) -> None:
    shapes = (
        (torch.float64, 1, 3, 5),
        (torch.float64, 7, 5, 50),
        (torch.float64, 40, 12, 12),
        (torch.float32, 33, 18, 9),
        (torch.bfloat16, 20, 9, 64),
        (torch.float32, 70, 12, 8),
    )

    for dtype, m, dim, n_select in shapes:
        support, query = hull_problem(m, 3, m, dim, dtype)
        generator = torch.Generator().manual_seed(m)
        weights = torch.randn(3, m, generator=generator, dtype=torch.float64).relu()
        weights[1] = 0
        sizes = torch.tensor([m, m, max(1, m - 3)])
        counts = library.integerize(
            support,
            query,
            weights,
            n_select,
            sizes=sizes,
            launch=Launch(seed),
        )

        assert (counts.sum(1) == n_select).all()
        assert (counts >= 0).all()

        for b in range(3):
            n = int(sizes[b])
            expected = reference_integerize(
                support[b, :n],
                query[b],
                weights[b, :n],
                n_select,
            )

            assert counts[b, :n].tolist() == expected.tolist()
            assert counts[b, n:].tolist() == [0] * (m - n)


@case
def integerize_failures(library: Library, seed: int) -> None:
    support, query = hull_problem(7, 5, 6, 4, torch.float32)
    weights = torch.full((5, 6), 1 / 6)
    support[1, 5, 0] = float("nan")
    query[2, 3] = float("inf")
    weights[3, 0] = float("nan")
    sizes = torch.tensor([6, 6, 6, 6, 7])
    counts = library.integerize(
        support,
        query,
        weights,
        9,
        sizes=sizes,
        launch=Launch(seed),
    )
    expected = reference.integerize(support[0], query[0], weights[0], 9)

    assert counts[0].tolist() == expected.tolist()
    assert (counts[1:] == -1).all()


@case_of_values
def integerize_scaled(library: Library, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 12, generator=generator)
    launch = Launch(seed)

    for support, query, scales in scaled_problems(14, 12, 5):
        expected = library.integerize(support, query, weights, 9, launch=launch)

        for scale in scales:
            counts = library.integerize(
                scale * support,
                scale * query,
                weights,
                9,
                launch=launch,
            )
            assert torch.equal(counts, expected)


@case
def counts_of_close_gains(library: Library, seed: int) -> None:
    """Gains whose upper 32 bits are the same: longer rows, anywhere in the support, come first."""
    generator = torch.Generator().manual_seed(6)
    lengths = 1 + 1e-9 * torch.randperm(37, generator=generator).double()
    support = torch.diag(lengths).unsqueeze(0)
    query = torch.full((1, 37), 0.5, dtype=torch.float64)
    weights = torch.zeros(1, 37, dtype=torch.float64)
    counts = library.integerize(support, query, weights, 12, launch=Launch(seed))
    longest = lengths.topk(12).indices

    assert counts.sum() == 12
    assert (counts[0, longest] == 1).all()


@case
def lmo(library: Library, seed: int) -> None:
    shapes = (
        (torch.float64, 70, 9),
        (torch.float32, 33, 20),
        (torch.bfloat16, 5, 24),
        (torch.float16, 31, 7),
    )

    for dtype, candidates, dim in shapes:
        pool, query = hull_problem(8, 4, candidates, dim, dtype)
        current = pool[:, 1].contiguous()
        sizes = torch.tensor([candidates, 4, 0, candidates])
        pool[3, 2, 0] = float("nan")
        step = library.lmo(pool, query, current, sizes=sizes, launch=Launch(seed))
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5

        for b in range(2):
            rows = pool[b, : int(sizes[b])]
            expected = reference.fw_lmo(rows, query[b], current[b])

            assert step.vertex[b].item() == expected.vertex

            for name in ("correlation", "gamma", "gap"):
                value = getattr(step, name)[b].item()
                error = value - getattr(expected, name)

                assert abs(error) <= tolerance

        assert step.vertex[2:].tolist() == [-1, -1]
        assert step.gap[2:].isnan().all()


@case_of_values
def lmo_scaled(library: Library, seed: int) -> None:
    """The current point of the second query is its best row."""
    for pool, query, scales in scaled_problems(15, 12, 5):
        current = torch.stack([pool[0, 2], query[1]])
        pool[1, 7] = query[1]
        expected = library.lmo(pool, query, current, launch=Launch(seed))

        for scale in scales:
            step = library.lmo(
                scale * pool,
                scale * query,
                scale * current,
                launch=Launch(seed),
            )

            assert torch.equal(step.vertex, expected.vertex)
            assert torch.equal(step.correlation, expected.correlation * scale**2)
            assert torch.equal(step.gamma, expected.gamma)
            assert torch.equal(step.gap, expected.gap * scale**2)


@case
def knn(library: Library, seed: int) -> None:
    shapes = (
        (torch.float64, 300, 9, 12),
        (torch.float32, 33, 20, 1),
        (torch.bfloat16, 8, 24, 4),
        (torch.float16, 31, 7, 5),
    )

    for dtype, candidates, dim, n_select in shapes:
        pool, query = make_problem(9, 5, candidates, dim, dtype)
        pool[0, 4] = pool[0, 2]
        too_few = n_select - 1 or -1
        sizes = torch.tensor([candidates, n_select, too_few, 0, candidates])
        pool[4, 2, 0] = float("nan")
        answer = library.knn(pool, query, n_select, sizes=sizes, launch=Launch(seed))

        for b in range(2):
            rows = pool[b, : int(sizes[b])]
            expected = reference.knn_select(rows, query[b], n_select)

            check_equals(of_query(answer, b), expected)

        check_failed(of_query(answer, 2), n_select)
        check_empty(of_query(answer, 3), query[3])
        check_failed(of_query(answer, 4), n_select)

        rows = torch.arange(candidates).flip(0).repeat(5, 1)
        rows[1, n_select:] = candidates  # past its size
        rows[0, 3] = -1
        picked = library.knn(
            pool[1], query, n_select, candidates=rows, sizes=sizes, launch=Launch(seed)
        )
        seen = pool[1, rows[1, :n_select]]
        expected = reference.knn_select(seen, query[1], n_select)

        check_equals(of_query(picked, 1), expected)
        check_failed(of_query(picked, 0), n_select)


@case
def knn_overflow(library: Library, seed: int) -> None:
    """Inputs and products of rows are finite, the square of the residual is not."""
    rows = torch.tensor([[1e-20, 0.0], [0.0, 1e-20]])
    pool = rows.expand(2, 2, 2).contiguous()
    query = torch.tensor([[1.0, 0.5], [1e20, 0.0]])
    answer = library.knn(pool, query, 1, launch=Launch(seed))
    expected = reference.knn_select(rows, query[0], 1)

    check_equals(of_query(answer, 0), expected)
    check_failed(of_query(answer, 1), 1)


@case
def sizes_of_64_bits(library: Library, seed: int) -> None:
    """Sizes out of range whose lower 32 bits are a size in range, or one past the pool: of a block,
    and of the warp that solves few rows."""
    pool, query = hull_problem(3, 5, 10, 4, torch.float32)
    sizes = torch.tensor([-(2**32) + 100, 2**32 + 5, -(2**32) + 5, -(2**63), 10])
    options = {"sizes": sizes, "launch": Launch(seed)}
    nearest = library.knn(pool, query, 3, **options)
    few_rows = library.lstsq("simplex", pool, query, **options)

    for b in range(4):
        check_failed(of_query(nearest, b), 3)

    assert nearest.counts[4].sum() == 3
    assert (few_rows.num_iter >= 0).tolist() == [False] * 4 + [True]
