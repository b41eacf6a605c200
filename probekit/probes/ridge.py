"""Ridge regression on class indicators, with exact leave-one-group-out predictions.

One eigendecomposition of the states' covariance Σ = V diag(σ²) Vᵀ serves every penalty λ, every
label and every row left out. Leave-one-out in closed form is PRESS (Allen 1974,
https://doi.org/10.1080/00401706.1974.10489157), here for groups of rows. Regression on indicators
has the directions of linear discriminant analysis, shrunk by λ (Hastie, Buja & Tibshirani 1995,
https://doi.org/10.1214/aos/1176324456).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import ProbeError
from probekit.states import Streamed, constant_columns, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["PENALTIES", "RidgeStates", "choose_penalty"]

# λ in units of s², the mean eigenvalue of Σ.
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)

# Projections of more rows are kept in float32: each row's leverage is then far from 1, so that
# rounding stays as small as it is.
EXACT_BYTES = 1 << 30


class RidgeStates:
    """States X decomposed once, for ridge fits with any labels and penalties.

    A fit minimises Σ_i w_i (y_i − a − x_i · b)² + λ n s² ‖b‖² over coefficients b and intercept a.
    The intercept is not penalised, so X can be centred. s² = tr Σ / d is the mean square of the
    centred entries, so that λ means the same for states of any size, and weights have mean 1.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        States, finite; :class:`probekit.states.Streamed` ones are read in every pass.
    groups : ndarray of shape (n,), default=None
        Rows of one group are left out together. Set it if rows have copies or belong to one
        question: a fit that has seen a copy of a row predicts it too well. None: each row alone.
    weight : ndarray of shape (n,), default=None
        Weights of the rows; None: equal weights.

    Raises
    ------
    ProbeError
        If one group has all the weight, so that no row could be predicted without it.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> Y = np.eye(2)[(X[:, 0] > 0).astype(int)]
    >>> states = RidgeStates(X)
    >>> penalty, scores = choose_penalty(states, Y)
    >>> float((scores.argmax(axis=1) == Y.argmax(axis=1)).mean()) > 0.9
    True
    >>> coef, intercept = states.fit(Y, penalty)
    >>> coef.shape, intercept.shape
    ((3, 2), (2,))
    """

    def __init__(
        self,
        X: Any,
        *,
        groups: NDArray[np.int64] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        n, d = X.shape
        # w with mean 1, so that λ does not depend on their scale.
        self.weight = np.ones(n) if weight is None else weight * (n / weight.sum())
        # x̄ = Σ w_i x_i / n
        self.mean = np.zeros(d)
        for rows in row_chunks(n, 8 * d):
            self.mean += self.weight[rows] @ X[rows].astype(np.float64) / n
        self._constant = self._constant_columns(X)
        # Σ = V diag(σ²) Vᵀ
        vectors, values = self._decompose(X)
        vectors[self._constant] = 0  # rounding may leave small numbers
        # s² = tr Σ / d
        scale = float(np.sqrt(max(values.sum(), 0.0) / d))
        self.scale = scale if scale > 0 else 1.0
        # σ² / s² (r,) and V / s (d, r)
        self.values = np.maximum(values, 0) / self.scale**2
        self.vectors = vectors / self.scale
        # Z = (X − x̄) V / s (n, r), with Zᵀ W Z = n diag(σ² / s²)
        exact = 8 * n * len(values) <= EXACT_BYTES
        self._X, self.projected = X, None
        if exact or not isinstance(X, Streamed):
            self.projected = np.empty((n, len(values)), np.float64 if exact else np.float32)
            for rows in row_chunks(n, 8 * d):
                self.projected[rows] = self._centred(X[rows]) @ self.vectors
        self._groups_by_size = _groups_by_size(groups, self.weight)

    def _constant_columns(self, X: Any) -> NDArray[np.bool_]:
        """Mask (d,) of columns that are constant up to rounding, which no fit uses."""
        square = np.zeros(X.shape[1])
        for rows in row_chunks(len(X), 8 * X.shape[1]):
            square += self.weight[rows] @ (X[rows].astype(np.float64) - self.mean) ** 2
        return constant_columns(self.mean, np.sqrt(square / len(X)), X.dtype)

    def _centred(self, X: NDArray[Any]) -> NDArray[np.float64]:
        centred: NDArray[np.float64] = X.astype(np.float64) - self.mean
        if self._constant.any():
            centred[:, self._constant] = 0
        return centred

    def _decompose(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvectors (d, r) and eigenvalues (r,) of the weighted covariance, r = min(n, d)."""
        n, d = X.shape
        if d <= n:
            # Σ = (X − x̄)ᵀ W (X − x̄) / n
            covariance = np.zeros((d, d))
            for rows in row_chunks(n, 8 * d):
                centred = self._centred(X[rows])
                covariance += (centred * self.weight[rows, None]).T @ centred
            values, vectors = np.linalg.eigh(covariance / n)
            return vectors, values
        # d > n: with A = W^½ (X − x̄), the smaller A Aᵀ / n = U diag(σ²) Uᵀ has the same eigenvalues
        # except zeros, and V = Aᵀ U / (σ √n).
        scaled = self._centred(X) * np.sqrt(self.weight)[:, None]
        values, left = np.linalg.eigh(scaled @ scaled.T / n)
        keep = values > 1e-12 * max(float(values[-1]), 0.0)
        values, left = values[keep], left[:, keep]
        return scaled.T @ left / np.sqrt(values * n), values

    def __len__(self) -> int:
        return len(self.weight)

    def leave_out(self, Y: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        """Predict every row by the fit without its group.

        With weights W, hat matrix K W, K = Z D Zᵀ + 1/n, and the fit to all rows F = K W Y, the
        scores of a group G without its labels are Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G): those of a
        refit without G at the same λ n s², up to rounding. For a single row with leverage
        h = K_ii w_i that is (F_i − h y_i) / (1 − h).

        Parameters
        ----------
        Y : ndarray of shape (n, c)
            Labels, such as class probabilities.
        penalty : float
            λ.

        Returns
        -------
        ndarray of shape (n, c)
            Scores.
        """
        scores = np.empty_like(Y)
        for rows, (some,) in self.left_out(Y, [penalty]):
            scores[rows] = some
        return scores

    def left_out(
        self, Y: NDArray[np.float64], penalties: Sequence[float]
    ) -> Iterator[tuple[Any, list[NDArray[np.float64]]]]:
        """Yield rows and their scores for every penalty; later ones replace earlier ones."""
        n = len(self)
        # ȳ = Σ w_i y_i / n, what the intercept alone predicts
        y_mean = self.weight @ Y / n
        moment = self._moment(Y - y_mean)
        # D = (n (σ² / s² + λ))⁻¹
        shrinks = [1 / ((self.values + penalty) * n) for penalty in penalties]
        for part, Z in self._chunks():
            # Y − F = Y − ȳ − Z D Zᵀ W (Y − ȳ)
            residuals = [Y[part] - y_mean - Z @ (shrink[:, None] * moment) for shrink in shrinks]
            # Rows alone: h_i = w_i (Σ_r z_ir² D_r + 1/n), and y_i − (y_i − F_i) / (1 − h_i)
            squares, weight = Z**2, self.weight[part]
            leverages = [weight * (squares @ shrink + 1 / n) for shrink in shrinks]
            yield (
                part,
                [
                    Y[part] - residual / (1 - leverage)[:, None]
                    for residual, leverage in zip(residuals, leverages, strict=True)
                ],
            )
        for rows in self._groups_by_size:
            for some in row_chunks(len(rows), 8 * rows.shape[1] * len(self.values)):
                group = rows[some]
                Z = self._rows(group.ravel()).reshape(*group.shape, -1)
                weight, scores = self.weight[group][:, None, :], []
                for shrink in shrinks:
                    residual = Y[group] - y_mean - Z @ (shrink[:, None] * moment)
                    # K_GG = Z_G D Z_Gᵀ + 1/n (groups, |G|, |G|), many groups of one size at once
                    K = (Z * shrink) @ Z.transpose(0, 2, 1) + 1 / n
                    # Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G)
                    without = np.eye(group.shape[1]) - K * weight
                    scores.append(Y[group] - np.linalg.solve(without, residual))
                yield group, scores

    def leading(self, count: int) -> NDArray[np.float64]:
        """The columns (n, count) of Z with the largest variance."""
        order = np.argsort(-self.values)[:count]
        return np.concatenate([Z[:, order] for _, Z in self._chunks()])

    def fit(self, Y: NDArray[np.float64], penalty: float) -> tuple[NDArray[np.float64], Any]:
        """Fit all rows: coefficients (d, c) and intercept (c,) for labels Y (n, c)."""
        y_mean = self.weight @ Y / len(self)
        shrink = 1 / ((self.values + penalty) * len(self))
        # b = V D Zᵀ W (Y − ȳ) / s
        coef = self.vectors @ (shrink[:, None] * self._moment(Y - y_mean))
        # a = ȳ − x̄ · b
        return coef, y_mean - self.mean @ coef

    def _moment(self, Y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Zᵀ W Y (r, c) of labels Y (n, c)."""
        moment = np.zeros((len(self.values), Y.shape[1]))
        for part, Z in self._chunks():
            moment += Z.T @ (self.weight[part, None] * Y[part])
        return moment

    def _chunks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Some rows at a time, and their Z in float64."""
        for part in row_chunks(len(self), 8 * len(self.values)):
            yield part, self._rows(part)

    def _rows(self, rows: Any) -> NDArray[np.float64]:
        """Z of some rows in float64."""
        if self.projected is None:  # computed again, to the numbers of a copy
            Z = (self._centred(self._X[rows]) @ self.vectors).astype(np.float32)
        else:
            Z = self.projected[rows]
        return np.asarray(Z, dtype=np.float64)


def choose_penalty(
    states: RidgeStates, Y: NDArray[np.float64], penalties: Sequence[float] = PENALTIES
) -> tuple[float, NDArray[np.float64]]:
    """Choose λ by the leave-one-out error on the labels at hand, without ground truth.

    The one-standard-error rule: noisy labels favour penalties that fit the noise, so of all whose
    mean squared error is within one standard error of the smallest, the largest is chosen.

    Parameters
    ----------
    states : RidgeStates
        The decomposed states.
    Y : ndarray of shape (n, c)
        Labels.
    penalties : sequence of float, default=PENALTIES
        Candidates for λ.

    Returns
    -------
    penalty : float
        The chosen λ.
    scores : ndarray of shape (n, c)
        ``states.leave_out(Y, penalty)``.
    """
    candidates = sorted(penalties)
    # e_i = w_i ‖ŷ_i − y_i‖². Scores are computed again for the one that is chosen: with many
    # classes those of all penalties would need several times the memory of the labels.
    errors = np.empty((len(candidates), len(Y)))
    for rows, scores in states.left_out(Y, candidates):
        for error, score in zip(errors, scores, strict=True):
            error[rows] = states.weight[rows] * ((score - Y[rows]) ** 2).sum(axis=-1)
    means = np.array([error.mean() for error in errors])
    best = int(means.argmin())
    # The smallest mean error, plus its standard error.
    bound = means[best] + errors[best].std() / np.sqrt(len(Y))
    chosen = int(np.flatnonzero(means <= bound)[-1])
    return candidates[chosen], states.leave_out(Y, candidates[chosen])


def _groups_by_size(
    groups: NDArray[np.int64] | None, weight: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    """Row numbers of groups of several rows: one array (m, size) for the m groups of each size."""
    n = len(weight)
    numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    size = np.bincount(numbers)
    if np.bincount(numbers, weights=weight).max() >= n * (1 - 1e-12):
        raise ProbeError(
            f"All {n} rows with weight are copies of one text; no other row can predict them."
        )
    order = np.argsort(numbers, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    return [
        order[starts[size == n_rows][:, None] + np.arange(n_rows)]
        for n_rows in np.unique(size[size > 1]).tolist()
    ]
