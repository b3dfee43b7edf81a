"""The committed results of the benchmarks and studies."""

import json
from pathlib import Path

import pytest
from benchmarks.report import page

from hullft_ops.evaluation.experiment import read_experiment
from hullft_ops.evaluation.results import read_rows

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RUNS = sorted(RESULTS.rglob("cpu.json"))
EXPERIMENTS = sorted((RESULTS.parent / "studies").glob("*.json"))
ROWS = sorted(RESULTS.rglob("*.jsonl.xz"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(RESULTS)))
def test_each_page_is_what_report_makes_of_its_run(run: Path) -> None:
    assert (
        page(json.loads(run.read_text())) + "\n" == run.with_suffix(".md").read_text()
    )


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: str(rows.relative_to(RESULTS)))
def test_rows_are_of_their_experiment(rows: Path) -> None:
    experiment = read_experiment(Path(str(rows).removesuffix("l.xz")))
    measured = {row.config: row.settings for row in read_rows(rows)}
    for config in experiment.configs():
        values = config.settings()
        # Older rows do not state options that had their default. Their rate, lr, is Adam's own.
        assert any(settings.items() <= values.items() for settings in measured.values())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_can_be_read(path: Path) -> None:
    assert len(read_experiment(path).configs()) >= 3
