"""The code that a user would run without this package."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

_MIN_SQUARED_LENGTH = 1e-12
_MIN_IMPROVEMENT = 1e-14
# The largest eigenvalue, by the power method, which stays below it.
_POWER_STEPS = 30
_POWER_MARGIN = 1.05
_STEPS_BETWEEN_CHECKS = 20
_FISTA_STEPS = 2000


class PeerSelection(NamedTuple):
    """One query's support, largest weight first."""

    indices: np.ndarray
    weights: np.ndarray
    counts: np.ndarray


def numpy_select(
    pool: np.ndarray,
    query: np.ndarray,
    n_select: int,
    *,
    max_iter: int = 250,
    tol: float = 1e-5,
    swap_passes: int = 2,
) -> PeerSelection:
    """The published method on pool [K, d] and query [d], in the dtype of the pool.

    A step is one matrix-vector product of the whole pool with the residual, an argmax, three dot
    products of length d and three updates (of length d, d and K). The current point is updated,
    not recomputed. :func:`numpy_integerize` follows.
    """
    s = int((pool @ query).argmax())
    weights = np.zeros(len(pool))
    weights[s] = 1.0
    current = pool[s].copy()
    support = {s}
    for _ in range(max_iter):
        residual = query - current
        if math.sqrt(residual @ residual) < tol:
            break
        s = int((pool @ residual).argmax())
        direction = pool[s] - current
        squared = float(direction @ direction)
        if squared < _MIN_SQUARED_LENGTH:
            break
        gamma = min(max(float(residual @ direction) / squared, 0.0), 1.0)
        current += gamma * direction
        weights *= 1 - gamma
        weights[s] += gamma
        support.add(s)
        if len(support) >= n_select:
            break
    indices = np.array(sorted(support, key=lambda k: (-weights[k], k)), dtype=np.int64)
    counts = numpy_integerize(
        pool[indices], query, weights[indices], n_select, swap_passes=swap_passes
    )
    return PeerSelection(indices, weights[indices], counts)


def torch_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    max_iter: int = 250,
    tol: float = 1e-5,
) -> list[PeerSelection]:
    """The same method done well in torch, all queries at once: pool [B, K, d] and query [B, d].

    It computes in the dtype and on the device of the pool: first the weights of the whole batch,
    then :func:`numpy_integerize_gram` for each query, because its moves depend on one another.
    """
    weights, held = _gram_frank_wolfe(pool, query, n_select, max_iter, tol)
    selections = []
    for x, q, w, support in zip(pool, query, weights, held, strict=True):
        indices = support.nonzero().flatten()
        order = w[indices].argsort(descending=True, stable=True)[:n_select]
        indices = indices[order]
        shares = w[indices].cpu().numpy()
        counts = numpy_integerize_gram(
            x[indices].cpu().numpy(), q.cpu().numpy(), shares, n_select
        )
        selections.append(PeerSelection(indices.cpu().numpy(), shares, counts))
    return selections


def _gram_frank_wolfe(
    pool: torch.Tensor, query: torch.Tensor, n_select: int, max_iter: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [B, K], and bool [B, K]: the candidates that a step moved toward.

    Let G be the inner products of the candidates' offsets from their query. A step of all queries
    needs only u = G w: the squared residual is w u, and the next vertex has the smallest u.
    """
    batch, candidates, _ = pool.shape
    gram, diagonal, b = _gram_of_offsets(pool, query)
    rows = gram.view(batch * candidates, candidates)
    first_row = candidates * torch.arange(batch, device=pool.device)
    s = b.argmax(1, keepdim=True)
    w = torch.zeros_like(b).scatter_(1, s, 1.0)
    u = rows[first_row + s.squeeze(1)]
    held = w > 0
    active = torch.ones_like(s, dtype=torch.bool)
    for _ in range(max_iter):
        squared_residual = (w * u).sum(1, keepdim=True)
        smallest, s = u.min(1, keepdim=True)
        slope = squared_residual - smallest
        squared_length = diagonal.gather(1, s) - smallest + slope
        active &= (squared_residual >= tol**2) & (squared_length >= _MIN_SQUARED_LENGTH)
        if not active.any():
            break
        gamma = (slope / squared_length).clamp_(0, 1).masked_fill_(~active, 0)
        u.lerp_(rows[first_row + s.squeeze(1)], gamma)
        w.mul_(1 - gamma).scatter_add_(1, s, gamma)
        held.scatter_(1, s, held.gather(1, s) | active)
        active &= held.sum(1, keepdim=True) < n_select
    return w, held


def _gram_of_offsets(
    pool: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inner products [B, K, K] of pool - query, their diagonals [B, K], and pool @ query [B, K]."""
    gram = torch.bmm(pool, pool.mT)
    b = torch.bmm(pool, query.unsqueeze(2)).squeeze(2)
    gram.sub_(b.unsqueeze(2)).sub_(b.unsqueeze(1)).add_(
        query.square().sum(1)[:, None, None]
    )
    return gram, gram.diagonal(dim1=1, dim2=2).contiguous(), b


def numpy_integerize(
    support: np.ndarray,
    query: np.ndarray,
    weights: np.ndarray,
    n_select: int,
    *,
    swap_passes: int = 2,
) -> np.ndarray:
    """The published rounding on support [m, d]: counts int64 [m], in the dtype of the support.

    Every trial move computes the loss again: one vector-matrix product of length m by d and one dot
    product. Unlike the published code, it stops moving units from an atom that has none left.
    """
    counts = _floored(weights, n_select)

    def loss() -> float:
        off = query - (counts / n_select).astype(support.dtype) @ support
        return float(off @ off)

    def loss_with(source: int | None, target: int) -> float:
        _move(counts, source, target)
        value = loss()
        _move(counts, target, source)
        return value

    for _ in range(n_select - int(counts.sum())):
        _move(
            counts,
            None,
            int(np.argmin([loss_with(None, i) for i in range(len(counts))])),
        )
    for _ in range(swap_passes):
        improved = False
        best = loss()
        for i in np.flatnonzero(counts).tolist():
            for j in range(len(counts)):
                if counts[i] == 0:
                    break
                trial = math.inf if j == i else loss_with(i, j)
                if trial < best - _MIN_IMPROVEMENT:
                    _move(counts, i, j)
                    best, improved = trial, True
        if not improved:
            break
    return counts


def numpy_integerize_gram(
    support: np.ndarray,
    query: np.ndarray,
    weights: np.ndarray,
    n_select: int,
    *,
    swap_passes: int = 2,
) -> np.ndarray:
    """The same rounding done well in NumPy: counts int64 [m], in float64.

    The Gram matrix gives the change of the loss by a move in a few operations. One vector operation
    of length m tries all moves of a unit to, or from, one atom.
    """
    x, q = support.astype(np.float64), query.astype(np.float64)
    gram, b = x @ x.T, x @ q
    diagonal = gram.diagonal()
    counts = _floored(weights, n_select)
    v = gram @ counts
    for _ in range(n_select - int(counts.sum())):
        i = int(np.argmin((2 * v + diagonal) / n_select - 2 * b))
        counts[i] += 1
        v += gram[i]
    for _ in range(swap_passes):
        improved = False
        for i in np.flatnonzero(counts).tolist():
            start = 0
            while counts[i] > 0:
                change = 2 * (v - v[i]) + diagonal + diagonal[i] - 2 * gram[i]
                change = change / n_select**2 - 2 * (b - b[i]) / n_select
                change[i] = 0.0
                better = np.flatnonzero(change[start:] < -_MIN_IMPROVEMENT)
                if not len(better):
                    break
                j = start + int(better[0])
                _move(counts, i, j)
                v += gram[j] - gram[i]
                start, improved = j + 1, True
        if not improved:
            break
    return counts


def _floored(weights: np.ndarray, n_select: int) -> np.ndarray:
    clipped = np.maximum(weights.astype(np.float64), 0.0)
    total = clipped.sum()
    shares = clipped / total if total > 0 else np.full(len(clipped), 1 / len(clipped))
    floored: np.ndarray = np.floor(n_select * shares).astype(np.int64)
    return floored


def _move(counts: np.ndarray, source: int | None, target: int | None) -> None:
    if source is not None:
        counts[source] -= 1
    if target is not None:
        counts[target] += 1


def scipy_lstsq(
    pools: np.ndarray, queries: np.ndarray, *, on_simplex: bool
) -> torch.Tensor:
    """SciPy's NNLS of pools [B, K, d] and queries [B, d], one by one: weights [B, K].

    On the simplex the system has one more equation, a heavy one: the weights sum to 1.
    """
    from scipy.optimize import nnls

    if on_simplex:
        heavy = 1e3 * np.abs(pools).max()
        pools = np.insert(pools, 0, heavy, axis=2)
        queries = np.insert(queries, 0, heavy, axis=1)
    weights = [nnls(x.T, q)[0] for x, q in zip(pools, queries, strict=True)]
    return torch.from_numpy(np.stack(weights))


def torch_fista(
    pool: torch.Tensor, query: torch.Tensor, goal: torch.Tensor
) -> torch.Tensor:
    """Accelerated projected gradient, all queries at once: weights [B, K] on the simplex.

    The pool is [K, d] or [B, K, d], the query [B, d]. A query's momentum restarts where it points
    uphill (O'Donoghue and Candes, 2015). It ends when all squared residuals are at most ``goal``
    [B]: it is told when to stop, which spares it the work to find out.
    """
    candidates, dim = pool.shape[-2:]
    # The Gram matrix or its factors, whichever take fewer operations.
    matrices = [pool @ pool.mT] if candidates < 2 * dim else [pool, pool.mT]

    def product(w: torch.Tensor) -> torch.Tensor:
        for matrix in matrices:
            w = times(w, matrix)
        return w

    b = times(query, pool.mT)
    vector = normalize(torch.ones_like(b))
    for _ in range(_POWER_STEPS):
        vector = normalize(product(vector))
    step = 1 / (_POWER_MARGIN * product(vector).norm(dim=1, keepdim=True))
    w = ahead = torch.full_like(b, 1 / candidates)
    age = torch.zeros_like(step)  # of the momentum, in steps
    for iteration in range(_FISTA_STEPS):
        moved = _onto_simplex(ahead + step * (b - product(ahead)))
        is_uphill = ((ahead - moved) * (moved - w)).sum(1, keepdim=True) > 0
        age = (age + 1).masked_fill(is_uphill, 0)
        ahead = moved + age / (age + 3) * (moved - w)
        w = moved
        if iteration % _STEPS_BETWEEN_CHECKS == 0:
            squared_residual = (query - times(w, pool)).square().sum(1)
            if (squared_residual <= goal).all():
                break
    return w


def _onto_simplex(points: torch.Tensor) -> torch.Tensor:
    """The nearest points of the simplex (Held, Wolfe and Crowder, 1974)."""
    sums = points.sort(1, descending=True).values.cumsum(1)
    counts = torch.arange(1, points.shape[1] + 1, device=points.device)
    threshold = ((sums - 1) / counts).amax(1, keepdim=True)
    return (points - threshold).clamp(min=0)


def times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Each of rows [B, n] times a matrix [n, m], or its own of [B, n, m]."""
    return (rows.unsqueeze(1) @ matrix).squeeze(1)


def torch_lmo(
    pool: torch.Tensor, query: torch.Tensor, current: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vertex int64 [B] and the step [B] of pool [B, K, d], query [B, d] and current [B, d]."""
    residual = query - current
    _, vertex = times(residual, pool.mT).max(1)
    direction = pool[torch.arange(len(pool), device=pool.device), vertex] - current
    squared_length = (direction * direction).sum(1)
    gamma = ((residual * direction).sum(1) / squared_length).clamp(0, 1)
    return vertex, gamma


def torch_knn(
    pool: torch.Tensor, query: torch.Tensor, n_select: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean of the nearest rows: the residual [B], and the Frank-Wolfe gap [B]."""
    nearest = times(query, pool.mT).topk(n_select).indices
    rows = pool.gather(1, nearest.unsqueeze(-1).expand(-1, -1, pool.shape[-1]))
    current = rows.mean(1)
    residual = query - current
    gap = times(residual, pool.mT).amax(1) - (residual * current).sum(1)
    return residual.norm(dim=1), gap


def sift(
    pool: torch.Tensor, query: torch.Tensor, n_select: int, *, noise: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """activeft's SIFT on pool [K, d] and query [d] or, for several targets, [m, d].

    Runs in this process. Returns the picks int64 [n_select] in order, and minus the variance after
    each. It computes in the default dtype, which must be the pool's.
    """
    from activeft import ActiveDataLoader
    from activeft.acquisition_functions.vtl import VTL
    from activeft.sift import Dataset

    targets = query.reshape(-1, pool.shape[1])
    acquisition = VTL(target=targets, noise_std=math.sqrt(noise), num_workers=0)
    picks, values = ActiveDataLoader(
        Dataset(pool), n_select, acquisition, device=pool.device
    ).next()
    return picks, values


def pyversity_mmr(pool: torch.Tensor, query: torch.Tensor, n_select: int) -> np.ndarray:
    """n_select distinct rows of pool [K, d], relevant to query [d] and unlike each other."""
    from pyversity import diversify

    rows = pool.numpy()
    scores = rows @ query.numpy()
    indices: np.ndarray = diversify(rows, scores, n_select, "mmr").indices
    return indices


def adams(
    lr: float,
) -> dict[str, Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]]:
    """torch's Adam, fused and as it is by default, each made of the parameters."""
    adam = partial(torch.optim.Adam, lr=lr)
    return {
        "torch fused": partial(adam, fused=True),
        "torch default": adam,
    }
