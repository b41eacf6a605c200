"""Calibration of scores to log-odds: one slope, and an intercept per class.

For two classes this is Platt's calibration, fitted as in Lin, Lin & Weng 2007, "A note on Platt's
probabilistic outputs" (https://doi.org/10.1007/s10994-007-5018-6): softened targets, Newton steps
that are halved until the loss falls. Without the halving it diverges on well-separated scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

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
    targets = Y @ soft
    # Scores with mean 0 in each row, in units of their spread; without spread only the class shares
    # can be fitted.
    centred = score - score.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(w @ (centred**2).mean(axis=1)))
    prior = np.log(w @ targets)
    if spread <= 1e-12 * max(1.0, float(np.abs(score).max())):
        return Calibration(0.0, prior - prior.mean())
    point = _newton(centred / spread, targets, w, np.concatenate([[0.0], prior - prior[0]]))
    if point[0] <= 0:
        return Calibration(0.0, prior - prior.mean())
    return Calibration(float(point[0] / spread), point[1:] - point[1:].mean())


def _newton(
    score: NDArray[np.float64],
    targets: NDArray[np.float64],
    w: NDArray[np.float64],
    point: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Minimise over slope and intercepts (1 + C,), the first intercept fixed."""
    free = np.delete(np.arange(len(point)), 1)

    def log_p(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(log_softmax(at[0] * score + at[1:], axis=1))

    def loss(log_probs: NDArray[np.float64]) -> float:
        return float(-(w @ (targets * log_probs).sum(axis=1)))

    logs = log_p(point)
    value = loss(logs)
    for _ in range(STEPS):
        P = np.exp(logs)
        excess = P - targets
        gradient = np.concatenate([[w @ (score * excess).sum(axis=1)], w @ excess])[free]
        hessian = _hessian(score, P, w)[np.ix_(free, free)]
        hessian[np.diag_indices_from(hessian)] += 1e-12
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if decrement < SMALL:
            break
        for halving in range(HALVINGS):
            trial = point.copy()
            trial[free] -= step * 0.5**halving
            logs = log_p(trial)
            if loss(logs) <= value - 1e-4 * 0.5**halving * decrement:
                break
        else:
            break  # no step falls by more than rounding: this is the minimum
        point, value = trial, loss(logs)
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
