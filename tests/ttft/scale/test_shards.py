"""A datastore whose embeddings three workers hold: what they find is what one process finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_embedder
from hullft_ops.ttft.scale.cluster import Workers
from hullft_ops.ttft.scale.shards import sharded
from on_ray import EMBEDDER, TEXTS, text

pytestmark = pytest.mark.long


def test_shards_find_what_one_process_finds_and_a_finetuner_takes_them(
    store: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt, embedder, whole = (
        text(TEXTS),
        load_embedder(EMBEDDER),
        Datastore.open(store),
    )
    queries = whole.embeddings[:7] + 0.01

    def finetuner(where: Datastore) -> TestTimeFinetuner:
        return TestTimeFinetuner(
            gpt2, tokenizer, where, embedder, n_select=6, pool_size=30
        )

    with sharded(store, Workers(3)) as shards:
        for k in (1, 50, TEXTS):
            found, wanted = shards.search(queries, k), whole.search(queries, k)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
        support = finetuner(whole).select(prompt)
        with finetuner(shards).adapted(prompt) as report:
            assert (report.indices, report.weights) == (
                support.indices,
                support.weights,
            )


def test_equal_scores_of_shards_go_to_the_lower_position(tmp_path: Path) -> None:
    class Equal:
        name, dim = "equal", 4

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (len(texts), 1))

    Datastore.build(
        [text(n) for n in range(10)], Equal(), tmp_path / "equal", progress=False
    )
    with sharded(tmp_path / "equal", Workers(2)) as shards:
        scores, ids = shards.search(torch.ones(2, 4), 7)
    assert ids.tolist() == [list(range(7))] * 2
    assert (scores == 2).all()
