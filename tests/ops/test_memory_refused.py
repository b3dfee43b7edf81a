"""Answers that no machine could hold are refused before anything is allocated. Views of one value
stand for inputs of any size."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forked import forked, status_of
from hullft_ops import (
    fw_lmo,
    fw_select,
    integerize,
    knn_select,
    sift_select,
    simplex_lstsq,
)

pytestmark = pytest.mark.cpu_only("on CUDA, torch's allocator refuses")

ANY = 2**31 - 1
ONES = torch.ones(1, 1, 1)
POOL = torch.ones(4, 3)
QUERIES = ONES[0].expand(4096, 3)
MANY = 2**40
MANY_QUERIES = ONES[0].expand(MANY, 3)
LONG = ONES[0].expand(2**22, 1)
WIDE_POOL = torch.ones(1, 2**20).expand(2**27, 2**20)
COLUMNS = torch.ones(1, 1).expand(2**20, 2**30)

COUNTED = r"n_select .* needs [0-9]+ GiB, this machine has [0-9]+$"
REFUSED: list[tuple[Callable[..., object], tuple[object, ...], str]] = [
    (fw_select, (POOL, QUERIES, ANY), COUNTED),
    (knn_select, (POOL, MANY_QUERIES, 3), COUNTED),
    (sift_select, (POOL, QUERIES, ANY), COUNTED),
    (integerize, (LONG, torch.ones(1), LONG[:, 0], 3), COUNTED),
    (fw_lmo, (POOL, MANY_QUERIES, MANY_QUERIES), "1099511627776 queries: .* 20480 GiB"),
    (simplex_lstsq, (POOL, MANY_QUERIES), "1099511627776 queries of 4 rows needs 3"),
    # The integers that a pool is screened in.
    (fw_select, (WIDE_POOL, WIDE_POOL[0], 3), "n_select .* needs 26[0-9]{4} GiB"),
    # The copy of a pool that is not dense, and its integers.
    (fw_select, (COLUMNS, COLUMNS[0], 3), "n_select 3 .* needs 62[0-9]{5} GiB"),
    # More targets than could be read.
    (sift_select, (POOL, MANY_QUERIES[None], 3), "n_select 3 for 1 queries of 4"),
]


@pytest.mark.parametrize(("operator", "arguments", "message"), REFUSED)
def test_what_cannot_fit_is_refused(
    operator: Callable[..., object], arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{operator.__name__}: {message}"):
        operator(*arguments)


def select_beyond_a_limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # The weights, in float32, come first.
    message = f"^hullft_ops: torch makes no tensor of {2**29} bytes on the CPU"

    with pytest.raises(RuntimeError, match=message) as raised:
        knn_select(POOL, POOL[:1].expand(2**27, 3), 1)

    if torch.torch_version.TorchVersion(torch.__version__) >= "2.13":
        # Before, torch kept the reason.
        assert "can't allocate memory" in str(raised.value)


def test_memory_that_the_system_refuses_is_named() -> None:
    assert status_of(forked(select_beyond_a_limit)) == 0
