"""Picks in their order as runs of steps that share a gradient."""

import pytest
import torch

import hullft_ops
from hullft_ops.ttft.evaluation.runner import reuse_runs

PICKS = [7, 7, 3, 7, 3, 3, 3, 9]


def test_consecutive_keeps_the_order() -> None:
    assert reuse_runs(PICKS, "consecutive") == [(7, 2), (3, 1), (7, 1), (3, 3), (9, 1)]


def test_global_gives_each_example_one_run_at_its_first_pick() -> None:
    assert reuse_runs(PICKS, "global") == [(7, 3), (3, 4), (9, 1)]


@pytest.mark.parametrize("reuse", ["global", "consecutive"])
def test_runs_hold_every_pick_of_sift(reuse: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, pool.sum(0), 40, noise=0.5)
    runs = reuse_runs(sel.picks.tolist(), reuse)  # type: ignore[arg-type]
    counts = dict.fromkeys(range(9), 0)
    for example, repeats in runs:
        counts[example] += repeats
    m = int(sel.support_size)
    found = dict(zip(sel.indices[:m].tolist(), sel.counts[:m].tolist(), strict=True))
    assert {k: n for k, n in counts.items() if n} == found
    if reuse == "consecutive":
        assert [k for k, n in runs for _ in range(n)] == sel.picks.tolist()
    else:
        assert len(runs) == m


def test_nothing_picked_and_an_unknown_rule() -> None:
    assert reuse_runs([], "global") == reuse_runs([], "consecutive") == []
    with pytest.raises(
        ValueError, match="reuse must be 'global' or 'consecutive', got 'both'"
    ):
        reuse_runs([1], "both")  # type: ignore[arg-type]
