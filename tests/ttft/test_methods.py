"""Selecting passages: the built-in methods, and a user's own."""

import pytest
import torch

import hullft_ops

PROMPT = "the cat sat on the red mat"


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
    def last(pool, queries, n_select):
        selection = hullft_ops.fw_select(pool[:, -1:], queries, n_select)
        return selection._replace(indices=selection.indices + 29)

    pool, _ = nearest
    support = make(gpt2, method=last).select(PROMPT)

    assert support.indices == [pool[-1].item()]
    assert support.counts == [12]
