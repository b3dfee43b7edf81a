"""A row of results, whole, for tests to which a few of its fields matter."""

from typing import Any

from hullft_ops.evaluation.results import STAGES, Row

SETTINGS = {"method": "knn", "n_select": 1, "refresh": 1, "lr": 1.0}
PLAIN: dict[str, Any] = {
    "run": "r",
    "config": "knn n=1 refresh=1 lr=1",
    "settings": SETTINGS,
    "domain": "all",
    "excerpt": "x" * 200,
    "seed": 0,
    "bits_per_byte_before": 2.0,
    "bits_per_byte_after": 1.0,
    "bytes_scored": 100,
    "seconds": dict.fromkeys(STAGES, 0.1),
    "seconds_row": 1.0,
    "passes": 3,
    "steps": 3,
    "support_size": 2,
    "residual": 0.1,
    "error": None,
    "versions": {"torch": "2"},
    "threads": 1,
}


def result_row(prompt: str, **fields: Any) -> Row:
    """A row of `PLAIN` with other fields."""
    return Row(prompt=prompt, **PLAIN | fields)
