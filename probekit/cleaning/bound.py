"""How many wrong labels a random sample may show before too many are left: an exact bound.

A file of n labels has errors in some order. m rows are drawn without replacement and get their true
label; rows leave the file from its end, for people to label, until at most s of the m drawn errors
are left. Then more than B wrong labels are left only if, of the first B + 1 + s errors, at most s
were drawn: each of the others is one of the B + 1 that nobody saw. The number drawn of these is
hypergeometric, so that

    P(more than B wrong labels left) ≤ P(H ≤ s),   H ~ Hypergeometric(n, B + 1 + s, m),

with equality if the file has so many errors. It is one event about one order, so no correction for
the number of possible cuts is needed. Nor does the order have to be fixed: which of the errors that
are left were drawn is exchangeable, whatever was seen of the rows that have left. So it may be
chosen again from their true labels, as long as it does not use those of drawn rows that are left.

Probably approximately correct labels: Candès, Ilyas & Zrnic 2025,
https://arxiv.org/abs/2506.10908. Choosing an order from what has left: Lei & Fithian 2018,
https://doi.org/10.1111/rssb.12274.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Plan",
    "allowed_in_sample",
    "expected_reviews",
    "failure",
    "least_wrong",
    "plan_sample",
    "reviews",
    "smallest_samples",
]

LARGEST_ALLOWED, QUANTILES = 200, 11
LIKELY = (0.1, 0.9)  # quantiles of the rows to label


def failure(n: int, m: ArrayLike, wrong: ArrayLike, seen: ArrayLike) -> NDArray[np.float64]:
    """P(H ≤ s), the chance that more than ``wrong`` (B) errors are left with at most ``seen`` (s).

    Parameters
    ----------
    n, m
        Rows of the file, and of the sample.
    """
    from scipy.stats import hypergeom

    drawn = np.asarray(seen)
    return np.asarray(hypergeom.cdf(drawn, n, np.asarray(wrong) + 1 + drawn, m), np.float64)


def allowed_in_sample(n: int, m: ArrayLike, wrong: int, alpha: float) -> NDArray[np.int64]:
    """Largest s with ``failure`` ≤ α, for every sample size m; -1 if even s = 0 has more.

    Examples
    --------
    >>> from probekit.cleaning.bound import allowed_in_sample, failure
    >>> allowed_in_sample(2000, [20, 200], wrong=100, alpha=0.05).tolist()
    [-1, 5]
    >>> round(float(failure(2000, 200, 100, 5)), 3), round(float(failure(2000, 200, 100, 6)), 3)
    (0.036, 0.075)
    """
    sizes = np.atleast_1d(np.asarray(m, np.int64))
    # P(H ≤ s) grows with s: one more error adds at most one to the drawn ones.
    low, high = np.full(len(sizes), -1), np.minimum(sizes, n - wrong - 1)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = failure(n, sizes, wrong, middle) <= alpha
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def smallest_samples(n: int, wrong: int, alpha: float) -> NDArray[np.int64]:
    """Smallest sample sizes m with ``failure`` ≤ α for s = 0, 1, 2, …, until m is nearly n.

    Other sizes cost more labels and allow no more errors.
    """
    seen = np.arange(min(n - wrong, LARGEST_ALLOWED))
    # P(H ≤ s) falls with m.
    low, high = seen + 1, np.full(len(seen), n)
    while (low < high).any():
        middle = (low + high) // 2
        fits = failure(n, middle, wrong, seen) <= alpha
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return low


def least_wrong(n: int, m: int, alpha: float) -> int:
    """Smallest B that a sample of m rows without any error can certify."""
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) // 2
        fits = failure(n, m, middle, 0) <= alpha
        low, high = (low, middle) if fits else (middle + 1, high)
    return low


def reviews(
    q: NDArray[np.float64], m: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rows (k, QUANTILES) that people label in all, sample and rest, for each size m.

    They depend on where the errors of the sample happen to stand; here at points of equal chance.

    Parameters
    ----------
    q
        P(wrong) (n,) in the order of the file, rows that leave first at the end.
    m, seen
        Sample sizes (k,), and the drawn errors that may be left with each.
    """
    from scipy.stats import gamma

    n, sizes, left = len(q), np.asarray(m)[:, None], np.asarray(seen)[:, None]
    # An error is drawn with chance m / n, so that the (s + 1)th drawn one is about the
    # Gamma(s + 1) · n / m-th of all.
    chance = (np.arange(QUANTILES) + 0.5) / QUANTILES
    nth = gamma.ppf(chance, np.maximum(left, 0) + 1) * n / sizes
    cut = np.where(left < 0, 0, np.searchsorted(np.cumsum(q), nth))
    # Rows of the sample have been labelled already.
    return np.asarray(sizes + (n - cut) * (1 - sizes / n))


def expected_reviews(
    q: NDArray[np.float64], m: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected number of rows (k,) that people label; arguments as :func:`reviews`."""
    return np.asarray(reviews(q, m, seen).mean(axis=1))


@dataclass(frozen=True, slots=True)
class Plan:
    """A sample size, and what it should cost."""

    sample: int
    """m."""
    allowed: int
    """s, the drawn errors that may be left."""
    expected: int
    """Rows to label in all, sample included: an estimate from P(wrong)."""
    low: int
    high: int
    """In 8 of 10 cases it should be between these two."""
    by_chance: int
    """The same if rows are reviewed in random order, with its own best sample."""


def plan_sample(
    guesses: Sequence[NDArray[np.float64]], wrong: int, alpha: float, sample: int | None = None
) -> Plan:
    """Choose the sample size with the fewest rows to label, expected and at worst, unless fixed.

    Parameters
    ----------
    guesses
        P(wrong) (n,), ascending, as it may turn out; all are equally likely.
    wrong
        B, the wrong labels that may be left.
    sample
        m, if it is fixed.
    """
    n = len(guesses[0])
    sizes = smallest_samples(n, wrong, alpha)
    allowed = np.arange(len(sizes))
    flat = [np.full(n, q.mean()) for q in guesses]
    random = np.mean([expected_reviews(q, sizes, allowed) for q in flat], axis=0)
    if sample is not None:
        sizes = np.array([sample])
        allowed = allowed_in_sample(n, sizes, wrong, alpha)
    every = np.hstack([reviews(q, sizes, allowed) for q in guesses])
    cost = every.mean(axis=1)
    low, high = np.quantile(every, LIKELY, axis=1)
    # A smaller sample may be cheaper in the mean by a little, and is a lottery.
    best = int((2 * cost + high).argmin())
    return Plan(
        sample=int(sizes[best]),
        allowed=int(allowed[best]),
        expected=round(float(cost[best])),
        low=round(float(low[best])),
        high=round(float(high[best])),
        by_chance=round(float(random.min())),
    )
