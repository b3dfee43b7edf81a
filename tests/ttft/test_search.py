"""How a prompt's neighbours are found: by embeddings, by words, or by both."""

import pytest
import torch

from hullft_ops.ttft.search import Dense, fused
from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.words import Words

PROMPT = "the cat sat on the red mat"
LONG = "tree house hello world blue " * 3 + " ".join([PROMPT] * 5)


def dense(store, embedder, prompt):
    query = torch.from_numpy(embedder.encode([prompt]))
    return store.search(query, 30)[1][0]


def test_by_default_embeddings_are_searched(gpt2, make, store, embedder):
    finetuner = make(gpt2)
    neighbours = finetuner.retrieve(PROMPT)

    assert neighbours.positions == dense(store, embedder, PROMPT).tolist()
    assert make(gpt2, search="dense").retrieve(PROMPT).positions == neighbours.positions
    assert isinstance(finetuner.search, Dense)
    assert finetuner.config.search is None


class OwnStore:
    """A store of a user's own, without an index of words."""

    def __init__(self, texts):
        self.texts, self.identity = texts, "texts"

    def __len__(self):
        return len(self.texts)

    def following(self, position):
        return None


@pytest.mark.parametrize("kind", [MemoryStore, OwnStore])
def test_without_an_embedder_words_are_searched(gpt2, make, texts, kind):
    options = {"embedder": None, "n_select": 0, "context": 1, "ngrams": 1}
    finetuner = make(gpt2, store=kind(texts), **options)
    neighbours = finetuner.retrieve(PROMPT)

    assert neighbours.positions == Words.build(texts).search(PROMPT, 30).tolist()
    assert neighbours.query is None
    assert set(neighbours.seconds) == {"search"}

    # Nothing is near a prompt of other words.
    for prompt in (PROMPT, "zzz?!"):
        with finetuner.adapted(prompt) as adaptation:
            assert adaptation.generate(prompt, max_new_tokens=2)


def test_the_end_of_a_long_prompt_is_a_query_of_its_own(gpt2, make, store, embedder):
    end = " ".join(LONG.split()[-32:])
    index = Words.build(store.texts)
    words = index.search(LONG, 30), index.search(end, 30)
    expected = {
        "lexical": fused(words, 30),
        "hybrid": fused([dense(store, embedder, LONG), *words], 30),
    }

    assert expected["lexical"].tolist() != words[0].tolist()
    for search, positions in expected.items():
        finetuner = make(gpt2, search=search)

        assert finetuner.retrieve(LONG).positions == positions.tolist()
        assert finetuner.config.settings()["search"] == search


def test_methods_select_from_what_both_searches_find(gpt2, make, store):
    finetuner = make(gpt2, search="hybrid")
    pool = finetuner.retrieve(PROMPT).positions[:30]

    assert set(finetuner.select(PROMPT).indices) <= set(pool)


@pytest.mark.parametrize("method", ["hullft", "sift", "knn"])
def test_steps_on_passages_need_embeddings(gpt2, make, method):
    finetuner = make(gpt2, search="lexical", method=method)
    with pytest.raises(ValueError, match="n_select is 12, and the search is by words"):
        finetuner.select(PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedder": None, "search": "hybrid"}, "store and embedder must be given"),
        ({"store": MemoryStore(["a"])}, "the store has no embeddings: leave the embed"),
        (
            {"search": "words"},
            "search must be 'dense', 'hybrid', 'lexical' or 'windows'",
        ),
    ],
)
def test_a_search_without_what_it_needs_is_refused(gpt2, make, options, message):
    with pytest.raises(ValueError, match=message):
        make(gpt2, **options)
