"""The scikit-learn estimators: its own checks, and the operators' solutions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import hullft_ops
from hullft_ops.sklearn import NonNegativeRegressor, SimplexRegressor

pytestmark = pytest.mark.cpu_only("scikit-learn's arrays are on the CPU")


@parametrize_with_checks(
    [
        SimplexRegressor(),
        SimplexRegressor(fit_intercept=True),
        NonNegativeRegressor(),
        NonNegativeRegressor(fit_intercept=True),
    ]
)
def test_the_checks_of_scikit_learn(estimator, check) -> None:
    check(estimator)


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((80, 6))
    shares = random.dirichlet(np.ones(6), 3)
    return x, x @ shares.T + 0.1 * random.standard_normal((80, 3))


def test_coefficients_are_those_of_the_operator() -> None:
    x, y = data()
    weights = hullft_ops.simplex_lstsq(torch.tensor(x.T), torch.tensor(y.T)).weights
    model = SimplexRegressor().fit(x, y)

    np.testing.assert_allclose(model.coef_, weights.numpy(), atol=1e-12)
    assert (model.intercept_ == 0).all()
    np.testing.assert_allclose(model.predict(x), x @ model.coef_.T)
    assert model.score(x, y) > 0.9

    alone = SimplexRegressor().fit(x, y[:, 1])

    assert alone.coef_.shape == (6,)
    np.testing.assert_allclose(alone.coef_, model.coef_[1], atol=1e-12)


def test_an_intercept_and_sample_weights() -> None:
    x, y = data()
    y = y[:, 0] + 5
    weight = np.arange(80) % 3
    model = NonNegativeRegressor(fit_intercept=True).fit(x, y, sample_weight=weight)
    peer = LinearRegression(positive=True).fit(x, y, sample_weight=weight)

    np.testing.assert_allclose(model.coef_, peer.coef_, atol=1e-9)
    assert abs(model.intercept_ - peer.intercept_) < 1e-9

    shifted = SimplexRegressor(fit_intercept=True).fit(x, y)

    assert abs(shifted.intercept_ - 5) < 0.1
    assert abs(shifted.coef_.sum() - 1) < 1e-12
