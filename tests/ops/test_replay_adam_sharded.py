"""ReplayAdam and GradientCache on parameters that FSDP2 shards over two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sharded_training as training
from hullft_ops import GradientCache, ReplayAdam

pytestmark = pytest.mark.cpu_only("the two processes run on the CPU")
BOTH = range(training.WORLD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    # A fork has everything imported, and could not use CUDA.
    method = "spawn" if torch.cuda.is_available() else "fork"
    torch.multiprocessing.start_processes(
        training.run, (folder,), training.WORLD, start_method=method
    )
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in BOTH]


def train_whole(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    seeds: range,
    repeats: int = 3,
) -> None:
    for seed in seeds:
        training.backward(model, seed, BOTH)
        for _ in range(repeats):
            optimizer.step()


def assert_are(values: list[torch.Tensor], model: torch.nn.Module) -> None:
    for value, param in zip(values, model.parameters(), strict=True):
        torch.testing.assert_close(value, param.detach(), rtol=1e-12, atol=1e-14)


def test_two_processes_equal_one_with_adam(ranks: list[dict[str, Any]]) -> None:
    model = training.make_model()
    optimizer = torch.optim.Adam(model.parameters(), **training.OPTIONS)
    train_whole(model, optimizer, training.STEPS)

    for results in ranks:
        assert_are(results["trained"], model)
        assert results["kinds"] == {
            "step": "Tensor",
            "exp_avg": "DTensor",
            "exp_avg_sq": "DTensor",
        }

    train_whole(model, optimizer, training.LATER)
    for results in ranks:
        assert_are(results["continued"], model)


def test_a_checkpoint_restores_both_processes(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        for value, wanted in zip(
            results["restored"], results["continued"], strict=True
        ):
            assert torch.equal(value, wanted)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("optimizer_class", [ReplayAdam, torch.optim.Adam])
def test_one_process_goes_on_from_a_checkpoint_of_two(
    optimizer_class: type[torch.optim.Optimizer],
    folder: Path,
    ranks: list[dict[str, Any]],
) -> None:
    model = training.make_model()
    optimizer = optimizer_class(model.parameters(), **training.OPTIONS)
    training.load(model, optimizer, folder / "checkpoint")
    train_whole(model, optimizer, training.LATER)

    assert_are(ranks[0]["continued"], model)


def test_cached_gradients(ranks: list[dict[str, Any]]) -> None:
    model = training.make_model()
    optimizer = ReplayAdam(model.parameters(), **training.OPTIONS)
    cache = GradientCache(model.parameters(), torch.float32)

    for seed in training.STEPS:
        training.backward(model, seed, BOTH)
        cache.accumulate(seed % 2, alpha=0.5)

    for example in range(2):
        cache.replay(example, optimizer, repeats=2)

    for results in ranks:
        for value, param in zip(results["replayed"], model.parameters(), strict=True):
            torch.testing.assert_close(value, param.detach(), rtol=1e-6, atol=1e-8)

        kept = cache.gradients(0)[model[3].weight]
        torch.testing.assert_close(results["scaled"], 0.5 * kept)

    assert sum(results["nbytes"] for results in ranks) == cache.nbytes


STEP = "Error: ReplayAdam.step: "
REFUSED = {
    "placements": STEP + "the gradient of parameter 0 has placements (Replicate(),)",
    "partial": STEP + "parameter 0 must be sharded or replicated",
    "mesh": STEP + "the gradient of parameter 0 has device_mesh ",
    "plain gradient": STEP + "the gradient of parameter 0 is a Tensor",
    "moment": STEP + "exp_avg of parameter 0 has placements (Replicate(),)",
    "cache": "Error: GradientCache.accumulate: the gradient of parameter 0 has placements",
    "stale graph": "Error: one of the variables needed for gradient computation has been "
    "modified by an inplace operation",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["refused"].keys() == REFUSED.keys()
        assert REFUSED[case] in results["refused"][case]
