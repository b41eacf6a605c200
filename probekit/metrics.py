"""How good predictions are against a truth, and how sure one can be of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import DataError
from probekit.pgr import Bootstrap, paired_bootstrap, pgr, pgr_undefined
from probekit.prior import prior_matched, prior_threshold

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Agreement",
    "Bootstrap",
    "accuracy",
    "agreement",
    "auroc",
    "brier",
    "calibration_error",
    "log_loss",
    "paired_bootstrap",
    "pairwise_accuracy",
    "pgr",
    "pgr_undefined",
    "prior_matched",
    "prior_threshold",
    "recall_at_fpr",
]


def accuracy(truth: ArrayLike, decided: ArrayLike) -> float:
    """Share of rows decided right; truth and decisions (n,). NaN without rows."""
    truth, decided = _same_length(truth, decided)
    return float(np.mean(truth == decided)) if len(truth) else float("nan")


def pairwise_accuracy(truth: ArrayLike, proba: ArrayLike) -> float:
    """Share of pairs whose better text has the larger probability, ties counting half.

    Truth (n,): 1 where the second is better; proba (n,) or (n, 2). NaN without rows.
    """
    truth, P = _same_length(truth, np.asarray(proba, dtype=np.float64))
    second = P[:, 1] if P.ndim == 2 else P
    # Means of votes may miss 0.5 by rounding.
    margin = np.where(truth == 1, 1, -1) * np.round(second - 0.5, 12)
    return float(np.mean((np.sign(margin) + 1) / 2)) if len(truth) else float("nan")


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Probability that a row of class 1 scores above one of class 0, ties counting half.

    Mid-ranks, so that the order of rows means nothing and a constant score gives 0.5. NaN where
    only one class occurs. With scores (n, C), C >= 3: each class against the rest, mean over the
    classes that occur.

    Parameters
    ----------
    truth
        Class numbers (n,).
    score
        Any score of class 1 (n,), or one per class (n, C).
    """
    truth, scores = _same_length(truth, np.asarray(score, dtype=np.float64))
    _check_order(scores)
    if scores.ndim == 2 and scores.shape[1] > 2:
        found = np.unique(truth)
        if len(found) < 2:
            return float("nan")
        return float(np.mean([_auroc(truth == c, scores[:, c]) for c in found]))
    return _auroc(truth == 1, scores[:, 1] if scores.ndim == 2 else scores)


def _auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    above = int(positive.sum())
    below = len(positive) - above
    if not above or not below:
        return float("nan")
    _, place, many = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(many) - (many - 1) / 2)[place.ravel()]
    return float((rank[positive].sum() - above * (above + 1) / 2) / (above * below))


def brier(truth: ArrayLike, proba: ArrayLike) -> float:
    """Mean squared error of probabilities; two classes: of P(class 1), more: summed over classes.

    As in scikit-learn's ``brier_score_loss``. Truth (n,), proba (n,) or (n, C).
    """
    truth, P = _probabilities(truth, proba)
    squared = (P - np.eye(P.shape[1])[truth]) ** 2
    return float(squared.sum(axis=1).mean() / (2 if P.shape[1] == 2 else 1))


def log_loss(truth: ArrayLike, proba: ArrayLike) -> float:
    """Mean −log P(true class), probabilities not below the float64 epsilon; in nats."""
    truth, P = _probabilities(truth, proba)
    right = P[np.arange(len(P)), truth]
    return float(-np.log(np.clip(right, np.finfo(np.float64).eps, 1)).mean())


def calibration_error(truth: ArrayLike, proba: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equal-wide bins.

    Confidence is the largest probability of a row. Guo et al. 2017,
    https://arxiv.org/abs/1706.04599.
    """
    truth, P = _probabilities(truth, proba)
    confidence = P.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    right = P.argmax(axis=1) == truth
    gap = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(P))


def recall_at_fpr(truth: ArrayLike, score: ArrayLike, *, fpr: float = 0.01) -> float:
    """Largest share of class 1 above a threshold that at most ``fpr`` of class 0 is above.

    Equal scores, ±inf too, lie on one side of any threshold. NaN where only one class occurs.

    Raises
    ------
    DataError
        For scores that are NaN, which have no place in an order.
    """
    truth, scores = _same_length(truth, np.asarray(score, dtype=np.float64))
    _check_order(scores)
    positive = truth == 1
    if positive.all() or not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    # Compared, not subtracted: inf - inf is no number.
    last_of_tie = np.append(scores[order][1:] != scores[order][:-1], True)
    false = np.cumsum(~positive[order])[last_of_tie]
    true = np.cumsum(positive[order])[last_of_tie]
    allowed = true[false <= fpr * (~positive).sum() + 1e-9]  # 0.29 · 100 means 29
    return float(allowed[-1] / positive.sum()) if len(allowed) else 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a student repeats its supervisor: on all rows, where that is right, and wrong.

    ``overall = weak · right + (1 − weak) · wrong``, and for two classes the student's accuracy is
    ``weak · right + (1 − weak) · (1 − wrong)``, with ``weak`` the supervisor's accuracy.
    """

    overall: float
    right: float
    wrong: float
    weak: float


def agreement(truth: ArrayLike, weak: ArrayLike, student: ArrayLike) -> Agreement:
    """Split the student's agreement with its supervisor; three decisions (n,); NaN where empty."""
    truth, weak = _same_length(truth, weak)
    weak, student = _same_length(weak, student)
    same, right = weak == student, weak == truth

    def mean(values: NDArray[Any]) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return Agreement(mean(same), mean(same[right]), mean(same[~right]), mean(right))


def _check_order(scores: NDArray[np.float64]) -> None:
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} scores are NaN, which have no place in an order; leave "
            "these rows out."
        )


def _same_length(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    one, two = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or len(one) != len(two):
        raise DataError(
            f"Truth and predictions must be of the same rows, got {one.shape} and {two.shape}."
        )
    return one, two


def _probabilities(
    truth: ArrayLike, proba: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, P = _same_length(truth, np.asarray(proba, dtype=np.float64))
    if P.ndim == 1:
        P = np.column_stack([1 - P, P])
    numbers = truth.astype(np.int64)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= P.shape[1]:
        raise DataError(f"Truth must hold class numbers from 0 to {P.shape[1] - 1}, one per row.")
    return numbers, P
