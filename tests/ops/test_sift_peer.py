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


def picks_of_real_texts(
    recorded: dict[str, torch.Tensor], dtype: torch.dtype, noise: float
) -> torch.Tensor:
    texts = real_texts().to(dtype)
    queries = texts[recorded["queries"]]
    candidates = recorded["candidates"]
    return hullft_ops.sift_select(
        texts, queries, 50, candidates=candidates, noise=noise
    ).picks


@pytest.mark.parametrize("noise", [0.01, 0.2])
@pytest.mark.usefixtures("simd_level")
def test_recorded_picks_of_activeft(
    recorded: dict[str, torch.Tensor], noise: float
) -> None:
    picks = picks_of_real_texts(recorded, torch.float64, noise)
    assert torch.equal(picks, recorded[f"picks_{noise}"])


@pytest.mark.cpu_only(
    "the state of narrow pools is float64 on the CPU, float32 on CUDA"
)
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_float32_picks_as_activeft(
    recorded: dict[str, torch.Tensor], noise: float
) -> None:
    picks = picks_of_real_texts(recorded, torch.float32, noise)
    assert torch.equal(picks, recorded[f"picks_{noise}"])
