"""Answers that no machine could hold are refused before anything is allocated. Views of one value
stand for inputs of any size."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

import hullft_ops

MANY = 2**31 - 1
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
POOL, QUERIES = torch.ones(4, 3), torch.ones(1, 3).expand(4096, 3)
CANDIDATES = torch.zeros(1, 1, dtype=torch.int64).expand(4096, 4)
ENDLESS = torch.ones(1, 3).expand(2**40, 3)
ENDLESS_SIZES = torch.ones(1, dtype=torch.int64).expand(2**40)
ROWS = torch.ones(1, 1).expand(2**22, 1)
SIZES = torch.ones(2, dtype=torch.int64)

REFUSED: dict[str, Callable[[], object]] = {
    "fw_select": lambda: hullft_ops.fw_select(POOL, QUERIES, MANY),
    "fw_select_indexed": lambda: hullft_ops.fw_select_indexed(
        POOL, CANDIDATES, QUERIES, MANY
    ),
    "knn_select": lambda: hullft_ops.knn_select(POOL, ENDLESS, 3),
    "sift_select": lambda: hullft_ops.sift_select(POOL, QUERIES, MANY),
    "sift_select_indexed": lambda: hullft_ops.sift_select_indexed(
        POOL, CANDIDATES, QUERIES, MANY
    ),
    "integerize": lambda: hullft_ops.integerize(ROWS, torch.ones(1), ROWS[:, 0], 3),
}
SIZED: dict[str, Callable[[], object]] = {
    "fw_select": lambda: hullft_ops.fw_select(
        POOL, ENDLESS, 3, pool_sizes=ENDLESS_SIZES
    ),
    "fw_select_indexed": lambda: hullft_ops.fw_select_indexed(
        POOL, CANDIDATES[:1].expand(2**40, 4), ENDLESS, 3, pool_sizes=ENDLESS_SIZES
    ),
    "sift_select": lambda: hullft_ops.sift_select(
        POOL, ENDLESS, 3, pool_sizes=ENDLESS_SIZES
    ),
    "sift_select_indexed": lambda: hullft_ops.sift_select_indexed(
        POOL, CANDIDATES[:1].expand(2**40, 4), ENDLESS, 3, pool_sizes=ENDLESS_SIZES
    ),
    "integerize": lambda: hullft_ops.integerize(
        POOL.expand(2**40, 4, 3),
        ENDLESS,
        torch.ones(1, 1).expand(2**40, 4),
        3,
        support_sizes=ENDLESS_SIZES,
    ),
}


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
@pytest.mark.parametrize("operator", REFUSED)
def test_what_cannot_fit_is_refused(operator: str) -> None:
    wanted = f"^{operator}: n_select .* needs [0-9]+ GiB, this machine has [0-9]+$"
    with pytest.raises(ValueError, match=wanted):
        REFUSED[operator]()


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
@pytest.mark.parametrize("operator", SIZED)
def test_more_queries_than_could_be_answered_are_refused_before_their_sizes_are_read(
    operator: str,
) -> None:
    wanted = f"^{operator}: n_select 3 for 1099511627776 queries .* needs [0-9]+ GiB"
    with pytest.raises(ValueError, match=wanted):
        SIZED[operator]()


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
def test_a_number_that_no_integer_holds_is_written_out() -> None:
    with pytest.raises(
        ValueError, match=r"needs 5[0-9]{19} GiB, this machine has [0-9]+$"
    ):
        hullft_ops.fw_select(POOL, torch.ones(1, 3).expand(2**60, 3), MANY)


@pytest.mark.cpu_only("CUDA screens nothing")
def test_the_integers_that_a_pool_is_screened_in_count() -> None:
    pool = torch.ones(1, 2**20).expand(2**27, 2**20)
    with pytest.raises(
        ValueError, match=r"queries of 134217728 candidates needs 26[0-9]{4} GiB"
    ):
        hullft_ops.fw_select(pool, pool[0], 3)


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
@pytest.mark.parametrize("select", [hullft_ops.fw_select, hullft_ops.sift_select])
def test_the_copy_of_a_pool_that_is_not_dense_counts(
    select: Callable[..., object],
) -> None:
    pool = torch.ones(1, 1).expand(2**20, 2**30)
    with pytest.raises(
        ValueError, match=r"^(fw|sift)_select: n_select 3 .* needs 41[0-9]{5} GiB"
    ):
        select(pool, torch.ones(1).expand(2**30), 3)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.cpu_only("CUDA shares the workspaces otherwise")
@pytest.mark.usefixtures("four_threads")
def test_every_thread_has_a_workspace() -> None:
    """Rows of which two queries at once need more than there is, and one alone does not."""
    one_fits = int((MEMORY / 8 * 0.7) ** 0.5)
    rows = torch.ones(1, 1).expand(2, one_fits, 1)
    query, weights = torch.ones(2, 1), torch.ones(1, 1).expand(2, one_fits)
    with pytest.raises(
        ValueError, match=f"^integerize: n_select 3 for 2 queries of {one_fits}"
    ):
        hullft_ops.integerize(rows, query, weights, 3)
    # A pick has a column of its own, and one of the Gram matrix.
    n_select = int(MEMORY / 16 * 0.7 / 2**20)
    pool = torch.ones(1, 1).expand(2**20, 1)
    with pytest.raises(
        ValueError, match=f"^sift_select: n_select {n_select} for 2 queries"
    ):
        hullft_ops.sift_select(pool, query, n_select)


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
def test_memory_is_that_of_the_rows_in_use() -> None:
    weights = torch.ones(1, 1).expand(2, ROWS.shape[0])
    counts = hullft_ops.integerize(
        ROWS.expand(2, -1, 1), torch.ones(2, 1), weights, 3, support_sizes=SIZES
    )
    assert counts[:, 0].tolist() == [3, 3]
    assert counts.sum() == 6


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
def test_more_targets_than_could_be_read_are_refused() -> None:
    with pytest.raises(
        ValueError, match="^sift_select: n_select 3 for 1 queries of 4 candidates"
    ):
        hullft_ops.sift_select(POOL, ENDLESS[None], 3)


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
def test_a_step_for_more_queries_than_could_be_answered_is_refused() -> None:
    wanted = "^fw_lmo: 1099511627776 queries: the answer needs 20480 GiB, this machine has [0-9]+$"
    with pytest.raises(ValueError, match=wanted):
        hullft_ops.fw_lmo(POOL, ENDLESS, ENDLESS)


REFUSED_BY_THE_SYSTEM = """
import resource
import torch, hullft_ops
pool, queries = torch.ones(4, 3), torch.ones(1, 3).expand(2**26, 3)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    hullft_ops.knn_select(pool, queries, 1)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.cpu_only("the memory that the system gives a process")
def test_memory_that_the_system_refuses_is_named() -> None:
    command = [sys.executable, "-c", REFUSED_BY_THE_SYSTEM]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(
        f"hullft_ops: torch makes no tensor of {2**29} bytes on the CPU"
    )
    if torch.torch_version.TorchVersion(torch.__version__) >= (
        2,
        13,
    ):  # before, it kept the reason
        assert "can't allocate memory" in said
