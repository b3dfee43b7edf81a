"""What three TF32 products make of a float32 Gram matrix: a model of tensor cores in NumPy.

A float32 x is hi + lo, both of TF32's 11 bits. Of the product (hi + lo)(hi' + lo') the model leaves
out lo lo'. A tensor core multiplies exactly and adds 8 products to a float32 sum that it cuts off
instead of rounding it (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
cores", PeerJ Computer Science, 2021).
"""

import numpy as np
import pytest

DEPTH = 8
"""Products that one instruction adds to a sum: mma.m16n8k8."""
WARPS = 8
"""Each adds up its share of d."""
Matrix = np.ndarray


def tf32(x: Matrix) -> Matrix:
    """Rounded to the nearest number of 11 bits, ties away from 0, as cvt.rna.tf32.f32 does."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def cut(x: Matrix) -> Matrix:
    """float64 to float32, toward 0."""
    nearest = x.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


def accumulate(a: Matrix, b: Matrix) -> Matrix:
    """a b^T in the tensor core's steps of DEPTH columns."""
    sums = np.zeros((len(a), len(b)), np.float32)
    for start in range(0, a.shape[1], DEPTH):
        part = slice(start, start + DEPTH)
        products = a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
        sums = cut(sums.astype(np.float64) + products)
    return sums


def gram(pool: Matrix) -> Matrix:
    """The Gram matrix of pool [K, d]. The three products have sums of their own, so that those of
    rows i and j are those of j and i."""
    total = np.zeros((len(pool), len(pool)), np.float32)
    for warp in range(WARPS):
        columns = np.arange(pool.shape[1]) // DEPTH % WARPS == warp
        hi = tf32(pool[:, columns])
        lo = tf32(pool[:, columns] - hi)
        total += accumulate(hi, hi) + (accumulate(hi, lo) + accumulate(lo, hi))
    lower = np.tril(total)
    return lower + np.tril(total, -1).T


def embeddings(candidates: int, dim: int, seed: int) -> Matrix:
    """Rows of norm 1 with cosines of about 0.5, as neighbours of a query have; two pairs equal."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(candidates, dim)) + generator.normal(size=dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[candidates - 1], rows[candidates // 2] = rows[0], rows[1]
    return rows.astype(np.float32)


def error(made: Matrix, pool: Matrix) -> float:
    """The largest error, of the rows' norms."""
    wide = pool.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    return float((np.abs(made - wide @ wide.T) / np.outer(norms, norms)).max())


@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_three_products_are_as_good_as_float32(dim: int) -> None:
    pool = embeddings(60, dim, seed=dim)
    assert error(gram(pool), pool) <= 1e-6
    hi = tf32(pool)
    assert error(accumulate(hi, hi), pool) > 1e-5  # one product is not


def test_golden_pools(golden: dict[str, object]) -> None:
    for pool in np.asarray(golden["pool"])[:2, :64]:
        assert error(gram(pool), pool) <= 1e-6


@pytest.mark.parametrize("dim", [64, 384])
def test_equal_rows_tie(dim: int) -> None:
    """Against every other row, on either side of the diagonal."""
    pool = embeddings(40, dim, seed=1)
    made = gram(pool)
    assert (made == made.T).all()
    for first, second in ((0, 39), (1, 20)):
        assert (made[first] == made[second]).all()
