"""Ridge regression on label indicators (shrunken LDA, up to scale), exactly without each row.

One decomposition of the states serves every penalty, every label and every row left out. Leaving
out in closed form: Allen 1974, https://doi.org/10.1080/00401706.1974.10489157 (PRESS), here for
groups of rows. That indicators give the directions of linear discriminant analysis: Hastie, Buja &
Tibshirani 1995, https://doi.org/10.1214/aos/1176324456.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import ProbeError
from probekit.states import constant_columns, row_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PENALTIES", "RidgeStates", "choose_penalty"]

# In units of the mean eigenvalue of the states' covariance.
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


class RidgeStates:
    """States X (n, d) made ready once for ridge fits with any labels.

    A fit minimises Σ w_i (y_i − a − x_i·b)² + λ n s² ‖b‖², where s² is the mean square of the
    centred entries and weights have mean 1; the intercept a is free, so centring changes nothing.

    Parameters
    ----------
    X
        States (n, d), finite.
    groups
        Rows of one number (n,) are left out together; by default each row alone.
    weight
        Sample weights (n,), or None for equal ones.
    """

    def __init__(
        self,
        X: NDArray[Any],
        *,
        groups: NDArray[np.int64] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        n, d = X.shape
        # w with mean 1, so that λ means the same whatever their unit.
        self.weight = np.ones(n) if weight is None else weight * (n / weight.sum())
        # x̄ = Σ w_i x_i / n
        self.mean = np.zeros(d)
        for rows in row_chunks(n, 8 * d):
            self.mean += self.weight[rows] @ X[rows].astype(np.float64) / n
        self._constant = self._constant_columns(X)
        # Σ = V diag(σ²) Vᵀ
        vectors, values = self._decompose(X)
        vectors[self._constant] = 0  # and not what rounding makes of it
        # s² = tr Σ / d: in its unit λ means the same for states of any size.
        scale = float(np.sqrt(max(values.sum(), 0.0) / d))
        self.scale = scale if scale > 0 else 1.0
        # σ² / s² (r,) and V / s (d, r)
        self.values = np.maximum(values, 0) / self.scale**2
        self.vectors = vectors / self.scale
        # Z = (X − x̄) V / s (n, r): orthogonal columns under w, of squares n σ² / s².
        self.projected = np.empty((n, len(values)))
        for rows in row_chunks(n, 8 * d):
            self.projected[rows] = self._centred(X[rows]) @ self.vectors
        self._together = _rows_together(groups, self.weight)

    def _constant_columns(self, X: NDArray[Any]) -> NDArray[np.bool_]:
        """Columns (d,) that are constant up to rounding: they are left out of every fit."""
        square = np.zeros(X.shape[1])
        for rows in row_chunks(len(X), 8 * X.shape[1]):
            square += self.weight[rows] @ (X[rows].astype(np.float64) - self.mean) ** 2
        return constant_columns(self.mean, np.sqrt(square / len(X)), X.dtype)

    def _centred(self, X: NDArray[Any]) -> NDArray[np.float64]:
        centred: NDArray[np.float64] = X.astype(np.float64) - self.mean
        if self._constant.any():
            centred[:, self._constant] = 0
        return centred

    def _decompose(self, X: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
        # With A = W^½ (X − x̄), the smaller A Aᵀ / n = U diag(σ²) Uᵀ has the same eigenvalues but
        # for zeros, and V = Aᵀ U / (σ √n).
        scaled = self._centred(X) * np.sqrt(self.weight)[:, None]
        values, left = np.linalg.eigh(scaled @ scaled.T / n)
        keep = values > 1e-12 * max(float(values[-1]), 0.0)
        values, left = values[keep], left[:, keep]
        return scaled.T @ left / np.sqrt(values * n), values

    def __len__(self) -> int:
        return len(self.weight)

    def leave_out(self, Y: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        """Score every row by the fit without it and its group: (n, c) for labels Y (n, c).

        For a group G, with K the fit's influence of a label on a score (hat matrix), F = K W Y the
        fit to all rows and W the weights, the scores are Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G): a
        refit without G at the same λ n s², to rounding. A row alone: (F − h y) / (1 − h).
        """
        n = len(self)
        # D = (n (σ² / s² + λ))⁻¹, so that K = Z D Zᵀ + 1/n.
        shrink = 1 / ((self.values + penalty) * n)
        # ȳ = Σ w_i y_i / n, the part of the free intercept.
        base = self.weight @ Y / n
        # Y − F = Y − ȳ − Z D Zᵀ W (Y − ȳ)
        moment = self.projected.T @ (self.weight[:, None] * (Y - base))
        residual = Y - base - self.projected @ (shrink[:, None] * moment)
        # h_i = K_ii w_i, and y_i − (y_i − F_i) / (1 − h_i), which is (F_i − h_i y_i) / (1 − h_i).
        leverage = self.weight * (self.projected**2 @ shrink + 1 / n)
        out = Y - residual / (1 - leverage)[:, None]
        for rows in self._together:
            # K_GG (groups, |G|, |G|) of all groups G of one size at once
            part = self.projected[rows]
            influence = (part * shrink) @ part.transpose(0, 2, 1) + 1 / n
            # Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G)
            left = np.eye(rows.shape[1]) - influence * self.weight[rows][:, None, :]
            out[rows] = Y[rows] - np.linalg.solve(left, residual[rows])
        return out

    def fit(self, Y: NDArray[np.float64], penalty: float) -> tuple[NDArray[np.float64], Any]:
        """Coefficients (d, c) and intercept (c,) of the fit to all rows."""
        base = self.weight @ Y / len(self)
        moment = self.projected.T @ (self.weight[:, None] * (Y - base))
        shrink = 1 / ((self.values + penalty) * len(self))
        # b = V D Zᵀ W (Y − ȳ) / s and a = ȳ − x̄ · b
        coef = self.vectors @ (shrink[:, None] * moment)
        return coef, base - self.mean @ coef


def choose_penalty(
    states: RidgeStates, Y: NDArray[np.float64], penalties: Sequence[float] = PENALTIES
) -> tuple[float, NDArray[np.float64]]:
    """Choose λ without truth: the penalty, and the scores (n, c) without each row.

    Of all penalties whose leave-one-out squared error is within one standard error of the smallest
    the strongest is taken.
    """
    scores, errors = [], []
    for penalty in sorted(penalties):
        scores.append(states.leave_out(Y, penalty))
        # e_i = w_i ‖ŷ_i − y_i‖²
        errors.append(states.weight * ((scores[-1] - Y) ** 2).sum(axis=1))
    means = np.array([error.mean() for error in errors])
    best = int(means.argmin())
    # The smallest mean error plus the standard error of it.
    bound = means[best] + errors[best].std() / np.sqrt(len(Y))
    chosen = int(np.flatnonzero(means <= bound)[-1])
    return sorted(penalties)[chosen], scores[chosen]


def _rows_together(
    groups: NDArray[np.int64] | None, weight: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    """Groups of several rows, those of one size as one array (m, size) of row numbers."""
    n = len(weight)
    numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    size = np.bincount(numbers)
    if np.bincount(numbers, weights=weight).max() >= n * (1 - 1e-12):
        raise ProbeError(
            f"All {n} rows that count are copies of one text; nothing is left to predict them from."
        )
    order = np.argsort(numbers, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    return [
        order[starts[size == many][:, None] + np.arange(many)]
        for many in np.unique(size[size > 1]).tolist()
    ]
