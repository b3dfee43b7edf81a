"""The kernels, executed: against the reference, in several orders of threads, under checkers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch

from adam_problems import adam_replay, make_tensors
from cuda_sim import build
from cuda_sim.cases import CASES
from cuda_sim.cases_fw import EDGES, SIZES, WAYS, fw_matches
from cuda_sim.checks import (
    ABOUT_VALUES,
    SMALL_SHARED,
    check_same,
    hull_problem,
)
from cuda_sim.library import (
    H100_SHARED_BYTES,
    WORKSPACE_BYTES,
    Launch,
    Library,
)
from cuda_sim.worker import Workers
from hullft_ops import _C
from problems import DTYPES, VARIANTS, AnySelection

Libraries = Callable[[str], Library]

REALS = [torch.float32, torch.float64]
SCHEDULES = [1, 11]
"""Threads descending and at random; the race checker has them ascending."""

OF_ACCESSES = [name for name in CASES if name not in ABOUT_VALUES]
"""What needs one order alone."""


@pytest.mark.parametrize("seed", SCHEDULES)
@pytest.mark.parametrize("name", OF_ACCESSES)
def test_plain(library: Libraries, name: str, seed: int) -> None:
    CASES[name](library("plain"), seed)


@pytest.mark.parametrize("name", sorted(ABOUT_VALUES))
def test_values(library: Libraries, name: str) -> None:
    CASES[name](library("plain"), 0)


@pytest.mark.parametrize("name", OF_ACCESSES)
def test_race(library: Libraries, name: str) -> None:
    CASES[name](library("race"), 0)


@pytest.mark.parametrize("name", OF_ACCESSES)
def test_asan(workers: Workers, name: str) -> None:
    library = build.build("asan")
    report = workers.run_case(library, "asan", name, seed=0, timeout=120)

    assert report == ""


def solves() -> Iterator[tuple[torch.dtype, str, str]]:
    """For "corrective" no warp takes the steps."""
    for dtype, variant, way in product(DTYPES, VARIANTS, WAYS):
        if variant == "vanilla" or way != "warp":
            yield dtype, variant, way


@pytest.mark.parametrize(("dtype", "variant", "way"), list(solves()), ids=str)
def test_frank_wolfe_equals_reference(
    library: Libraries, dtype: torch.dtype, variant: str, way: str
) -> None:
    for seed, threads in ((0, -1), (7, 64)):
        launch = Launch(seed, threads=threads, **WAYS[way])
        sizes = EDGES if way == "warp" else SIZES
        fw_matches(library("plain"), dtype, variant, launch, sizes)


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_golden_pools(
    library: Libraries, golden: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    pool, query = golden["pool"].to(dtype), golden["query"].to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for gram in (True, False):  # either way that a plan may choose
        launch = Launch(gram=gram)
        answer = library("plain").frank_wolfe(pool, query, 50, launch=launch)
        for name in ("indices", "counts", "weights", "residual"):
            error = getattr(answer, name) - golden[f"{name}_n50"]

            assert error.abs().max() < tolerance


def other_launches(first: Launch) -> list[Launch]:
    return [
        replace(first, seed=1),
        replace(first, seed=5),
        replace(first, max_shared_bytes=SMALL_SHARED),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_same_bits_whatever_the_order(library: Libraries, way: str) -> None:
    pool, query = hull_problem(0, 2, 150, 40, torch.float32)
    first = Launch(0, **WAYS[way])

    def select(launch: Launch) -> list[AnySelection]:
        plain = library("plain")
        return [
            plain.frank_wolfe(pool, query, 20, launch=launch),
            plain.frank_wolfe(pool, query, 20, variant="corrective", launch=launch),
            plain.sift(pool, query, 12, launch=launch),
        ]

    expected = select(first)
    for launch in other_launches(first):
        for answer, first_answer in zip(select(launch), expected, strict=True):
            check_same(answer, first_answer)


def test_the_limit_of_a_kernels_shared_memory_is_never_lowered(
    library: Libraries,
) -> None:
    launch = Launch(gram=False)
    for candidates in (2000, 20):
        pool, query = hull_problem(0, 1, candidates, 4, torch.float32)
        library("plain").frank_wolfe(pool, query, 2, max_iter=1, launch=launch)


@pytest.mark.skipif(
    _C.simd_level() == "portable",
    reason="the portable CPU form has no fused multiply-add",
)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_adam_gives_the_bits_of_the_cpu(
    library: Libraries, dtype: torch.dtype, decoupled: bool
) -> None:
    """A GPU gives them too: it rounds each of these operations as IEEE 754 says, and the powers of
    bias correction are made of them. Only `pow` of a step count that is no integer may differ."""
    tensors = make_tensors([5000, 3], dtype, grad_dtype=torch.float32, steps_done=9.0)
    got = tensors.clone()
    options = {
        "lr": 0.8,
        "weight_decay": 0.1,
        "decoupled": decoupled,
        "seed": 11,
    }
    scales = [0.5, 3.0]
    library("plain").adam_replay_(got, 4, lr_scales=scales, **options)
    rates = torch.tensor(scales, dtype=torch.float64)
    on_cpu = adam_replay(tensors, 4, lr_scales=rates, **options)

    assert all(map(torch.equal, got.params, on_cpu.params))
    assert all(map(torch.equal, got.exp_avgs, on_cpu.exp_avgs))
    assert all(map(torch.equal, got.exp_avg_sqs, on_cpu.exp_avg_sqs))


@pytest.mark.parametrize(
    ("batch", "candidates", "dim", "shared", "gram", "part", "threads"),
    [
        (1024, 200, 1024, False, True, 1024, 64),  # one warp takes the steps
        (1, 256, 1024, False, True, 1, 256),
        (1, 257, 1024, False, True, 1, 256),
        (1, 5000, 1024, False, True, 1, 512),
        (1024, 5000, 1024, False, False, 1024, 128),
        (1, 65_536, 1024, False, False, 1, 512),  # its state in global memory
        (
            4096,
            20_000,
            384,
            True,
            True,
            4096,
            512,
        ),  # a matrix of 1.6 GB, not columns of 16.7
        (100, 20_000, 384, True, False, 100, 512),  # columns take more than 512 MB less
        (10_000, 200, 384, False, True, 5000, 64),
        # Parts of 180 queries would leave the device half empty.
        (1024, 1000, 384, False, False, 1024, 32),
        (4096, 20_000, 384, False, False, 512, 512),
    ],
)
def test_plan(
    library: Libraries,
    batch: int,
    candidates: int,
    dim: int,
    shared: bool,
    gram: bool,
    part: int,
    threads: int,
) -> None:
    plan = library("plain").plan(batch, candidates, dim, 50, shared=shared)

    assert plan.warp == (gram and candidates <= 256)
    assert plan.shared_state == (candidates < 65_536)
    assert (plan.gram, plan.part, plan.threads) == (gram, part, threads)
    assert plan.workspace_bytes <= WORKSPACE_BYTES


@pytest.mark.parametrize(
    ("batch", "candidates", "dim", "rounds"),
    [
        (1, 20_000, 384, 52),  # the query's products, and 51 columns
        (16, 20_000, 384, 52),
        (1, 5000, 4096, 52),  # a Gram matrix takes longer
        (64, 20_000, 384, 0),  # the blocks read as fast as the device
        (1, 20_000, 8, 0),  # two launches take longer than a column
    ],
)
def test_few_queries_with_many_rows_are_solved_in_rounds(
    library: Libraries, batch: int, candidates: int, dim: int, rounds: int
) -> None:
    plan = library("plain").plan(batch, candidates, dim, 50)

    assert not plan.gram
    assert plan.rounds == rounds
    assert plan.shared_state == (rounds == 0)


@pytest.mark.parametrize("limit", [163 * 1024, H100_SHARED_BYTES])
def test_state_in_shared_memory_leaves_room_for_the_rest(
    library: Libraries, limit: int
) -> None:
    """The most that tools/compile_gate.py counts is never passed, and nearly reached."""
    launch = Launch(max_shared_bytes=limit)
    plans = []
    for candidates in range(1000, 32_000, 13):
        plans.append(library("plain").plan(1, candidates, 8, 50, launch=launch))

    largest = max(plan.state_bytes for plan in plans if plan.shared_state)

    assert limit - 2048 < largest <= limit - 1024
    assert not plans[-1].shared_state
