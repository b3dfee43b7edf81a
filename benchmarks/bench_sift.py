"""SIFT on a batch of queries, each with its own pool, against the library of SIFT's authors."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

import hullft_ops
from benchmarks.pools import DISTINCT, distinct_pools, tiled
from benchmarks.recorder import Recorder
from benchmarks.sift_peers import time_activeft
from hullft_ops import reference

_MAX_POOL_BYTES = 2**30
# activeft keeps the whole covariance matrix and picks within blocks of this many candidates.
_ACTIVEFT_BLOCK = 1000


@dataclass(frozen=True)
class Case:
    batch: int
    candidates: int
    dim: int
    n_select: int = 50
    dtype: str = "float32"
    noise: float = 0.01

    def __str__(self) -> str:
        shape = f"B{self.batch}-K{self.candidates}-d{self.dim}-N{self.n_select}"
        return f"{shape}-{self.dtype}-noise{self.noise:g}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(2, 30, 384, 5), Case(2, 30, 384, 5, "bfloat16", 0.2)]
    headline = [Case(b, 200, d) for d in (384, 1024) for b in (64, 1)]
    if grid == "quick":
        return [*headline, replace(headline[0], noise=0.2)]
    found = [*headline, *_others(headline[0]), *_others(headline[2])]
    return [
        c
        for c in dict.fromkeys(found)
        if c.batch * c.candidates * c.dim * 4 <= _MAX_POOL_BYTES
    ]


def _others(case: Case) -> Iterator[Case]:
    yield from (replace(case, noise=noise) for noise in (0.2, 1.0))
    yield from (replace(case, n_select=n) for n in (5, 20, 200))
    yield from (
        replace(case, dtype=dtype) for dtype in ("float64", "bfloat16", "float16")
    )
    yield from itertools.starmap(
        lambda b, k: replace(case, batch=b, candidates=k),
        [(64, 50), (64, 1000), (8, 5000)],
    )


# activeft converts as NumPy 1 did.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sift(case: Case, recorder: Recorder, device: torch.device) -> None:
    distinct, queries = distinct_pools(case.candidates, case.dim)
    dtype = getattr(torch, case.dtype)
    pool = tiled(distinct.to(dtype), case.batch).to(device)
    query = tiled(queries.to(dtype), case.batch).to(device)

    def select() -> hullft_ops.SiftSelection:
        return hullft_ops.sift_select(pool, query, case.n_select, noise=case.noise)

    _assert_as_reference(case, pool, query, select())
    recorder.ours(select)
    if case.candidates <= _ACTIVEFT_BLOCK:
        x, q = distinct[0], queries[0]
        time_activeft(recorder, x, q, case.n_select, noise=case.noise, scale=case.batch)


def _assert_as_reference(
    case: Case,
    pool: torch.Tensor,
    query: torch.Tensor,
    selection: hullft_ops.SiftSelection,
) -> None:
    """Compare every distinct query of a small problem, or the first picks of one query of a large
    one. Repeated queries must agree."""
    small = case.candidates * case.n_select <= 200 * 50
    checked = case.n_select if small else 5
    for b in range(min(case.batch, DISTINCT if small else 1)):
        x, q = pool[b].cpu(), query[b].cpu()
        expected = reference.sift_select(x, q, checked, noise=case.noise)
        found = selection.variance[b, :checked].cpu().double()
        wanted = torch.tensor(expected.variance, dtype=torch.float64)
        assert (found - wanted).abs().max() < 1e-5
        if (
            not pool.is_cuda
        ):  # CUDA's state is float32: nearly equal rows may change places.
            assert selection.picks[b, :checked].tolist() == expected.picks
    repeated = range(DISTINCT, case.batch)
    assert all(
        torch.equal(selection.picks[b], selection.picks[b % DISTINCT]) for b in repeated
    )
