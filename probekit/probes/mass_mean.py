"""Mass-mean probe: a linear probe along the difference of the class means.

Marks & Tegmark 2023, "The Geometry of Truth", section 5.1, https://arxiv.org/abs/2310.06824. In its
symbols μ_k is the mean state of class k and θ_mm = μ_1 − μ_0 the mass-mean direction. The paper's
second form, Σ⁻¹ θ_mm, is linear discriminant analysis: see the ridge members of EnsembleProbe.
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

TINY = 1e-9  # sums of weights below this are rounding


class MassMeanProbe(BaseProbe):
    """Mass-mean probe: each class is scored by the distance to its mean state.

    The score of class k is x · μ_k − ½ ‖μ_k‖²; those of two classes differ by θ_mm · x and a
    constant. One slope and an intercept per class, fitted to the labels, turn scores into
    probabilities. There is nothing to choose: take it where labels are too few or too noisy to fit
    a direction, or as the baseline of :class:`LogisticProbe`.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Number of columns d of X.
    oof_proba_ : ndarray of shape (n, C)
        Class probabilities of every row, by means without the row and its group.
    means_ : ndarray of shape (C, d)
        Class means μ; soft labels count by their probability, and a class without rows has the mean
        of all rows.
    coef_ : ndarray of shape (C, d)
        Directions in the space of X; logits are ``X @ coef_.T + intercept_``, with mean 0 over the
        classes.
    intercept_ : ndarray of shape (C,)
        Intercepts.

    See Also
    --------
    LogisticProbe : The direction that fits the labels best, under a penalty.
    EnsembleProbe : Ridge fits (the whitened form) and kNN votes over several layers.
    sklearn.neighbors.NearestCentroid : Nearest class mean, without probabilities.

    References
    ----------
    .. [1] Marks & Tegmark 2023, https://arxiv.org/abs/2310.06824

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
        """Fit the class means, and predict every row by means without it.

        Parameters
        ----------
        X : array-like of shape (n, d)
            States.
        y : array-like of shape (n,) or (n, C)
            Hard labels, P(second class), or class probabilities.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the means and in the calibration; None: 1.
        groups : array-like of shape (n,), default=None
            Rows of one group are left out together, so that a copy of a row does not predict it;
            None: rows with equal states.

        Returns
        -------
        self : MassMeanProbe
        """
        data = self._check_fit(X, y, sample_weight, groups)
        # Centre, x ← x − x̄: with large coordinates, scores would be differences of nearly equal
        # numbers otherwise. Columns that are constant up to rounding become 0.
        self._x_mean = data.X.mean(axis=0, dtype=np.float64)
        centred = data.X.astype(np.float64) - self._x_mean
        centred[:, constant_columns(self._x_mean, centred.std(axis=0), data.X.dtype)] = 0
        # w_ik: the label of row i for class k, times the weight of the row.
        w = data.Y if data.weight is None else data.Y * data.weight[:, None]
        # μ_k = Σ_i w_ik x_i / Σ_i w_ik
        self._mu = w.T @ centred / _divisor(w.sum(axis=0))[:, None]
        # Scores of every row, by means without its group.
        score = _scores_without_group(centred, w, data)
        # Logits a · score_k + b_k, fitted to the labels (Platt).
        self._calibration = calibrate(score, data.Y, data.weight)
        self.oof_proba_ = softmax(self._calibration.log_odds(score), axis=1)
        return self

    @property
    def means_(self) -> NDArray[np.float64]:
        """Class means (C, d)."""
        return np.asarray(self._mu + self._x_mean)

    @property
    def coef_(self) -> NDArray[np.float64]:
        """Directions (C, d) in the space of X."""
        # a · (μ_k − mean of all μ), for two classes ±½ a · θ_mm.
        return np.asarray(self._calibration.slope * (self._mu - self._mu.mean(axis=0)))

    @property
    def intercept_(self) -> NDArray[np.float64]:
        """Intercepts (C,)."""
        # b_k − ½ a ‖μ_k‖², with mean 0 over the classes.
        bias = self._calibration.slope * -0.5 * (self._mu**2).sum(axis=1)
        bias = bias + self._calibration.intercept
        # X is not centred: coef · (x − x̄) = coef · x − coef · x̄.
        return np.asarray(bias - bias.mean() - self.coef_ @ self._x_mean)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict class probabilities of new rows.

        Parameters
        ----------
        X : array-like of shape (m, d)
            States.

        Returns
        -------
        ndarray of shape (m, C)
            Class probabilities, columns as in ``classes_``.
        """
        centred = self._check_predict(X).astype(np.float64) - self._x_mean
        # x · μ_k − ½ ‖μ_k‖²
        score = centred @ self._mu.T - 0.5 * (self._mu**2).sum(axis=1)
        return np.asarray(softmax(self._calibration.log_odds(score), axis=1))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "center": self._x_mean,
            "mu": self._mu,
            "oof_proba": self.oof_proba_,
            "slope": np.array([self._calibration.slope]),
            "offset": self._calibration.intercept,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._x_mean, self._mu = arrays["center"], arrays["mu"]
        self.oof_proba_ = arrays["oof_proba"]
        self._calibration = Calibration(float(arrays["slope"][0]), arrays["offset"])


def _scores_without_group(
    centred: NDArray[np.float64], w: NDArray[np.float64], data: Training
) -> NDArray[np.float64]:
    """Scores (n, C) of every row by means without its group, for weights w (n, C)."""
    n_groups = int(data.groups.max()) + 1
    score = np.empty_like(w)
    for k in range(w.shape[1]):
        # Σ_{i∈g} w_ik x_i of each group g, and Σ_i w_ik of all rows outside g.
        group_sum = np.zeros((n_groups, centred.shape[1]))
        np.add.at(group_sum, data.groups, w[:, k : k + 1] * centred)
        total = w[:, k].sum() - np.bincount(data.groups, w[:, k], minlength=n_groups)
        # μ_k without g: (Σ_i w_ik x_i − Σ_{i∈g} w_ik x_i) / Σ_{i∉g} w_ik
        mu = ((group_sum.sum(axis=0) - group_sum) / _divisor(total)[:, None])[data.groups]
        # x · μ_k − ½ ‖μ_k‖²
        score[:, k] = (centred * mu).sum(axis=1) - 0.5 * (mu**2).sum(axis=1)
    return score


def _divisor(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights to divide sums by; ∞ for 0, so that a class without rows has the mean of all rows."""
    return np.where(total > TINY, total, np.inf)
