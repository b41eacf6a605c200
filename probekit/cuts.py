"""Cuts of a ranking: how far labels and probe disagree, the number of rows to select, and ties.

Also decisions with given class shares, which a shifted scale of the probabilities cannot distort.

Equal scores are common (a mean of k votes takes k + 1 values). Which of the equal rows at a cut are
selected is decided by a hash of seed and id, or of the text or states if there are no ids, so that
the order of the rows, which may mean something, decides nothing.
"""

from __future__ import annotations

import hashlib
import math
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import DataError, UsageError
from probekit.groups import content_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from probekit.joins import Keys

__all__ = [
    "DISAGREEMENTS",
    "Cut",
    "by_content",
    "by_id",
    "by_key",
    "check_disagreement",
    "class_counts",
    "count_of",
    "disagreement_of",
    "largest",
    "names_of",
    "prior_matched",
    "prior_threshold",
    "tied_decisions",
]

DISAGREEMENTS = ("label", "distance")
# Scores that differ by less are sums of the same numbers in another order.
DECIMALS = 12
CHUNK = 4096
SWEEPS = 30


class Cut(NamedTuple):
    """The selected rows (n,), and the rows (n,) for which a tie decided that."""

    selected: NDArray[np.bool_]
    tied: NDArray[np.bool_]

    def tie_counts(self) -> dict[str, int]:
        """The number of rows that a tie decided, and of those selected among them."""
        return {"rows": int(self.tied.sum()), "taken": int((self.tied & self.selected).sum())}


def check_disagreement(form: str) -> None:
    """Raise UsageError for an unknown form of disagreement."""
    if form not in DISAGREEMENTS:
        raise UsageError(f"disagreement is {' or '.join(DISAGREEMENTS)}, got {form!r}.")


def disagreement_of(
    proba: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]], form: str = "label"
) -> NDArray[np.float64]:
    """Disagreement (n,) of a probe with weak labels, in [0, 1], to 12 decimals.

    Parameters
    ----------
    proba, Y
        The probe's P and the weak labels (n, C).
    form
        ``"label"``: 1 − P[argmax Y], the probe's probability that the weak label is wrong.
        ``"distance"``: ½ ‖P − Y‖₁, as published. For hard labels they are the same; for soft ones
        the distance is largest where either side is unsure, not where the label is wrong.
    """
    check_disagreement(form)
    P = np.asarray(proba, np.float64)
    if form == "distance":
        disagreement = 0.5 * np.abs(P - Y).sum(axis=1)
    else:
        disagreement = 1 - P[np.arange(len(P)), np.argmax(Y, axis=1)]
    # Rounding may leave -0.0, which should not be printed.
    return np.asarray(np.maximum(np.round(disagreement, DECIMALS), 0.0) + 0.0)


def by_id(ids: Iterable[str], *, seed: int | Sequence[int] = 0) -> NDArray[np.uint64]:
    """Order of equal scores (n,): a hash of seed and id, the same for any order of the rows."""
    start = f"{seed if isinstance(seed, int | np.integer) else list(seed)}\x1f"
    digests = (
        hashlib.blake2b(f"{start}{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in ids
    )
    # Pieces: all digests at once take six times the memory of the numbers.
    pieces = iter(lambda: b"".join(islice(digests, CHUNK)), b"")
    found = [np.frombuffer(each, dtype=">u8").astype(np.uint64) for each in pieces]
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def names_of(keys: Keys) -> Sequence[str] | None:
    """Names of n rows in any order: ids, else text hashes; None if there are neither."""
    if keys.id_column is not None:
        return keys.ids
    return keys.hashes if keys.hashes and all(keys.hashes) else None


def by_key(keys: Keys, *, seed: int | Sequence[int] = 0) -> NDArray[np.uint64]:
    """Order of equal scores (n,) by ids, else text hashes, else row numbers: as :func:`by_id`."""
    return by_id(names_of(keys) or keys.ids, seed=seed)


def by_content(X: ArrayLike, Y: ArrayLike, *, seed: int | Sequence[int] = 0) -> NDArray[np.int64]:
    """Order of equal scores (n,) of rows without ids: by a hash of seed and states X (n, d).

    Rows with the same states are ordered by a hash of their labels Y (n, C), then by row number.
    """
    keys = [by_id((d.hex() for d in content_digests(part)), seed=seed) for part in (Y, X)]
    place = np.empty(len(keys[0]), dtype=np.int64)
    place[np.lexsort(keys)] = np.arange(len(place))
    return place


def count_of(share: float, n: int) -> int:
    """Return ⌊share · n⌋ of the decimal numbers: 0.29 of 100 rows are 29.

    In floats 0.29 · 100 is 28.999999999999996, which EleutherAI's ``int(c * n)`` makes 28.
    """
    return math.floor(share * n + 1e-9)


def largest(
    score: NDArray[np.floating[Any]],
    counts: ArrayLike,
    number: NDArray[np.int64] | None = None,
    *,
    ties: NDArray[Any] | None = None,
) -> Cut:
    """Select the rows of largest score (n,): ``counts[k]`` of those with ``number`` k.

    Without ``number`` (n,), ``counts`` is the number of rows of all. Of equal scores the row with
    the smaller of ``ties`` (n,) is selected; by default, and if these are equal too, the one with
    the smaller row number.
    """
    selected = np.zeros(len(score), dtype=bool)
    tied = np.zeros(len(score), dtype=bool)
    numbers = np.zeros(len(score), dtype=np.int64) if number is None else number
    last = np.arange(len(score)) if ties is None else ties
    for k, count in enumerate(np.atleast_1d(np.asarray(counts)).tolist()):
        rows = np.flatnonzero(numbers == k)
        order = rows[np.lexsort((last[rows], -score[rows]))]
        selected[order[:count]] = True
        if 0 < count < len(order) and score[order[count - 1]] == score[order[count]]:
            tied[rows[score[rows] == score[order[count]]]] = True
    return Cut(selected, tied)


def tied_decisions(
    proba: NDArray[np.floating[Any]], decided: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Mask (n,) of rows whose probabilities (n, C) equal those of a row with another decision."""
    same = np.unique(proba, axis=0, return_inverse=True)[1].ravel()
    pairs = np.unique(np.column_stack([same, decided]), axis=0)
    return np.asarray((np.bincount(pairs[:, 0]) > 1)[same])


def class_counts(n: int, share: ArrayLike) -> NDArray[np.int64]:
    """Divide n rows by class shares (C,): whole numbers that sum to n.

    Largest remainders are rounded up, of equal ones that of the later class; for two classes that
    is ⌊n · share + ½⌋ rows of class 1.
    """
    shares = np.asarray(share, dtype=np.float64)
    if shares.ndim == 0:
        shares = np.array([1 - shares, shares])
    # A share computed from a count must give that count again.
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

    Two classes: the ⌊n · share + ½⌋ largest scores are class 1. More classes: the decision with
    these counts whose probabilities have the largest sum, which is the same for two classes.

    Parameters
    ----------
    score
        Any score of class 1 (n,), or class probabilities (n, C).
    share
        Share of class 1, or shares of all classes (C,).
    ties
        Order of equal scores (n,), smaller numbers first (:func:`by_id`); by default the row
        number.

    Raises
    ------
    DataError
        If scores are NaN or of another shape, or shares are not those of the classes.
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

    If no number of the scores' type lies between the two, or they are equal, it is the lower
    score; :func:`prior_matched` also decides equal ones.

    Raises
    ------
    DataError
        If scores are NaN or of another shape.
    """
    given = np.asarray(score)
    scores = given.astype(np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise DataError(f"Scores must be (n,) without NaN, got shape {scores.shape}.")
    ordered = np.sort(scores)[::-1]
    n_above = int(class_counts(len(ordered), share)[1])
    if n_above == 0:
        return float("inf")
    if n_above == len(ordered):
        return float("-inf")
    above, below = float(ordered[n_above - 1]), float(ordered[n_above])
    # Halved first, because the sum of two large scores overflows; ±inf has no half.
    half = above / 2 + below / 2 if np.isfinite([above, below]).all() else below
    if given.dtype.kind == "f":
        half = float(given.dtype.type(half))  # as numpy rounds a threshold when it compares
    return half if below <= half < above else below


def _transport(P: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class numbers (n,) with the given counts (C,) and the largest sum of P (n, C).

    Class prices first (a decision by price is the best one for the counts that it has); then rows
    move, one at a time along the cheapest chain of classes, until the counts are right.
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
    """Prices (C,): each class in turn takes the one that gives it its count, others fixed."""
    price = np.zeros(len(counts))
    n = len(P)
    for _ in range(SWEEPS):
        before = price.copy()
        for c in range(len(counts)):
            offered = P + price
            offered[:, c] = -np.inf
            wanted = np.sort(offered.max(axis=1) - P[:, c])
            # Between the last row that belongs to the class and the first that does not.
            low = wanted[counts[c] - 1] if counts[c] else wanted[0] - 1
            high = wanted[counts[c]] if counts[c] < n else wanted[-1] + 1
            price[c] = (low + high) / 2
        if np.abs(price - before).max() < 1e-9:
            break
    return price


def _moves(
    P: NDArray[np.float64], decided: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Loss of moving the cheapest row from each class to each other (C, C), and that row."""
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
        # The margin keeps rounding from closing a chain to a cycle.
        nearer = through[best, np.arange(n_classes)] < distance - 1e-12
        distance[nearer] = through[best, np.arange(n_classes)][nearer]
        parent[nearer] = best[nearer]
    chain = [int(lacking[distance[lacking].argmin()])]
    while parent[chain[-1]] >= 0:
        chain.append(int(parent[chain[-1]]))
    return chain[::-1]
