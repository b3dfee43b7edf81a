"""Search by words: BM25 over the words of identifiers, and its fusion with other rankings."""

import math

import numpy as np
import pytest
import torch

from hullft_ops.ttft.search import fused
from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.words import Words, last_words, words_in


def test_identifiers_are_split_and_numbers_stay():
    text = "class HTMLParser2: self.max_new_tokens = maxNewTokens(0x1F) # naïve ÉTÉ"

    assert " ".join(words_in(text)) == (
        "class html parser 2 self max new tokens max new tokens 0 x 1 f naïve été"
    )
    assert words_in("... _ \n") == []


def test_the_end_of_a_text_has_so_many_words():
    assert last_words("def area_of(circle): # 2", 3) == "of(circle): # 2"
    assert last_words("a b", 2) == last_words("a b", 3) == "a b"


def bm25(texts, query):
    """The scores of Lucene's BM25, in float64."""
    documents = [words_in(text) for text in texts]
    lengths = [1 + len(document) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(texts)
    for word in words_in(query):
        holders = sum(word in document for document in documents)
        rarity = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for i, document in enumerate(documents):
            count = document.count(word)
            norm = 1.5 * (0.25 + 0.75 * lengths[i] / mean)
            scores[i] += rarity * count / (norm + count)

    return np.array(scores)


def test_the_order_is_that_of_bm25(texts):
    words = Words.build(texts)
    for query in texts[:20]:
        scores = bm25(texts, " ".join({*query.split()}))
        positions = words.search(query, 25)

        assert positions.dtype == torch.int64

        ranked = scores[positions]

        assert len(set(positions.tolist())) == 25
        assert (np.diff(ranked) <= 1e-5).all()
        assert ranked[-1] >= np.sort(scores)[-25] - 1e-5


def test_of_equal_scores_the_lower_position_comes_first():
    words = Words.build(["cat", "dog", "cat", "cat dog", "cat", "tree"])

    assert words.search("cat", 2).tolist() == [0, 2]
    assert words.search("cat", 3).tolist() == [0, 2, 4]
    assert words.search("cat", 6).tolist() == [0, 2, 4, 3]


@pytest.mark.parametrize("query", ["", "!", "unknown", "un_known words"])
def test_only_texts_that_share_a_word_are_near(texts, query):
    assert Words.build(texts).search(query, 5).tolist() == []
    assert Words.build(["", "..."]).search(query, 5).tolist() == []


def test_fused_rankings_add_their_reciprocal_ranks():
    rankings = [torch.tensor([5, 3, 8]), torch.tensor([3, 9]), torch.tensor([9])]

    # 3 and 9 have 1/62 + 1/61 each, and 3 comes first.
    assert fused(rankings, 4).tolist() == [3, 9, 5, 8]
    assert fused(rankings, 2).tolist() == [3, 9]
    assert fused([torch.tensor([], dtype=torch.int64)], 2).tolist() == []


def test_a_datastore_has_an_index_of_words(texts, embedder, tmp_path):
    stores = [
        MemoryStore(texts),
        MemoryStore(texts, embedder.encode(texts), embedder.name),
        Datastore.build(texts, None, tmp_path / "words"),
        Datastore.build(texts, embedder, tmp_path / "vectors"),
    ]
    expected = Words.build(texts).search(texts[7], 20)

    assert len(expected) == 20
    for store in stores[2:]:
        assert torch.equal(store.words.search(texts[7], 20), expected)

    alone = stores[2]
    alone.verify()

    assert (alone.embedder, alone.dim, alone.vectors(expected).shape) == (
        None,
        0,
        (20, 0),
    )
    assert alone.summary() == ["60 passages, no vectors"]
    assert alone.identity == stores[0].identity != stores[1].identity
