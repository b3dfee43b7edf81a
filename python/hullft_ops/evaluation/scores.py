"""What an evaluation scores. A new metric is a line of `METRICS`, and a function."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from hullft_ops._extras import needed_by
from hullft_ops.evaluation.prompts import HeldOut
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.scoring import NothingToScoreError
from hullft_ops.ttft.techniques.prompt_steps import PromptSteps
from hullft_ops.ttft.validation import InputError

# Tokens that the model writes for a score of what is written, and for one of a line at most.
WRITTEN_TOKENS = 64
# Of the continuation, so many lines with text are written.
LINES = 3


@dataclass(frozen=True)
class Metric:
    """A score of a prompt.

    Attributes:
        title: what a report calls it.
        meaning: what it tells, a sentence.
        measure: the score of a prompt by a model; None if the prompt has none.
        more_is_better: whether a higher score is better.
        is_written: whether the model writes for it, which takes long: it is measured only if an
            experiment asks for it.
    """

    title: str
    meaning: str
    measure: Callable[[HeldOut, Adaptation], float | None]
    more_is_better: bool = False
    is_written: bool = False


def _bits_of_continuation(prompt: HeldOut, model: Adaptation) -> float | None:
    if prompt.continuation is None:
        return None
    return model.score(prompt.continuation).value


def _bits_of_prompt(prompt: HeldOut, model: Adaptation) -> float | None:
    # A model that was trained on the prompt has no score of it, nor has a prompt of one token.
    if model.report(PromptSteps):
        return None
    try:
        return model.score(prompt.text, after="").value
    except NothingToScoreError:
        return None


def _exact_lines(prompt: HeldOut, model: Adaptation) -> float | None:
    """RepoEval's exact match: the percentage of right lines, without the space at their ends."""
    return _mean_of_lines(prompt, model, operator.eq)


def _similar_lines(prompt: HeldOut, model: Adaptation) -> float | None:
    """RepoEval's edit similarity: 1 less the edits as a share of the longer line, in percent."""
    with needed_by("the score similarity"):
        from rapidfuzz.distance import Levenshtein
    return _mean_of_lines(prompt, model, Levenshtein.normalized_similarity)


def _mean_of_lines(
    prompt: HeldOut, model: Adaptation, agreement: Callable[[str, str], float]
) -> float | None:
    """The mean over the first lines with text of the continuation, in percent. Each is written
    after the true text before it."""
    before = prompt.text
    scores: list[float] = []
    for line in (prompt.continuation or "").splitlines(keepends=True):
        if line.strip() and len(scores) < LINES:
            written = model.generate(
                before,
                max_new_tokens=WRITTEN_TOKENS,
                do_sample=False,
                stop_strings=["\n"],
            )
            [first, *_] = [*written.splitlines(), ""]
            scores.append(100 * agreement(first.strip(), line.strip()))
        before += line
    return fmean(scores) if scores else None


# A report compares by the first that every row has.
METRICS = {
    "continuation": Metric(
        "bits per byte of the continuation",
        "The continuation comes after the prompt, and no method sees it: its bits tell how much "
        "better the answer gets.",
        _bits_of_continuation,
    ),
    "prompt": Metric(
        "bits per byte of the prompt",
        "The prompt is what the methods adapt to: its bits tell how closely the model fits it.",
        _bits_of_prompt,
    ),
    "line": Metric(
        "exact match of lines, in percent",
        f"Each of the first {LINES} lines of the continuation is written behind the true text "
        "before it. It counts if it is exact, but for space at its ends.",
        _exact_lines,
        more_is_better=True,
        is_written=True,
    ),
    "similarity": Metric(
        "edit similarity of lines, in percent",
        f"Each of the first {LINES} lines of the continuation is written behind the true text "
        "before it. Its similarity is 1 less the Levenshtein distance by the longer length.",
        _similar_lines,
        more_is_better=True,
        is_written=True,
    ),
}


def metrics_of(score: str | None) -> list[str]:
    """The names of the metrics to measure where ``score`` is asked for."""
    if score is not None and score not in METRICS:
        raise InputError(f"score must be one of {', '.join(METRICS)}, got {score!r}")
    return [
        name
        for name, metric in METRICS.items()
        if name == score or not metric.is_written
    ]


def scores_of(
    prompt: HeldOut, model: Adaptation, metrics: Sequence[str]
) -> dict[str, float]:
    """The scores that the prompt has, by name."""
    scores = {name: METRICS[name].measure(prompt, model) for name in metrics}
    return {name: score for name, score in scores.items() if score is not None}
