"""The rows that a filter drops: a share, given or estimated, or confident learning's count.

The two estimates measure the share of each weak class that cannot be told from another class.
Neither is a noise rate: both assume that errors do not depend on the hidden states given the class,
but a weak model's errors do (docs/methods/cleaning.md). On real labels they measure
unpredictability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.cuts import DECIMALS, Cut, class_counts, count_of, largest
from probekit.errors import ProbeError, UsageError
from probekit.kinds import ACTION_KINDS, check, checked
from probekit.labels import WeakLabels

__all__ = [
    "HOC",
    "TRUSTED",
    "check_amount",
    "confident_joint",
    "confident_shares",
    "hoc",
    "prune_by_noise_rate",
    "rows_to_drop",
]

PER_CLASS_SHARE = 0.2
GLOBAL_SHARE = 0.1
# Where trusted labels find more wrong than that, at most: no class is dropped altogether.
MOST = 0.5
TRUSTED = "trusted"
"""Amount, as provenance records it, that trusted labels decided."""
# Shares of wrong labels that HOC's fit starts from; the best fit is used.
STARTS = (0.05, 0.2, 0.35, 0.45)


def check_amount(
    contamination: float | str | None, threshold: float | None, *, per_class: bool
) -> None:
    """Raise UsageError unless at most one amount is given, within its range."""
    check(contamination=contamination, per_class=per_class)
    if contamination is not None and threshold is not None:
        raise UsageError("Give a contamination or a threshold, not both.")
    checked(("threshold",), ACTION_KINDS["filter"]["threshold"], threshold)


def rows_to_drop(
    disagreement: NDArray[np.float64],
    proba: NDArray[np.float64],
    labels: WeakLabels,
    contamination: float | str | None,
    *,
    per_class: bool,
    ties: NDArray[Any],
    near: Callable[[], NDArray[np.int64]],
    right: NDArray[np.float64] | None = None,
) -> tuple[Cut, dict[str, Any]]:
    """Choose the most disagreeing rows.

    Parameters
    ----------
    disagreement, proba, labels
        Disagreement of probe and weak label (n,), the probe's probabilities (n, C), weak labels.
    contamination, per_class
        As :func:`probekit.cleaning.predict.filter_labels`.
    ties
        Order of equal rows (n,), smaller first.
    near
        Returns the two nearest other rows of every row (n, 2); called for ``"auto"`` only.
    right
        P(the weak label is right) (n,), if trusted labels have corrected it. By default more is
        then dropped of a weak class with more such rows below ½, up to half of it.

    Returns
    -------
    The cut, and the amount as provenance records it.
    """
    hard, n_classes = labels.hard, len(labels.classes)
    amount: dict[str, Any] = {"per_class": per_class, "contamination": contamination}
    if contamination == "confident":
        if not per_class:
            raise UsageError(
                "Confident learning counts within each weak class; leave out --global "
                "(per_class=False)."
            )
        classes, number = np.unique(hard, return_inverse=True)
        return prune_by_noise_rate(number.ravel(), proba[:, classes], ties=ties), amount
    size = np.bincount(hard, minlength=n_classes)
    if contamination is None and per_class and right is not None:
        amount["contamination"] = TRUSTED
        wrong = np.bincount(hard[right < 0.5], minlength=n_classes)
        least, most = ([count_of(share, n) for n in size] for share in (PER_CLASS_SHARE, MOST))
        return largest(1 - right, np.clip(wrong, least, most), hard, ties=ties), amount
    if contamination == "auto":
        estimates = _estimates(hard, proba, size, near())
        amount["estimates"] = {name: share.tolist() for name, share in estimates.items()}
        shares = np.minimum(estimates["hoc"], estimates["confident_joint"])
    else:
        share = PER_CLASS_SHARE if per_class else GLOBAL_SHARE
        amount["contamination"] = share if contamination is None else contamination
        shares = np.full(n_classes, amount["contamination"])
    if per_class:
        counts = [count_of(share, n) for share, n in zip(shares, size, strict=True)]
        return largest(disagreement, counts, hard, ties=ties), amount
    # The published filter counts int(c * n) in floats: 28 of 100 rows for 0.29.
    estimated = contamination == "auto"
    count = count_of(float(shares @ size), 1) if estimated else int(float(shares[0]) * len(hard))
    return largest(disagreement, count, ties=ties), amount


def _estimates(
    hard: NDArray[np.int64],
    proba: NDArray[np.float64],
    size: NDArray[np.int64],
    near: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Two estimates of the share of each weak class that cannot be told from another class."""
    classes = np.flatnonzero(size)  # the join may leave a class without rows
    number = np.searchsorted(classes, hard)
    shares = {name: np.zeros(len(size)) for name in ("hoc", "confident_joint")}
    shares["hoc"][classes] = hoc(number, near, len(classes)).shares
    shares["confident_joint"][classes] = confident_shares(number, proba[:, classes])
    return shares


@dataclass(frozen=True, eq=False)
class HOC:
    """Prior and transition matrix that explain the agreement of neighbours' labels."""

    prior: NDArray[np.float64]
    """p (C,): share of each true class."""
    transition: NDArray[np.float64]
    """T (C, C): T[i, j] = P(label j | true class i)."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share (C,) of the rows labelled c that are of another class: 1 − T[c,c] p[c] / q[c]."""
        labelled = self.prior @ self.transition
        right = np.diagonal(self.transition) * self.prior
        shares: NDArray[np.float64] = np.clip(1 - right / np.maximum(labelled, 1e-12), 0, 1)
        return shares


def hoc(hard: NDArray[np.int64], neighbors: NDArray[np.int64], n_classes: int) -> HOC:
    """Fit prior and transition matrix to the labels of rows and their two nearest others.

    A row and its nearest others are assumed to have one true class and independent labels. The
    shares of single labels, pairs and triples then follow from p and T, which are fitted by least
    squares. Zhu, Song & Liu 2021, https://arxiv.org/abs/2102.05291.

    Parameters
    ----------
    hard
        Weak classes (n,), 0 … C − 1.
    neighbors
        Row numbers (n, k >= 2) of nearest others, nearest first.
    n_classes
        C.
    """
    from scipy.optimize import linear_sum_assignment, minimize

    if neighbors.ndim != 2 or neighbors.shape[1] < 2:
        raise ProbeError(f"HOC needs two neighbours of each row, got shape {neighbors.shape}.")
    triples = np.stack([hard, hard[neighbors[:, 0]], hard[neighbors[:, 1]]])
    counts = np.zeros((n_classes,) * 3)
    np.add.at(counts, tuple(triples), 1 / len(hard))
    # First, second and third order: shares of single labels, of pairs and of triples.
    targets = (counts.sum((1, 2)), counts.sum(2), counts)
    best = None
    for wrong in STARTS:
        start = np.full((n_classes, n_classes), wrong / (n_classes - 1))
        np.fill_diagonal(start, 1 - wrong)
        logits = np.concatenate([np.log(np.maximum(targets[0], 1e-6)), np.log(start).ravel()])
        fit = minimize(_mismatch, logits, args=(targets,), jac=True, method="L-BFGS-B")
        if best is None or fit.fun < best.fun - 1e-12:
            best = fit
    assert best is not None
    prior, transition = _unpack(best.x, n_classes)
    # The fit does not name true classes: give each the label that it shows most often.
    order, names = linear_sum_assignment(-prior[:, None] * transition)
    place = np.empty(n_classes, np.int64)
    place[names] = order
    return HOC(prior[place], transition[place])


def _unpack(logits: NDArray[np.float64], c: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.special import softmax

    return softmax(logits[:c]), softmax(logits[c:].reshape(c, c), axis=1)


def _mismatch(
    logits: NDArray[np.float64], targets: tuple[NDArray[np.float64], ...]
) -> tuple[float, NDArray[np.float64]]:
    """Sum of squared differences of the three orders, and its gradient in the logits."""
    c = len(targets[0])
    p, T = _unpack(logits, c)
    pairs = (T[:, :, None] * T[:, None, :]).reshape(c, c * c)  # row i: T[i, a] T[i, b]
    one = p @ T - targets[0]
    two = (p[:, None] * T).T @ T - targets[1]
    three = ((p[:, None] * T).T @ pairs).reshape(c, c, c) - targets[2]
    value = float((one**2).sum() + (two**2).sum() + (three**2).sum())
    both = two + two.T
    cyclic = three + three.transpose(1, 0, 2) + three.transpose(2, 0, 1)
    inner = pairs @ cyclic.reshape(c, c * c).T
    grad_T = 2 * p[:, None] * (one + T @ both + inner)
    grad_p = 2 * (T @ one + pairs @ two.ravel() + (T * (pairs @ three.reshape(c, -1).T)).sum(1))
    by_p = p * (grad_p - p @ grad_p)
    by_T = T * (grad_T - (T * grad_T).sum(1, keepdims=True))
    return value, np.concatenate([by_p, by_T.ravel()])


def confident_joint(hard: NDArray[np.int64], proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count rows by weak class and by the class that the probe is confident of: (C, C).

    The probe is confident of j if the probability of j is at least its mean over the rows labelled
    j; of several such classes the most probable counts. Each line is scaled to the number of rows
    with that label. Northcutt, Jiang & Chuang 2021, https://arxiv.org/abs/1911.00068.
    """
    c = proba.shape[1]
    size = np.bincount(hard, minlength=c)
    if (size == 0).any():
        raise ProbeError(f"No row has the weak class {int(np.argmin(size))}; leave it out.")
    threshold = np.array([proba[hard == j, j].mean() for j in range(c)])
    # Rounding of the mean must not exclude a class whose probabilities are all equal.
    sure = np.where(proba >= threshold - 1e-6, proba, -1.0)
    confident = sure.max(axis=1) >= 0
    joint = np.zeros((c, c))
    np.add.at(joint, (hard[confident], sure.argmax(axis=1)[confident]), 1)
    none = joint.sum(axis=1) == 0
    joint[none, none] = 1  # without a confident row there is no evidence against these labels
    scaled: NDArray[np.float64] = joint * (size / joint.sum(axis=1))[:, None]
    return scaled


def confident_shares(hard: NDArray[np.int64], proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share (C,) of the rows labelled c that lie off the diagonal of the confident joint."""
    joint = confident_joint(hard, proba)
    shares: NDArray[np.float64] = 1 - np.diagonal(joint) / joint.sum(axis=1)
    return shares


def prune_by_noise_rate(
    hard: NDArray[np.int64], proba: NDArray[np.float64], *, ties: NDArray[Any] | None = None
) -> Cut:
    """Choose rows (n,) to drop: for each k and j, as many of label k as the confident joint counts.

    Those with the largest margin p_j − p_k go first, of equal ones the smaller of ``ties`` (n,), by
    default the smaller row number; rows whose most probable class is their label stay. Confident
    learning's ``prune_by_noise_rate``, Northcutt, Jiang & Chuang 2021, section 3.2,
    https://arxiv.org/abs/1911.00068.
    """
    joint = confident_joint(hard, proba)
    drop, tied = np.zeros(len(hard), dtype=bool), np.zeros(len(hard), dtype=bool)
    for k, row in enumerate(joint):
        rows = np.flatnonzero(hard == k)
        counts = class_counts(len(rows), row / row.sum())
        for j in np.flatnonzero(counts):
            if j != k:
                margin = np.round(proba[rows, j] - proba[rows, k], DECIMALS)
                cut = largest(margin, counts[j], ties=None if ties is None else ties[rows])
                drop[rows[cut.selected]] = tied[rows[cut.tied]] = True
    other = proba.argmax(axis=1) != hard
    return Cut(drop & other, tied & other)
