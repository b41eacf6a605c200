"""Quality of predictions against the truth, with confidence intervals.

Also the share of the gap between weak supervisor and ceiling that a student recovers (PGR).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import prior_threshold
from probekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Agreement",
    "Bootstrap",
    "accuracy",
    "agreement",
    "auroc",
    "bootstrap_summary",
    "brier",
    "calibration_error",
    "cross_entropy",
    "drawn_aurocs",
    "log_loss",
    "paired_bootstrap",
    "pairwise_accuracy",
    "pgr",
    "pgr_undefined",
    "prior_threshold",
    "recall_at_fpr",
]

UNBOUNDED_SHARE = 0.025  # half of what a 95 % interval leaves out
CHUNK_NUMBERS = 1 << 22


def accuracy(truth: ArrayLike, decided: ArrayLike) -> float:
    """Share of correct decisions; truth and decisions (n,). NaN without rows."""
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

    Mid-ranks, so that the order of rows does not matter and a constant score gives 0.5. NaN if
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
        classes = np.unique(truth)
        if len(classes) < 2:
            return float("nan")
        return float(np.mean([_auroc(truth == c, scores[:, c]) for c in classes]))
    return _auroc(truth == 1, scores[:, 1] if scores.ndim == 2 else scores)


def _auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    above = int(positive.sum())
    below = len(positive) - above
    if not above or not below:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place.ravel()]
    return float((rank[positive].sum() - above * (above + 1) / 2) / (above * below))


def brier(truth: ArrayLike, proba: ArrayLike) -> float:
    """Mean squared error of P(class 1), or, with more classes, of all P summed over the classes.

    As scikit-learn's ``brier_score_loss``. Truth (n,), proba (n,) or (n, C).
    """
    truth, P = _probabilities(truth, proba)
    squared = (P - np.eye(P.shape[1])[truth]) ** 2
    return float(squared.sum(axis=1).mean() / (2 if P.shape[1] == 2 else 1))


def log_loss(truth: ArrayLike, proba: ArrayLike) -> float:
    """Mean −log P(true class) in nats, P clipped to at least the float64 epsilon."""
    truth, P = _probabilities(truth, proba)
    return float(cross_entropy(np.eye(P.shape[1])[truth], P).mean())


def cross_entropy(
    labels: ArrayLike, proba: ArrayLike, *, floor: float = float(np.finfo(np.float64).eps)
) -> NDArray[np.float64]:
    """−Σ_c label_c · log P_c of every row, in nats, for hard and soft labels.

    Labels and probabilities (…, n, C), broadcast; probabilities are clipped to at least ``floor``.
    """
    log_p = np.log(np.clip(np.asarray(proba, np.float64), floor, 1))
    rows: NDArray[np.float64] = -(np.asarray(labels, np.float64) * log_p).sum(axis=-1)
    return rows


def calibration_error(truth: ArrayLike, proba: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of one width.

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
    """Largest recall of class 1 at a threshold with a false positive rate of at most ``fpr``.

    Equal scores, ±inf too, are on one side of any threshold. NaN if only one class occurs.

    Raises
    ------
    DataError
        If a score is NaN.
    """
    truth, scores = _same_length(truth, np.asarray(score, dtype=np.float64))
    _check_order(scores)
    positive = truth == 1
    if positive.all() or not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    # Compared, not subtracted: inf - inf is NaN.
    last_of_tie = np.append(scores[order][1:] != scores[order][:-1], True)
    false = np.cumsum(~positive[order])[last_of_tie]
    true = np.cumsum(positive[order])[last_of_tie]
    allowed = true[false <= fpr * (~positive).sum() + 1e-9]  # 0.29 · 100 means 29
    return float(allowed[-1] / positive.sum()) if len(allowed) else 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of rows where a student repeats its supervisor: all, those that are right, and wrong.

    ``overall = weak · right + (1 − weak) · wrong``, and for two classes the student's accuracy is
    ``weak · right + (1 − weak) · (1 − wrong)``, with ``weak`` the supervisor's accuracy.
    """

    overall: float
    right: float
    wrong: float
    weak: float


def agreement(truth: ArrayLike, weak: ArrayLike, student: ArrayLike) -> Agreement:
    """Agreement of a student with its supervisor; truth and decisions (n,). NaN without rows."""
    truth, weak = _same_length(truth, weak)
    weak, student = _same_length(weak, student)
    same, right = weak == student, weak == truth

    def mean(values: NDArray[Any]) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return Agreement(mean(same), mean(same[right]), mean(same[~right]), mean(right))


def _check_order(scores: NDArray[np.float64]) -> None:
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} scores are NaN, which cannot be ordered; leave these "
            "rows out."
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


def pgr_undefined(weak: float, ceiling: float) -> str | None:
    """The reason why there is no performance gap to recover; None if there is one."""
    if np.isnan(weak) or np.isnan(ceiling):
        return "the weak supervisor's or the ceiling's performance is NaN"
    if ceiling <= weak:
        return f"the ceiling ({ceiling:.4f}) is not above the weak supervisor ({weak:.4f})"
    return None


def pgr(weak: float, student: float, ceiling: float) -> float:
    """Performance gap recovered, (student − weak) / (ceiling − weak); never clipped.

    Any metric where higher is better. NaN if the ceiling is not above the weak supervisor
    (:func:`pgr_undefined` gives the reason). Burns et al. 2023, https://arxiv.org/abs/2312.09390.
    """
    if pgr_undefined(weak, ceiling) is not None:
        return float("nan")
    return (student - weak) / (ceiling - weak)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """PGR and student − weak with their 95 % intervals.

    ``unbounded`` if more than 2.5 % of the draws had no positive gap: the interval of PGR is then
    infinite (``reason``), and ``gain`` with its interval should be reported instead. ``no_gap`` is
    the share of such draws.
    """

    pgr: float
    pgr_low: float
    pgr_high: float
    gain: float
    gain_low: float
    gain_high: float
    no_gap: float
    unbounded: bool
    reason: str | None


def paired_bootstrap(
    weak: ArrayLike,
    student: ArrayLike,
    ceiling: ArrayLike,
    *,
    truth: ArrayLike | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap of PGR: test rows drawn with replacement, the same for all three.

    Parameters
    ----------
    weak, student, ceiling
        Values (n,) whose mean is the metric, such as 1 for correct and 0 for wrong; with
        ``truth``, scores of class 1.
    truth
        Class numbers 0 and 1 (n,); with them, the metric is AUROC.
    draws
        Number of draws.

    Raises
    ------
    DataError
        If there are no rows, or a value is NaN.

    Notes
    -----
    Rows with equal values are drawn together (their number is multinomial), so correctness costs
    eight patterns per draw for any number of rows. A draw without a positive gap may be anything
    from −∞ to ∞ and counts as the worse end of either bound.
    """
    values = np.column_stack([np.asarray(v, dtype=np.float64) for v in (weak, student, ceiling)])
    if not len(values) or np.isnan(values).any():
        raise DataError("A bootstrap needs rows, and values that are not NaN.")
    if truth is not None:
        return bootstrap_summary(*drawn_aurocs(truth, values, draws=draws, seed=seed))
    patterns, counts = np.unique(values, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_NUMBERS // len(patterns))
    drawn = np.concatenate(
        [
            _weighted_means(patterns, _draw(rng, counts, min(step, draws - start)))
            for start in range(0, draws, step)
        ]
    )
    return bootstrap_summary(_weighted_means(patterns, counts[None].astype(np.float64))[0], drawn)


def drawn_aurocs(
    truth: ArrayLike, scores: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC of k scores (n, k) on all rows, (k,), and on rows drawn with replacement, (draws, k).

    All scores share the draws; NaN if a draw has one class only.
    """
    columns, positive = np.asarray(scores, np.float64), np.asarray(truth).reshape(-1) == 1
    n, rng = len(columns), np.random.default_rng(seed)
    step = max(1, CHUNK_NUMBERS // n)
    aurocs = [_weighted_aurocs(columns, positive, np.ones((1, n)))]
    for start in range(0, draws, step):
        size = min(step, draws - start)
        rows = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        weight = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        aurocs.append(_weighted_aurocs(columns, positive, weight.astype(np.float64)))
    return aurocs[0][0], np.concatenate(aurocs[1:])


def _draw(rng: np.random.Generator, counts: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    n = int(counts.sum())
    return rng.multinomial(n, counts / n, size=draws).astype(np.float64)


def _weighted_means(
    patterns: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    means: NDArray[np.float64] = weight @ patterns / weight[0].sum()
    return means


def _weighted_aurocs(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC of k scores (n, k) under row weights (b, n): (b, k); NaN if a class has no weight."""
    by_row = np.ascontiguousarray(weight.T)
    up, down = by_row[positive], by_row[~positive]
    pairs = up.sum(axis=0) * down.sum(axis=0)
    below = np.zeros((len(down) + 1, len(weight)))
    result = np.full((len(weight), scores.shape[1]), np.nan)
    for column, score in enumerate(scores.T):
        order = np.argsort(score[~positive])
        np.cumsum(down[order], axis=0, out=below[1:])
        lower = score[~positive][order]
        first = np.searchsorted(lower, score[positive], side="left")
        last = np.searchsorted(lower, score[positive], side="right")
        # A lower score counts 1, an equal one ½.
        wins = np.einsum("ib,ib->b", up, below[first] + below[last]) / 2
        np.divide(wins, pairs, out=result[:, column], where=pairs > 0)
    return result


def bootstrap_summary(point: NDArray[np.float64], drawn: NDArray[np.float64]) -> Bootstrap:
    """PGR and gain from a metric of weak supervisor, student and ceiling, (3,), drawn (b, 3)."""
    weak, student, ceiling = drawn.T
    gap = ceiling - weak
    no_gap = ~(gap > 0)
    share = float(no_gap.mean())
    divisor = np.where(no_gap, 1, gap)
    gain = student - weak
    low, _ = _interval(np.where(no_gap, -np.inf, gain / divisor))
    _, high = _interval(np.where(no_gap, np.inf, gain / divisor))
    gain_low, gain_high = _interval(gain[~np.isnan(gain)])
    reason = pgr_undefined(float(point[0]), float(point[2]))
    unbounded = share > UNBOUNDED_SHARE
    if unbounded and reason is None:
        reason = (
            f"{share:.1%} of the draws have no gap between weak supervisor and ceiling "
            f"(more than {UNBOUNDED_SHARE:.1%})"
        )
    return Bootstrap(
        pgr=pgr(*(float(v) for v in point)),
        pgr_low=float("-inf") if unbounded else low,
        pgr_high=float("inf") if unbounded else high,
        gain=float(point[1] - point[0]),
        gain_low=gain_low,
        gain_high=gain_high,
        no_gap=share,
        unbounded=unbounded,
        reason=reason,
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds with ⌊2.5 %⌋ of the draws outside on either side; NaN without draws."""
    if not len(values):
        return float("nan"), float("nan")
    ordered = np.sort(values)
    outside = int(UNBOUNDED_SHARE * len(ordered))
    return float(ordered[outside]), float(ordered[-1 - outside])
