"""Steps on selected passages: methods, a user's own too, and the order of the passes."""

import numpy as np
import pytest
import torch

import hullft_ops
from hullft_ops.ttft import Support
from hullft_ops.ttft.techniques.passage_steps import schedule

PROMPT = "the cat sat on the red mat"
CONTEXT = 32
COUNTS = [5, 0, 2, 1]


@pytest.fixture
def nearest(store, embedder):
    """The prompt's 30 nearest passages, and its embedding."""
    query = torch.from_numpy(embedder.encode([PROMPT]))[0]
    scores = store.embeddings.double() @ query.double()
    return scores.argsort(descending=True, stable=True)[:30], query


def assert_is(support, selection, pool):
    size = int(selection.support_size)

    assert support.indices == pool[selection.indices[:size]].tolist()
    assert support.weights == selection.weights[:size].tolist()
    assert support.counts == selection.counts[:size].tolist()
    assert support.gap == float(selection.gap)


@pytest.mark.parametrize("variant", ["vanilla", "corrective"])
def test_hullft_is_frank_wolfe_on_the_nearest(gpt2, make, store, nearest, variant):
    pool, query = nearest
    embeddings = store.embeddings[pool]
    selection = hullft_ops.fw_select(embeddings, query, 12, variant=variant)

    assert_is(make(gpt2, variant=variant).select(PROMPT), selection, pool)


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_sift_takes_a_step_for_every_pick(gpt2, make, store, nearest, noise):
    pool, query = nearest
    embeddings = store.embeddings[pool]
    result = hullft_ops.sift_select(embeddings, query, 12, noise=noise)

    support = make(gpt2, method="sift", noise=noise).select(PROMPT)
    assert_is(support, result.selection, pool)


def test_knn_takes_one_step_on_each_of_the_nearest(gpt2, make, nearest):
    pool, _ = nearest
    support = make(gpt2, method="knn").select(PROMPT)

    assert support.indices == pool[:12].tolist()
    assert support.counts == [1] * 12


def test_a_function_of_the_users_is_a_method(gpt2, make, nearest):
    def last(pool, query, n_select):
        selection = hullft_ops.fw_select(pool[-1:], query, n_select)
        return selection._replace(indices=selection.indices + 29)

    pool, _ = nearest
    support = make(gpt2, method=last).select(PROMPT)

    assert support.indices == [pool[-1].item()]
    assert support.counts == [12]


@pytest.mark.parametrize("max_length", [None, 20])
def test_passages_are_cut(gpt2, tokenizer, make, store, max_length):
    support = make(gpt2, max_length=max_length).select(PROMPT)
    length = max_length or CONTEXT
    for index, tokens in zip(support.indices, support.input_ids, strict=True):
        assert tokens == tokenizer(store.texts[index])["input_ids"][:length]

    assert max(map(len, support.input_ids)) == length
    assert sum(support.counts) == 12


def test_passages_without_a_next_token_take_no_step(gpt2, make, store_of):
    store = store_of(["a", "the cat", "a dog"])
    support = make(gpt2, store=store, method="knn", n_select=3).select(PROMPT)
    counts = dict(zip(support.indices, support.counts, strict=True))

    assert counts == {0: 0, 1: 1, 2: 1}


def test_a_pool_may_be_smaller_than_the_steps(gpt2, make):
    support = make(gpt2, method="knn", n_select=40).select(PROMPT)
    assert support.counts == [1] * 30


def passes_on(counts, refresh, order="balanced"):
    """The schedule of a support with these counts, whose passages are 0, 1, ..."""
    positions = list(range(len(counts)))
    ids = [[1, 2]] * len(counts)
    support = Support(positions, [], counts, 0.0, 0.0, ids)
    return schedule(support, refresh, order)


def test_grouped_passes_on_a_passage_follow_one_another():
    passes = passes_on(COUNTS, 3, "grouped")

    assert [one.position for one in passes] == [0, 0, 2, 3]
    assert [one.repeats for one in passes] == [3, 2, 2, 1]


def test_balanced_steps_follow_the_counts():
    passes = passes_on(COUNTS, 1)

    assert [one.position for one in passes] == [0, 2, 0, 0, 3, 0, 2, 0]

    done = np.zeros(len(COUNTS))
    for steps, one in enumerate(passes, start=1):
        done[one.position] += 1
        share = steps * np.array(COUNTS) / sum(COUNTS)

        assert np.abs(done - share).max() < 1

    passes = passes_on(COUNTS, 2)

    assert [one.position for one in passes] == [0, 2, 0, 3, 0]
    assert [one.repeats for one in passes] == [2, 2, 2, 1, 1]


def test_a_budget_skips_no_passage_that_is_heavier():
    passes = passes_on([2, 1, 1, 0, 1, 1, 1, 1], 2)

    assert [one.position for one in passes] == [0, 1, 2, 4, 5, 6, 7]
