"""What every selection operator does with batches, strides, ties and empty input."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    METHODS,
    ON_VALUES,
    VARIANTS,
    assert_consistent,
    assert_equals_reference,
    assert_same_selection,
    make_problem,
    of_query,
    select,
)


@pytest.mark.cpu_only("torch's profiler is asked for the CPU's memory")
def test_expanded_batch_is_not_copied() -> None:
    pool, query = make_problem(7, 64, 200, 32)
    expanded = pool[:1].expand(64, -1, -1)
    sel = select("vanilla", expanded, query, 4)
    shared = select("vanilla", pool[0], query, 4)

    assert torch.equal(sel.indices, shared.indices)

    def allocated(pool: torch.Tensor) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            select("vanilla", pool, query, 4)

        total = 0
        for event in run.events():
            total += max(event.self_cpu_memory_usage, 0)

        return total

    assert allocated(expanded) < pool[0].nbytes
    # A last dimension that is not dense is copied by the operator: the profiler sees it.
    assert allocated(pool.mT.contiguous().mT) >= pool.nbytes


def test_ties_of_the_nearest() -> None:
    pool, query = make_problem(1, 2, 6, 5)
    pool = pool.repeat(1, 3, 1)
    sizes = torch.tensor([18, 8])
    selection = select("knn", pool, query, 4, pool_sizes=sizes)

    assert selection.indices.tolist() == [[0, 6, 12, 1], [0, 6, 1, 7]]


@pytest.mark.parametrize("method", [*VARIANTS, "sift"])
def test_large_pool(method: str) -> None:
    pool, query = make_problem(15, 1, 70_000, 4, torch.float32, spread=1.0)
    selection = select(method, pool, query, 10)

    assert_consistent(pool, query, selection, 10, bound=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.cpu_only("a GPU has no such threads")
def test_threads_that_share_a_batch_name_its_first_bad_query(
    method: str, threads: Callable[[int], None]
) -> None:
    pool, _ = make_problem(4, 1, 2000, 200, torch.float32)
    query, _ = make_problem(5, 1, 64, 200, torch.float32)
    query[0, [11, 50], 3] = float("nan")
    for count in (1, 2, 5):
        threads(count)

        with pytest.raises(ValueError, match="query.11. has NaN"):
            select(method, pool[0], query[0], 3)


STARTED_THREADS = """
import os, sys, torch, hullft_ops
torch.set_num_threads(2)
for batch, rows in ((8, 30), (64, 200)):
    row = torch.ones(1, 384)
    pool, query = row.expand(rows, -1), row.expand(batch, -1)
    before = os.listdir("/proc/self/task")
    hullft_ops.fw_select(pool, query, 50)
    print(len(os.listdir("/proc/self/task")) - len(before))
"""


@pytest.mark.cpu_only("a GPU has no such threads")
def test_a_small_batch_starts_no_thread() -> None:
    """The call would wait for a thread on a busy core."""
    command = [sys.executable, "-c", STARTED_THREADS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["0", "1"]


@pytest.mark.parametrize("method", METHODS)
def test_batch_of_none(method: str) -> None:
    pool = torch.zeros(0, 5, 3)
    query = torch.zeros(0, 3)
    selection = select(method, pool, query, 4)

    assert selection.indices.shape == (0, 4)
    assert selection.multiset().shape == (0, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_query_without_candidates(
    method: str, dtype: torch.dtype, device: torch.device
) -> None:
    pool, query = make_problem(4, 3, 9, 6, dtype)
    query[1] *= 3
    sizes = torch.tensor([9, 0, 5])
    selection = select(method, pool, query, 4, pool_sizes=sizes)

    empty = of_query(selection, 1)
    oracles = {"knn": reference.knn_select, "sift": reference.sift_select}
    expected = oracles.get(method, reference.fw_select)(pool[1, :0], query[1], 4)
    if method == "sift":
        expected = expected.selection

    norm = query[1].double().norm()

    assert abs(expected.residual - norm) < 1e-6
    assert expected.gap == expected.num_iter == len(expected.indices) == 0

    assert_equals_reference(empty, expected, weight_tolerance=1e-6)

    assert empty.multiset().tolist() == [-1] * 4

    for b in (0, 2):
        alone = select(method, pool[b, : sizes[b]], query[b], 4)
        assert_same_selection(of_query(selection, b), alone, device)

    if method == "sift":
        assert empty.picks.tolist() == [-1] * 4
        assert (empty.variance - norm**2).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_ids_of_a_search_in_and_out(dtype: torch.dtype) -> None:
    """As FAISS returns them: -1 after the last neighbour."""
    pool, query = make_problem(4, 3, 30, 6)
    ids = torch.tensor([[7, 2, 29, 4], [-1] * 4, [3, 0, -1, -1]], dtype=dtype)
    selection = hullft_ops.fw_select(pool[0], query, 4, candidates=ids)
    rows = selection.rows(ids)

    assert rows.dtype == torch.int64

    for b in range(3):
        m = int(selection.support_size[b])

        assert rows[b, :m].tolist() == ids[b, selection.indices[b, :m]].tolist()
        assert rows[b, m:].eq(-1).all()

    with pytest.raises(ValueError, match="rows: candidates .* batch .3. or none, got"):
        selection.rows(ids[:2])

    with pytest.raises(
        ValueError, match=r"rows: candidates must be the selection.s, got shape .1.:"
    ):
        selection.rows(ids[0, :1])


@pytest.mark.cpu_only(ON_VALUES)
def test_sizes_take_the_place_of_missing_ids() -> None:
    """What comes after them may hold anything; -1 among them is an error."""
    pool, query = make_problem(4, 2, 30, 6)
    ids = torch.tensor([[7, 2, 29, 4], [3, 0, 10**12, -1]])
    sizes = torch.tensor([3, 2])
    select = partial(hullft_ops.fw_select, pool[0], query, n_select=4)
    padded = torch.tensor([[7, 2, 29, -1], [3, 0, -1, -1]])

    of_sizes = select(candidates=ids, pool_sizes=sizes)

    assert all(map(torch.equal, of_sizes, select(candidates=padded)))

    with pytest.raises(ValueError, match="candidates has -1 at position 3 for query 0"):
        select(candidates=padded, pool_sizes=sizes + 1)


def test_large_n_select() -> None:
    pool, query = make_problem(16, 1, 8, 5)
    sel = select("vanilla", pool[0], query[0], 100_000)

    assert sel.counts.sum() == 100_000

    shares = sel.counts[:8].double() / 100_000
    error = shares - sel.weights[:8]

    assert error.abs().max() < 0.05
