"""Calibration of scores to log-odds: one slope, and an intercept per class.

For two classes this is Platt's calibration, fitted as in Lin, Lin & Weng 2007, "A note on Platt's
probabilistic outputs" (https://doi.org/10.1007/s10994-007-5018-6): softened targets, Newton steps
that are halved until the loss falls. Without the halving it diverges on well-separated scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import log_softmax

from probekit.states import row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Calibration", "calibrate"]

STEPS = 100
HALVINGS = 40
SMALL = 1e-10  # of the squared Newton decrement: the loss is known to half of it


@dataclass(frozen=True, eq=False)
class Calibration:
    """Logits slope · score + intercept."""

    slope: float
    """At least 0; 0 if higher scores do not mean the class."""
    intercept: NDArray[np.float64]
    """(C,), with mean 0."""

    def log_odds(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (n, C) of scores (n, C), each row with mean 0; for two classes ∓ half log-odds."""
        logits = self.slope * score + self.intercept
        return np.asarray(logits - logits.mean(axis=1, keepdims=True))


def calibrate(
    score: NDArray[np.float64], Y: NDArray[np.float64], weight: NDArray[np.float64] | None = None
) -> Calibration:
    """Fit softmax(slope · score + intercept) to labels Y by least cross-entropy.

    Parameters
    ----------
    score
        One score per class (n, C); only differences within a row matter.
    Y
        Class probabilities (n, C). They are softened as Platt's: for n_c rows of class c, its 1
        becomes (n_c + 1) / (n_c + 2), so that separable scores have a finite slope.
    weight
        Sample weights (n,).

    Notes
    -----
    A negative slope is set to 0. Scores without the row itself lean away from its label, so that
    without any signal the best slope is a large negative one, which recovers the labels.
    """
    n_classes = Y.shape[1]
    # Weights with sum 1.
    w = np.full(len(Y), 1 / len(Y)) if weight is None else weight / weight.sum()
    # Platt's targets: (n_c + 1) / (n_c + 2) for the class, the rest divided among the others.
    count = w @ Y * len(Y)
    own = (count + 1) / (count + 2)
    soft = np.full((n_classes, n_classes), 0.0)
    soft[:] = ((1 - own) / (n_classes - 1))[:, None]
    np.fill_diagonal(soft, own)
    labels = _Labels(score, Y, w, soft)
    # Scores with mean 0 in each row, in units of their spread; without spread only the class shares
    # can be fitted.
    spread, largest, shares = labels.scale()
    prior = np.log(shares)
    if spread <= 1e-12 * max(1.0, largest):
        return Calibration(0.0, prior - prior.mean())
    point = _newton(labels, spread, np.concatenate([[0.0], prior - prior[0]]))
    if point[0] <= 0:
        return Calibration(0.0, prior - prior.mean())
    return Calibration(float(point[0] / spread), point[1:] - point[1:].mean())


@dataclass(frozen=True, eq=False)
class _Labels:
    """Scores (n, C), labels (n, C), weights (n,) and the targets (C, C) of the classes.

    What has the size of the scores is computed for some rows at a time, and summed.
    """

    score: NDArray[np.float64]
    Y: NDArray[np.float64]
    w: NDArray[np.float64]
    soft: NDArray[np.float64]

    def parts(self) -> Iterator[tuple[NDArray[np.float64], ...]]:
        """Yield scores with mean 0 in each row, targets, and weights of some rows."""
        for rows in row_chunks(len(self.Y), 8 * self.Y.shape[1]):
            score = self.score[rows]
            yield score - score.mean(axis=1, keepdims=True), self.Y[rows] @ self.soft, self.w[rows]

    def scale(self) -> tuple[float, float, NDArray[np.float64]]:
        """Spread of the scores, the largest one, and the class shares (C,) of the targets."""
        square, shares = 0.0, np.zeros(self.Y.shape[1])
        for centred, targets, w in self.parts():
            square += float(w @ (centred**2).mean(axis=1))
            shares += w @ targets
        largest = max(float(self.score.max()), -float(self.score.min()))
        return float(np.sqrt(square)), largest, shares

    def at(self, point: NDArray[np.float64], spread: float) -> _Sums:
        """Loss, its gradient (1 + C,) and its curvature there."""
        size = len(point)
        loss, gradient, hessian = 0.0, np.zeros(size), np.zeros((size, size))
        for centred, targets, w in self.parts():
            scaled = centred / spread
            log_p = log_softmax(point[0] * scaled + point[1:], axis=1)
            loss -= float(w @ (targets * log_p).sum(axis=1))
            P = np.exp(log_p)
            excess = P - targets
            gradient[0] += w @ (scaled * excess).sum(axis=1)
            gradient[1:] += w @ excess
            hessian += _hessian(scaled, P, w)
        return _Sums(loss, gradient, hessian)


class _Sums(NamedTuple):
    loss: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def _newton(labels: _Labels, spread: float, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise over slope and intercepts (1 + C,), the first intercept fixed."""
    free = np.delete(np.arange(len(point)), 1)
    here = labels.at(point, spread)
    for _ in range(STEPS):
        gradient, hessian = here.gradient[free], here.hessian[np.ix_(free, free)]
        hessian[np.diag_indices_from(hessian)] += 1e-12
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if decrement < SMALL:
            break
        for halving in range(HALVINGS):
            trial = point.copy()
            trial[free] -= step * 0.5**halving
            there = labels.at(trial, spread)
            if there.loss <= here.loss - 1e-4 * 0.5**halving * decrement:
                break
        else:
            break  # no step falls by more than rounding: this is the minimum
        point, here = trial, there
    return point


def _hessian(
    score: NDArray[np.float64], P: NDArray[np.float64], w: NDArray[np.float64]
) -> NDArray[np.float64]:
    n_classes = P.shape[1]
    around = score - (P * score).sum(axis=1, keepdims=True)
    hessian = np.empty((n_classes + 1, n_classes + 1))
    hessian[0, 0] = w @ (P * around**2).sum(axis=1)
    hessian[0, 1:] = hessian[1:, 0] = w @ (P * around)
    hessian[1:, 1:] = np.diag(w @ P) - (P * w[:, None]).T @ P
    return hessian
