"""Decisions with given class shares: probabilities on a shifted scale cannot distort them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["class_counts", "prior_matched", "prior_threshold"]

SWEEPS = 30


def class_counts(n: int, share: ArrayLike) -> NDArray[np.int64]:
    """Divide n rows by class shares (C,): whole numbers that sum to n.

    Largest remainders are rounded up, of equal ones the later class; for two classes that is
    ⌊n · share + ½⌋ rows of class 1.
    """
    shares = np.asarray(share, dtype=np.float64)
    if shares.ndim == 0:
        shares = np.array([1 - shares, shares])
    # A share that came from a count must give this count back.
    exact = np.round(shares * n, 6)
    if (exact < 0).any() or abs(float(shares.sum()) - 1) > 1e-6:
        raise DataError(f"Class shares must lie in [0, 1] and sum to 1, got {shares.tolist()}.")
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.lexsort((-np.arange(len(shares)), counts - exact))
    counts[order[: n - int(counts.sum())]] += 1
    return counts


def prior_matched(
    score: ArrayLike, share: ArrayLike, *, ties: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Decide so that class shares are exactly ``share``: class numbers (n,).

    Two classes: the ⌊n · share + ½⌋ largest scores are class 1. More classes: of all decisions with
    these counts the one with the largest sum of the probabilities decided for, which for two
    classes is the same thing.

    Parameters
    ----------
    score
        Any score of class 1 (n,), or class probabilities (n, C).
    share
        Share of class 1, or shares of all classes (C,).
    ties
        Order of equal scores (n,), smaller numbers first (:func:`probekit.cuts.by_id`); by default
        the row number.
    """
    scores = np.asarray(score, dtype=np.float64)
    if scores.ndim not in (1, 2) or np.isnan(scores).any():
        raise DataError(f"Scores must be (n,) or (n, C) without NaN, got shape {scores.shape}.")
    if ties is not None:
        order = np.argsort(ties, kind="stable")
        decided = np.empty(len(scores), dtype=np.int64)
        decided[order] = prior_matched(scores[order], share)
        return decided
    if scores.ndim == 2 and scores.shape[1] != 2:
        shares = np.asarray(share, dtype=np.float64)
        if shares.shape != (scores.shape[1],):
            raise DataError(f"{scores.shape[1]} classes need as many shares, got {shares.shape}.")
        return _transport(scores, class_counts(len(scores), shares))
    one = scores if scores.ndim == 1 else scores[:, 1]
    decided = np.zeros(len(one), dtype=np.int64)
    decided[np.argsort(-one, kind="stable")[: class_counts(len(one), share)[1]]] = 1
    return decided


def prior_threshold(score: ArrayLike, share: float) -> float:
    """Threshold that puts ⌊n · share + ½⌋ scores (n,) above it, halfway to the next score.

    Where no number of the scores' type lies between the two, and where they are equal, it is the
    lower score; :func:`prior_matched` settles equal ones.
    """
    given = np.asarray(score)
    scores = given.astype(np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise DataError(f"Scores must be (n,) without NaN, got shape {scores.shape}.")
    ordered = np.sort(scores)[::-1]
    many = int(class_counts(len(ordered), share)[1])
    if many == 0:
        return float("inf")
    if many == len(ordered):
        return float("-inf")
    above, below = float(ordered[many - 1]), float(ordered[many])
    # Halved first, for the sum of two large scores overflows; of ±inf there is no half way.
    half = above / 2 + below / 2 if np.isfinite([above, below]).all() else below
    if given.dtype.kind == "f":
        half = float(given.dtype.type(half))  # numpy rounds a threshold so when it compares
    return half if below <= half < above else below


def _transport(P: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Decide for the classes so that each gets its count and the sum of P decided for is largest.

    Class prices first (a decision by price is the best one for the counts it happens to have); then
    rows move, one at a time along the cheapest chain of classes, until the counts are right.
    """
    decided: NDArray[np.int64] = np.argmax(P + _prices(P, counts), axis=1)
    have = np.bincount(decided, minlength=len(counts))
    while (have != counts).any():
        cost, row = _moves(P, decided, len(counts))
        chain = _cheapest_chain(cost, np.flatnonzero(have > counts), np.flatnonzero(have < counts))
        for old, new in pairwise(chain):
            decided[row[old, new]] = new
        have[chain[0]] -= 1
        have[chain[-1]] += 1
    return decided


def _prices(P: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Prices (C,): each class in turn takes the one that gives it its count, others held."""
    price = np.zeros(len(counts))
    n = len(P)
    for _ in range(SWEEPS):
        before = price.copy()
        for c in range(len(counts)):
            offered = P + price
            offered[:, c] = -np.inf
            wanted = np.sort(offered.max(axis=1) - P[:, c])
            # Between the last row that should come and the first that should not.
            low = wanted[counts[c] - 1] if counts[c] else wanted[0] - 1
            high = wanted[counts[c]] if counts[c] < n else wanted[-1] + 1
            price[c] = (low + high) / 2
        if np.abs(price - before).max() < 1e-9:
            break
    return price


def _moves(
    P: NDArray[np.float64], decided: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Loss of moving the cheapest row from one class to another (C, C), and that row."""
    cost = np.full((n_classes, n_classes), np.inf)
    row = np.zeros((n_classes, n_classes), dtype=np.int64)
    for c in range(n_classes):
        members = np.flatnonzero(decided == c)
        if len(members):
            loss = P[members, c, None] - P[members]
            best = loss.argmin(axis=0)
            cost[c], row[c] = loss[best, np.arange(n_classes)], members[best]
    np.fill_diagonal(cost, np.inf)
    return cost, row


def _cheapest_chain(
    cost: NDArray[np.float64], surplus: NDArray[np.int64], lacking: NDArray[np.int64]
) -> list[int]:
    """Classes from one of ``surplus`` to one of ``lacking`` with the least sum (Bellman-Ford)."""
    n_classes = len(cost)
    distance = np.full(n_classes, np.inf)
    distance[surplus] = 0
    parent = np.full(n_classes, -1)
    for _ in range(n_classes - 1):
        through = distance[:, None] + cost
        best = through.argmin(axis=0)
        # The margin keeps rounding from closing a chain into a ring.
        nearer = through[best, np.arange(n_classes)] < distance - 1e-12
        distance[nearer] = through[best, np.arange(n_classes)][nearer]
        parent[nearer] = best[nearer]
    chain = [int(lacking[distance[lacking].argmin()])]
    while parent[chain[-1]] >= 0:
        chain.append(int(parent[chain[-1]]))
    return chain[::-1]
