"""What is asked of the kernels: named checks that any build of the library must pass.

A check raises ``AssertionError`` on a wrong answer; the simulator raises ``SimulatorError`` on a
wrong barrier, mask or memory access.
"""

from collections.abc import Callable, Iterable

import torch

from adam_problems import OPTIONS, make_tensors
from cuda_sim.library import Answer, Launch, Library
from hullft_ops import reference
from problems import make_problem

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
VARIANTS = ("vanilla", "away", "pairwise")
SMALL_SHARED = 2048
"""Less than any state here: the solve keeps it in global memory."""

CASES: dict[str, Callable[[Library, int], None]] = {}
"""Checks by name; the second argument is the schedule's seed."""


def case(check: Callable[[Library, int], None]) -> Callable[[Library, int], None]:
    CASES[check.__name__] = check
    return check


def hull_problem(
    seed: int, batch: int, candidates: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows in all directions and queries near their hull: many atoms, many drops."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(batch, candidates, dim, generator=generator, dtype=torch.float64)
    pool /= pool.norm(dim=-1, keepdim=True)
    weights = torch.rand(batch, candidates, generator=generator, dtype=torch.float64) ** 6
    weights /= weights.sum(-1, keepdim=True)
    noise = torch.randn(batch, dim, generator=generator, dtype=torch.float64) / dim**0.5
    query = (weights.unsqueeze(-1) * pool).sum(1) + 0.3 * noise
    return pool.to(dtype), query.to(dtype)


def of_query(answer: Answer, b: int) -> Answer:
    return Answer(*(getattr(answer, name)[b] for name in Answer.__dataclass_fields__))


def check_equals(answer: Answer, expected: reference.ReferenceSelection) -> None:
    """One query against the oracle: same indices, counts and steps."""
    m = len(expected.indices)
    assert answer.support_size.item() == m
    assert answer.indices[:m].tolist() == expected.indices.tolist()
    assert answer.counts[:m].tolist() == expected.counts.tolist()
    assert (answer.indices[m:] == -1).all()
    assert (answer.counts[m:] == 0).all()
    assert (answer.weights[m:] == 0).all()
    assert answer.num_iter.item() == expected.num_iter
    tolerance = 1e-10 if answer.weights.dtype == torch.float64 else 2e-5
    assert (answer.weights[:m].double() - expected.weights).abs().max() <= tolerance
    assert abs(answer.residual.item() - expected.residual) <= tolerance
    assert abs(answer.gap.item() - expected.gap) <= tolerance


def check_consistent(
    pool: torch.Tensor, query: torch.Tensor, n_select: int, answer: Answer
) -> None:
    """What holds of any answer to one query, whichever path the variant took to it.

    Pairwise steps need this: an exact step leaves its two atoms with equal correlations, so that
    rounding alone decides the next pair.
    """
    m = int(answer.support_size)
    x, q, w = pool.double(), query.double(), answer.weights[:m].double()
    tolerance = 1e-10 if answer.weights.dtype == torch.float64 else 1e-5
    assert 1 <= m <= min(n_select, len(x))
    assert len(set(answer.indices[:m].tolist())) == m
    assert (w[:-1] >= w[1:]).all()
    assert (w >= 0).all()
    assert abs(w.sum() - 1) <= tolerance
    chosen = x[answer.indices[:m]]
    r = q - chosen.T @ w
    assert abs(answer.residual - r.norm()) <= tolerance
    assert abs(answer.gap - ((x @ r).max() - r @ (chosen.T @ w))) <= tolerance
    counts = answer.counts[:m]
    assert (counts >= 0).all()
    assert answer.counts.sum() == n_select
    best = reference.integerize(chosen, q, w, n_select).double()

    def loss(c: torch.Tensor) -> torch.Tensor:
        return (q - chosen.T @ (c / n_select)).square().sum()

    assert loss(counts.double()) <= loss(best) + tolerance


def check_failed(answer: Answer, n_select: int) -> None:
    """How a query that could not be solved shows."""
    assert (answer.indices == -1).all()
    assert answer.counts.tolist() == [n_select, *[0] * (n_select - 1)]
    assert answer.weights.isnan().all()
    assert answer.residual.isnan()
    assert answer.gap.isnan()
    assert (answer.support_size.item(), answer.num_iter.item()) == (0, -1)


SIZES = ((1, 1, 3), (2, 3, 1), (31, 8, 7), (33, 20, 12), (65, 33, 9), (130, 64, 20), (257, 17, 6))
"""Candidates, dimension, n_select: on both sides of a warp, a tile of rows, a Gram tile, a block,
a vector load and a chunk of d."""


def fw_matches(
    library: Library, dtype: torch.dtype, variant: str, launch: Launch, sizes: Iterable[tuple]
) -> None:
    steps = {"vanilla": 40, "away": 12, "pairwise": 1}[variant]
    for candidates, dim, n_select in sizes:
        pool, query = hull_problem(candidates, 2, candidates, dim, dtype)
        options = {"variant": variant, "max_iter": steps}
        answer = library.frank_wolfe(pool, query, n_select, launch=launch, **options)
        for b in range(2):
            expected = reference.fw_select(pool[b], query[b], n_select, **options)
            check_equals(of_query(answer, b), expected)


def fw_holds(library: Library, dtype: torch.dtype, variant: str, launch: Launch) -> None:
    for candidates, dim, n_select in ((40, 12, 50), (90, 24, 8)):
        pool, query = hull_problem(candidates, 2, candidates, dim, dtype)
        answer = library.frank_wolfe(
            pool, query, n_select, variant=variant, max_iter=120, launch=launch
        )
        for b in range(2):
            check_consistent(pool[b], query[b], n_select, of_query(answer, b))


@case
def fw_gram(library: Library, seed: int) -> None:
    fw_matches(library, torch.float32, "away", Launch(seed, gram=True), SIZES)


@case
def fw_columns(library: Library, seed: int) -> None:
    fw_matches(library, torch.float32, "away", Launch(seed, gram=False, threads=96), SIZES[2:6])


@case
def fw_full_support(library: Library, seed: int) -> None:
    fw_matches(library, torch.float32, "vanilla", Launch(seed, gram=False, threads=64), SIZES[3:4])


@case
def fw_full_support_tail(library: Library, seed: int) -> None:
    """Rows of 18 float32 that start every 20: vectors, and a tail of two."""
    pool, query = hull_problem(3, 1, 9, 18, torch.float32)

    def spaced(rows: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros(*rows.shape[:-1], 20)
        wide[..., :18] = rows
        return wide[..., :18]

    answer = library.frank_wolfe(
        spaced(pool), spaced(query), 4, launch=Launch(seed, gram=False, threads=64)
    )
    check_equals(of_query(answer, 0), reference.fw_select(pool[0], query[0], 4))


def check_outside_hull(library: Library, launch: Launch) -> None:
    """A query far outside its hull, whose nearest point has fewer atoms than are allowed."""
    pool, query = hull_problem(0, 1, 400, 12, torch.float32)
    query *= 2
    answer = library.frank_wolfe(pool, query, 16, variant="away", max_iter=200, launch=launch)
    check_consistent(pool[0], query[0], 16, of_query(answer, 0))
    m = int(answer.support_size)
    assert m < 16
    assert (answer.weights[0, :m] > 0).all()


@case
def fw_drops(library: Library, seed: int) -> None:
    """Atoms leave the support."""
    for gram in (True, False):
        check_outside_hull(library, Launch(seed, gram, 64))


@case
def fw_odd_rows(library: Library, seed: int) -> None:
    """Row starts that are not multiples of 16 bytes, and vectors with a tail."""
    launch = Launch(seed, gram=False, threads=64)
    sizes = ((9, 11, 4), (6, 18, 4))
    fw_matches(library, torch.bfloat16, "vanilla", launch, sizes)
    fw_matches(library, torch.bfloat16, "vanilla", Launch(seed, gram=True, threads=64), sizes)


@case
def fw_global_state(library: Library, seed: int) -> None:
    for gram in (True, False):
        launch = Launch(seed, gram, 64, SMALL_SHARED)
        fw_matches(library, torch.float32, "away", launch, SIZES[2:5])
        fw_matches(library, torch.float64, "vanilla", launch, SIZES[2:5])


@case
def fw_evicted_columns(library: Library, seed: int) -> None:
    """More atoms come and go than columns are kept."""
    check_outside_hull(library, Launch(seed, gram=False, threads=64, slots=17))


@case
def fw_ties(library: Library, seed: int) -> None:
    """Equal rows, in the shares of three threads: the lowest index wins."""
    launch = Launch(seed, threads=64)
    for dtype in (torch.float32, torch.float64):
        pool = torch.zeros(1, 200, 4, dtype=dtype)
        pool[0, :, 1] = 1
        pool[0, [70, 135, 190]] = torch.tensor([1.0, 0, 0, 0], dtype=dtype)
        query = torch.tensor([[2.0, 0, 0, 0]], dtype=dtype)
        answer = library.frank_wolfe(pool, query, 3, launch=launch)
        assert answer.indices[0].tolist() == [70, -1, -1]


@case
def fw_failures(library: Library, seed: int) -> None:
    """A query that cannot be solved says so, and its neighbours do not notice."""
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        for value in (float("nan"), float("inf"), -float("inf")):
            pool, query = hull_problem(1, 3, 20, 8, torch.float32)
            pool[1, 17, 3] = value
            query[2, 0] = value
            answer = library.frank_wolfe(pool, query, 4, launch=launch)
            check_consistent(pool[0], query[0], 4, of_query(answer, 0))
            check_failed(of_query(answer, 1), 4)
            check_failed(of_query(answer, 2), 4)
        pool, query = hull_problem(1, 2, 20, 8, torch.float32)
        pool[1] *= 1e30
        answer = library.frank_wolfe(pool, query * 1e10, 4, launch=launch)
        check_failed(of_query(answer, 1), 4)


@case
def fw_ragged(library: Library, seed: int) -> None:
    """Sizes, good and bad; shared pools; rows in place."""
    pool, query = hull_problem(2, 5, 40, 12, torch.float64)
    sizes = torch.tensor([40, 1, 33, 0, 41])
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        answer = library.frank_wolfe(pool, query, 6, sizes=sizes, launch=launch)
        shared = library.frank_wolfe(pool[0], query, 6, sizes=sizes, launch=launch)
        for b in range(3):
            n = int(sizes[b])
            expected = reference.fw_select(pool[b, :n], query[b], 6)
            check_equals(of_query(answer, b), expected)
            check_equals(of_query(shared, b), reference.fw_select(pool[0, :n], query[b], 6))
        for b in (3, 4):
            check_failed(of_query(answer, b), 6)
            check_failed(of_query(shared, b), 6)


@case
def fw_indexed(library: Library, seed: int) -> None:
    embeddings, query = hull_problem(3, 1, 80, 12, torch.float32)
    embeddings, query = embeddings[0], query.repeat(4, 1)
    generator = torch.Generator().manual_seed(0)
    candidates = torch.stack([torch.randperm(80, generator=generator)[:37] for _ in range(4)])
    sizes = torch.tensor([37, 20, 37, 37])
    candidates[2, 5], candidates[3, 36] = -1, 80
    for gram in (True, False):
        answer = library.frank_wolfe(
            embeddings, query, 6, candidates=candidates, sizes=sizes, launch=Launch(seed, gram, 64)
        )
        for b in range(2):
            rows = embeddings[candidates[b, : int(sizes[b])]]
            check_equals(of_query(answer, b), reference.fw_select(rows, query[b], 6))
        check_failed(of_query(answer, 2), 6)
        check_failed(of_query(answer, 3), 6)


@case
def fw_stopping(library: Library, seed: int) -> None:
    """max_iter = 0, a query inside the hull, gap_tol, and n_select = 1."""
    launch = Launch(seed, threads=64)
    for dtype in (torch.float32, torch.float64):
        pool, query = hull_problem(5, 1, 20, 8, dtype)
        for options in ({"max_iter": 0}, {"gap_tol": 0.05}, {"tol": 0.4}, {"tol": 0.0}):
            for n_select in (1, 6):
                answer = library.frank_wolfe(pool, query, n_select, launch=launch, **options)
                expected = reference.fw_select(pool[0], query[0], n_select, **options)
                check_equals(of_query(answer, 0), expected)
        inside = pool[:, 3].contiguous()
        answer = library.frank_wolfe(pool, inside, 6, launch=launch)
        assert answer.indices[0].tolist() == [3, -1, -1, -1, -1, -1]
        assert (answer.num_iter.item(), answer.residual.item()) == (0, 0)


@case
def gram(library: Library, seed: int) -> None:
    for dtype, candidates, dim in (
        (torch.float32, 33, 65),
        (torch.float64, 65, 7),
        (torch.bfloat16, 31, 72),
        (torch.float16, 64, 63),
    ):
        pool, _ = hull_problem(6, 2, candidates, dim, dtype)
        got = library.gram(pool, Launch(seed))
        assert torch.equal(got, got.mT)
        exact = pool.double() @ pool.double().mT
        tolerance = 1e-14 if dtype == torch.float64 else 1e-6
        assert (got.double() - exact).abs().max() <= tolerance


@case
def integerize(library: Library, seed: int) -> None:
    launch = Launch(seed)
    for dtype, m, dim, n_select in (
        (torch.float64, 1, 3, 5),
        (torch.float64, 7, 5, 50),
        (torch.float64, 40, 12, 33),
        (torch.float32, 33, 18, 20),
        (torch.bfloat16, 20, 9, 64),
    ):
        support, query = hull_problem(m, 3, m, dim, dtype)
        generator = torch.Generator().manual_seed(m)
        weights = torch.randn(3, m, generator=generator, dtype=torch.float64).relu()
        weights[1] = 0
        sizes = torch.tensor([m, m, max(1, m - 3)])
        counts = library.integerize(support, query, weights, n_select, sizes=sizes, launch=launch)
        assert (counts.sum(1) == n_select).all()
        assert (counts >= 0).all()
        for b in range(3):
            n = int(sizes[b])
            expected = reference.integerize(support[b, :n], query[b], weights[b, :n], n_select)
            assert counts[b].tolist() == expected.tolist() + [0] * (m - n)


@case
def integerize_failures(library: Library, seed: int) -> None:
    support, query = hull_problem(7, 5, 6, 4, torch.float32)
    weights = torch.full((5, 6), 1 / 6)
    support[1, 5, 0] = float("nan")
    query[2, 3] = float("inf")
    weights[3, 0] = float("nan")
    sizes = torch.tensor([6, 6, 6, 6, 7])
    counts = library.integerize(support, query, weights, 9, sizes=sizes, launch=Launch(seed))
    assert counts[0].tolist() == reference.integerize(support[0], query[0], weights[0], 9).tolist()
    assert (counts[1:] == -1).all()


@case
def lmo(library: Library, seed: int) -> None:
    for dtype, candidates, dim in (
        (torch.float64, 70, 9),
        (torch.float32, 33, 20),
        (torch.bfloat16, 5, 24),
        (torch.float16, 31, 7),
    ):
        pool, query = hull_problem(8, 4, candidates, dim, dtype)
        current = pool[:, 1].contiguous()
        sizes = torch.tensor([candidates, 4, 0, candidates])
        pool[3, 2, 0] = float("nan")
        step = library.lmo(pool, query, current, sizes=sizes, launch=Launch(seed))
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for b in range(2):
            expected = reference.fw_lmo(pool[b, : int(sizes[b])], query[b], current[b])
            assert step.vertex[b].item() == expected.vertex
            for name in ("correlation", "gamma", "gap"):
                error = getattr(step, name)[b].item() - getattr(expected, name)
                assert abs(error) <= tolerance
        assert step.vertex[2:].tolist() == [-1, -1]
        assert step.gap[2:].isnan().all()


@case
def knn(library: Library, seed: int) -> None:
    for dtype, candidates, dim, n_select in (
        (torch.float64, 300, 9, 12),
        (torch.float32, 33, 20, 1),
        (torch.bfloat16, 8, 24, 4),
        (torch.float16, 31, 7, 5),
    ):
        pool, query = make_problem(9, 4, candidates, dim, dtype)
        pool[0, 4] = pool[0, 2]
        sizes = torch.tensor([candidates, n_select, n_select - 1, candidates])
        pool[3, 2, 0] = float("nan")
        answer = library.knn(pool, query, n_select, sizes=sizes, launch=Launch(seed))
        for b in range(2):
            rows = pool[b, : int(sizes[b])]
            expected = reference.knn_select(rows, query[b], n_select)
            check_equals(of_query(answer, b), expected)
        check_failed(of_query(answer, 2), n_select)
        check_failed(of_query(answer, 3), n_select)


SIFT_SIZES = ((1, 1, 3), (2, 3, 1), (33, 20, 6), (65, 33, 9), (130, 18, 12))
"""Candidates, dimension, n_select."""


def check_sift(
    answer: tuple[Answer, torch.Tensor, torch.Tensor],
    b: int,
    pool: torch.Tensor,
    query: torch.Tensor,
    noise: float,
) -> None:
    """One query: the oracle's picks in float64, in float32 each within rounding of the best."""
    x, q = pool.double(), query.double().reshape(-1, pool.shape[-1])
    selection, picks, variance = of_query(answer[0], b), answer[1][b].tolist(), answer[2][b]
    if pool.dtype == torch.float64:
        expected = reference.sift_select(pool, query, len(picks), noise=noise)
        assert picks == expected.picks
        check_equals(selection, expected.selection)
        wanted = torch.tensor(expected.variance, dtype=torch.float64)
        assert (variance - wanted).abs().max() <= 1e-10
        return
    for i, pick in enumerate(picks):
        left = reference.variance_after(x, q, picks[:i], noise)
        assert left[pick] - left.min() <= 1e-5
        assert abs(variance[i] - left[pick]) <= 1e-5
    counts = torch.bincount(torch.tensor(picks), minlength=len(x))
    support = sorted(set(picks), key=lambda k: (-counts[k].item(), k))
    m = len(support)
    assert selection.indices.tolist() == support + [-1] * (len(picks) - m)
    assert selection.counts.tolist() == counts[support].tolist() + [0] * (len(picks) - m)
    assert (selection.weights - selection.counts / len(picks)).abs().max() <= 1e-6
    assert (selection.support_size.item(), selection.num_iter.item()) == (m, len(picks))
    mean = x[picks].mean(0)
    r = q.mean(0) - mean
    assert abs(selection.residual - r.norm()) <= 1e-5
    assert abs(selection.gap - ((x @ r).max() - r @ mean)) <= 1e-5


def sift_matches(
    library: Library, dtype: torch.dtype, launch: Launch, sizes: Iterable[tuple], noise: float = 0.1
) -> None:
    for candidates, dim, n_select in sizes:
        pool, query = hull_problem(candidates, 2, candidates, dim, dtype)
        answer = library.sift(pool, query, n_select, noise=noise, launch=launch)
        for b in range(2):
            check_sift(answer, b, pool[b], query[b], noise)


@case
def sift(library: Library, seed: int) -> None:
    for gram in (True, False):
        sift_matches(library, torch.float64, Launch(seed, gram), SIFT_SIZES)
        sift_matches(library, torch.float32, Launch(seed, gram, 64), SIFT_SIZES[2:4])
    sift_matches(library, torch.bfloat16, Launch(seed, False, 64), SIFT_SIZES[2:3])
    sift_matches(library, torch.float16, Launch(seed, True, 64), SIFT_SIZES[2:3])


@case
def sift_global_state(library: Library, seed: int) -> None:
    for gram in (True, False):
        launch = Launch(seed, gram, 64, SMALL_SHARED)
        sift_matches(library, torch.float64, launch, [(150, 9, 8)])


@case
def sift_repeats(library: Library, seed: int) -> None:
    """Much noise: the same rows again and again, more picks than rows."""
    for gram in (True, False):
        sift_matches(library, torch.float64, Launch(seed, gram, 64), [(5, 6, 70)], noise=1.0)


@case
def sift_targets(library: Library, seed: int) -> None:
    """Four targets, each at a multiple of 16 bytes or only the first of a query; the rows are."""
    for dim in (8, 9):
        pool, _ = hull_problem(11, 2, 40, dim, torch.float64)
        query = torch.stack([hull_problem(s, 2, 3, dim, torch.float64)[1] for s in range(4)], 1)
        for dtype in (torch.float64, torch.float32):
            x, q = torch.zeros(2, 40, 12, dtype=dtype)[..., :dim], query.to(dtype)
            x.copy_(pool)
            answer = library.sift(x, q, 6, noise=0.1, launch=Launch(seed, False, 64))
            for b in range(2):
                check_sift(answer, b, x[b], q[b], 0.1)


@case
def sift_ties(library: Library, seed: int) -> None:
    """Equal rows, in the shares of three threads: the lowest index wins."""
    for gram in (True, False):
        for dtype in (torch.float32, torch.float64):
            pool = torch.zeros(1, 200, 4, dtype=dtype)
            pool[0, :, 1] = 1
            pool[0, [70, 135, 190]] = torch.tensor([1.0, 0, 0, 0], dtype=dtype)
            query = torch.tensor([[2.0, 0.5, 0, 0]], dtype=dtype)
            answer = library.sift(pool, query, 3, launch=Launch(seed, gram, 64))
            assert answer[1].tolist() == [[70, 0, 70]]
            assert answer[0].indices.tolist() == [[70, 0, -1]]


@case
def sift_ragged(library: Library, seed: int) -> None:
    """Sizes, good and bad; shared pools; rows in place."""
    pool, query = hull_problem(2, 5, 40, 12, torch.float64)
    sizes = torch.tensor([40, 1, 33, 0, 41])
    candidates = torch.stack([torch.arange(40).roll(b) for b in range(5)])
    candidates[1, 5], candidates[2, 32] = -1, 40
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        answer = library.sift(pool, query, 6, sizes=sizes, launch=launch)
        shared = library.sift(pool[0], query, 6, sizes=sizes, launch=launch)
        indexed = library.sift(pool[0], query, 6, candidates=candidates, sizes=sizes, launch=launch)
        for b, n in enumerate(sizes.tolist()):
            if b < 3:
                check_sift(answer, b, pool[b, :n], query[b], 0.01)
                check_sift(shared, b, pool[0, :n], query[b], 0.01)
            if b < 2:
                check_sift(indexed, b, pool[0, candidates[b, :n]], query[b], 0.01)
            for failed in [answer, shared] * (b >= 3) + [indexed] * (b >= 2):
                check_sift_failed(failed, b)


def check_sift_failed(answer: tuple[Answer, torch.Tensor, torch.Tensor], b: int) -> None:
    check_failed(of_query(answer[0], b), answer[1].shape[1])
    assert (answer[1][b] == -1).all()
    assert answer[2][b].isnan().all()


@case
def sift_failures(library: Library, seed: int) -> None:
    """A query that cannot be solved says so, and its neighbours do not notice."""
    for gram in (True, False):
        launch = Launch(seed, gram, 64)
        for value in (float("nan"), float("inf"), -float("inf")):
            pool, query = hull_problem(1, 3, 20, 8, torch.float32)
            pool[1, 17, 3] = value
            query[2, 0] = value
            answer = library.sift(pool, query, 4, launch=launch)
            check_sift(answer, 0, pool[0], query[0], 0.01)
            check_sift_failed(answer, 1)
            check_sift_failed(answer, 2)
        pool, query = hull_problem(1, 2, 20, 8, torch.float32)
        pool[1] *= 1e15  # products are finite, their squares are not
        query[1] *= 1e10
        answer = library.sift(pool, query, 4, launch=launch)
        check_sift(answer, 0, pool[0], query[0], 0.01)
        check_sift_failed(answer, 1)


SWEEP_SIZES = [0, 1, 7, 8, 9, 0, 255, 2048, 2049, 16_385, 0]
"""Elements: around a thread's share, a tile and a block's chunk, with empty tensors anywhere."""


def adam_tolerance(dtype: torch.dtype) -> float:
    """Relative, of parameters about 0.1 after steps of about 1e-3."""
    return {torch.float64: 1e-14, torch.float32: 4e-7, torch.bfloat16: 4e-3}.get(dtype, 5e-4)


def check_adam(
    library: Library,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    sizes: list[int],
    repeats: int,
    launch: Launch,
    *,
    steps_done: float = 0.0,
    device_steps: bool = False,
    misalign: int = 0,
    **options: float | bool,
) -> None:
    tensors = make_tensors(sizes, dtype, grad_dtype=grad_dtype, steps_done=steps_done)
    expected = reference.adam_replay(*tensors, repeats=repeats, **(OPTIONS | options))
    got = tensors.clone()
    library.adam_replay_(
        got, repeats, device_steps=device_steps, misalign=misalign, launch=launch, **options
    )
    tolerance = adam_tolerance(dtype)
    for column in ("params", "exp_avgs", "exp_avg_sqs"):
        for value, wanted in zip(getattr(got, column), getattr(expected, column), strict=True):
            error = (value.double() - wanted).abs()
            assert (error <= tolerance * (wanted.abs() + 0.1)).all(), column
    if device_steps:
        assert [t.item() for t in got.steps] == [steps_done + repeats] * len(sizes)


@case
def adam(library: Library, seed: int) -> None:
    f16, f32, f64, b16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
    launch = Launch(seed)
    check_adam(library, f32, f32, SWEEP_SIZES, 2, launch)
    check_adam(library, f64, f64, SWEEP_SIZES[:6], 3, launch, steps_done=1000.0, weight_decay=0.1)
    check_adam(library, b16, f32, SWEEP_SIZES[:7], 1, launch, decoupled=True, weight_decay=0.1)
    check_adam(library, f16, b16, [40, 9], 7, launch, maximize=True)
    check_adam(library, f32, f64, [33], 2, launch, beta1=0.0)
    check_adam(library, f64, b16, [33, 300], 2, launch, misalign=1)
    check_adam(library, f32, f16, [33, 300], 2, launch, misalign=3)


@case
def adam_many_steps(library: Library, seed: int) -> None:
    """More steps than the table in shared memory holds."""
    for repeats in (64, 65, 130):
        check_adam(library, torch.float64, torch.float64, [5, 1030], repeats, Launch(seed))


@case
def adam_device_steps(library: Library, seed: int) -> None:
    for steps_done in (0.0, 1000.0):
        check_adam(
            library, torch.float32, torch.float32, [3, 0, 50], 3, Launch(seed),
            steps_done=steps_done, device_steps=True,
        )  # fmt: skip


@case
def adam_device_lr(library: Library, seed: int) -> None:
    """A learning rate on the device takes the place of the one in the launch."""
    tensors = make_tensors([3, 0, 50])
    options = OPTIONS | {"weight_decay": 0.1, "decoupled": True}
    rate = torch.tensor(4e-3)
    expected = reference.adam_replay(*tensors, repeats=3, **(options | {"lr": rate}))
    got = tensors.clone()
    library.adam_replay_(got, 3, device_lr=rate, launch=Launch(seed), **options)
    for value, wanted in zip(got.params, expected.params, strict=True):
        assert ((value.double() - wanted).abs() <= 4e-7 * (wanted.abs() + 0.1)).all()


@case
def adam_stochastic(library: Library, seed: int) -> None:
    """Parameters rounded as the reference rounds what the same steps give in float32."""
    for grad_dtype, device_steps, misalign in (
        (torch.bfloat16, False, 0),
        (torch.float32, True, 1),
    ):
        tensors = make_tensors(
            [9, 0, 2060], torch.bfloat16, grad_dtype=grad_dtype, steps_done=300.0
        )
        wide = tensors.clone()._replace(
            params=[t.float() for t in tensors.params],
            exp_avgs=[t.float() for t in tensors.exp_avgs],
            exp_avg_sqs=[t.float() for t in tensors.exp_avg_sqs],
        )
        launch = Launch(seed)
        library.adam_replay_(wide, 2, launch=launch)
        got = tensors.clone()
        library.adam_replay_(
            got, 2, seed=2**40 + 17, device_steps=device_steps, misalign=misalign, launch=launch
        )
        for i, value in enumerate(wide.params):
            wanted = reference.round_to_bfloat16(value, seed=2**40 + 17, tensor=i, steps_done=300)
            assert torch.equal(got.params[i], wanted)


@case
def adam_many_tensors(library: Library, seed: int) -> None:
    """More tensors than one launch takes, with a rest that does not fill another."""
    sizes = [0 if i % 7 == 3 else 1 + i % 5 for i in range(150)]
    check_adam(library, torch.float32, torch.float32, sizes, 1, Launch(seed), device_steps=True)


@case
def accumulate(library: Library, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.randn(n, generator=generator).to(dtype) for n in sizes]

    f16, f32, f64, b16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
    for cache_dtype, grad_dtype, sizes, beta, misalign in (
        (f32, f32, SWEEP_SIZES, 1.0, 0),
        (b16, f32, [300, 5], 0.5, 0),
        (f16, f64, [9, 2050], -2.0, 1),
        (f64, b16, [33], 0.0, 0),
        (f32, f32, [2] * 200, 1.0, 3),
    ):
        caches, grads = normal(sizes, cache_dtype), normal(sizes, grad_dtype)
        if beta == 0:
            caches[0][0] = float("nan")
        expected = reference.grad_accumulate(caches, grads, alpha=0.7, beta=beta)
        library.accumulate_(caches, grads, 0.7, beta, misalign=misalign, launch=Launch(seed))
        tolerance = {f64: 1e-15, f32: 2e-7, f16: 1e-3, b16: 8e-3}[cache_dtype]
        for got, wanted in zip(caches, expected, strict=True):
            assert ((got.double() - wanted).abs() <= tolerance * (wanted.abs() + 1)).all()
