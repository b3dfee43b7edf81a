"""The errors and ties of a float32 Gram matrix from three TF32 products, on the model in NumPy."""

import numpy as np
import pytest

from tf32_gram import Matrix, accumulate, gram, split


def embeddings(candidates: int, dim: int, seed: int) -> Matrix:
    """Rows of norm 1 with cosines of about 0.5, as neighbours of a query have; two pairs equal."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(candidates, dim))
    rows += generator.normal(size=dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[candidates - 1] = rows[0]
    rows[candidates // 2] = rows[1]
    return rows.astype(np.float32)


def error(products: Matrix, pool: Matrix) -> float:
    """The largest error, of the rows' norms."""
    wide = pool.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    differences = np.abs(products - wide @ wide.T)
    return float((differences / np.outer(norms, norms)).max())


@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_three_products_are_as_good_as_float32(dim: int) -> None:
    pool = embeddings(60, dim, seed=dim)
    assert error(gram(pool), pool) <= 1e-6

    hi, _ = split(pool)
    assert error(accumulate(hi, hi), pool) > 1e-5  # one product is not


def test_golden_pools(golden: dict[str, object]) -> None:
    for pool in np.asarray(golden["pool"])[:2, :64]:
        assert error(gram(pool), pool) <= 1e-6
