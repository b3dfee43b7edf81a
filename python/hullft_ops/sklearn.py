"""Linear regression with constrained coefficients, as scikit-learn estimators.

The longest column of X and y must be between 1e-146 and 1e153: the solvers multiply columns.
They need scikit-learn: the extra ``hullft_ops[sklearn]``.
"""

from collections.abc import Callable
from typing import Any, Self

import torch

from hullft_ops._extras import needed_by
from hullft_ops.lstsq import LstsqSolution, nnls, simplex_lstsq

with needed_by("hullft_ops.sklearn", "sklearn"):
    import numpy as np
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_is_fitted,
        validate_data,
    )


class _ConstrainedRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """``y = X @ coef_ + intercept_``. Several targets are solved as one batch."""

    _solve: Callable[..., LstsqSolution]

    def __init__(self, *, fit_intercept: bool = False) -> None:
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fit the coefficients.

        Args:
            X: [n_samples, n_features]
            y: [n_samples] or [n_samples, n_targets]
            sample_weight: [n_samples], >= 0: of the squared errors.
        """
        X, y = validate_data(  # noqa: N806
            self, X, y, dtype=np.float64, y_numeric=True, multi_output=True
        )
        y = np.asarray(y, dtype=np.float64)
        targets = y[:, None] if y.ndim == 1 else y
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        x_mean, y_mean = np.zeros(X.shape[1]), np.zeros(targets.shape[1])
        if self.fit_intercept:
            x_mean, y_mean = (
                np.average(a, axis=0, weights=weight) for a in (X, targets)
            )
        scale = np.sqrt(weight)[:, None]
        vectors = [scale * (X - x_mean), scale * (targets - y_mean)]
        pool, query = (torch.from_numpy(np.ascontiguousarray(v.T)) for v in vectors)
        coefficients = self._solve(pool, query).weights.numpy()
        intercepts = y_mean - coefficients @ x_mean
        self.coef_ = coefficients[0] if y.ndim == 1 else coefficients
        self.intercept_ = intercepts[0] if y.ndim == 1 else intercepts
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """[n_samples] or [n_samples, n_targets], of X [n_samples, n_features]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)  # noqa: N806
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of data that no such coefficients fit
        return tags


class SimplexRegressor(_ConstrainedRegressor):
    """Linear regression whose coefficients are >= 0 and sum to 1: by `simplex_lstsq`.

    Synthetic control, stacking and forecast combination are such regressions.

    Args:
        fit_intercept: whether to centre X and y by their (weighted) means.

    Attributes:
        coef_: [n_features] or [n_targets, n_features]
        intercept_: a float or [n_targets]; 0 without ``fit_intercept``.
    """

    _solve = staticmethod(simplex_lstsq)


class NonNegativeRegressor(_ConstrainedRegressor):
    """Linear regression whose coefficients are >= 0: by `nnls`.

    Arguments and attributes are as in `SimplexRegressor`.
    """

    _solve = staticmethod(nnls)
