"""What the operators compute, slowly and in plain torch float64. Every test compares with it.

It takes one query at a time and keeps no state beyond what the definition needs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Of vectors of norm 1.
_MIN_SQUARED_LENGTH = 1e-12
_MIN_IMPROVEMENT = 1e-14
_STATIONARY = 16 * torch.finfo(torch.float64).eps


class ReferenceSelection(NamedTuple):
    """One query's selection; ``indices``, ``weights`` and ``counts`` hold only the support."""

    indices: Tensor
    weights: Tensor
    counts: Tensor
    residual: float
    gap: float
    num_iter: int


def fw_select(
    pool: Tensor,
    query: Tensor,
    n_select: int,
    *,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    max_support: int | None = None,
) -> ReferenceSelection:
    """Frank-Wolfe on pool [K, d] and query [d]; every step computes the residual again."""
    x, q = pool.double(), query.double()
    if len(x) == 0:
        return knn_select(x, q, n_select)
    most = n_select if max_support is None else max_support
    if variant == "corrective":
        w, num_iter = _fully_corrective(
            x, q, True, max_iter, tol=tol, gap_tol=gap_tol, max_support=most
        )
        support = set(w.nonzero().flatten().tolist())
    else:
        w, support, num_iter = _steps(x, q, most, max_iter, tol, gap_tol)
    order = sorted(support, key=lambda k: (-w[k].item(), k))[:most]
    indices = torch.tensor(order, dtype=torch.int64)
    counts = integerize(x[indices], q, w[indices], n_select, swap_passes=swap_passes)
    return ReferenceSelection(
        indices, w[indices], counts, *_reached(x, q, x.T @ w), num_iter
    )


def _steps(
    x: Tensor, q: Tensor, most: int, max_iter: int, tol: float, gap_tol: float
) -> tuple[Tensor, set[int], int]:
    """Weights, support and steps of "vanilla", each with exact line search toward one row."""
    s = _argmax(_products(x, q))
    w, support = _vertex(x, s), {s}
    num_iter = 0
    while num_iter < max_iter:
        current = x.T @ w
        step = fw_lmo(x, q, current)
        is_within_tol = (q - current).norm() < tol * q.norm()
        if is_within_tol or (gap_tol > 0 and step.gap <= gap_tol):
            break
        if _is_rounding(x[step.vertex], current):
            break
        w = (1 - step.gamma) * w + step.gamma * _vertex(x, step.vertex)
        support.add(step.vertex)
        num_iter += 1
        if len(support) >= most:
            break
    return w, support, num_iter


class ReferenceLstsq(NamedTuple):
    """One query's weights [K] of least squares."""

    weights: Tensor
    residual: float
    gap: float
    num_iter: int


def simplex_lstsq(pool: Tensor, query: Tensor) -> ReferenceLstsq:
    """The point of the hull of pool [K, d] that is nearest to query [d]."""
    x, q = pool.double(), query.double()
    w, num_iter = _fully_corrective(x, q, True, 3 * len(x))
    return ReferenceLstsq(w, *_reached(x, q, x.T @ w), num_iter)


def nnls(pool: Tensor, query: Tensor) -> ReferenceLstsq:
    """The combination of the rows of pool [K, d] with weights >= 0 that is nearest to query [d]."""
    x, q = pool.double(), query.double()
    w, num_iter = _fully_corrective(x, q, False, 3 * len(x))
    r = q - x.T @ w
    c = _products(x, r)
    violation = torch.cat([c, -c[w > 0]]).max().item()
    return ReferenceLstsq(w, r.norm().item(), max(violation, 0.0), num_iter)


def lstsq_adjoint(
    pool: Tensor, weights: Tensor, gradient: Tensor, is_gram: bool, on_simplex: bool
) -> Tensor:
    """[K]: what a gradient [K] of the weights [K] of least squares is to G w.

    The pool is [K, d], or with is_gram the matrix G. On the simplex the answer sums to 0; of all
    solutions it has the least norm. It is 0 outside the support.
    """
    support = weights > 0
    rows = pool[support].double()
    if is_gram:
        rows = rows[:, support]
    # Far from 0, a matrix G holds no more of what rows differ by.
    noise = torch.finfo(torch.float64).eps * rows.abs().sum() if is_gram else 0.0
    if on_simplex:
        rows = rows - rows.mean(0)
    system = rows if is_gram else rows @ rows.mT
    if on_simplex:
        system = system - system.mean(1, keepdim=True)
    system = (system + system.mT) / 2
    inverse = torch.linalg.pinv(system, atol=noise, rtol=1e-12, hermitian=True)
    v = torch.zeros_like(weights)
    v[support] = (inverse @ gradient[support].double()).to(weights.dtype)
    return v


def _fully_corrective(
    x: Tensor,
    q: Tensor,
    sum_to_one: bool,
    max_iter: int,
    *,
    tol: float = 0.0,
    gap_tol: float = 0.0,
    max_support: int | None = None,
) -> tuple[Tensor, int]:
    """Weights [K] and major cycles; after each the weights are the best for the support."""
    support = [_argmax(_products(x, q))] if sum_to_one else []
    w = torch.zeros(len(x), dtype=torch.float64)
    w[support] = 1.0
    num_iter = 0
    while num_iter < max_iter and (max_support is None or len(support) < max_support):
        r = q - x.T @ w
        c = _products(x, r)
        k = _argmax(c)
        slope = (c[k] - r @ (q - r) if sum_to_one else c[k]).item()
        if k in support or _is_stationary(x, q, w, k, slope, sum_to_one):
            break
        if r.norm() < tol * q.norm() or (gap_tol > 0 and slope <= gap_tol):
            break
        w, support = _corrected(x, q, w, [*support, k], sum_to_one)
        num_iter += 1
        if k not in support:
            break
    return w, num_iter


def _is_stationary(
    x: Tensor, q: Tensor, w: Tensor, k: int, slope: float, sum_to_one: bool
) -> bool:
    """Whether a slope is no more than the rounding of the rows that the residual is made of."""
    rows = x - q if sum_to_one else x
    terms = w @ rows.norm(dim=1) + (0 if sum_to_one else q.norm())
    return bool(slope <= _STATIONARY * (rows[k].norm() * terms).item())


def _corrected(
    x: Tensor, q: Tensor, w: Tensor, support: list[int], sum_to_one: bool
) -> tuple[Tensor, list[int]]:
    """The best weights for the support, of which rows leave that would get a negative one.

    It ends early if the last row, which has just entered, leaves.
    """
    entering = support[-1]
    while entering in support:
        best = _vertex(x, entering) * 0
        best[support] = _best_weights(x[support], q, sum_to_one)
        negative = [k for k in support if not best[k] > 0]
        if not negative:
            return best, support
        shares = {
            k: (w[k] / (w[k] - best[k])).item() if w[k] > 0 else 0.0 for k in negative
        }
        leaving = min(negative, key=lambda k: (shares[k], k))
        w = w + shares[leaving] * (best - w)
        w[leaving] = 0.0
        support = [k for k in support if w[k] > 0]
        w = torch.where(w > 0, w, 0.0)
    return w, support


def _best_weights(rows: Tensor, q: Tensor, sum_to_one: bool) -> Tensor:
    """Weights [m] of rows [m, d], of either sign, whose combination is nearest to q."""
    if not sum_to_one:
        solution = torch.linalg.lstsq(rows.T, q.unsqueeze(1), driver="gelsd").solution
        weights: Tensor = solution[:, 0]
        return weights
    if len(rows) == 1:
        return torch.ones(1, dtype=torch.float64)
    first, others = rows[0], rows[1:]
    system, target = (others - first).T, (q - first).unsqueeze(1)
    rest = torch.linalg.lstsq(system, target, driver="gelsd").solution[:, 0]
    return torch.cat([1 - rest.sum().unsqueeze(0), rest])


def _reached(x: Tensor, q: Tensor, current: Tensor) -> tuple[float, float]:
    """The residual and the gap at a point of the hull, which is below 0 only by rounding."""
    r = q - current
    gap = ((x @ r).max() - r @ current).item() if len(x) else 0.0
    return r.norm().item(), max(gap, 0.0)


def _products(x: Tensor, v: Tensor) -> Tensor:
    """[K]: each row's inner product with v. A matrix product may differ between equal rows."""
    return (x * v).contiguous().sum(1)


def _vertex(x: Tensor, k: int) -> Tensor:
    """The weights [K] that are all on row k."""
    return (torch.arange(len(x)) == k).double()


def _argmax(values: Tensor) -> int:
    """The lowest index of the largest value."""
    return int((values == values.max()).nonzero()[0])


def _is_rounding(start: Tensor, end: Tensor) -> bool:
    """Whether two points are too close, beside their norms, for a direction between them."""
    largest = torch.maximum(start @ start, end @ end)
    return bool((end - start).square().sum() <= _MIN_SQUARED_LENGTH * largest)


class ReferenceLmo(NamedTuple):
    """One query's linear minimisation."""

    vertex: int
    correlation: float
    gamma: float
    gap: float


def fw_lmo(pool: Tensor, query: Tensor, current: Tensor) -> ReferenceLmo:
    """The vertex of pool [K, d] to move current [d] toward, to get nearer to query [d]."""
    x, at = pool.double(), current.double()
    r = query.double() - at
    c = _products(x, r)
    s = _argmax(c)
    direction = x[s] - at
    squared = (direction @ direction).item()
    gamma = (
        0.0
        if _is_rounding(at, x[s])
        else min(max((r @ direction).item() / squared, 0.0), 1.0)
    )
    return ReferenceLmo(s, c[s].item(), gamma, (c[s] - r @ at).item())


def knn_select(pool: Tensor, query: Tensor, n_select: int) -> ReferenceSelection:
    """The n_select rows of pool [K, d] with the largest inner products with query [d].

    All have the same weight. A pool without rows selects none.
    """
    x, q = pool.double(), query.double()
    b = _products(x, q)
    nearest = sorted(range(len(x)), key=lambda k: (-b[k].item(), k))[:n_select]
    indices = torch.tensor(nearest, dtype=torch.int64)
    w = torch.full((len(nearest),), 1 / n_select, dtype=torch.float64)
    counts = torch.ones(len(nearest), dtype=torch.int64)
    return ReferenceSelection(indices, w, counts, *_reached(x, q, x[indices].T @ w), 0)


class ReferenceSift(NamedTuple):
    """One query's picks in order, and the variance after each."""

    selection: ReferenceSelection
    picks: list[int]
    variance: list[float]


# Candidates this close to the best count as ties; a share of the variance before any pick.
_SIFT_ROUNDING = 1e-12


def sift_select(
    pool: Tensor, query: Tensor, n_select: int, *, noise: float = 0.01
) -> ReferenceSift:
    """SIFT on pool [K, d] and query [d] or, for several targets, [m, d]."""
    x, q = pool.double(), query.double().reshape(-1, pool.shape[1])
    picks: list[int] = []
    variance: list[float] = []
    if len(x) == 0:
        return ReferenceSift(knn_select(x, q.mean(0), n_select), picks, variance)
    for _ in range(n_select):
        left = variance_after(x, q, picks, noise)
        tied = left <= left.min() + _SIFT_ROUNDING * (q * q).sum()
        picks.append(int(tied.nonzero()[0]))
        variance.append(left[picks[-1]].item())
    counts = torch.bincount(torch.tensor(picks), minlength=len(x))
    support = sorted(set(picks), key=lambda k: (-counts[k].item(), k))
    indices = torch.tensor(support)
    w = counts[indices].double() / n_select
    reached = _reached(x, q.mean(0), x[indices].T @ w)
    selection = ReferenceSelection(indices, w, counts[indices], *reached, n_select)
    return ReferenceSift(selection, picks, variance)


def variance_after(
    pool: Tensor, targets: Tensor, picks: Sequence[int], noise: float
) -> Tensor:
    """[K]: the variance that remains at targets [m, d] after observing the picks and row k."""
    rows = torch.arange(len(pool)).unsqueeze(1)
    observed = torch.cat(
        [torch.tensor([picks]).long().expand(len(pool), -1), rows], dim=1
    )
    gram = (pool @ pool.T)[observed.unsqueeze(2), observed.unsqueeze(1)]  # [K, n, n]
    cross = (pool @ targets.T)[observed]  # [K, n, m]
    noisy = gram + noise * torch.eye(len(picks) + 1, dtype=pool.dtype)
    explained: Tensor = (cross * torch.linalg.solve(noisy, cross)).sum((1, 2))
    return targets.square().sum() - explained


def integerize(
    support: Tensor,
    query: Tensor,
    weights: Tensor,
    n_select: int,
    *,
    swap_passes: int = 2,
) -> Tensor:
    """Counts [m] that sum to n_select, for support [m, d], query [d], weights [m]."""
    x, q, w = support.double(), query.double(), weights.double().clamp(min=0)
    m = len(x)
    gram, b = x @ x.T, x @ q
    improvement = _MIN_IMPROVEMENT * gram.diagonal().max().item()
    rounding = max(improvement, _MIN_IMPROVEMENT * b.abs().max().item())
    w = w / w.sum() if w.sum() > 0 else torch.full((m,), 1 / m, dtype=torch.float64)
    counts = [math.floor(n_select * value) for value in w.tolist()]

    def loss(trial: list[int]) -> float:
        c = torch.tensor(trial, dtype=torch.float64) / n_select
        return float(c @ gram @ c - 2 * (c @ b))

    def changed(target: int, source: int | None = None) -> list[int]:
        return [count + (i == target) - (i == source) for i, count in enumerate(counts)]

    while sum(counts) < n_select:
        losses = [loss(changed(i)) for i in range(m)]
        tied = min(losses) + rounding
        counts[next(i for i, value in enumerate(losses) if value <= tied)] += 1
    for _ in range(swap_passes):
        before = counts
        for i in [i for i in range(m) if counts[i] > 0]:
            for j in range(m):
                if counts[i] > 0 and loss(changed(j, i)) < loss(counts) - improvement:
                    counts = changed(j, i)
        if counts == before:
            break
    return torch.tensor(counts, dtype=torch.int64)


class ReferenceAdam(NamedTuple):
    """A parameter, its moments and its step count after some Adam steps."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def adam_replay(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    repeats: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> ReferenceAdam:
    """``repeats`` steps of Adam, or of AdamW if decoupled, with a fixed gradient."""
    p, gradient, m, v, t = (
        tensor.double() for tensor in (param, grad, exp_avg, exp_avg_sq, step)
    )
    for _ in range(repeats):
        t = t + 1
        g = -gradient if maximize else gradient
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        p = p - lr * m_hat / (v_hat.sqrt() + eps)
    return ReferenceAdam(p, m, v, t)


_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Four random 32-bit words for a counter of four words and a key of two: Philox4x32-10.

    After Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011).
    """
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = _PHILOX_MULTIPLIERS[0] * c[0], _PHILOX_MULTIPLIERS[1] * c[2]
        c = [
            second >> 32 ^ c[1] ^ k[0],
            second & _WORD,
            first >> 32 ^ c[3] ^ k[1],
            first & _WORD,
        ]
        k = [
            (word + step) & _WORD
            for word, step in zip(k, _PHILOX_KEY_STEPS, strict=True)
        ]
    return c


def round_to_bfloat16(
    values: Tensor, *, seed: int, tensor: int, steps_done: int
) -> Tensor:
    """Round float32 values to bfloat16, up or down at random, right on average.

    A value's 16 random bits depend on its place in memory, its tensor's place in the list of
    parameters, and the number of earlier steps. They are added below the bits that stay.
    """
    flat, halves = values.flatten(), list[int]()
    for group in range(math.ceil(len(flat) / 8)):
        counter = (group & _WORD, group >> 32, tensor, steps_done & _WORD)
        for word in philox(counter, (seed & _WORD, seed >> 32)):
            halves += [word & 0xFFFF, word >> 16]
    noise = torch.tensor(halves[: len(flat)], dtype=torch.int64)
    rounded = ((flat.view(torch.int32).long() & _WORD) + noise >> 16).to(torch.uint16)
    finite, nearest = flat.isfinite(), flat.bfloat16()
    return torch.where(finite, rounded.view(torch.bfloat16), nearest).view(values.shape)


def grad_accumulate(
    cache: Tensor, grad: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """``beta * cache + alpha * grad``; with ``beta = 0`` the cache may hold anything, even NaN."""
    return alpha * grad.double() + (beta * cache.double() if beta != 0 else 0.0)
