"""What two processes do with a model that FSDP2 shards over them."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from hullft_ops import GradientCache, ReplayAdam

WORLD = 2
OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
STEPS, LATER = range(4), range(4, 6)


def make_model() -> torch.nn.Sequential:
    """Rows that two processes share evenly, unevenly, and one row, which leaves one without any."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5, bias=False)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(5, 1)).double()


def backward(model: torch.nn.Module, seed: int, ranks: range) -> None:
    """The mean over ranks, each of which has other inputs."""
    model.zero_grad()
    for rank in ranks:
        generator = torch.Generator().manual_seed(WORLD * seed + rank)
        inputs = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        (model(inputs).square().sum() / len(ranks)).backward()


def sharded() -> tuple[torch.nn.Module, ReplayAdam]:
    model = make_model()
    # The default mesh is of GPUs, where there is one.
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, ReplayAdam(model.parameters(), **OPTIONS)


def whole(model: torch.nn.Module) -> list[torch.Tensor]:
    return [param.full_tensor().detach().clone() for param in model.parameters()]


def train(
    model: torch.nn.Module, optimizer: ReplayAdam, seeds: range, rank: int
) -> None:
    for seed in seeds:
        backward(model, seed, range(rank, rank + 1))
        optimizer.step(repeats=3)


def checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def load(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    state = checkpoint(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def trained(rank: int, folder: Path) -> dict[str, Any]:
    model, optimizer = sharded()
    train(model, optimizer, STEPS, rank)
    after_training = whole(model)
    state = next(iter(optimizer.state.values()))

    dcp.save(checkpoint(model, optimizer), checkpoint_id=folder / "checkpoint")
    twin, restored = sharded()
    load(twin, restored, folder / "checkpoint")
    train(model, optimizer, LATER, rank)
    train(twin, restored, LATER, rank)
    return {
        "trained": after_training,
        "kinds": {name: type(value).__name__ for name, value in state.items()},
        "continued": whole(model),
        "restored": whole(twin),
    }


def cached(rank: int) -> dict[str, Any]:
    model, optimizer = sharded()
    cache = GradientCache(model.parameters(), torch.float32)

    for seed in STEPS:
        backward(model, seed, range(rank, rank + 1))
        cache.accumulate(seed % 2, alpha=0.5)

    for example in range(2):
        cache.replay(example, optimizer, repeats=2)

    after_replay = whole(model)
    nbytes = cache.nbytes

    param = model[3].weight
    param.grad = None
    cache.accumulate(0, beta=0.5)
    scaled = cache.gradients(0)[param].full_tensor().clone()
    return {"replayed": after_replay, "nbytes": nbytes, "scaled": scaled}


def refused() -> dict[str, str]:
    """The errors for layouts that are not the parameter's."""
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    square = dist.init_device_mesh("cpu", (1, WORLD))
    ones = torch.ones(4, 3)
    shards = distribute_tensor(ones, mesh, [Shard(0)])
    copies = distribute_tensor(ones, mesh, [Replicate()])
    on_square = distribute_tensor(ones, square, [Replicate(), Shard(0)])
    partial = DTensor.from_local(ones, mesh, [Partial()])

    def step(param: torch.Tensor, grad: torch.Tensor) -> str:
        return error_of(lambda: ReplayAdam([param]).step(grads={param: grad}))

    errors = {
        "placements": step(shards, copies),
        "partial": step(partial, partial),
        "mesh": step(shards, on_square),
        "plain gradient": step(shards, ones),
    }

    optimizer = ReplayAdam([shards])
    optimizer.make_state()
    optimizer.state[shards]["exp_avg"] = torch.zeros_like(copies)
    grads = {shards: torch.ones_like(shards)}
    errors["moment"] = error_of(lambda: optimizer.step(grads=grads))

    param = shards.clone().requires_grad_()
    param.grad = copies
    errors["cache"] = error_of(lambda: GradientCache([param]).accumulate(0))

    param.grad = shards
    loss = param.square().sum()
    ReplayAdam([param]).step()
    errors["stale graph"] = error_of(loss.backward)
    return errors


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"

    return "no error"


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results = trained(rank, folder) | cached(rank)
    results["refused"] = refused()
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
