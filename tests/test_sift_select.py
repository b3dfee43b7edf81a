"""sift_select against the definition, activeft, and what callers may bring."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, assert_consistent, assert_equals_reference, make_problem
from sift_checks import FLOAT32_ROUNDING, assert_sift_within_float32

NOISES = [0.01, 0.2]
# Scores nearer than this, of the variance before any pick, are told apart by rounding alone.
ROUNDING = 1e-12


def of_query(selection: hullft_ops.SiftSelection, b: int) -> hullft_ops.SiftSelection:
    return hullft_ops.SiftSelection(*(tensor[b] for tensor in selection))


def assert_equals_sift(
    selection: hullft_ops.SiftSelection,
    expected: reference.ReferenceSift,
    *,
    tolerance: float = 1e-10,
) -> None:
    """One unbatched selection against the oracle: the same picks in the same order."""
    assert selection.picks.tolist() == expected.picks
    variance = torch.tensor(expected.variance, dtype=torch.float64)
    assert (selection.variance.double() - variance).abs().max() <= tolerance
    assert_equals_reference(
        selection.selection, expected.selection, weight_tolerance=max(tolerance, 1e-10)
    )


def assert_greedy(
    pool: torch.Tensor,
    query: torch.Tensor,
    picks: list[int],
    noise: float,
    *,
    rounding: float = ROUNDING,
) -> None:
    """Given the picks before it, every pick is within rounding of the best one."""
    x, q = pool.double(), torch.atleast_2d(query.double())
    for i, pick in enumerate(picks):
        left = reference.variance_after(x, q, picks[:i], noise)
        assert left[pick] <= left.min() + rounding * (q * q).sum()


SHAPES = [(1, 3, 4), (2, 1, 1), (7, 5, 3), (33, 17, 9), (61, 20, 20), (200, 70, 12)]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    noise: float,
    device: torch.device,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype, spread=1.5)
    pool = pool.flip(1)
    sel = hullft_ops.sift_select(pool, query, n_select, noise=noise)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    for b in range(3):
        if device.type != "cpu" and dtype != torch.float64:
            assert_sift_within_float32(of_query(sel, b), pool[b], query[b], noise)
            continue
        expected = reference.sift_select(pool[b], query[b], n_select, noise=noise)
        assert_equals_sift(of_query(sel, b), expected, tolerance=tolerance)


@pytest.mark.parametrize("noise", NOISES)
def test_golden(golden: dict[str, torch.Tensor], noise: float) -> None:
    pool, query = golden["pool"].double(), golden["query"].double()
    sel = hullft_ops.sift_select(pool, query, 20, noise=noise)
    for b in range(len(pool)):
        expected = reference.sift_select(pool[b], query[b], 20, noise=noise)
        assert_equals_sift(of_query(sel, b), expected)


@pytest.mark.cpu_only(
    "the state of narrow pools is float64 on the CPU, float32 on CUDA"
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_pools_are_read_exactly(dtype: torch.dtype) -> None:
    pool, query = make_problem(3, 4, 90, 40, dtype)
    narrow = hullft_ops.sift_select(pool, query, 12)
    wide = hullft_ops.sift_select(pool.double(), query.double(), 12)
    assert torch.equal(narrow.picks, wide.picks)
    assert torch.equal(narrow.counts, wide.counts)
    assert torch.equal(narrow.variance, wide.variance.to(narrow.variance.dtype))


@pytest.mark.parametrize("n_select", [1, 2, 7, 40])
def test_answers_are_consistent(n_select: int) -> None:
    pool, query = make_problem(11, 64, 120, 24)
    sel = hullft_ops.sift_select(pool, query, n_select, noise=0.2)
    assert_consistent(pool, query, sel.selection, n_select)
    assert torch.equal(sel.multiset().sort(-1).values, sel.picks.sort(-1).values)
    assert (sel.variance.diff(dim=-1) <= 0).all()
    assert (sel.num_iter == n_select).all()


def test_the_first_pick_alone() -> None:
    """With one pick the score is a formula that needs no history."""
    pool, query = make_problem(1, 5, 30, 8, spread=2.0)
    pool = pool * torch.linspace(0.2, 3.0, 30, dtype=torch.float64).flip(0).unsqueeze(1)
    sel = hullft_ops.sift_select(pool, query, 1, noise=0.5)
    score = (pool @ query.unsqueeze(-1)).squeeze(-1) ** 2 / (
        (pool * pool).sum(-1) + 0.5
    )
    assert torch.equal(sel.picks[:, 0], score.argmax(-1))
    assert (sel.variance[:, 0] - (1 - score.max(-1).values)).abs().max() < 1e-12


def test_more_columns_than_are_kept() -> None:
    """With each pick comes the column of its twin, which is never picked: 180 of them, 122 kept."""
    axes = torch.eye(100, dtype=torch.float64)
    pool = torch.stack([0.99 * axes, axes], dim=1).reshape(200, 100)
    query = torch.linspace(1.0, 0.5, 100, dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 90, noise=0.01)
    assert sel.picks.tolist() == list(range(1, 180, 2))
    assert_equals_sift(sel, reference.sift_select(pool, query, 90, noise=0.01))


def test_opposite_rows_tell_as_much() -> None:
    """Variance knows no sign: a row opposite to the query is as good as one along it."""
    pool = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    query = torch.tensor([2.0, 0.0], dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 3)
    assert sel.picks.tolist() == [1, 1, 1]
    expected = [4 * 0.01 / (n + 0.01) for n in (1, 2, 3)]
    assert (
        sel.variance - torch.tensor(expected, dtype=torch.float64)
    ).abs().max() < 1e-12


def test_several_targets() -> None:
    pool, _ = make_problem(21, 3, 40, 12, spread=2.0)
    query = torch.stack(
        [make_problem(seed, 3, 1, 12)[1] for seed in (1, 2, 3, 4)], dim=1
    )
    sel = hullft_ops.sift_select(pool, query, 10, noise=0.1)
    for b in range(3):
        expected = reference.sift_select(pool[b], query[b], 10, noise=0.1)
        assert_equals_sift(of_query(sel, b), expected)
    one = hullft_ops.sift_select(pool, query[:, :1], 10, noise=0.1)
    alone = hullft_ops.sift_select(pool, query[:, 0], 10, noise=0.1)
    assert all(torch.equal(x, y) for x, y in zip(one, alone, strict=True))


def test_ragged_equals_separate() -> None:
    pool, query = make_problem(2, 5, 37, 11)
    sizes = torch.tensor([37, 1, 4, 16, 33])
    for b, size in enumerate(sizes.tolist()):
        pool[b, size:] = float("nan")  # what lies past the size must not be read
    sel = hullft_ops.sift_select(pool, query, 6, pool_sizes=sizes)
    for b, size in enumerate(sizes.tolist()):
        alone = hullft_ops.sift_select(pool[b, :size].clone(), query[b], 6)
        assert all(
            torch.equal(x, y) for x, y in zip(of_query(sel, b), alone, strict=True)
        )


def test_shared_pool_equals_separate() -> None:
    pool, query = make_problem(4, 6, 50, 9)
    sizes = torch.tensor([50, 3, 20, 1, 49, 50])
    shared = hullft_ops.sift_select(pool[0], query, 7, pool_sizes=sizes)
    separate = hullft_ops.sift_select(
        pool[0].repeat(6, 1, 1), query, 7, pool_sizes=sizes
    )
    assert all(torch.equal(x, y) for x, y in zip(shared, separate, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype) -> None:
    pool, query = make_problem(6, 4, 30, 13, dtype)
    expected = hullft_ops.sift_select(pool, query, 5)
    wide = torch.full((4, 30, 20), float("nan"), dtype=dtype)
    wide[..., 3:16] = pool
    layouts = {
        "padded rows": (wide[..., 3:16], query),
        "every other row": (pool.repeat_interleave(2, dim=1)[:, ::2], query),
        "columns first": (pool.transpose(1, 2).contiguous().transpose(1, 2), query),
        "batch inside": (pool.transpose(0, 1).contiguous().transpose(0, 1), query),
        "query columns first": (pool, query.t().contiguous().t()),
        "query padded": (pool, torch.cat([query, query], 1)[:, :13]),
        "targets padded": (pool, torch.cat([query, query], 1)[:, None, :13]),
    }
    for name, (strided_pool, strided_query) in layouts.items():
        sel = hullft_ops.sift_select(strided_pool, strided_query, 5)
        assert all(torch.equal(x, y) for x, y in zip(sel, expected, strict=True)), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_indexed_equals_gathered(dtype: torch.dtype) -> None:
    embeddings, query = make_problem(0, 6, 300, 33, dtype)
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(0, 300, (6, 80), generator=generator)  # with repeats
    indexed = hullft_ops.sift_select_indexed(embeddings[0], candidates, query, 9)
    gathered = hullft_ops.sift_select(embeddings[0][candidates], query, 9)
    assert all(torch.equal(x, y) for x, y in zip(indexed, gathered, strict=True))
    one = hullft_ops.sift_select_indexed(embeddings[0], candidates[2], query[2], 9)
    assert all(
        torch.equal(x, y) for x, y in zip(one, of_query(gathered, 2), strict=True)
    )


def test_indexed_reads_no_candidate_past_the_size() -> None:
    embeddings, query = make_problem(3, 2, 50, 7)
    candidates = torch.tensor([[1, 2, 3, -7], [9, 8, 10**12, -1]])
    sizes = torch.tensor([3, 2])
    sel = hullft_ops.sift_select_indexed(
        embeddings[0], candidates, query, 4, pool_sizes=sizes
    )
    for b, rows in enumerate([[1, 2, 3], [9, 8]]):
        alone = hullft_ops.sift_select(embeddings[0][rows], query[b], 4)
        assert torch.equal(sel.picks[b], alone.picks)


@pytest.mark.usefixtures("simd_level")
def test_ties_go_to_the_lowest_index() -> None:
    pool, query = make_problem(8, 2, 10, 16)
    tripled = pool.repeat(1, 7, 1)  # every row again at k + 10, k + 20, ...
    sel = hullft_ops.sift_select(tripled, query, 25, noise=0.2)
    single = hullft_ops.sift_select(pool, query, 25, noise=0.2)
    assert sel.picks.max() < 10
    assert all(torch.equal(x, y) for x, y in zip(sel, single, strict=True))


def test_equal_counts_go_to_the_lowest_index() -> None:
    pool = torch.eye(6, dtype=torch.float64)
    query = torch.tensor([1.0, 3.0, 2.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 3, noise=1e-6)
    assert sel.picks.tolist() == [1, 4, 2]
    assert sel.indices.tolist() == [1, 2, 4]
    assert sel.counts.tolist() == [1, 1, 1]


def test_all_rows_equal() -> None:
    row = torch.randn(
        1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sel = hullft_ops.sift_select(row.repeat(9, 1), row[0] * 2, 4)
    assert sel.picks.tolist() == [0] * 4
    assert sel.indices.tolist() == [0, -1, -1, -1]
    assert sel.counts.tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_query_and_zero_rows(dtype: torch.dtype) -> None:
    pool, query = make_problem(9, 2, 12, 6, dtype)
    nothing = hullft_ops.sift_select(pool, torch.zeros_like(query), 3)
    assert nothing.picks.tolist() == [[0] * 3] * 2  # no pick helps: the lowest index
    assert nothing.variance.tolist() == [[0.0] * 3] * 2
    pool[:, :4] = 0
    sel = hullft_ops.sift_select(pool, query, 3)
    assert (sel.picks >= 4).all()
    zeros = hullft_ops.sift_select(torch.zeros_like(pool), query, 3)
    assert zeros.picks.tolist() == [[0] * 3] * 2
    assert (zeros.variance - 1).abs().max() < 1e-2


def test_query_in_the_pool() -> None:
    pool, _ = make_problem(9, 2, 20, 12)
    sel = hullft_ops.sift_select(pool, pool[:, 7], 5)
    assert sel.picks.tolist() == [[7] * 5] * 2
    assert sel.residual.max() < 1e-7


@pytest.mark.parametrize("noise", [1e-14, 1e-6, 1e6])
def test_extreme_noise(noise: float) -> None:
    """More picks than dimensions, with hardly any noise: the variance left is rounding."""
    pool, query = make_problem(22, 3, 25, 4, spread=2.0)
    sel = hullft_ops.sift_select(pool, query, 12, noise=noise)
    for b in range(3):
        assert_greedy(pool[b], query[b], sel.picks[b].tolist()[:4], noise)
    assert (sel.variance >= 0).all()
    assert (sel.variance.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**300])
def test_squares_of_variances_that_float64_does_not_hold(scale: float) -> None:
    pool, query = make_problem(15, 2, 20, 8)
    found = hullft_ops.sift_select(
        pool * scale, query * scale, 9, noise=0.01 * scale**2
    )
    wanted = hullft_ops.sift_select(pool, query, 9, noise=0.01)
    assert torch.equal(found.picks, wanted.picks)
    assert torch.equal(found.variance, wanted.variance * scale**2)


def test_more_picks_than_candidates() -> None:
    pool, query = make_problem(16, 2, 8, 5, spread=2.0)
    sel = hullft_ops.sift_select(pool, query, 500, noise=0.2)
    assert (sel.counts.sum(-1) == 500).all()
    for b in range(2):
        picks = sel.picks[b].tolist()
        assert_greedy(pool[b], query[b], picks[:60], 0.2)
        assert sel.counts[b].sum() == len(picks)


def test_large_pool(device: torch.device) -> None:
    pool, query = make_problem(15, 1, 70_000, 4, torch.float32, spread=1.0)
    sel = hullft_ops.sift_select(pool, query, 10)
    assert_consistent(pool, query, sel.selection, 10)
    near = pool[0, :2000]
    picks = hullft_ops.sift_select(near, query[0], 10).picks.tolist()
    rounding = ROUNDING if device.type == "cpu" else FLOAT32_ROUNDING
    assert_greedy(near, query[0], picks, 0.01, rounding=rounding)


@pytest.mark.parametrize("batch", [1, 9])
def test_thread_count_changes_no_bit(
    batch: int, threads: Callable[[int], None]
) -> None:
    pool, query = make_problem(17, batch, 3000, 128, torch.float32)
    threads(1)
    one = hullft_ops.sift_select(pool, query, 15)
    threads(3)
    three = hullft_ops.sift_select(pool, query, 15)
    assert all(torch.equal(x, y) for x, y in zip(one, three, strict=True))


def test_batch_of_none() -> None:
    sel = hullft_ops.sift_select(torch.zeros(0, 5, 3), torch.zeros(0, 3), 4)
    assert sel.picks.shape == sel.indices.shape == sel.multiset().shape == (0, 4)


def test_result_dtypes() -> None:
    for dtype in DTYPES:
        pool, query = make_problem(18, 2, 5, 4, dtype)
        sel = hullft_ops.sift_select(pool, query, 3)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        assert [t.dtype for t in sel] == [
            torch.int64, real, torch.int64, torch.int64, real, real, torch.int64, torch.int64, real
        ]  # fmt: skip
