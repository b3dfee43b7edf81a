"""The study of what decides between HullFT and kNN: its methods, and its page."""

from pathlib import Path

import pytest
import torch
from benchmarks import what_decides

from hullft_ops import fw_select_indexed
from hullft_ops.ttft.evaluation.results import read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/what_decides"


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    order = (x @ x[0]).argsort(descending=True)[None]
    return x, order[:, 1:41], x[:1]


def steps(found):
    """The candidates that are trained on, and how often, in order."""
    pairs = zip(found.indices[0].tolist(), found.counts[0].tolist(), strict=True)
    return [(index, count) for index, count in pairs if count]


def test_copies_take_the_steps_of_other_texts(problem):
    found = what_decides.knn_of_copies(*problem, 8)
    assert steps(found) == [(0, 3), (1, 3), (2, 2)]


def test_reversed_methods_take_the_same_steps_from_the_end(problem):
    hull = fw_select_indexed(*problem, 8)
    assert steps(what_decides.hull_lightest_first(*problem, 8)) == steps(hull)[::-1]
    farthest_first = [(index, 1) for index in range(7, -1, -1)]
    assert steps(what_decides.knn_farthest_first(*problem, 8)) == farthest_first


def test_without_the_nearest_text_the_others_keep_their_places(problem):
    x, candidates, q = problem
    assert steps(what_decides.knn_without_nearest(*problem, 8)) == [
        (i, 1) for i in range(1, 9)
    ]
    rest = fw_select_indexed(x, candidates[:, 1:].contiguous(), q, 8)
    hull = what_decides.hull_without_nearest(*problem, 8)
    assert steps(hull) == [(index + 1, count) for index, count in steps(rest)]


def test_the_page_has_the_tables_of_its_rows():
    page = (ROOT / "docs/results/what_decides.md").read_text(encoding="utf-8")
    moves = what_decides.read_moves(RESULTS / "moved.jsonl")
    assert what_decides.filled(page, read_rows(RESULTS / "rows.jsonl"), moves) == page
