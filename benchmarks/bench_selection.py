"""Selection with integerization on a batch of queries, each with its own pool."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, PoolCase, distinct_pools, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference
from hullft_ops._checks import Variant

_RESIDUAL_ERROR = 2e-6


@dataclass(frozen=True)
class Case(PoolCase):
    variant: Variant = "vanilla"

    def __str__(self) -> str:
        return f"{super().__str__()}-{self.variant}"

    @property
    def checked_queries(self) -> int:
        return min(self.batch, DISTINCT)


def cases(smoke: bool) -> list[Case]:
    if smoke:
        small = Case(2, 30, n_select=5)
        return [small, replace(small, dtype="bfloat16", variant="corrective")]
    base = Case(64)
    return [
        base,
        Case(1),
        Case(64, dim=1024),
        Case(1, dim=1024),
        replace(base, variant="corrective"),
        replace(base, dim=1024, dtype="bfloat16"),
    ]


def test_selection(case: Case, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    assert_as_reference(case, pool, query, select())
    recorder.ours(select)
    if case.variant == "vanilla":
        time_numpy(case, recorder)
        time_gram(case, recorder, pool, query)
        time_other_methods(case, recorder)


def assert_as_reference(
    case: Case, pool: torch.Tensor, query: torch.Tensor, selection: hullft_ops.Selection
) -> None:
    """Check the selections. Repeated queries must agree with the distinct ones."""
    assert (selection.counts.sum(-1) == case.n_select).all()
    for b in range(case.checked_queries):
        expected = _expected(case, pool, query, b)
        assert abs(selection.residual[b].item() - expected.residual) <= _RESIDUAL_ERROR
        if not pool.is_cuda:  # CUDA's state is float32: near atoms may change places.
            m = int(selection.support_size[b])
            assert selection.indices[b, :m].tolist() == expected.indices.tolist()
            assert selection.counts[b, :m].tolist() == expected.counts.tolist()
    indices = selection.indices.cpu()
    for b in range(DISTINCT, case.batch):
        assert torch.equal(indices[b], indices[b % DISTINCT])


def _expected(
    case: Case, pool: torch.Tensor, query: torch.Tensor, b: int
) -> reference.ReferenceSelection:
    return reference.fw_select(
        pool[b].cpu(), query[b].cpu(), case.n_select, variant=case.variant
    )


def time_numpy(case: Case, recorder: Recorder) -> None:
    """The published method, one query after the other, in float32."""
    pools, queries = distinct_pools(case.candidates, case.dim)
    expected = reference.fw_select(pools[0], queries[0], case.n_select)
    exact = peers.numpy_select(
        pools[0].double().numpy(), queries[0].double().numpy(), case.n_select
    )
    assert exact.indices.tolist() == expected.indices.tolist()
    assert exact.counts.tolist() == expected.counts.tolist()
    looped = min(case.batch, DISTINCT)

    def select() -> None:
        for pool, query in zip(pools[:looped], queries[:looped], strict=True):
            peers.numpy_select(pool.numpy(), query.numpy(), case.n_select)

    recorder.peer("NumPy", select, scale=case.batch / looped)


def time_gram(
    case: Case, recorder: Recorder, pool: torch.Tensor, query: torch.Tensor
) -> None:
    """All queries at once in float32. Its rounding may choose between nearly equal atoms."""
    x, q = pool[: case.checked_queries], query[: case.checked_queries]
    exact = peers.torch_select(x.double(), q.double(), case.n_select)
    rounded = peers.torch_select(x.float(), q.float(), case.n_select)
    for b, (selection, near) in enumerate(zip(exact, rounded, strict=True)):
        expected = _expected(case, pool, query, b)
        assert selection.indices.tolist() == expected.indices.tolist()
        assert selection.counts.tolist() == expected.counts.tolist()
        current = near.weights @ x[b, near.indices].float().cpu().numpy()
        residual = np.linalg.norm(q[b].float().cpu().numpy() - current)
        assert abs(residual - expected.residual) < 1e-5
        assert near.counts.sum() == case.n_select
    select = partial(peers.torch_select, pool.float(), query.float(), case.n_select)
    recorder.peer("torch, Gram", select)


def time_other_methods(case: Case, recorder: Recorder) -> None:
    """Other methods for the same task. They take one query at a time, in float32 on the CPU."""
    pools, queries = distinct_pools(case.candidates, case.dim)
    arguments = pools[0], queries[0], case.n_select
    if recorder.has_library("activeft"):
        select = partial(peers.sift, *arguments)
        recorder.peer("activeft SIFT", select, scale=case.batch)
    if recorder.has_library("pyversity"):
        diversify = partial(peers.pyversity_mmr, *arguments)
        assert len(set(diversify().tolist())) == case.n_select
        recorder.peer("pyversity MMR", diversify, scale=case.batch)
