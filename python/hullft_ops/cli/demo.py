"""``hullft-ops demo``: compare methods on sources of torch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from hullft_ops.cli.evaluate import IN_FILES, measure
from hullft_ops.cli.options import fields_of
from hullft_ops.evaluation.experiment import Experiment

SHARED: dict[str, Any] = {
    "n_select": 20,
    "lr": 5e-3,
    "context": 0,
    "ngrams": 0,
    "dtype": None,
}
GRID: list[dict[str, Any]] = [
    {"method": "knn"},
    {"method": "hullft", "refresh": [1, 2]},
]


def demo(
    experiment: Annotated[dict[str, Any], fields_of(Experiment, without=IN_FILES)],
    *,
    output: Path = Path("hullft_demo.jsonl"),
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real code. hullft-ops evaluate
    compares other settings.

    Args:
        experiment: in place of what the demo has: 16 passages, and the shipped model.
        output: results file, JSONL. Another run adds to it.
    """
    shown = Experiment(limit=16, settings=[SHARED | grid for grid in GRID])
    measure(replace(shown, **experiment), output)
