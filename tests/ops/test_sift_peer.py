"""sift_select makes the picks of activeft, whose authors wrote the method."""

import numpy as np
import pytest
import torch
from benchmarks.pools import POOLS, real_texts

import hullft_ops


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    """50 queries and pools of real texts with activeft's picks: see tests/data/README.md."""
    with np.load(POOLS.with_name("sift_picks_n50.npz")) as file:
        return {
            name: torch.from_numpy(file[name].astype(np.int64)) for name in file.files
        }


NARROW = "the state of narrow pools is float64 on the CPU, float32 on CUDA"


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        pytest.param(torch.float32, marks=pytest.mark.cpu_only(NARROW)),
    ],
)
@pytest.mark.parametrize("noise", [0.01, 0.2])
@pytest.mark.usefixtures("simd_level")
def test_recorded_picks_of_activeft(
    recorded: dict[str, torch.Tensor], noise: float, dtype: torch.dtype
) -> None:
    texts = real_texts().to(dtype)
    queries, candidates = texts[recorded["queries"]], recorded["candidates"]
    selection = hullft_ops.sift_select(
        texts, queries, 50, candidates=candidates, noise=noise
    )

    assert torch.equal(selection.picks, recorded[f"picks_{noise}"])
