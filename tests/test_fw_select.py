"""fw_select: golden pools, the reference, every shape a caller may bring."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    VARIANTS,
    assert_consistent,
    assert_equals_reference,
    make_problem,
    of_query,
)

GOLDEN_N = [1, 5, 20, 50]


@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_float64(golden: dict[str, torch.Tensor], n_select: int) -> None:
    sel = hullft_ops.fw_select(
        golden["pool"].double(), golden["query"].double(), n_select
    )
    assert torch.equal(sel.indices, golden[f"indices_n{n_select}"])
    assert torch.equal(sel.counts, golden[f"counts_n{n_select}"])
    assert (sel.weights - golden[f"weights_n{n_select}"]).abs().max() < 1e-10
    assert (sel.residual - golden[f"residual_n{n_select}"]).abs().max() < 1e-10


@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_float32(
    golden: dict[str, torch.Tensor], n_select: int, float32_tolerance: float
) -> None:
    sel = hullft_ops.fw_select(golden["pool"], golden["query"], n_select)
    assert torch.equal(sel.indices, golden[f"indices_n{n_select}"])
    assert torch.equal(sel.counts, golden[f"counts_n{n_select}"])
    assert (
        sel.weights - golden[f"weights_n{n_select}"]
    ).abs().max() < float32_tolerance


@pytest.mark.parametrize(
    ("variant", "bounds"),
    [("pairwise", {"cpu": 2e-7, "cuda": 1e-6}), ("away", {"cpu": 1e-5, "cuda": 2e-5})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("simd_level")
def test_golden_gap_of_the_corrective_variants(
    golden: dict[str, torch.Tensor],
    variant: str,
    bounds: dict[str, float],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    pool, query = golden["pool"].to(dtype), golden["query"].to(dtype)
    vanilla = hullft_ops.fw_select(pool, query, 50)
    sel = hullft_ops.fw_select(pool, query, 50, variant=variant)
    assert sel.gap.max() < bounds[device.type if dtype == torch.float32 else "cpu"]
    assert (sel.residual <= vanilla.residual).all()
    assert (sel.num_iter <= 250).all()


SHAPES = [(1, 3, 4), (2, 1, 1), (7, 5, 3), (33, 17, 9), (200, 70, 20)]


@pytest.mark.parametrize("variant", ["vanilla", "away"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    variant: str,
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    float32_tolerance: float,
    device: torch.device,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype)
    narrow = device.type == "cuda" and dtype != torch.float64
    max_iter = 250 if not narrow else 40 if variant == "vanilla" else 12
    sel = hullft_ops.fw_select(
        pool, query, n_select, variant=variant, max_iter=max_iter
    )
    tolerance = 1e-10 if dtype == torch.float64 else float32_tolerance
    for b in range(3):
        assert_selects_as_reference(
            of_query(sel, b), pool[b], query[b], n_select, variant, max_iter, tolerance
        )


def assert_selects_as_reference(
    found: hullft_ops.Selection,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    variant: str,
    max_iter: int,
    tolerance: float,
) -> None:
    """One query. "away" reaches the optimum, where rounding alone decides when it stops."""
    expected = reference.fw_select(
        pool, query, n_select, variant=variant, max_iter=max_iter
    )
    steps = int(found.num_iter)
    if variant == "away" and steps != expected.num_iter:
        fewer = min(steps, expected.num_iter)
        at_rest = reference.fw_select(
            pool, query, n_select, variant=variant, max_iter=fewer
        )
        assert at_rest.indices.tolist() == expected.indices.tolist()
        assert (at_rest.weights - expected.weights).abs().max() <= 1e-10
        expected = expected._replace(num_iter=steps)
    assert_equals_reference(found, expected, weight_tolerance=tolerance)


@pytest.mark.parametrize("n_select", [5, 50])
@pytest.mark.usefixtures("simd_level")
def test_golden_away(golden: dict[str, torch.Tensor], n_select: int) -> None:
    pool, query = golden["pool"].double(), golden["query"].double()
    sel = hullft_ops.fw_select(pool, query, n_select, variant="away")
    for b in range(len(pool)):
        assert_selects_as_reference(
            of_query(sel, b), pool[b], query[b], n_select, "away", 250, 1e-10
        )


def dense_weights(selection: hullft_ops.Selection, candidates: int) -> torch.Tensor:
    found = selection.indices >= 0
    weights = torch.zeros(candidates, dtype=torch.float64)
    weights[selection.indices[found]] = selection.weights[found].double()
    return weights


@pytest.mark.parametrize("n_select", [5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairwise_takes_the_lower_of_two_level_atoms(
    golden: dict[str, torch.Tensor],
    dtype: torch.dtype,
    n_select: int,
    float32_tolerance: float,
) -> None:
    """A step that was not cut short leaves its atoms equal. Rounding must not choose between them:
    the steps are the reference's, in every dtype."""
    pool, query = golden["pool"].to(dtype), golden["query"].to(dtype)
    sel = hullft_ops.fw_select(pool, query, n_select, variant="pairwise")
    for b in range(len(pool)):
        expected = reference.fw_select(pool[b], query[b], n_select, variant="pairwise")
        m = len(expected.indices)
        assert sel.support_size[b] == m
        assert sel.indices[b, :m].tolist() == expected.indices.tolist()
        assert sel.counts[b, :m].tolist() == expected.counts.tolist()
        assert (sel.weights[b, :m] - expected.weights).abs().max() < float32_tolerance


@pytest.mark.parametrize("variant", ["away", "pairwise"])
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_every_step_is_one_of_the_reference(
    variant: str, candidates: int, dim: int, n_select: int
) -> None:
    """Away from golden pools other atoms may tie, so which comes next hangs on rounding: each step
    must be the reference's for some choice among atoms that tie to 1e-12."""
    pool, query = make_problem(candidates + dim, 1, candidates, dim)
    x, q = pool[0], query[0]
    before = dense_weights(hullft_ops.fw_select(x, q, n_select, max_iter=0), candidates)
    for t in range(1, 101):
        sel = hullft_ops.fw_select(x, q, n_select, variant=variant, max_iter=t)
        after = dense_weights(sel, candidates)
        c = x @ (q - x.T @ before)
        held = before > 0
        allowed = held if held.sum() >= n_select else torch.ones_like(held)
        toward = (
            (allowed & (c >= c[allowed].max() - 1e-12)).nonzero().flatten().tolist()
        )
        away = (held & (c <= c[held].min() + 1e-12)).nonzero().flatten().tolist()
        steps = [reference.corrective_step(variant, x, q, before, s, a)
                 for s in toward for a in away]  # fmt: skip
        if sel.num_iter < t:
            assert any(
                step is None or torch.allclose(step, before, atol=1e-7)
                for step in steps
            )
            break
        assert any(
            step is not None and (step - after).abs().max() < 1e-10 for step in steps
        )
        r = q - x.T @ after
        assert abs(sel.residual - r.norm()) < 1e-12
        assert abs(sel.gap - ((x @ r).max() - (q - r) @ r)) < 1e-12
        before = after


@pytest.mark.parametrize("variant", ["vanilla", "away"])
@pytest.mark.parametrize(("length", "steps"), [(0.99e-6, 0), (1.01e-6, 1)])
@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_a_direction_shorter_than_the_documented_one_is_none(
    variant: str, length: float, steps: int, norm: float
) -> None:
    x = norm * torch.tensor([[1.0, 0.0], [1.0, length]], dtype=torch.float64)
    q = norm * torch.tensor([1.0, length / 3], dtype=torch.float64)
    sel = hullft_ops.fw_select(x.flip(0), q, 2, variant=variant, max_iter=1, tol=0.0)
    assert sel.num_iter.item() == steps


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", [1e-10, 1e-6, 1e20])
@pytest.mark.usefixtures("simd_level")
def test_vectors_of_any_norm(
    golden: dict[str, torch.Tensor], variant: str, norm: float
) -> None:
    pool, query = golden["pool"], golden["query"]
    unit = hullft_ops.fw_select(pool, query, 50, variant=variant)
    found = hullft_ops.fw_select(pool * norm, query * norm, 50, variant=variant)
    assert (found.residual / norm - unit.residual).abs().max() < 1e-7


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_row_that_is_never_picked(variant: str, dtype: torch.dtype) -> None:
    """What counts as rounding goes by the rows of the combination."""
    pool, query = make_problem(14, 2, 30, 12, dtype)
    away = -6e4 * query.unsqueeze(1)
    found = hullft_ops.fw_select(torch.cat([pool, away], 1), query, 6, variant=variant)
    wanted = hullft_ops.fw_select(pool, query, 6, variant=variant)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.usefixtures("simd_level")
def test_a_whole_step_toward_a_vertex_leaves_nothing_else() -> None:
    """The first vertex has the largest product with the query and lies further off."""
    x = torch.tensor([[2.0, 10.0], [1.5, 0.0]], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for variant in VARIANTS:
        sel = hullft_ops.fw_select(x, q, 2, variant=variant, max_iter=1)
        assert_equals_reference(
            sel, reference.fw_select(x, q, 2, variant=variant, max_iter=1)
        )
    away = hullft_ops.fw_select(x, q, 2, variant="away")
    assert (away.indices.tolist(), away.weights.tolist()) == ([1, -1], [1.0, 0.0])


@pytest.mark.cpu_only(
    "the state of narrow pools is float64 on the CPU, float32 on CUDA"
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_narrow_pools_are_read_exactly(variant: str, dtype: torch.dtype) -> None:
    pool, query = make_problem(3, 4, 90, 40, dtype)
    narrow = hullft_ops.fw_select(pool, query, 12, variant=variant)
    wide = hullft_ops.fw_select(pool.double(), query.double(), 12, variant=variant)
    assert torch.equal(narrow.indices, wide.indices)
    assert torch.equal(narrow.counts, wide.counts)
    assert torch.equal(narrow.weights, wide.weights.to(narrow.weights.dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_select", [1, 2, 7, 40])
def test_answers_are_consistent(variant: str, n_select: int) -> None:
    pool, query = make_problem(11, 64, 120, 24)
    sel = hullft_ops.fw_select(pool, query, n_select, variant=variant)
    if variant == "vanilla" and n_select == 1:
        # The iterate has two atoms, of which one is returned, as in the method's publication.
        assert (sel.support_size == 1).all()
        assert (sel.counts == 1).all()
    else:
        assert_consistent(pool, query, sel, n_select)


def test_counts_and_gaps_on_ten_thousand_problems() -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        pool, query = make_problem(seed, 1000, 12, 6, spread=1.0)
        # From deep in the hull to far outside it, on either side.
        scale = torch.empty(1000, 1, dtype=torch.float64).uniform_(
            -3, 3, generator=generator
        )
        for variant in VARIANTS:
            n_select = 1 + seed * 7
            sel = hullft_ops.fw_select(pool, query * scale, n_select, variant=variant)
            assert (sel.counts >= 0).all()
            assert (sel.counts.sum(-1) == n_select).all()
            assert (sel.counts[sel.indices < 0] == 0).all()
            assert (sel.gap >= 0).all()  # at the optimum, rounding would put it below


def test_counts_equal_reference_outside_the_hull() -> None:
    pool, query = make_problem(5, 60, 15, 4, spread=2.0)
    query = query * torch.linspace(-4, 4, 60, dtype=torch.float64).unsqueeze(1)
    sel = hullft_ops.fw_select(pool, query, 30, max_iter=60)
    for b in range(60):
        expected = reference.fw_select(pool[b], query[b], 30, max_iter=60)
        assert_equals_reference(of_query(sel, b), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ragged_equals_separate(variant: str) -> None:
    pool, query = make_problem(2, 5, 37, 11)
    sizes = torch.tensor([37, 1, 4, 16, 33])
    for b, size in enumerate(sizes.tolist()):
        pool[b, size:] = float("nan")  # what lies past the size must not be read
    sel = hullft_ops.fw_select(pool, query, 6, variant=variant, pool_sizes=sizes)
    for b, size in enumerate(sizes.tolist()):
        alone = hullft_ops.fw_select(
            pool[b, :size].clone(), query[b], 6, variant=variant
        )
        assert all(
            torch.equal(x, y) for x, y in zip(of_query(sel, b), alone, strict=True)
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_shared_pool_equals_separate(variant: str) -> None:
    pool, query = make_problem(4, 6, 50, 9)
    sizes = torch.tensor([50, 3, 20, 1, 49, 50])
    shared = hullft_ops.fw_select(pool[0], query, 7, variant=variant, pool_sizes=sizes)
    copies = pool[0].repeat(6, 1, 1)
    separate = hullft_ops.fw_select(copies, query, 7, variant=variant, pool_sizes=sizes)
    assert all(torch.equal(x, y) for x, y in zip(shared, separate, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype) -> None:
    pool, query = make_problem(6, 4, 30, 13, dtype)
    expected = hullft_ops.fw_select(pool, query, 5)
    padded = torch.full((4, 30, 20), float("nan"), dtype=dtype)
    padded[..., 3:16] = pool
    layouts = {
        "padded rows": (padded[..., 3:16], query),
        "every other row": (pool.repeat_interleave(2, dim=1)[:, ::2], query),
        "columns first": (pool.transpose(1, 2).contiguous().transpose(1, 2), query),
        "batch inside": (pool.transpose(0, 1).contiguous().transpose(0, 1), query),
        "query columns first": (pool, query.t().contiguous().t()),
        "query padded": (pool, torch.cat([query, query], 1)[:, :13]),
    }
    for name, (strided_pool, strided_query) in layouts.items():
        sel = hullft_ops.fw_select(strided_pool, strided_query, 5)
        assert all(torch.equal(x, y) for x, y in zip(sel, expected, strict=True)), name


@pytest.mark.cpu_only("torch's profiler is asked for the CPU's memory")
def test_expanded_batch_is_not_copied() -> None:
    pool, query = make_problem(7, 64, 200, 32)
    expanded = pool[:1].expand(64, -1, -1)
    sel = hullft_ops.fw_select(expanded, query, 4)
    assert torch.equal(sel.indices, hullft_ops.fw_select(pool[0], query, 4).indices)

    def allocated(pool: torch.Tensor) -> int:
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as profiled:
            hullft_ops.fw_select(pool, query, 4)
        return sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())

    assert allocated(expanded) < pool[0].nbytes
    # A last dimension that is not dense is copied by the operator: the profiler sees it.
    assert allocated(pool.mT.contiguous().mT) >= pool.nbytes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_ties_go_to_the_lowest_index(variant: str) -> None:
    pool, query = make_problem(8, 2, 10, 16)
    tripled = pool.repeat(1, 7, 1)  # every row again at k + 10, k + 20, ...
    sel = hullft_ops.fw_select(tripled, query, 8, variant=variant, max_iter=30)
    single = hullft_ops.fw_select(pool, query, 8, variant=variant, max_iter=30)
    assert sel.indices.max() < 10
    assert all(torch.equal(x, y) for x, y in zip(sel, single, strict=True))


def test_all_rows_equal() -> None:
    row = torch.randn(
        1, 130, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for variant in VARIANTS:
        sel = hullft_ops.fw_select(row.repeat(9, 1), row[0] * 2, 4, variant=variant)
        assert sel.indices.tolist() == [0, -1, -1, -1]
        assert sel.counts.tolist() == [4, 0, 0, 0]
        expected = reference.fw_select(row.repeat(9, 1), row[0] * 2, 4, variant=variant)
        assert expected.indices.tolist() == [0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_query_in_the_pool(variant: str) -> None:
    pool, _ = make_problem(9, 2, 20, 12)
    sel = hullft_ops.fw_select(pool, pool[:, 7], 5, variant=variant)
    assert sel.indices[:, 0].tolist() == [7, 7]
    assert sel.support_size.tolist() == [1, 1]
    assert sel.num_iter.tolist() == [0, 0]
    assert sel.residual.max() < 1e-7


@pytest.mark.parametrize("variant", ["away", "pairwise"])
def test_optimum_within_the_hull(variant: str) -> None:
    """A query that is a known combination: the corrective variants find its weights."""
    pool, _ = make_problem(10, 1, 6, 30)
    weights = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.2, 0.0], dtype=torch.float64)
    query = (pool[0].T @ weights).unsqueeze(0)
    sel = hullft_ops.fw_select(pool, query, 6, variant=variant, max_iter=2000, tol=1e-9)
    found = torch.zeros(6, dtype=torch.float64)
    found[sel.indices[0][sel.indices[0] >= 0]] = sel.weights[0][sel.indices[0] >= 0]
    assert (found - weights).abs().max() < 1e-6
    assert sel.residual.item() < 1e-7


# A shorter query would ask for 1e-16, which the rounding of the weights alone exceeds.
@pytest.mark.parametrize("length", [1.0, 1e-5])
@pytest.mark.parametrize("tol", [1e-8, 1e-9, 1e-10])
@pytest.mark.parametrize("variant", ["away", "pairwise"])
@pytest.mark.cpu_only("on CUDA the noise of products is that of the query alone")
def test_tol_is_of_the_residual_and_not_of_its_noise(
    variant: str, tol: float, length: float
) -> None:
    """Of vectors of norm 1 the square made of products is good to 1e-16, its root to 1e-8."""
    for seed in range(10):
        pool, _ = make_problem(seed, 1, 6, 30)
        inside = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.2, 0.0], dtype=torch.float64)
        centre = pool[0].T @ inside
        # Far from the query only the rows are long.
        pool, query = pool - (1 - length) * centre, (length * centre)[None]
        within = tol * length
        options = {
            "variant": variant,
            "max_iter": 5000,
            "tol": within / query.norm().item(),
        }
        found = hullft_ops.fw_select(pool, query, 6, **options)
        expected = reference.fw_select(pool[0], query[0], 6, **options)
        assert (found.residual.item() < within) == (expected.residual < within)
        steps = found.num_iter.item()
        if steps > 1:
            before = hullft_ops.fw_select(
                pool, query, 6, variant=variant, tol=0.0, max_iter=steps - 1
            )
            assert before.residual.item() >= within


@pytest.mark.parametrize("variant", ["away", "pairwise"])
def test_full_support_goes_on_within_itself(variant: str) -> None:
    """With n_select atoms the weights become the best for them, which vanilla never reaches."""
    pool, query = make_problem(12, 8, 100, 32)
    sel = hullft_ops.fw_select(pool, query, 5, variant=variant, max_iter=3000)
    assert (sel.support_size == 5).all()
    for b in range(8):
        atoms = pool[b, sel.indices[b][sel.indices[b] >= 0]]
        best = hullft_ops.fw_select(
            atoms, query[b], len(atoms), variant="pairwise", max_iter=3000, tol=0.0
        )
        assert abs(best.residual.item() - sel.residual[b].item()) < 1e-9


def test_many_drops_evict_and_recompute_columns() -> None:
    """A small support over a large pool: more atoms come and go than columns are kept."""
    pool, query = make_problem(13, 4, 2000, 64, spread=2.0)
    sel = hullft_ops.fw_select(
        pool, query, 60, variant="pairwise", max_iter=4000, tol=0.0
    )
    assert_consistent(pool, query, sel, 60)
    assert (sel.num_iter > 500).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopping_rules(variant: str) -> None:
    pool, query = make_problem(14, 4, 40, 10)
    still = hullft_ops.fw_select(pool, query, 5, variant=variant, max_iter=0)
    assert still.num_iter.tolist() == [0] * 4
    assert still.support_size.tolist() == [1] * 4
    loose = hullft_ops.fw_select(pool, query, 40, variant=variant, tol=10.0)
    assert loose.num_iter.tolist() == [0] * 4
    by_gap = hullft_ops.fw_select(pool, query, 40, variant=variant, gap_tol=1e-2)
    unbounded = hullft_ops.fw_select(pool, query, 40, variant=variant)
    assert (by_gap.gap <= 1e-2).all()
    assert (by_gap.num_iter < unbounded.num_iter).all()


def test_batch_of_none() -> None:
    sel = hullft_ops.fw_select(torch.zeros(0, 5, 3), torch.zeros(0, 3), 4)
    assert sel.indices.shape == (0, 4)
    assert sel.multiset().shape == (0, 4)


def test_large_pool() -> None:
    pool, query = make_problem(15, 1, 70_000, 4, torch.float32, spread=1.0)
    sel = hullft_ops.fw_select(pool[0], query[0], 10, variant="away")
    assert_consistent(
        pool, query, hullft_ops.Selection(*(t.unsqueeze(0) for t in sel)), 10
    )


def test_large_n_select() -> None:
    pool, query = make_problem(16, 1, 8, 5)
    sel = hullft_ops.fw_select(pool[0], query[0], 100_000)
    assert sel.counts.sum() == 100_000
    share = sel.counts[:8].double() / 100_000
    assert (share - sel.weights[:8]).abs().max() < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 9])
def test_thread_count_changes_no_bit(
    variant: str, batch: int, threads: Callable[[int], None]
) -> None:
    pool, query = make_problem(17, batch, 3000, 128, torch.float32)
    threads(1)
    one = hullft_ops.fw_select(pool, query, 15, variant=variant)
    threads(3)
    three = hullft_ops.fw_select(pool, query, 15, variant=variant)
    assert all(torch.equal(x, y) for x, y in zip(one, three, strict=True))


def test_multiset_repeats_indices_by_counts(golden: dict[str, torch.Tensor]) -> None:
    sel = hullft_ops.fw_select(golden["pool"], golden["query"], 20)
    for b in range(8):
        expected = [
            index
            for index, count in zip(
                sel.indices[b].tolist(), sel.counts[b].tolist(), strict=True
            )
            for _ in range(count)
        ]
        assert sel.multiset()[b].tolist() == expected
        assert of_query(sel, b).multiset().tolist() == expected


def test_result_dtypes() -> None:
    for dtype in DTYPES:
        pool, query = make_problem(18, 2, 5, 4, dtype)
        sel = hullft_ops.fw_select(pool, query, 3)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        assert [t.dtype for t in sel] == [
            torch.int64, real, torch.int64, torch.int64, real, real, torch.int64
        ]  # fmt: skip
