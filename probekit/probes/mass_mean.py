"""Mass-mean probe: the direction from one class's mean state to another's.

Marks & Tegmark 2023, section 5.1, https://arxiv.org/abs/2310.06824. Their second form, whitened by
the inverse covariance, is linear discriminant analysis: a ridge member of the ensemble.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.special import softmax

from probekit.probes.base import BaseProbe
from probekit.probes.calibration import Calibration, calibrate
from probekit.states import constant_columns

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.probes.base import Training

__all__ = ["MassMeanProbe"]

TINY = 1e-9  # what rounding leaves of a sum of weights that is 0


class MassMeanProbe(BaseProbe):
    """Nearest class mean, each row scored by means without it and calibrated to the labels.

    The score of class k is x · μ_k − ½ ‖μ_k‖², so that of two classes differ by x · (μ_1 − μ_0)
    and a constant; one slope and an intercept per class make probabilities of it. μ_k is the mean
    of all rows, weighted by their share of class k; of a class without rows the mean of all.

    Attributes
    ----------
    oof_proba_
        P (n, C) from means without the row and its duplicates.
    means_
        μ (C, d).
    coef_, intercept_
        Logits X @ coef_.T + intercept_, (C, d) and (C,), their mean over the classes 0.

    Source: https://arxiv.org/abs/2310.06824.
    """

    leave_one_out = True

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit and predict every row without itself; rows of one group are left out together."""
        data = self._check_fit(X, y, sample_weight, groups)
        # Scores of large coordinates would be differences of nearly equal numbers.
        self._center = data.X.mean(axis=0, dtype=np.float64)
        states = data.X.astype(np.float64) - self._center
        states[:, constant_columns(self._center, states.std(axis=0), data.X.dtype)] = 0
        self._mu = _means(states, data)
        score = _without(states, data)
        self._calibration = calibrate(score, data.Y, data.weight)
        self.oof_proba_ = softmax(self._calibration.log_odds(score), axis=1)
        return self

    @property
    def means_(self) -> NDArray[np.float64]:
        """Means of the classes (C, d)."""
        return np.asarray(self._mu + self._center)

    @property
    def coef_(self) -> NDArray[np.float64]:
        """Directions (C, d) in the space of X."""
        return np.asarray(self._calibration.slope * (self._mu - self._mu.mean(axis=0)))

    @property
    def intercept_(self) -> NDArray[np.float64]:
        """Intercepts (C,)."""
        bias = self._calibration.slope * -0.5 * (self._mu**2).sum(axis=1)
        bias = bias + self._calibration.intercept
        return np.asarray(bias - bias.mean() - self.coef_ @ self._center)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return P (m, C) of new rows X (m, d)."""
        states = self._check_predict(X).astype(np.float64) - self._center
        score = states @ self._mu.T - 0.5 * (self._mu**2).sum(axis=1)
        return np.asarray(softmax(self._calibration.log_odds(score), axis=1))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "center": self._center,
            "mu": self._mu,
            "oof_proba": self.oof_proba_,
            "slope": np.array([self._calibration.slope]),
            "offset": self._calibration.intercept,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._center, self._mu = arrays["center"], arrays["mu"]
        self.oof_proba_ = arrays["oof_proba"]
        self._calibration = Calibration(float(arrays["slope"][0]), arrays["offset"])


def _shares(data: Training) -> NDArray[np.float64]:
    return data.Y if data.weight is None else data.Y * data.weight[:, None]


def _means(states: NDArray[np.float64], data: Training) -> NDArray[np.float64]:
    share = _shares(data)
    return np.asarray(share.T @ states / _divisor(share.sum(axis=0))[:, None])


def _divisor(held: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight (m,) to divide sums by; where none is held the mean is 0, that of all states."""
    return np.where(held > TINY, held, np.inf)


def _without(states: NDArray[np.float64], data: Training) -> NDArray[np.float64]:
    """Scores (n, C) by means without the row's group."""
    share = _shares(data)
    number = data.groups
    many = int(number.max()) + 1
    score = np.empty_like(share)
    for k in range(share.shape[1]):
        part = np.zeros((many, states.shape[1]))
        np.add.at(part, number, share[:, k : k + 1] * states)
        held = share[:, k].sum() - np.bincount(number, share[:, k], minlength=many)
        left = ((part.sum(axis=0) - part) / _divisor(held)[:, None])[number]
        score[:, k] = (states * left).sum(axis=1) - 0.5 * (left**2).sum(axis=1)
    return score
