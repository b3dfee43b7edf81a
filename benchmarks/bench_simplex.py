"""Least squares over the simplex, and non-negative least squares, of a batch of queries."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import hullft_ops
from benchmarks import peers, qp_peers
from benchmarks.recorder import Recorder
from benchmarks.simplex_problems import KINDS, NNLS_KINDS, REGULAR, problem

# Of squared residuals, relative.
_ROUNDING = 1e-9
_FLOAT32_ROUNDING = 1e-5  # of CUDA's state
_FISTA_EXCESS = 1e-6
_EXACT = ("SciPy nnls", "quadprog", "DAQP")


@dataclass(frozen=True)
class Case:
    kind: str
    batch: int
    dtype: str = "float64"
    solver: str = "simplex_lstsq"

    def __str__(self) -> str:
        return f"{self.solver}-{self.kind}-B{self.batch}-{self.dtype}"


def cases(smoke: bool) -> list[Case]:
    all_cases = []
    for batch in [2] if smoke else [64, 1]:
        all_cases += [Case(kind, batch) for kind in KINDS]
        all_cases.append(Case("text", batch, dtype="float32"))
        all_cases += [Case(kind, batch, solver="nnls") for kind in NNLS_KINDS]
    return all_cases


def test_simplex(case: Case, recorder: Recorder, device: torch.device) -> None:
    rows, queries = problem(case.kind, case.batch)
    dtype = getattr(torch, case.dtype)
    pool, query = rows.to(device, dtype), queries.to(device, dtype)
    on_simplex = case.solver == "simplex_lstsq"

    def squared_residuals(weights: torch.Tensor) -> torch.Tensor:
        w = weights.to(rows).clamp(min=0)
        if on_simplex:  # scaled to the sum of 1 that float32 misses
            w = w / w.sum(1, keepdim=True)
        return (queries - peers.times(w, rows)).square().sum(1)

    solve = partial(getattr(hullft_ops, case.solver), pool, query)
    solution = solve()
    ours = squared_residuals(solution.weights)
    recorder.fact("cycles", solution.num_iter.double().mean().item())
    solvers: dict[str, Callable[[], torch.Tensor]] = {}
    if recorder.has_library("scipy"):
        pools = rows.expand(len(queries), -1, -1).numpy()
        solvers["SciPy nnls"] = partial(
            peers.scipy_lstsq, pools, queries.numpy(), on_simplex=on_simplex
        )
    if on_simplex:
        goal = (1 + _FISTA_EXCESS) * ours.to(pool)
        solvers["torch FISTA"] = partial(peers.torch_fista, pool, query, goal)
    solvers |= quadratic_programs(case, rows, queries, recorder)
    float32_state = pool.is_cuda and case.dtype == "float32"
    rounding = _FLOAT32_ROUNDING if float32_state else _ROUNDING
    for name, solver in solvers.items():
        excess = squared_residuals(solver()) / ours - 1
        assert excess.min() >= -rounding
        if name in _EXACT:
            assert excess.max() <= rounding
        recorder.fact(f"excess of {name}", excess.max().item())
    recorder.ours(solve)
    for name, solver in solvers.items():
        recorder.peer(name, solver)


def quadratic_programs(
    case: Case, rows: torch.Tensor, queries: torch.Tensor, recorder: Recorder
) -> dict[str, Callable[[], torch.Tensor]]:
    """Peers that take the Gram matrix, in float64."""
    if case.kind not in REGULAR or case.dtype != "float64":
        return {}
    pools, targets = rows.reshape(-1, *rows.shape[-2:]).numpy(), queries.numpy()
    on_simplex = case.solver == "simplex_lstsq"
    solvers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, solve in (
        ("quadprog", qp_peers.quadprog),
        ("DAQP", qp_peers.daqp),
        ("PIQP", qp_peers.piqp),
    ):
        if recorder.has_library(name.lower()):
            solvers[name] = partial(
                qp_peers.one_by_one, solve, pools, targets, on_simplex
            )
    if not on_simplex and recorder.has_library("jaxnnls"):
        solvers["jaxnnls"] = qp_peers.jaxnnls(pools, targets)
    return solvers
