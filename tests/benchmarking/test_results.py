"""The committed results of the benchmarks."""

import json
from pathlib import Path

import pytest
from benchmarks.report import page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RUNS = sorted(RESULTS.rglob("cpu.json"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RESULTS)))
def test_each_page_is_what_report_makes_of_its_run(run: Path) -> None:
    assert (
        page(json.loads(run.read_text())) + "\n" == run.with_suffix(".md").read_text()
    )
