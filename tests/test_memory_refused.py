"""Answers that no machine could hold are refused before anything is allocated. Views of one value
stand for inputs of any size."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops

MANY = 2**31 - 1
POOL, QUERIES = torch.ones(4, 3), torch.ones(1, 3).expand(4096, 3)
CANDIDATES = torch.zeros(1, 1, dtype=torch.int64).expand(4096, 4)
ENDLESS = torch.ones(1, 3).expand(2**40, 3)
ROWS = torch.ones(1, 1).expand(2**22, 1)

REFUSED: dict[str, Callable[[], object]] = {
    "fw_select": lambda: hullft_ops.fw_select(POOL, QUERIES, MANY),
    "fw_select_indexed": lambda: hullft_ops.fw_select_indexed(POOL, CANDIDATES, QUERIES, MANY),
    "knn_select": lambda: hullft_ops.knn_select(POOL, ENDLESS, 3),
    "sift_select": lambda: hullft_ops.sift_select(POOL, QUERIES, MANY),
    "sift_select_indexed": lambda: hullft_ops.sift_select_indexed(POOL, CANDIDATES, QUERIES, MANY),
    "integerize": lambda: hullft_ops.integerize(ROWS, torch.ones(1), ROWS[:, 0], 3),
}


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
@pytest.mark.parametrize("operator", REFUSED)
def test_what_cannot_fit_is_refused(operator: str) -> None:
    wanted = f"^{operator}: n_select .* needs [0-9]+ GiB, this machine has [0-9]+$"
    with pytest.raises(ValueError, match=wanted):
        REFUSED[operator]()


@pytest.mark.cpu_only("on CUDA, torch's allocator refuses")
def test_a_step_for_more_queries_than_could_be_answered_is_refused() -> None:
    wanted = "^fw_lmo: 1099511627776 queries: the answer needs 20480 GiB, this machine has [0-9]+$"
    with pytest.raises(ValueError, match=wanted):
        hullft_ops.fw_lmo(POOL, ENDLESS, ENDLESS)
