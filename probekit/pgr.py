"""How much of the gap between weak supervisor and ceiling a student recovers, and how surely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Bootstrap",
    "bootstrap_summary",
    "drawn_aurocs",
    "paired_bootstrap",
    "pgr",
    "pgr_undefined",
]

UNBOUNDED_SHARE = 0.025  # half of what a 95 % interval leaves out
CHUNK_NUMBERS = 1 << 22


def pgr_undefined(weak: float, ceiling: float) -> str | None:
    """Say why there is no performance gap to recover, or None where there is one."""
    if np.isnan(weak) or np.isnan(ceiling):
        return "the weak supervisor's or the ceiling's performance is NaN"
    if ceiling <= weak:
        return f"the ceiling ({ceiling:.4f}) is not above the weak supervisor ({weak:.4f})"
    return None


def pgr(weak: float, student: float, ceiling: float) -> float:
    """Performance gap recovered, (student − weak) / (ceiling − weak); never clipped.

    Any metric where higher is better. NaN where the ceiling is not above the weak supervisor
    (:func:`pgr_undefined` says so in words). Burns et al. 2023, https://arxiv.org/abs/2312.09390.
    """
    if pgr_undefined(weak, ceiling) is not None:
        return float("nan")
    return (student - weak) / (ceiling - weak)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """PGR and student − weak with their 95 % intervals.

    ``unbounded`` where more than 2.5 % of the draws had no positive gap: the interval of PGR is
    then infinite, ``reason`` says so, and ``gain`` with its interval is what can be reported.
    ``no_gap`` is the share of such draws.
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
    """Draw test rows with replacement, the same for all three, and recompute PGR.

    Parameters
    ----------
    weak, student, ceiling
        Values (n,) whose mean is the metric, such as rightness 0 or 1; with ``truth``, scores of
        class 1.
    truth
        Class numbers 0 and 1 (n,); given, the metric is AUROC.

    Notes
    -----
    Rows with equal values are drawn together (their number is multinomial), so rightness costs
    eight patterns per draw however many rows there are. A draw without a positive gap may be
    anything from −∞ to ∞ and counts as the worse end of either bound.
    """
    values = np.column_stack([np.asarray(v, dtype=np.float64) for v in (weak, student, ceiling)])
    if not len(values) or np.isnan(values).any():
        raise DataError("A bootstrap needs rows, and values that are not NaN.")
    if truth is not None:
        return bootstrap_summary(*drawn_aurocs(truth, values, draws=draws, seed=seed))
    patterns, many = np.unique(values, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_NUMBERS // len(patterns))
    drawn = np.concatenate(
        [
            _weighted_means(patterns, _draw(rng, many, min(step, draws - start)))
            for start in range(0, draws, step)
        ]
    )
    return bootstrap_summary(_weighted_means(patterns, many[None].astype(np.float64))[0], drawn)


def drawn_aurocs(
    truth: ArrayLike, scores: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC of k scores (n, k) on all rows, (k,), and on rows drawn with replacement, (draws, k).

    All scores are judged on the same draws; NaN where a draw holds one class only.
    """
    columns, positive = np.asarray(scores, np.float64), np.asarray(truth).reshape(-1) == 1
    n, rng = len(columns), np.random.default_rng(seed)
    step = max(1, CHUNK_NUMBERS // n)
    found = [_weighted_aurocs(columns, positive, np.ones((1, n)))]
    for start in range(0, draws, step):
        many = min(step, draws - start)
        rows = rng.integers(n, size=(many, n)) + n * np.arange(many)[:, None]
        weight = np.bincount(rows.ravel(), minlength=many * n).reshape(many, n)
        found.append(_weighted_aurocs(columns, positive, weight.astype(np.float64)))
    return found[0][0], np.concatenate(found[1:])


def _draw(rng: np.random.Generator, many: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    n = int(many.sum())
    return rng.multinomial(n, many / n, size=draws).astype(np.float64)


def _weighted_means(
    patterns: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    means: NDArray[np.float64] = weight @ patterns / weight[0].sum()
    return means


def _weighted_aurocs(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC of k scores (n, k) under row weights (b, n): (b, k); NaN where a class has none."""
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
        # What lies below counts whole, equal scores half.
        wins = np.einsum("ib,ib->b", up, below[first] + below[last]) / 2
        np.divide(wins, pairs, out=result[:, column], where=pairs > 0)
    return result


def bootstrap_summary(point: NDArray[np.float64], drawn: NDArray[np.float64]) -> Bootstrap:
    """PGR and gain from a metric of weak supervisor, student and ceiling, (3,), drawn (b, 3)."""
    weak, student, ceiling = drawn.T
    gap = ceiling - weak
    open_ = ~(gap > 0)
    share = float(open_.mean())
    safe = np.where(open_, 1, gap)
    low, _ = _interval(np.where(open_, -np.inf, (student - weak) / safe))
    _, high = _interval(np.where(open_, np.inf, (student - weak) / safe))
    gain = student - weak
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
    """Bounds that leave ⌊2.5 %⌋ of the draws out on either side; NaN without draws."""
    if not len(values):
        return float("nan"), float("nan")
    ordered = np.sort(values)
    outside = int(UNBOUNDED_SHARE * len(ordered))
    return float(ordered[outside]), float(ordered[-1 - outside])
