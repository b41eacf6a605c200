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

    The score of class k is x · μ_k − ½ ‖μ_k‖², so that those of two classes differ by x · θ_mm and
    a constant, θ_mm = μ_1 − μ_0 being the mass-mean direction; one slope and an intercept per class
    make probabilities of it. μ_k is the mean of all rows, weighted by their share of class k; of a
    class without rows the mean of all. There is no parameter.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    oof_proba_ : ndarray of shape (n, C)
        P from means without the row and its duplicates.
    means_ : ndarray of shape (C, d)
        μ.
    coef_, intercept_ : ndarray of shape (C, d) and (C,)
        Logits are X @ coef_.T + intercept_, their mean over the classes 0.

    See Also
    --------
    LogisticProbe : The direction that fits the labels best, under a penalty.
    sklearn.neighbors.NearestCentroid : Nearest class mean, without calibration.

    References
    ----------
    https://arxiv.org/abs/2310.06824

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import MassMeanProbe
    >>> X = np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
    >>> probe = MassMeanProbe().fit(X, [0, 0, 1, 1])
    >>> probe.means_.tolist()
    [[0.0, 1.0], [4.0, 1.0]]
    >>> probe.predict([[1.0, 5.0], [3.0, 5.0]]).tolist()
    [0, 1]
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
        # x − x̄: scores of large coordinates would be differences of nearly equal numbers.
        self._center = data.X.mean(axis=0, dtype=np.float64)
        centred = data.X.astype(np.float64) - self._center
        centred[:, constant_columns(self._center, centred.std(axis=0), data.X.dtype)] = 0
        # w_ik: what row i counts in the mean of class k, its label times its weight.
        w = data.Y if data.weight is None else data.Y * data.weight[:, None]
        # μ_k = Σ_i w_ik x_i / Σ_i w_ik
        self._mu = w.T @ centred / _divisor(w.sum(axis=0))[:, None]
        score = _scores_without(centred, w, data)
        # Logits slope · score_k + intercept_k, fitted to the labels (Platt).
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
        # slope · (μ_k − mean of all μ): of two classes ±½ slope · θ_mm.
        return np.asarray(self._calibration.slope * (self._mu - self._mu.mean(axis=0)))

    @property
    def intercept_(self) -> NDArray[np.float64]:
        """Intercepts (C,)."""
        # −½ slope ‖μ_k‖² + intercept_k, less what x̄ was taken away for.
        bias = self._calibration.slope * -0.5 * (self._mu**2).sum(axis=1)
        bias = bias + self._calibration.intercept
        return np.asarray(bias - bias.mean() - self.coef_ @ self._center)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return P (m, C) of new rows X (m, d)."""
        centred = self._check_predict(X).astype(np.float64) - self._center
        # x · μ_k − ½ ‖μ_k‖²
        score = centred @ self._mu.T - 0.5 * (self._mu**2).sum(axis=1)
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


def _divisor(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight (m,) to divide sums by; where there is none the mean is 0, that of all states."""
    return np.where(total > TINY, total, np.inf)


def _scores_without(
    centred: NDArray[np.float64], w: NDArray[np.float64], data: Training
) -> NDArray[np.float64]:
    """Scores (n, C) of rows by means without the row's group, for weights w (n, C)."""
    n_groups = int(data.groups.max()) + 1
    score = np.empty_like(w)
    for k in range(w.shape[1]):
        # Σ w_ik x_i and Σ w_ik over the rows i of each group g.
        part = np.zeros((n_groups, centred.shape[1]))
        np.add.at(part, data.groups, w[:, k : k + 1] * centred)
        total = w[:, k].sum() - np.bincount(data.groups, w[:, k], minlength=n_groups)
        # μ_k without g: the sum of all less that of g, over the weight of all less that of g.
        mu = ((part.sum(axis=0) - part) / _divisor(total)[:, None])[data.groups]
        # x · μ_k − ½ ‖μ_k‖²
        score[:, k] = (centred * mu).sum(axis=1) - 0.5 * (mu**2).sum(axis=1)
    return score
