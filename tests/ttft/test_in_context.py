"""The nearest texts before the prompt, with steps and without."""

from itertools import chain

import pytest
import torch

from hullft_ops.ttft import Datastore, TestTimeFinetuner, bits_per_byte, score_text
from hullft_ops.ttft.retrieval.support import SEPARATOR

CONTEXT = 32
PROMPT = "the cat sat on the red mat"


@pytest.fixture
def short(embedder, tmp_path):
    """A datastore of 5 short texts, each of which is nearer to the prompt than the one before."""
    texts = [
        "a dog",
        "a cat ran",
        "red cat sat",
        "the cat sat on",
        "the cat sat on the mat",
    ]
    return Datastore.build(texts, embedder, tmp_path / "texts", progress=False)


def tokens_of(tokenizer, texts):
    return [
        tokenizer(t + SEPARATOR, add_special_tokens=False)["input_ids"] for t in texts
    ]


def nearest(store, embedder, count):
    return store.search(embedder.encode([PROMPT]), count)[1][0].tolist()


def test_the_nearest_texts_that_fit_stand_before_the_prompt(
    model, tokenizer, make, short, embedder
):
    order = nearest(short, embedder, 5)
    assert order == [4, 3, 2, 1, 0]
    ids = tokens_of(tokenizer, [short.texts[i] for i in order])
    left = CONTEXT - len(tokenizer(PROMPT)["input_ids"])
    fit = max(k for k in range(6) if sum(map(len, ids[:k])) <= left)
    assert 0 < fit < 5, "some fit and some do not"
    for context in range(7):
        finetuner = make(model, store=short, context=context)
        with finetuner.adapted(PROMPT) as report:
            kept = min(context, fit)
            assert report.context_indices == order[:kept][::-1]
            assert report.prefix_ids == [
                token for text in ids[:kept][::-1] for token in text
            ]
            # Whatever stands before it, the model is trained on the same texts.
            assert report.indices == make(model, store=short).select(PROMPT).indices
            assert report.to_dict()["context_indices"] == report.context_indices


def test_a_text_stays_whole_and_ends_the_context(
    gpt2, tokenizer, make, embedder, tmp_path
):
    """The nearest is as long as what the prompt leaves, or one token longer."""
    left = CONTEXT - len(tokenizer(PROMPT)["input_ids"])
    for longer in (0, 1):
        text = PROMPT
        while len(tokens_of(tokenizer, [text])[0]) < left + longer:
            text += " t"
        assert len(tokens_of(tokenizer, [text])[0]) == left + longer
        directory = tmp_path / str(longer)
        store = Datastore.build([text, "a dog"], embedder, directory, progress=False)
        with make(gpt2, store=store, n_select=0, context=2).adapted(PROMPT) as report:
            assert report.context_indices == ([] if longer else [0])
            assert len(report.prefix_ids) == (0 if longer else left)


def test_before_a_long_prompt_they_take_half_of_the_context(
    gpt2, tokenizer, make, short
):
    prompt = "the cat sat on the red mat " * 10
    with make(gpt2, store=short, n_select=0, context=5).adapted(prompt) as report:
        sizes = list(map(len, tokens_of(tokenizer, [short.texts[i] for i in range(5)])))
        assert report.context_indices
        taken = len(report.context_indices)
        assert len(report.prefix_ids) == sum(sizes[-taken:]) <= CONTEXT // 2
        assert sum(sizes[-taken - 1 :]) > CONTEXT // 2, "one more does not fit"


def test_the_prompts_search_finds_them(gpt2, make, store, monkeypatch):
    searched = []
    search = store.search
    monkeypatch.setattr(
        store, "search", lambda q, k: searched.append(k) or search(q, k)
    )
    make(gpt2, context=3).select(PROMPT)
    make(gpt2, context=31).select(PROMPT)
    # No more texts fit than the model reads tokens.
    make(gpt2, context=2**31 - 1).select(PROMPT)
    assert searched == [30, 31, CONTEXT]
    # More texts before the prompt offer no more to train on.
    with_context, plain = (
        make(gpt2, context=31).select(PROMPT),
        make(gpt2).select(PROMPT),
    )
    assert with_context.indices == plain.indices
    assert with_context.counts == plain.counts


def test_a_store_of_fewer_texts_gives_all(gpt2, make, embedder, tmp_path):
    store = Datastore.build(
        ["a dog", "a cat"], embedder, tmp_path / "two", progress=False
    )
    with make(gpt2, store=store, context=9, n_select=0).adapted("the cat") as report:
        assert report.context_indices == [0, 1]


def test_the_same_tokens_are_scored_behind_them(model, tokenizer, make, short):
    for prompt in (PROMPT, PROMPT * 5):
        plain = score_text(model, tokenizer, prompt)
        finetuner = make(model, store=short, context=4)
        with finetuner.adapted(prompt) as report:
            adapted = score_text(model, tokenizer, prompt)
            behind = finetuner.score_text(prompt)
            prefix = report.prefix_ids
            whole = bits_per_byte(model, tokenizer, prompt, prefix_ids=prefix)
            assert behind.value == pytest.approx(whole, rel=1e-5)
        assert (behind.tokens, behind.bytes) == (plain.tokens, plain.bytes)
        assert len({plain.nll, adapted.nll, behind.nll}) == 3
        assert finetuner.score_text(prompt) == plain, "restored, and without the texts"


def test_without_steps_nothing_is_trained_or_copied(
    model, tokenizer, make, short, bits
):
    before = bits(model)
    model.train()
    finetuner = make(model, store=short, n_select=0, context=4)
    with finetuner.adapted(PROMPT) as report:
        assert before.changed() == set()
        assert all(p.grad is None for p in model.parameters())
        assert all(module.training for module in model.modules())
        value = finetuner.score_text(PROMPT).value
    wanted = bits_per_byte(model, tokenizer, PROMPT, prefix_ids=report.prefix_ids)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert (report.support_size, report.optimizer_steps, report.losses) == (0, 0, [])
    assert report.indices == report.counts == report.weights == []
    assert report.context_indices
    assert not finetuner._trainer._optimizer.state
    assert not finetuner._snapshot.saved


def test_without_steps_and_texts_it_is_the_model(model, tokenizer, make):
    finetuner = make(model, n_select=0)
    with finetuner.adapted(PROMPT) as report:
        assert finetuner.score_text(PROMPT) == score_text(model, tokenizer, PROMPT)
        assert report.prefix_ids == []


def test_a_support_with_steps_needs_a_finetuner_with_steps(gpt2, make, bits):
    support, before = make(gpt2).select(PROMPT), bits(gpt2)
    message = "n_select must be above 0 for this support, got 0"
    with (
        pytest.raises(ValueError, match=message),
        make(gpt2, n_select=0).adapted(support),
    ):
        pytest.fail("it must be refused")
    assert before.changed() == set()


def test_an_adaptation_that_is_refused_leaves_the_texts_of_the_first(gpt2, make, short):
    finetuner = make(gpt2, store=short, context=4)
    with finetuner.adapted(PROMPT):
        wanted = finetuner.score_text(PROMPT)
        with pytest.raises(RuntimeError, match="adapted"), finetuner.adapted("the dog"):
            pytest.fail("the model is adapted already")
        assert finetuner.score_text(PROMPT) == wanted


def test_an_exception_in_the_block_drops_the_texts(gpt2, tokenizer, make, short):
    finetuner = make(gpt2, store=short, context=4)
    with pytest.raises(KeyError), finetuner.adapted(PROMPT):
        raise KeyError
    assert finetuner.score_text(PROMPT) == score_text(gpt2, tokenizer, PROMPT)


@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_bos_eos", "byte_fallback_bos"]
)
@pytest.mark.parametrize("new", [1, 4, 12, 30])
def test_generation_reads_the_texts_that_leave_room(
    model, tokenizers, short, embedder, kind, new
):
    tokenizer = tokenizers[kind]
    model.generation_config.eos_token_id = None
    options = {"n_select": 0, "context": 4}
    finetuner = TestTimeFinetuner(model, tokenizer, short, embedder, **options)
    plain = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    opening = [tokenizer.bos_token_id] if kind.endswith(("bos", "eos")) else []
    seen = []
    generate = model.generate

    def spy(**kwargs):
        seen.append(kwargs["input_ids"][0].tolist())
        return generate(**kwargs)

    model.generate = spy
    finetuner.generate(PROMPT, max_new_tokens=new, do_sample=False)
    del model.generate
    texts = tokens_of(
        tokenizer, [short.texts[i] for i in finetuner.select(PROMPT).context_indices]
    )
    room = CONTEXT - new - len(opening)
    half = (CONTEXT - new) // 2 - len(opening)
    while texts and sum(map(len, texts)) > max(room - len(plain), half):
        texts.pop(0)
    head = [*opening, *chain.from_iterable(texts)]
    wanted = [*head, *plain[-(CONTEXT - new - len(head)) :]]
    assert seen == [wanted if texts else [*opening, *plain][-(CONTEXT - new) :]]


def test_generation_continues_prompt_and_texts_as_one(model, tokenizer, make, short):
    finetuner = make(model, store=short, context=4)
    with finetuner.adapted(PROMPT) as report:
        ids = torch.tensor([[*report.prefix_ids, *tokenizer(PROMPT)["input_ids"]]])
        model.eval()
        left = CONTEXT - ids.shape[1]
        assert left > 0
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=left,
            do_sample=False,
            pad_token_id=2,
        )
        wanted = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert (
            finetuner.continuation(PROMPT, max_new_tokens=left, do_sample=False)
            == wanted
        )
    assert finetuner.generate(PROMPT, max_new_tokens=left, do_sample=False) == wanted


def test_one_adaptation_is_scored_with_several_contexts(gpt2, make, short):
    finetuner, other = make(gpt2, store=short), make(gpt2, store=short, context=2)
    with other.adapted(PROMPT):
        score = other.score_text(PROMPT)
    support = other.select(PROMPT)
    with finetuner.adapted(PROMPT) as report:
        without = finetuner.score_text(PROMPT)
        read = finetuner.read_context(report, support)
        assert finetuner.score_text(PROMPT) == score
        assert (read.context_indices, read.losses) == (
            support.context_indices,
            report.losses,
        )
        finetuner.read_context(report, finetuner.select(PROMPT))
        assert finetuner.score_text(PROMPT) == without != score
    with pytest.raises(RuntimeError, match="read_context needs an adapted model"):
        finetuner.read_context(report, support)
