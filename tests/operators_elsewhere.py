"""Operators in another process, which imports this module and little else."""

import torch

import hullft_ops


def operators() -> list[torch.Tensor]:
    """On work large enough to be shared among threads."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.nn.functional.normalize(
        torch.randn(8, 400, 64, generator=generator), dim=-1
    )
    query = torch.nn.functional.normalize(pool[:, :5].mean(1), dim=-1)
    parameter = torch.nn.Parameter(torch.randn(300_000, generator=generator))
    parameter.grad = torch.randn(300_000, generator=generator)
    hullft_ops.ReplayAdam([parameter]).step(repeats=2)
    selection = hullft_ops.fw_select(pool, query, 20)
    picks = hullft_ops.sift_select(pool, query, 20).picks
    return [
        selection.indices,
        selection.weights,
        selection.counts,
        picks,
        parameter.detach(),
    ]


def same_as(wanted) -> None:
    assert all(map(torch.equal, operators(), wanted))


def spawned(wanted) -> None:
    torch.set_num_threads(2)
    same_as(wanted)
