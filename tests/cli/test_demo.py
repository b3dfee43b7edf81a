"""``hullft-ops demo`` on a tiny random model and a small corpus."""

import re
from pathlib import Path

import pytest

from command import hullft_ops, succeeded
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
    assert (tmp_path / "out" / "report" / "report.html").is_file()

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"datastores", "report", "results.jsonl"}


def test_a_second_run_measures_only_what_is_new(arguments: list[object]) -> None:
    first = succeeded(*arguments).stdout
    rows = Path("hullft_demo", "results.jsonl").read_bytes()

    assert succeeded(*arguments).stdout == first
    assert Path("hullft_demo", "results.jsonl").read_bytes() == rows

    fewer = succeeded(*arguments, "--n-select", 2).stdout
    assert "hullft n=6" not in fewer
    assert "hullft n=2" in fewer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "nowhere"], "nowhere: no such file or folder"),
        (["--limit", 1000], "limit is 1000, there are 5 held-out prompts"),
        (["--n-select", 0], "without steps and context there is nothing to measure"),
        (["--lr", 0], "settings[0]: --lr must be greater than 0, got 0.0"),
        (["--model", "./nowhere"], "model ./nowhere: no such folder"),
    ],
)
def test_what_cannot_be_ends_with_one_line(
    options: list[object], message: str, arguments: list[object]
) -> None:
    result = hullft_ops(*arguments, *options)
    assert result.code == 2
    assert result.last.startswith("hullft-ops demo: ")
    assert message in result.last


def test_a_report_of_the_users_is_refused_before_the_work(
    arguments: list[object], tmp_path: Path
) -> None:
    thesis = tmp_path / "out" / "report" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    result = hullft_ops(*arguments, "--output", "out")

    assert result.code == 2
    assert "holds thesis.txt, which hullft_ops did not write" in result.last
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report"]
