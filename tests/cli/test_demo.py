"""``hullft-ops demo`` on a tiny random model and a small corpus."""

import re
from pathlib import Path

import pytest

from command import succeeded
from hullft_ops.evaluation.results import read_rows


@pytest.fixture
def arguments(models_of: list[object], corpus_file: Path) -> list[object]:
    options = ["--corpus", corpus_file, "--limit", 3, "--n-select", 6]
    return ["demo", *models_of, *options, "--lr", 0.01]


def test_it_compares_three_settings_and_writes_a_report(
    arguments: list[object], tmp_path: Path
) -> None:
    printed = succeeded(*arguments, "--output", "out").stdout
    assert "Means over 3 held-out prompts" in printed

    shown = re.findall(r"^ (.+?) +(\d\.\d{4})", printed, re.MULTILINE)
    labels = ["knn n=6 refresh=1", "hullft n=6", "hullft n=6"]

    assert shown[0][0] == "no adaptation"
    assert len(shown) == 1 + len(labels)

    rows = read_rows(tmp_path / "out" / "results.jsonl")
    assert len(rows) == 9

    before = sum(row.scores["continuation"].before for row in rows) / 9
    assert shown[0] == ("no adaptation", f"{before:.4f}")
    # Six steps at a high rate teach even a random model the letters of the corpus.
    assert all(float(bits) < before for _, bits in shown[1:])

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"datastores", "results.jsonl"}


def test_a_second_run_measures_only_what_is_new(arguments: list[object]) -> None:
    first = succeeded(*arguments).stdout
    rows = Path("hullft_demo", "results.jsonl").read_bytes()

    assert succeeded(*arguments).stdout == first
    assert Path("hullft_demo", "results.jsonl").read_bytes() == rows

    fewer = succeeded(*arguments, "--n-select", 2).stdout
    assert "hullft n=6" not in fewer
    assert "hullft n=2" in fewer
