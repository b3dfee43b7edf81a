"""A small model, how it is trained with ReplayAdam or a peer, and how alike two may come out."""

from collections.abc import Callable

import torch

from hullft_ops.replay import ReplayAdam

Model = torch.nn.Sequential
OptimizerClass = Callable[..., torch.optim.Optimizer]


def make_model(dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
    ).to(dtype)


def backward(model: Model, seed: int) -> None:
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    model(x).square().sum().backward()


def train(
    model: Model, optimizer: torch.optim.Optimizer, seeds: range, repeats: int
) -> None:
    """Each gradient is used ``repeats`` times."""
    for seed in seeds:
        backward(model, seed)
        if isinstance(optimizer, ReplayAdam):
            optimizer.step(repeats=repeats)
        else:
            for _ in range(repeats):
                optimizer.step()


def assert_models_close(ours: Model, theirs: Model) -> None:
    """Float64 arithmetic in two orders, through a model that amplifies differences a little."""
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def assert_same_models(ours: Model, theirs: Model) -> None:
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def grouped(model: Model, optimizer: OptimizerClass) -> torch.optim.Optimizer:
    return optimizer(
        [
            {"params": model[0].parameters(), "lr": 1e-2, "betas": (0.8, 0.9)},
            {
                "params": model[2].parameters(),
                "weight_decay": 0.1,
                "eps": 1e-3,
                "maximize": True,
            },
        ],
        lr=1e-3,
    )
