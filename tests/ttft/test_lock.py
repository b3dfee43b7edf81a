"""One thread at a time adapts or reads a model."""

import threading

import pytest
import torch

from hullft_ops.ttft.restore import exclusive
from hullft_ops.ttft.scoring import score_text

PROMPT = "the cat sat on the red mat"
ELSEWHERE = "the model is in use in another thread already"


def adapt(finetuner):
    with finetuner.adapted(PROMPT) as adaptation:
        return adaptation.losses


def error_in_thread(function, *args):
    """What the call raises in another thread; None if nothing."""
    errors = []

    def run():
        try:
            function(*args)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_a_nested_adaptation_is_refused(gpt2, make):
    finetuner, other = make(gpt2), make(gpt2, method="knn")
    losses = adapt(finetuner)
    with finetuner.adapted(PROMPT) as adaptation:
        score = adaptation.score(PROMPT, after="")
        for each in (finetuner, other):
            with pytest.raises(RuntimeError, match="is in use here already"):
                adapt(each)

        assert adaptation.score(PROMPT, after="") == score

    assert adapt(finetuner) == losses
    assert len(adapt(other)) == 12


def test_a_model_that_a_thread_scores_is_refused_to_others(gpt2, tokenizer):
    errors = []

    def score_elsewhere(*_):
        if not errors:
            errors.append(error_in_thread(score_text, gpt2, tokenizer, PROMPT))

    gpt2.register_forward_pre_hook(score_elsewhere)
    score_text(gpt2, tokenizer, PROMPT)

    assert ELSEWHERE in errors[0]


def test_another_thread_is_refused_until_the_end_of_the_block(gpt2, tokenizer, make):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT) as adaptation:
        for call in (
            (adapt, finetuner),
            (score_text, gpt2, tokenizer, PROMPT),
            (adaptation.generate, PROMPT),
        ):
            assert ELSEWHERE in error_in_thread(*call)

    assert error_in_thread(adapt, finetuner) is None
    assert error_in_thread(score_text, gpt2, tokenizer, PROMPT) is None


def test_a_peft_model_and_its_base_are_one(llama, tokenizer, make, with_lora):
    model = with_lora(llama)
    with make(model).adapted(PROMPT):
        assert ELSEWHERE in error_in_thread(score_text, llama, tokenizer, PROMPT)

        with pytest.raises(RuntimeError, match="is in use here already"):
            adapt(make(llama))


def test_a_compiled_model_and_its_original_are_one(gpt2, make):
    with (
        exclusive(torch.compile(gpt2), adapts=True),
        pytest.raises(RuntimeError, match="is in use here already"),
    ):
        adapt(make(gpt2))
