"""The finetuner: what it refuses, what an adaptation reports, and that it helps."""

import pytest
import torch

from hullft_ops.ttft import TestTimeFinetuner, TTFTConfig
from hullft_ops.ttft.scoring import score, score_text

PROMPT = "the cat sat on the red mat"


def test_adapting_lowers_the_loss_on_the_prompt(model, tokenizer, make, store_of):
    finetuner = make(model, store=store_of([PROMPT]), n_select=20, pool_size=1)
    before = score_text(model, tokenizer, PROMPT)
    with finetuner.adapted(PROMPT) as adapted:
        assert adapted.score(PROMPT).value < before.value / 2
        assert score_text(model, tokenizer, PROMPT) == adapted.score(PROMPT)

    assert score_text(model, tokenizer, PROMPT) == before


def test_an_adaptation_reports_its_steps_and_times(gpt2, make):
    finetuner = make(gpt2, refresh=2, context=1)
    with finetuner.adapted(PROMPT) as adaptation:
        pass

    counts = adaptation.support.counts

    assert adaptation.support == finetuner.select(PROMPT)
    assert adaptation.steps == counts
    assert adaptation.skipped_steps == 0
    assert adaptation.passes == sum((count + 1) // 2 for count in counts)

    seconds = adaptation.seconds
    stages = ["tokenize", "forward", "backward", "step"]

    assert sum(seconds[stage] for stage in stages) <= seconds["finetune"]

    stages += ["embed", "search", "select", "prefill", "finetune"]

    assert seconds.keys() == set(stages)
    assert min(seconds.values()) > 0


def test_training_goes_on_where_the_budget_of_passes_ended(gpt2, tokenizer, make):
    with make(gpt2, refresh=2, context=1).adapted(PROMPT) as whole:
        whole_score = whole.score(PROMPT)

    finetuner = make(gpt2, refresh=2, context=1, passes=1)
    with finetuner.adapted(PROMPT) as adaptation:
        first_score = adaptation.score(PROMPT)

        assert adaptation.losses == whole.losses[:1]
        assert sum(adaptation.steps) + adaptation.skipped_steps == sum(whole.steps)
        assert sum(adaptation.steps) <= 2

        seconds = adaptation.seconds["finetune"]
        adaptation.train(2)

        assert adaptation.passes == 2
        assert adaptation.seconds["finetune"] > seconds

        adaptation.train(1)

        assert adaptation.passes == 2

        adaptation.train()

        assert adaptation.losses == whole.losses
        assert adaptation.steps == whole.steps
        assert adaptation.skipped_steps == 0
        assert adaptation.score(PROMPT) == whole_score != first_score

        adaptation.read(0)

        assert adaptation.score(PROMPT) == score_text(gpt2, tokenizer, PROMPT)


def test_a_text_is_scored_behind_the_retrieved_passages(gpt2, make, store_of):
    texts = ["a dog", "the cat sat", "the cat sat on"]
    finetuner = make(gpt2, store=store_of(texts), context=3, n_select=3)
    with finetuner.adapted(PROMPT) as adaptation:
        passages = adaptation.support.context_ids

        assert len(passages) > 1

        reader = finetuner.reader
        context = reader.read(passages)
        scored = score(reader, PROMPT, context=context)

        assert adaptation.score(PROMPT) == scored != score(reader, PROMPT)

        answer = score(reader, "a", after=PROMPT, context=context)

        assert adaptation.score("a", after=PROMPT) == answer


def test_after_the_block_the_model_is_restored(gpt2, make, tmp_path):
    with make(gpt2).adapted(PROMPT) as adaptation:
        pass

    for function, argument in (
        (adaptation.train, 1),
        (adaptation.score, PROMPT),
        (adaptation.generate, PROMPT),
        (adaptation.save_adapter, tmp_path / "adapter"),
    ):
        with pytest.raises(RuntimeError, match="the model is restored: call it in"):
            function(argument)


def test_a_support_takes_the_place_of_its_prompt(gpt2, make, store_of):
    finetuner = make(gpt2)
    support = finetuner.select(PROMPT)
    losses = []

    for prompt in (PROMPT, support):
        with finetuner.adapted(prompt) as adaptation:
            losses.append(adaptation.losses)

    assert losses[0] == losses[1]

    other = make(gpt2, store=store_of(["the cat", "a dog"]))

    with (
        pytest.raises(ValueError, match="support belongs to datastore"),
        other.adapted(support),
    ):
        pass


@pytest.mark.parametrize("options", [{"context": 0}, {"context": 1, "n_select": 0}])
def test_a_support_of_another_tokenizer_is_refused(
    gpt2, tokenizers, store, embedder, make, options
):
    support = make(gpt2, **options).select("the cat")
    other = TestTimeFinetuner(
        gpt2, tokenizers["byte_fallback"], store, embedder, **options
    )

    with (
        pytest.raises(ValueError, match="selected with another tokenizer"),
        other.adapted(support),
    ):
        pass


def test_a_model_that_cannot_be_trained_is_refused(gpt2, llama, make):
    with pytest.raises(ValueError, match="max_length is 33, the model's window is 32"):
        make(gpt2, max_length=33)

    with pytest.raises(ValueError, match="must have a parameter with requires_grad"):
        make(gpt2.requires_grad_(False))

    with pytest.warns(UserWarning, match="embed_tokens.weight is float16, in"):
        make(llama.half())

    llama.model.norm.to("meta")

    with pytest.raises(ValueError, match="model.norm.weight is on the meta device"):
        make(llama.float())


@pytest.mark.parametrize("n_select", [0, 3])
def test_steps_on_the_prompt_fit_it(gpt2, make, n_select):
    finetuner = make(gpt2, n_select=n_select, train_on_prompt=5, refresh=2)
    with finetuner.adapted(PROMPT) as adaptation:
        support = adaptation.support
        after = adaptation.score(PROMPT)

        assert adaptation.steps == support.counts
        assert adaptation.schedule[-1].passage == len(support.counts)
        assert sum(taken.repeats for taken in adaptation.schedule) == n_select + 5

    before = score(finetuner.reader, PROMPT)

    assert after.value < 0.9 * before.value

    # A prompt of one token has no next one to train on.
    with finetuner.adapted("a") as adaptation:
        assert adaptation.support.prompt_count == 0


def test_dtype_covers_reading_scoring_and_writing(llama, make):
    plain = make(llama, n_select=0, context=1)
    finetuner = make(llama, n_select=0, context=1, dtype="bfloat16")
    dtypes = set()

    def watch(module, inputs, output):
        dtypes.add(output.dtype)

    with finetuner.adapted("the cat") as adaptation:
        handle = llama.model.layers[0].mlp.register_forward_hook(watch)
        adaptation.read()
        value = adaptation.score("the cat").value
        adaptation.generate("the cat", max_new_tokens=2)
        handle.remove()

    assert dtypes == {torch.bfloat16}

    with plain.adapted("the cat") as adaptation:
        expected = adaptation.score("the cat").value

    assert value != expected
    assert value == pytest.approx(expected, rel=0.02)


def test_nothing_is_embedded_where_nothing_is_retrieved(gpt2, tokenizer, make):
    options = {"n_select": 0, "context": 0, "ngrams": 0}
    alone = TestTimeFinetuner(gpt2, tokenizer, **options)

    assert alone.generate(PROMPT) == make(gpt2, **options).generate(PROMPT)
    assert make(gpt2, **options).select(PROMPT).seconds == {}

    for needed in ({"n_select": 1}, {"context": 1}, {"ngrams": 1}):
        with pytest.raises(ValueError, match="store and embedder must be given"):
            alone.with_config(TTFTConfig(**(options | needed)))

    with (
        pytest.raises(ValueError, match="belongs to datastore .*, the finetuner has n"),
        alone.adapted(make(gpt2).select(PROMPT)),
    ):
        pass
