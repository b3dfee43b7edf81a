"""A row of results, whole, for tests to which a few of its fields matter."""

from typing import Any

from hullft_ops.evaluation.results import Row

SETTINGS = {"method": "knn", "n_select": 1, "lr": 1.0}
PLAIN: dict[str, Any] = {
    "run": "r",
    "settings": SETTINGS,
    "domain": "all",
    "scores": {"prompt": {"before": 2.0, "after": 1.0}},
    "seconds": {"select": 0.2, "finetune": 0.3},
    "passes": 3,
    "error": None,
    "versions": {"torch": "2"},
    "threads": 1,
}


def result_row(
    prompt: str, *, before: float = 2.0, after: float = 1.0, **fields: Any
) -> Row:
    """A row of `PLAIN` with that score of the prompt, and with other fields."""
    scores = {"prompt": {"before": before, "after": after}}
    return Row(prompt=prompt, **PLAIN | {"scores": scores} | fields)


def answered_row(prompt: str, *, answer: float, **fields: Any) -> Row:
    """A row of `PLAIN` with scores of the prompt and of its continuation."""
    continuation = {"before": 3.0, "after": answer}
    scores = PLAIN["scores"] | {"continuation": continuation}
    return Row(prompt=prompt, **PLAIN | {"scores": scores} | fields)


def failed_row(prompt: str, **fields: Any) -> Row:
    """A row of `PLAIN` with an error and without a score, and with other fields."""
    lost: dict[str, Any] = {"scores": {}, "seconds": {}, "error": "the loss is nan"}
    return Row(prompt=prompt, **PLAIN | lost | fields)
