"""What an evaluation measures of a prompt."""

from types import SimpleNamespace
from typing import Any

import pytest

from hullft_ops.evaluation.prompts import Prompt
from hullft_ops.evaluation.scores import WRITTEN_TOKENS, metrics_of, scores_of
from hullft_ops.ttft.errors import InputError


class Model:
    """It writes a text, and needs as many bits for a byte as the text has words."""

    def __init__(self, written: str, *, is_trained_on_prompt: bool = False) -> None:
        self.written = written
        self.is_trained_on_prompt = is_trained_on_prompt

    def score(self, text: str, *, after: str = "") -> Any:
        return SimpleNamespace(value=float(len(text.split())))

    def generate(self, prompt: str, **options: Any) -> str:
        assert options == {"max_new_tokens": WRITTEN_TOKENS, "do_sample": False}

        return self.written

    def beginning(self, text: str, count: int) -> str:
        return text


def scores(prompt: Prompt, score: str | None, model: Any) -> dict[str, float]:
    return scores_of(prompt, model, metrics_of(score))


def test_what_is_written_is_measured_only_if_asked_for() -> None:
    prompt = Prompt("the cat", "all", "sat on the mat")

    assert scores(prompt, None, Model("")) == {"continuation": 4, "prompt": 2}
    assert scores(prompt, "chrf", Model("sat on the mat"))["chrf"] == 100
    assert 0 < scores(prompt, "chrf", Model("sat on a dog"))["chrf"] < 100


def test_a_prompt_that_was_trained_on_and_one_without_a_continuation() -> None:
    model = Model("", is_trained_on_prompt=True)

    assert scores(Prompt("the cat", "all", "sat"), None, model) == {"continuation": 1}
    assert scores(Prompt("the cat"), "chrf", Model("a")) == {"prompt": 2}


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(InputError, match="score must be one of continuation, prompt, "):
        metrics_of("bleu")
