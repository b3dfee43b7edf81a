"""``hullft-ops demo`` on a tiny random model and a small corpus."""

import re
from pathlib import Path

from command import succeeded
from hullft_ops.evaluation.results import read_rows


def test_it_compares_three_settings(models_of: list[object], corpus_file: Path) -> None:
    arguments = [*models_of, "--corpus", corpus_file, "--limit", 3]
    printed = succeeded("demo", *arguments).stdout
    shown = re.findall(r"^ (.+?) +(\d\.\d{4})", printed, re.MULTILINE)

    assert "Means over 3 held-out prompts" in printed
    assert len(shown) == 4

    file = Path("hullft_demo.jsonl")
    rows = read_rows(file)

    assert len(rows) == 9
    settings = [row.settings for row in rows]

    assert {(each["method"], each.get("refresh")) for each in settings} == {
        ("knn", None),
        ("hullft", 1),
        ("hullft", 2),
    }
    assert {each["n_select"] for each in settings} == {20}

    before = sum(row.scores["continuation"].before for row in rows) / 9

    assert ("no adaptation", f"{before:.4f}") in shown

    content = file.read_bytes()

    assert succeeded("demo", *arguments).stdout == printed
    assert file.read_bytes() == content
