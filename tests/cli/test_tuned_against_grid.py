"""The tool that compares a tuned setting with a full grid, on given rows."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from hullft_ops.ttft.evaluation.config import config_id, expand_grid
from hullft_ops.ttft.evaluation.results import Row
from result_rows import result_row

TOOL = Path(__file__).parents[2] / "tools" / "tuned_against_grid.py"
GRID = expand_grid([{"method": "knn", "n_select": [1, 2, 3]}], None)
BITS = (1.0, 1.009, 1.02)


def row(prompt: int, settings: dict[str, object], after: float) -> Row:
    return result_row(f"p{prompt}", settings=settings, bits_per_byte_after=after)


@pytest.mark.parametrize(
    ("number", "code", "above"), [(0, 0, "+0.00%"), (1, 0, "+0.90%"), (2, 1, "+2.00%")]
)
def test_one_percent_is_the_limit(number, code, above, tmp_path, monkeypatch, capsys):
    rows = [row(p, s, b) for p in range(4) for s, b in zip(GRID, BITS, strict=True)]
    results, tuned = tmp_path / "grid.jsonl", tmp_path / "tuned.json"
    results.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows))
    tuned.write_text(json.dumps({"settings": GRID[number]}))
    monkeypatch.setattr(sys, "argv", ["tool", str(tuned), str(results)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == code
    printed = capsys.readouterr().out
    assert f"above the best: {above}" in printed
    assert f"{config_id(GRID[number])}, number {number + 1}" in printed


def test_a_setting_outside_the_grid_is_refused(tmp_path, monkeypatch):
    results, tuned = tmp_path / "grid.jsonl", tmp_path / "tuned.json"
    results.write_text(json.dumps(asdict(row(0, GRID[0], 1.0))) + "\n")
    tuned.write_text(json.dumps({"settings": GRID[2]}))
    monkeypatch.setattr(sys, "argv", ["tool", str(tuned), str(results)])
    with pytest.raises(SystemExit, match="has no results of knn n=3"):
        runpy.run_path(str(TOOL), run_name="__main__")
