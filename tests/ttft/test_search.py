"""How a prompt's neighbours are found: by embeddings, by words, or by both."""

import pytest
import torch

from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.words import fused

PROMPT = "the cat sat on the red mat"
LONG = "a dog ran to the park " * 7 + PROMPT


def dense(store, embedder, prompt):
    query = torch.from_numpy(embedder.encode([prompt]))
    return store.search(query, 30)[1][0]


def test_by_default_embeddings_are_searched(gpt2, make, store, embedder):
    finetuner = make(gpt2)
    neighbours = finetuner.retrieve(PROMPT)

    assert neighbours.positions == dense(store, embedder, PROMPT).tolist()
    assert make(gpt2, search="dense").retrieve(PROMPT).positions == neighbours.positions
    assert "search" not in finetuner.config.settings()


def test_without_an_embedder_words_are_searched(gpt2, make, texts, tokenizer):
    store = MemoryStore(texts)
    options = {"store": store, "embedder": None, "method": "knn"}
    finetuner = make(gpt2, **options, context=1, ngrams=1)
    neighbours = finetuner.retrieve(PROMPT)
    nearest = store.words.search(PROMPT, 30).tolist()

    assert neighbours.positions == nearest
    assert neighbours.query is None
    assert set(neighbours.seconds) == {"search"}
    assert finetuner.config.settings()["search"] == "lexical"

    with finetuner.adapted(PROMPT) as adaptation:
        assert adaptation.support.indices == nearest[:12]
        assert adaptation.support.counts == [1] * 12
        assert adaptation.total_steps == 12

    with finetuner.adapted("zzz?!") as adaptation:
        assert adaptation.total_steps == 0
        assert list(adaptation.passages) == []
        assert adaptation.generate("zzz?!", max_new_tokens=2)


def test_the_end_of_a_long_prompt_is_a_query_of_its_own(gpt2, make, store, embedder):
    end = " ".join(LONG.split()[-32:])
    words = store.words.search(LONG, 30), store.words.search(end, 30)
    expected = {
        "lexical": fused(words, 30),
        "hybrid": fused([dense(store, embedder, LONG), *words], 30),
    }

    assert expected["lexical"].tolist() != words[0].tolist()
    for search, positions in expected.items():
        finetuner = make(gpt2, search=search, method="knn")

        assert finetuner.retrieve(LONG).positions == positions.tolist()
        assert finetuner.config.settings()["search"] == search


def test_methods_select_from_what_both_searches_find(gpt2, make, store):
    finetuner = make(gpt2, search="hybrid")
    pool = finetuner.retrieve(PROMPT).positions[:30]

    assert set(finetuner.select(PROMPT).indices) <= set(pool)


def by_hand(pool, queries, n_select):
    raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "lexical"}, "method hullft selects by embeddings, and search is"),
        ({"search": "lexical", "method": "sift"}, "method sift selects by"),
        ({"search": "lexical", "method": by_hand}, "method by_hand selects by"),
        ({"embedder": None}, "method hullft selects by embeddings"),
        ({"embedder": None, "search": "hybrid"}, "an embedder must be given for"),
        ({"store": MemoryStore(["a"])}, "the store has no embeddings: leave the embed"),
        ({"search": "words"}, "search must be 'dense', 'hybrid' or 'lexical'"),
    ],
)
def test_a_search_without_what_it_needs_is_refused(gpt2, make, options, message):
    with pytest.raises(ValueError, match=message):
        make(gpt2, **options)
