"""fw_select_indexed equals fw_select on the gathered pools."""

import pytest
import torch

import hullft_ops
from problems import make_problem


def test_one_query() -> None:
    pools, queries = make_problem(2, 1, 50, 7)
    embeddings = pools[0]
    query = queries[0]
    candidates = torch.tensor([4, 40, 3, 3, 17])

    sel = hullft_ops.fw_select_indexed(embeddings, candidates, query, 4)
    expected = hullft_ops.fw_select(embeddings[candidates], query, 4)

    assert all(map(torch.equal, sel, expected))


@pytest.mark.usefixtures("simd_level")
def test_candidates_past_the_size_are_not_read() -> None:
    pools, query = make_problem(3, 2, 50, 7)
    embeddings = pools[0]
    candidates = torch.tensor([[1, 2, 3, -7], [9, 8, 10**12, -1]])
    sizes = torch.tensor([3, 2])

    sel = hullft_ops.fw_select_indexed(
        embeddings,
        candidates,
        query,
        4,
        pool_sizes=sizes,
    )

    for b, rows in enumerate([[1, 2, 3], [9, 8]]):
        alone = hullft_ops.fw_select(embeddings[rows], query[b], 4)
        assert torch.equal(sel.indices[b], alone.indices)
        assert torch.equal(sel.counts[b], alone.counts)


@pytest.mark.usefixtures("simd_level")
def test_strided_embeddings_and_candidates() -> None:
    pools, query = make_problem(4, 3, 60, 12, torch.float32)
    embeddings = pools[0]
    wide = torch.full((60, 20), float("nan"))
    strided = wide[:, 5:17].copy_(embeddings)
    candidates = torch.arange(60).reshape(20, 3).t()

    sel = hullft_ops.fw_select_indexed(strided, candidates, query, 5)
    expected = hullft_ops.fw_select(embeddings[candidates], query, 5)

    assert torch.equal(sel.indices, expected.indices)
