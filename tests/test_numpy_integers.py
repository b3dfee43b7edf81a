"""Wherever an int is asked for, NumPy's integers are taken, and its booleans are not."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import hullft_ops
from hullft_ops import _checks
from problems import make_problem

POOL, QUERY = make_problem(0, 2, 12, 8)
ROWS = torch.arange(12).expand(2, -1)
WEIGHTS = torch.full((2, 12), 1 / 12)


def stepped(repeats: int, seed: int) -> list[torch.Tensor]:
    param = torch.ones(40, dtype=torch.bfloat16)
    optimizer = hullft_ops.ReplayAdam([param], rounding_seed=seed)
    optimizer.step(repeats=repeats, grads={param: torch.ones(40)})
    return [param, torch.tensor(optimizer.defaults["rounding_seed"])]


CALLS: dict[str, tuple[Callable[[int], object], str]] = {
    "fw_select n_select": (lambda n: hullft_ops.fw_select(POOL, QUERY, n), "n_select"),
    "fw_select max_iter": (
        lambda n: hullft_ops.fw_select(POOL, QUERY, 5, max_iter=n),
        "max_iter",
    ),
    "fw_select swap_passes": (
        lambda n: hullft_ops.fw_select(POOL, QUERY, 5, swap_passes=n),
        "swap_passes",
    ),
    "fw_select_indexed": (
        lambda n: hullft_ops.fw_select_indexed(
            POOL[0], ROWS, QUERY, n, max_iter=n, swap_passes=n
        ),
        "n_select",
    ),
    "integerize n_select": (
        lambda n: [hullft_ops.integerize(POOL, QUERY, WEIGHTS, n)],
        "n_select",
    ),
    "integerize swap_passes": (
        lambda n: [hullft_ops.integerize(POOL, QUERY, WEIGHTS, 5, swap_passes=n)],
        "swap_passes",
    ),
    "knn_select": (lambda n: hullft_ops.knn_select(POOL, QUERY, n), "n_select"),
    "sift_select": (lambda n: hullft_ops.sift_select(POOL, QUERY, n), "n_select"),
    "sift_select_indexed": (
        lambda n: hullft_ops.sift_select_indexed(POOL[0], ROWS, QUERY, n),
        "n_select",
    ),
    "ReplayAdam.step": (lambda n: stepped(n, 3), "repeats"),
    "ReplayAdam": (lambda n: stepped(2, n), "rounding_seed"),
}


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("name", CALLS)
def test_is_taken_for_the_int_that_it_is(name: str, kind: type[np.integer]) -> None:
    call, _ = CALLS[name]
    assert all(map(torch.equal, call(kind(4)), call(4)))


@pytest.mark.parametrize(
    "value", [np.bool_(True), np.float64(4.0), np.array(4)], ids=repr
)
@pytest.mark.parametrize("name", CALLS)
def test_others_are_refused(name: str, value: object) -> None:
    call, argument = CALLS[name]
    message = f"{argument} must be an int, got {type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        call(value)


def test_a_python_int_goes_on() -> None:
    assert type(_checks.check_integer("op", "n", np.int64(7), 1)) is int
    with pytest.raises(ValueError, match=r"^op: n must be in 1\.\.2147483647, got -7$"):
        _checks.check_integer("op", "n", np.int64(-7), 1)
    with pytest.raises(ValueError, match=r"got 9223372036854775808$"):
        _checks.check_integer("op", "n", np.uint64(2**63), 1)
