"""What an evaluation measures of a prompt."""

from types import SimpleNamespace
from typing import Any

import pytest

from hullft_ops.evaluation.prompts import HeldOut
from hullft_ops.evaluation.scores import metrics_of, scores_of
from hullft_ops.ttft.validation import InputError


class Model:
    """It needs as many bits for a byte as the text has words."""

    def __init__(self, *, steps_on_prompt: int = 0) -> None:
        self.steps_on_prompt = steps_on_prompt

    def report(self, technique: type) -> int:
        return self.steps_on_prompt

    def score(self, text: str, *, after: str | None = None) -> Any:
        return SimpleNamespace(value=float(len(text.split())))


def scores(prompt: HeldOut, score: str | None, model: Any) -> dict[str, float]:
    return scores_of(prompt, model, metrics_of(score))


def test_what_is_written_is_measured_only_if_asked_for() -> None:
    prompt = HeldOut("the cat", "all", "sat on the mat")

    assert scores(prompt, None, Model()) == {"continuation": 4, "prompt": 2}
    assert metrics_of("line") == ["continuation", "prompt", "line"]


def test_a_prompt_that_was_trained_on_and_one_without_a_continuation() -> None:
    model = Model(steps_on_prompt=2)

    assert scores(HeldOut("the cat", "all", "sat"), None, model) == {"continuation": 1}
    assert scores(HeldOut("the cat"), "line", Model()) == {"prompt": 2}


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(InputError, match="score must be one of continuation, prompt, "):
        metrics_of("bleu")


TRUE = "    first = 1\n\n    second = 2\nthird()\nfourth()\n"


class Writer:
    """Writes certain lines, one after the other."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.prompts: list[str] = []

    def generate(self, prompt: str, **options: Any) -> str:
        assert options["stop_strings"] == ["\n"]

        self.prompts.append(prompt)
        return self.lines[len(self.prompts) - 1]


@pytest.mark.parametrize(
    ("metric", "lines", "score"),
    [
        ("line", ["    first = 1\n", "    second = 2", "third()  # no"], 200 / 3),
        ("line", ["", "\n", "  third()\n"], 100 / 3),
        ("similarity", ["first = 2\n", "", "third()"], (100 * 8 / 9 + 100) / 3),
    ],
)
def test_lines_are_written_behind_the_true_text(
    metric: str, lines: list[str], score: float
) -> None:
    writer: Any = Writer(lines)
    prompt = HeldOut("def f():\n", continuation=TRUE)

    assert scores_of(prompt, writer, [metric]) == {metric: pytest.approx(score)}
    assert writer.prompts == [
        "def f():\n",
        "def f():\n    first = 1\n\n",
        "def f():\n    first = 1\n\n    second = 2\n",
    ]


def test_a_prompt_without_a_continuation_has_no_score_of_lines() -> None:
    writer: Any = Writer([])

    assert scores_of(HeldOut("text"), writer, ["line", "similarity"]) == {}
