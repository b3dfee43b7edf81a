"""fw_select_indexed equals fw_select on the gathered pools."""

import pytest
import torch

import hullft_ops
from problems import DTYPES, ON_VALUES, VARIANTS, make_problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_equals_gathered(dtype: torch.dtype, variant: str) -> None:
    embeddings, query = make_problem(0, 6, 300, 33, dtype)
    embeddings = embeddings[0]
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(0, 300, (6, 80), generator=generator)  # with repeats
    indexed = hullft_ops.fw_select_indexed(
        embeddings, candidates, query, 9, variant=variant
    )
    gathered = hullft_ops.fw_select(embeddings[candidates], query, 9, variant=variant)
    assert all(torch.equal(x, y) for x, y in zip(indexed, gathered, strict=True))


def test_one_query() -> None:
    embeddings, query = make_problem(2, 1, 50, 7)
    candidates = torch.tensor([4, 40, 3, 3, 17])
    sel = hullft_ops.fw_select_indexed(embeddings[0], candidates, query[0], 4)
    expected = hullft_ops.fw_select(embeddings[0][candidates], query[0], 4)
    assert all(torch.equal(x, y) for x, y in zip(sel, expected, strict=True))


@pytest.mark.usefixtures("simd_level")
def test_ragged_candidates_past_the_size_are_not_read() -> None:
    embeddings, query = make_problem(3, 2, 50, 7)
    candidates = torch.tensor([[1, 2, 3, -7], [9, 8, 10**12, -1]])
    sizes = torch.tensor([3, 2])
    sel = hullft_ops.fw_select_indexed(
        embeddings[0], candidates, query, 4, pool_sizes=sizes
    )
    for b, rows in enumerate([[1, 2, 3], [9, 8]]):
        alone = hullft_ops.fw_select(embeddings[0][rows], query[b], 4)
        assert torch.equal(sel.indices[b], alone.indices)
        assert torch.equal(sel.counts[b], alone.counts)


@pytest.mark.usefixtures("simd_level")
def test_strided_embeddings_and_candidates() -> None:
    embeddings, query = make_problem(4, 3, 60, 12, torch.float32)
    wide = torch.full((60, 20), float("nan"))
    wide[:, 5:17] = embeddings[0]
    candidates = torch.arange(60).reshape(20, 3).t()
    sel = hullft_ops.fw_select_indexed(wide[:, 5:17], candidates, query, 5)
    expected = hullft_ops.fw_select(embeddings[0][candidates], query, 5)
    assert torch.equal(sel.indices, expected.indices)


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize("row", [-1, 50, 2**40])
def test_candidate_out_of_range(row: int) -> None:
    embeddings, query = make_problem(5, 1, 50, 7)
    candidates = torch.tensor([[0, row]])
    with pytest.raises(
        ValueError, match=rf"candidates\[0, 1\] is {row}, embeddings has 50 rows"
    ):
        hullft_ops.fw_select_indexed(embeddings[0], candidates, query, 4)
