"""Choosing texts: the built-in methods, a user's own, and many prompts in one go."""

import numpy as np
import pytest
import torch

import hullft_ops
from hullft_ops.ttft import Datastore
from hullft_ops.ttft.retrieval.methods import Random, Sift

PROMPTS = [
    "the cat sat on the red mat",
    "blue house world",
    "hello tree the dog",
    "a park",
]


def farthest(embeddings, candidates, queries, n_select):
    """The whole budget on the last candidate."""
    batch = len(queries)
    indices = torch.full((batch, n_select), -1)
    indices[:, 0] = candidates.shape[1] - 1
    counts = torch.zeros(batch, n_select, dtype=torch.int64)
    counts[:, 0] = n_select
    return hullft_ops.Selection(
        indices=indices,
        weights=counts / n_select,
        counts=counts,
        support_size=torch.ones(batch, dtype=torch.int64),
        residual=(queries - embeddings[candidates[:, -1]]).norm(dim=1),
        gap=torch.zeros(batch),
        num_iter=torch.zeros(batch, dtype=torch.int64),
    )


def test_a_function_of_the_users_is_a_method(gpt2, make, store, embedder):
    query = torch.from_numpy(embedder.encode(PROMPTS[:1]))
    last = store.search(query, 30)[1][0, -1].item()
    with make(gpt2, method=farthest).adapted(PROMPTS[0]) as report:
        assert report.method == "farthest"
        assert (report.indices, report.counts) == ([last], [12])
        assert report.forward_backward_passes == 6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"counts": torch.full((1, 12), 2)}, ValueError, "sum to 12, got"),
        (
            {"indices": torch.full((1, 12), 30)},
            ValueError,
            r"different candidates of 0\.\.29",
        ),
        (
            {"indices": torch.zeros(1, 12), "support_size": torch.tensor([2])},
            ValueError,
            "differ",
        ),
        (None, TypeError, "method wrong must return a Selection, got NoneType"),
    ],
)
def test_what_a_method_returns_is_checked(gpt2, make, change, error, message):
    def wrong(*args):
        return None if change is None else farthest(*args)._replace(**change)

    with pytest.raises(error, match=message):
        make(gpt2, method=wrong).select(PROMPTS[0])


def test_random_draws_by_seed_and_prompt_alone(gpt2, make):
    finetuner = make(gpt2, method="random")
    support = finetuner.select(PROMPTS[0])
    assert support.counts == [1] * 12
    assert support.weights == pytest.approx([1 / 12] * 12)
    assert len(set(support.indices)) == 12
    finetuner.select(PROMPTS[1])
    assert finetuner.select(PROMPTS[0]) == support
    assert make(gpt2, method=Random(0)).select(PROMPTS[0]) == support
    assert make(gpt2, method=Random(1)).select(PROMPTS[0]).indices != support.indices
    drawn = {i for prompt in PROMPTS for i in finetuner.select(prompt).indices}
    assert len(drawn) > 30, "another draw for another prompt"


@pytest.mark.parametrize(
    ("method", "steps"), [("knn", 30), ("random", 30), ("sift", 40), ("hullft", 40)]
)
def test_fewer_texts_than_steps_are_what_there_is(gpt2, make, method, steps):
    finetuner = make(gpt2, method=method, n_select=40)
    taken = "30 steps, one on each" if steps == 30 else "all steps on these"
    message = f"fewer texts to train on than n_select, 30 of 40 .*: method '{method}' takes {taken}"
    with (
        pytest.warns(UserWarning, match=message),
        finetuner.adapted(PROMPTS[0]) as report,
    ):
        assert (report.n_select, report.optimizer_steps) == (40, steps)
    if steps == 30:
        assert report.counts == [1] * 30
        assert report.weights == pytest.approx([1 / 30] * 30)


@pytest.mark.parametrize(("method", "noise"), [("sift", 0.01), (Sift(0.2), 0.2)])
def test_sift_takes_a_step_for_every_pick(gpt2, make, store, embedder, method, noise):
    query = torch.from_numpy(embedder.encode(PROMPTS[:1]))
    pool = store.search(query, 30)[1][0]
    wanted = hullft_ops.sift_select(store.embeddings[pool], query[0], 12, noise=noise)
    with make(gpt2, method=method).adapted(PROMPTS[0]) as report:
        assert report.method == "sift"
    steps = [
        i for i, c in zip(report.indices, report.counts, strict=True) for _ in range(c)
    ]
    assert sorted(steps) == sorted(pool[wanted.picks].tolist())


def test_residual_and_gap_of_random_are_those_of_its_mean(gpt2, make, store, embedder):
    support = make(gpt2, method="random").select(PROMPTS[0])
    query = torch.from_numpy(embedder.encode(PROMPTS[:1]))
    pool = store.embeddings[store.search(query, 30)[1][0]].double()
    chosen = store.embeddings[support.indices].double()
    residual = query[0].double() - chosen.mean(0)
    assert support.residual == pytest.approx(residual.norm().item(), rel=1e-6)
    gap = (pool @ residual).max() - (chosen @ residual).mean()
    assert support.gap == pytest.approx(gap.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["hullft", "knn", "random", "sift", farthest])
def test_many_prompts_in_one_go_equal_one_by_one(gpt2, make, embedder, method):
    finetuner = make(gpt2, method=method)
    embedder.batch_sizes.clear()
    supports = finetuner.select_batch(PROMPTS)
    assert embedder.batch_sizes == [4]
    assert supports == [finetuner.select(prompt) for prompt in PROMPTS]
    assert len({tuple(support.indices) for support in supports}) > 1
    assert finetuner.select_batch([]) == []
    assert finetuner.select_batch(iter(PROMPTS)) == supports
    assert finetuner.select_batch(np.array(PROMPTS)) == supports
    with pytest.raises(
        TypeError, match="prompts must be a sequence of str, got one str"
    ):
        finetuner.select_batch(PROMPTS[0])
    with pytest.raises(ValueError, match=r"prompts\[1\] must hold text"):
        finetuner.select_batch([PROMPTS[0], " "])


def test_a_batch_leaves_untrainable_texts_out_where_they_were_chosen(
    gpt2, make, texts, embedder, tmp_path
):
    original = embedder.encode

    def encode(batch):
        return original([PROMPTS[0] if text == "t" else text for text in batch])

    embedder.encode = encode
    store = Datastore.build([*texts, "t"], embedder, tmp_path / "short", progress=False)
    finetuner = make(gpt2, store=store)
    supports = finetuner.select_batch(PROMPTS)
    assert supports == [finetuner.select(prompt) for prompt in PROMPTS]
    assert all(60 not in support.indices for support in supports)


def test_a_support_is_taken_in_place_of_its_prompt(gpt2, make, bits):
    finetuner = make(gpt2)
    [_, support] = finetuner.select_batch(PROMPTS[:2])
    with finetuner.adapted(PROMPTS[1]):
        adapted = bits(gpt2)
    with finetuner.adapted(support) as report:
        assert adapted.changed() == set()
        assert report.indices == support.indices
