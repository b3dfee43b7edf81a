"""One thread or task at a time adapts or reads a model."""

import asyncio
import threading
import time
from collections import Counter

import pytest
import torch

from hullft_ops.ttft.lock import exclusive
from hullft_ops.ttft.scoring import score_text

PROMPT = "the cat sat on the red mat"
ELSEWHERE = "the model is adapted in another thread or task already"


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
        score = adaptation.score(PROMPT)
        for each in (finetuner, other):
            with pytest.raises(RuntimeError, match="is adapted here already"):
                adapt(each)

        assert adaptation.score(PROMPT) == score

    assert adapt(finetuner) == losses
    assert len(adapt(other)) == 12


def test_threads_that_score_at_once_leave_the_training_mode(gpt2, tokenizer):
    gpt2.train()
    calls = Counter()
    begun, scored = threading.Event(), threading.Event()

    def pause(*_):
        """The first thread within its check of the model, until the second scores."""
        name = threading.current_thread().name
        calls[name] += 1
        if name == "first" and calls[name] == 1:
            begun.set()
            scored.wait(timeout=0.5)
        if name == "second" and calls[name] == 3:
            scored.set()
            time.sleep(0.5)

    gpt2.register_forward_pre_hook(pause)
    arguments = gpt2, tokenizer, PROMPT
    first = threading.Thread(target=score_text, args=arguments, name="first")
    second = threading.Thread(target=score_text, args=arguments, name="second")
    first.start()
    assert begun.wait(timeout=60)
    second.start()
    first.join()
    second.join()

    assert calls["first"] == 3
    assert all(module.training for module in gpt2.modules())


def test_another_thread_waits_for_the_end_of_the_block(gpt2, tokenizer, make):
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

        with pytest.raises(RuntimeError, match="is adapted here already"):
            adapt(make(llama))


def test_a_compiled_model_and_its_original_are_one(gpt2, make):
    with (
        exclusive(torch.compile(gpt2), adapts=True),
        pytest.raises(RuntimeError, match="is adapted here already"),
    ):
        adapt(make(gpt2))


def test_another_task_is_refused(gpt2, tokenizer, make):
    finetuner = make(gpt2)

    async def other():
        with pytest.raises(RuntimeError, match=ELSEWHERE):
            adapt(finetuner)
        with pytest.raises(RuntimeError, match=ELSEWHERE):
            score_text(gpt2, tokenizer, PROMPT)

    async def main():
        with finetuner.adapted(PROMPT):
            await asyncio.create_task(other())
            score_text(gpt2, tokenizer, PROMPT)
            with pytest.raises(RuntimeError, match=ELSEWHERE):
                await asyncio.to_thread(score_text, gpt2, tokenizer, PROMPT)

        await asyncio.to_thread(adapt, finetuner)

    asyncio.run(main())
    adapt(finetuner)
