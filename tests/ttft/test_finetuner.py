"""The finetuner: what it refuses, what an adaptation reports, and that it helps."""

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hullft_ops.ttft import (
    PassageSteps,
    PromptSteps,
    TestTimeFinetuner,
    TTFTConfig,
)
from hullft_ops.ttft import finetuner as module
from hullft_ops.ttft.scoring import score, score_text

PROMPT = "the cat sat on the red mat"


def test_adapting_lowers_the_loss_on_the_prompt(model, tokenizer, make, store_of):
    finetuner = make(model, store=store_of([PROMPT]), n_select=20, pool_size=1)
    before = score_text(model, tokenizer, PROMPT)
    with finetuner.adapted(PROMPT) as adapted:
        # The head stays, and its random weights allow no more.
        assert adapted.score(PROMPT, after="").value < 0.97 * before.value
        assert score_text(model, tokenizer, PROMPT) == adapted.score(PROMPT, after="")

    assert score_text(model, tokenizer, PROMPT) == before


def test_an_adaptation_reports_its_steps_and_times(gpt2, make):
    finetuner = make(gpt2, refresh=2, context=1)
    with finetuner.adapted(PROMPT) as adaptation:
        pass

    support = adaptation.report(PassageSteps)
    counts = support.counts

    assert replace(support, steps=[]) == finetuner.select(PROMPT)
    assert support.steps == counts
    assert adaptation.skipped_steps == 0
    assert adaptation.passes == sum((count + 1) // 2 for count in counts)

    seconds = adaptation.seconds

    assert seconds.keys() == {"embed", "search", "select", "prefill", "finetune"}
    assert min(seconds.values()) > 0


def test_a_text_is_scored_behind_the_retrieved_passages(
    gpt2, make, store_of, prefilled
):
    texts = ["a dog", "the cat sat", "the cat sat on"]
    finetuner = make(gpt2, store=store_of(texts), context=3, n_select=3)
    with finetuner.adapted(PROMPT) as adaptation:
        passages = [each.ids for each in adaptation.passages]

        assert len(passages) > 1

        language_model = finetuner.language_model
        prefix = prefilled(language_model, passages)
        scored = score(language_model, PROMPT, prefix=prefix)

        assert (
            adaptation.score(PROMPT, after="")
            == scored
            != score(language_model, PROMPT)
        )

        answer = score(language_model, "a", after=adaptation.question, prefix=prefix)

        assert adaptation.score("a") == adaptation.score("a", after=PROMPT) == answer


def test_after_the_block_the_model_is_restored(gpt2, make):
    with make(gpt2).adapted(PROMPT) as adaptation:
        pass

    for function, argument in (
        (adaptation.score, PROMPT),
        (adaptation.generate, PROMPT),
    ):
        with pytest.raises(RuntimeError, match="the model is restored: call it in"):
            function(argument)


def test_neighbours_take_the_place_of_their_prompt(gpt2, make, store_of):
    finetuner = make(gpt2, context=1)
    neighbours = finetuner.retrieve(PROMPT)
    scores = []
    for prompt in (PROMPT, neighbours):
        with finetuner.adapted(prompt) as adaptation:
            scores.append((adaptation.losses, adaptation.score(PROMPT, after="")))

    assert scores[0] == scores[1]

    other = make(gpt2, store=store_of(["the cat", "a dog"]))

    with (
        pytest.raises(ValueError, match="neighbours belong to another datastore"),
        other.adapted(neighbours),
    ):
        pass


def test_a_budget_of_passes_skips_the_other_steps(gpt2, make):
    options = {"refresh": 2, "train_on_prompt": 3}
    with make(gpt2, **options).adapted(PROMPT) as whole:
        assert whole.skipped_steps == 0
        assert whole.report(PromptSteps) == 3

    with make(gpt2, passes=2, **options).adapted(PROMPT) as adaptation:
        assert adaptation.losses == whole.losses[:2]
        assert adaptation.total_steps + adaptation.skipped_steps == whole.total_steps
        assert adaptation.report(PromptSteps) == 0


def test_settings_share_one_state_of_the_optimizer(gpt2, make):
    finetuner = make(gpt2)
    other = finetuner.with_config(replace(finetuner.config, lr=1e-3, method="knn"))
    with make(gpt2, lr=1e-3, method="knn").adapted(PROMPT) as adaptation:
        expected = adaptation.score(PROMPT, after="")

    with finetuner.adapted(PROMPT):
        pass

    with other.adapted(PROMPT) as adaptation:
        assert adaptation.score(PROMPT, after="") == expected

    assert other._trainable is finetuner._trainable


def test_a_model_that_cannot_be_trained_is_refused(gpt2, llama, make):
    with pytest.raises(ValueError, match="max_length is 33, the model's window is 32"):
        make(gpt2, max_length=33)

    with pytest.raises(ValueError, match="must have a parameter with requires_grad"):
        make(gpt2.requires_grad_(False))

    with pytest.warns(UserWarning, match="q_proj.weight is float16, in"):
        make(llama.half())

    llama.model.norm.to("meta")

    with pytest.raises(ValueError, match="model.norm.weight is on the meta device"):
        make(llama.float())


@pytest.mark.parametrize("n_select", [0, 3])
def test_steps_on_the_prompt_fit_it(gpt2, make, n_select):
    finetuner = make(gpt2, n_select=n_select, train_on_prompt=5, refresh=2)
    with finetuner.adapted(PROMPT) as adaptation:
        support = adaptation.report(PassageSteps)
        after = adaptation.score(PROMPT, after="")

        assert support is None or support.steps == support.counts
        assert (support is None) == (n_select == 0)
        assert adaptation.report(PromptSteps) == 5
        assert adaptation.total_steps == n_select + 5

    before = score(finetuner.language_model, PROMPT)

    # The head stays, and its random weights allow no more.
    assert after.value < 0.99 * before.value

    # A prompt of one token has no next one to train on.
    with finetuner.adapted("a") as adaptation:
        assert not adaptation.report(PromptSteps)


def test_dtype_covers_reading_and_scoring(llama, make):
    plain = make(llama, n_select=0, context=1)
    finetuner = make(llama, n_select=0, context=1, dtype="bfloat16")
    dtypes = set()

    def watch(module, inputs, output):
        dtypes.add(output.dtype)

    handle = llama.model.layers[0].mlp.register_forward_hook(watch)
    with finetuner.adapted("the cat") as adaptation:
        value = adaptation.score("the cat", after="").value
        handle.remove()

    assert dtypes == {torch.bfloat16}

    with plain.adapted("the cat") as adaptation:
        expected = adaptation.score("the cat", after="").value

    assert value != expected
    assert value == pytest.approx(expected, rel=0.02)


def test_nothing_is_embedded_where_nothing_is_retrieved(gpt2, tokenizer, make):
    options = {"n_select": 0, "context": 0, "ngrams": 0}
    alone = TestTimeFinetuner(gpt2, tokenizer, **options)

    assert alone.generate(PROMPT) == make(gpt2, **options).generate(PROMPT)
    assert make(gpt2, **options).retrieve(PROMPT).seconds == {}

    for needed in ({"n_select": 1}, {"context": 1}, {"ngrams": 1}):
        with pytest.raises(ValueError, match="store and embedder must be given"):
            alone.with_config(TTFTConfig(**(options | needed)))

    with (
        pytest.raises(ValueError, match="belong to another datastore"),
        alone.adapted(make(gpt2).retrieve(PROMPT)),
    ):
        pass


def test_reading_on_a_gpu_ends_when_the_device_has_done_its_work(
    gpt2, make, monkeypatch
):
    devices = []
    monkeypatch.setattr(torch.cuda, "synchronize", devices.append)
    with make(gpt2, context=1).adapted(PROMPT) as adaptation:
        assert not devices

        language_model = copy(adaptation.language_model)
        language_model.model = SimpleNamespace(device=torch.device("cuda:1"))
        monkeypatch.setattr(language_model, "prefill", lambda prefix, opening: prefix)
        monkeypatch.setattr(adaptation, "language_model", language_model)
        adaptation.prefill()

    assert devices == [torch.device("cuda:1")]


def test_a_large_model_returns_its_freed_memory(gpt2, make, monkeypatch):
    returned = []
    monkeypatch.setattr(module, "return_freed_memory", lambda: returned.append(True))
    for least, steps, times in ((2**30, 1, 0), (1, 0, 1), (1, 1, 2)):
        monkeypatch.setattr(module, "_LARGE", least)
        before = len(returned)
        with make(gpt2, n_select=steps).adapted(PROMPT):
            assert len(returned) == before

        assert len(returned) == times
