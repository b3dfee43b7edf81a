"""Counts where gains are nearly equal, and of a large support."""

import torch

from cuda_sim.checks import case, check_equals, permutations
from cuda_sim.library import Launch, Library
from hullft_ops import reference
from problems import of_query


@case
def counts_of_close_gains(library: Library, seed: int) -> None:
    """Gains whose upper 32 bits are the same: longer rows, anywhere in the support, come first."""
    generator = torch.Generator().manual_seed(6)
    lengths = 1 + 1e-9 * torch.randperm(37, generator=generator).double()
    support = torch.diag(lengths).unsqueeze(0)
    query = torch.full((1, 37), 0.5, dtype=torch.float64)
    weights = torch.zeros(1, 37, dtype=torch.float64)
    counts = library.integerize(support, query, weights, 12, launch=Launch(seed))
    longest = lengths.topk(12).indices

    assert counts.sum() == 12
    assert (counts[0, longest] == 1).all()


@case
def fw_large_support(library: Library, seed: int) -> None:
    """A support whose Gram matrix has no room in shared memory."""
    pool = torch.eye(80).unsqueeze(0)
    query = (1.5 - permutations(1, 80) / 80) ** 3
    query /= query.sum()
    launch = Launch(seed, gram=True, threads=64)
    answer = library.frank_wolfe(pool, query, 60, launch=launch)
    expected = reference.fw_select(pool[0], query[0], 60)

    assert answer.support_size.item() == 60

    check_equals(of_query(answer, 0), expected)
