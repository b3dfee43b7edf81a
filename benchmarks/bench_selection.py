"""Selection with integerization on a batch of queries, each with its own pool."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, distinct_pools, tiled
from benchmarks.recorder import Recorder
from benchmarks.sift_peers import time_activeft
from hullft_ops import reference

_MAX_POOL_BYTES = 2**30
# With larger pools, peers that take queries one by one are timed on this many of a batch.
_LOOPED_QUERIES = 8
_LOOPED_POOL = 200 * 1024
# Limit of the batched peer, whose Gram matrices are float32 [B, K, K].
_MAX_GRAM_BYTES = 2**29
_MAX_GRAM_CANDIDATES = 1000
ALLOWED_DIFFERENCES = {
    "residual, off by": 1e-4,
    "queries with a wrong sum of counts": 0.0,
    "repeated queries with other picks": 0.0,
}


@dataclass(frozen=True)
class Case:
    batch: int
    candidates: int
    dim: int
    n_select: int = 50
    dtype: str = "float32"
    variant: str = "vanilla"

    def __str__(self) -> str:
        shape = f"B{self.batch}-K{self.candidates}-d{self.dim}-N{self.n_select}"
        return f"{shape}-{self.dtype}-{self.variant}"

    @property
    def pool_bytes(self) -> int:
        itemsize = getattr(torch, self.dtype).itemsize
        return int(self.batch * self.candidates * self.dim * itemsize)

    @property
    def looped_queries(self) -> int:
        small = self.candidates * self.dim <= _LOOPED_POOL and self.batch <= 64
        return self.batch if small else min(self.batch, _LOOPED_QUERIES)

    @property
    def checked_queries(self) -> int:
        """Every distinct query, or one of a large pool."""
        small = self.candidates * self.dim <= _LOOPED_POOL
        return min(self.batch, DISTINCT if small else 1)

    @property
    def has_gram_peer(self) -> bool:
        fits = 4 * self.batch * self.candidates**2 <= _MAX_GRAM_BYTES
        return (
            self.variant == "vanilla"
            and self.candidates <= _MAX_GRAM_CANDIDATES
            and fits
        )


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(2, 30, 384, 5), Case(2, 30, 384, 5, "bfloat16", "pairwise")]
    headline = [Case(b, 200, d) for d in (384, 1024) for b in (64, 1)]
    if grid == "quick":
        pairwise = replace(headline[0], variant="pairwise")
        return [*headline, pairwise, replace(headline[2], dtype="bfloat16")]
    found = [
        *headline,
        *_shapes(),
        *(other for case in headline for other in _others(case)),
    ]
    return list(
        dict.fromkeys(case for case in found if case.pool_bytes <= _MAX_POOL_BYTES)
    )


def _shapes() -> Iterator[Case]:
    sizes = ((1, 8, 64, 512), (50, 200, 1000, 5000), (384, 1024, 4096))
    return itertools.starmap(Case, itertools.product(*sizes))


def _others(case: Case) -> Iterator[Case]:
    yield from (replace(case, n_select=n) for n in (5, 20, 200))
    yield from (
        replace(case, dtype=dtype) for dtype in ("float64", "bfloat16", "float16")
    )
    yield from (replace(case, variant=variant) for variant in ("away", "pairwise"))


# activeft converts as NumPy 1 did.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_selection(case: Case, recorder: Recorder, device: torch.device) -> None:
    distinct, queries = distinct_pools(case.candidates, case.dim)
    dtype = getattr(torch, case.dtype)
    pool = tiled(distinct.to(dtype), case.batch).to(device)
    query = tiled(queries.to(dtype), case.batch).to(device)

    def select() -> hullft_ops.Selection:
        return hullft_ops.fw_select(pool, query, case.n_select, variant=case.variant)

    assert_as_reference(case, pool, query, select())
    recorder.ours(select)
    words = pool.view(torch.int32)
    recorder.sweep(words.amax, case.pool_bytes)
    time_numpy(case, recorder, distinct, queries)
    if case.has_gram_peer:
        time_gram(case, recorder, pool, query)
    if case.variant == "pairwise":
        _time_nnls(case, recorder, distinct, queries, select())
    if case.variant == "vanilla" and case.candidates <= 200 and case.dim <= 1024:
        time_activeft(
            recorder, distinct[0], queries[0], case.n_select, scale=case.batch
        )


def assert_as_reference(
    case: Case, pool: torch.Tensor, query: torch.Tensor, selection: hullft_ops.Selection
) -> None:
    """Check the selections. Repeated queries must agree with the distinct ones."""
    found = differences(case, pool, query, selection)
    assert all(found[name] <= most for name, most in ALLOWED_DIFFERENCES.items()), found
    if pool.is_cuda:  # CUDA's state is float32: nearly equal atoms may change places.
        return
    for b in range(case.checked_queries):
        expected = _expected(case, pool, query, b)
        m = int(selection.support_size[b])
        assert selection.indices[b, :m].tolist() == expected.indices.tolist()
        assert selection.counts[b, :m].tolist() == expected.counts.tolist()


def differences(
    case: Case, pool: torch.Tensor, query: torch.Tensor, selection: hullft_ops.Selection
) -> dict[str, float]:
    """How far a selection is from the definition, by the names of `ALLOWED_DIFFERENCES`."""
    residual = max(
        abs(selection.residual[b].item() - _expected(case, pool, query, b).residual)
        for b in range(case.checked_queries)
    )
    miscounted = (selection.counts.sum(-1) != case.n_select).sum().item()
    indices = selection.indices.cpu()
    apart = sum(
        not torch.equal(indices[b], indices[b % DISTINCT])
        for b in range(DISTINCT, case.batch)
    )
    return dict(zip(ALLOWED_DIFFERENCES, (residual, miscounted, apart), strict=True))


def _expected(
    case: Case, pool: torch.Tensor, query: torch.Tensor, b: int
) -> reference.ReferenceSelection:
    return reference.fw_select(
        pool[b].cpu(), query[b].cpu(), case.n_select, variant=case.variant
    )


def time_numpy(
    case: Case, recorder: Recorder, distinct: torch.Tensor, queries: torch.Tensor
) -> None:
    """The published method, which is vanilla, in float32: NumPy has no 16-bit matrix product."""
    looped = case.looped_queries
    pool, query = tiled(distinct, looped).numpy(), tiled(queries, looped).numpy()
    if case.variant == "vanilla" and case.dtype == "float32":
        x, q = distinct[0].double(), queries[0].double()
        expected = reference.fw_select(x, q, case.n_select)
        found = peers.numpy_select(x.numpy(), q.numpy(), case.n_select)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.counts.tolist() == expected.counts.tolist()

    def select() -> None:
        for x, q in zip(pool, query, strict=True):
            peers.numpy_select(x, q, case.n_select)

    recorder.peer("NumPy", select, scale=case.batch / looped)


def time_gram(
    case: Case, recorder: Recorder, pool: torch.Tensor, query: torch.Tensor
) -> None:
    """All queries at once in float32. Its rounding may choose between nearly equal atoms."""
    x, q = pool[: case.checked_queries], query[: case.checked_queries]
    exact = peers.torch_select(x.double(), q.double(), case.n_select)
    rounded = peers.torch_select(x.float(), q.float(), case.n_select)
    for b, (found, near) in enumerate(zip(exact, rounded, strict=True)):
        expected = reference.fw_select(x[b].cpu(), q[b].cpu(), case.n_select)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.counts.tolist() == expected.counts.tolist()
        current = near.weights @ x[b, near.indices].float().cpu().numpy()
        residual = np.linalg.norm(q[b].float().cpu().numpy() - current)
        assert abs(residual - expected.residual) < 1e-5
        assert near.counts.sum() == case.n_select
    whole, queries = pool.float(), query.float()
    recorder.peer(
        "torch, Gram", lambda: peers.torch_select(whole, queries, case.n_select)
    )


def _time_nnls(
    case: Case,
    recorder: Recorder,
    distinct: torch.Tensor,
    queries: torch.Tensor,
    selection: hullft_ops.Selection,
) -> None:
    """The exact minimum. The selection may be above it by at most the reported gap."""
    pool, query = distinct[0].numpy(), queries[0].numpy()
    if case.dtype == "float32":
        off = query - peers.simplex_nnls(pool, query) @ pool
        above = (selection.residual[0].item() ** 2 - float(off @ off)) / 2
        assert -1e-5 < above < selection.gap[0].item() + 1e-5
    recorder.peer(
        "SciPy nnls", lambda: peers.simplex_nnls(pool, query), scale=case.batch
    )
