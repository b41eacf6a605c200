"""Folds for out-of-fold predictions: stratified, with rows of one group on one side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probekit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["stratified_folds"]


def stratified_folds(
    hard: ArrayLike, *, n_folds: int = 5, groups: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.int16]:
    """Assign every row to a fold (n,): class shares and sizes as equal as the groups allow.

    The same rows, groups and seed give the same folds in any order of the rows, and whatever the
    classes are called: everything goes by the groups' numbers (:mod:`probekit.groups`).

    Groups with the same number of rows of each class are interchangeable: all of a kind are dealt
    at once, largest kinds first, each group to the fold that has least of its classes (a water
    level in closed form). Single rows come last and even out what the larger groups left.

    Parameters
    ----------
    hard
        Class number of each row (n,), integers from 0.
    groups
        Rows with one number stay in one fold (n,); by default every row is its own group, by its
        place.
    seed
        Decides which of interchangeable groups goes where.

    Notes
    -----
    Without groups, fold sizes differ by at most one, and so do the counts of every class. A class
    with fewer groups than folds is spread over as many folds as it has groups; with one group it
    lies in one fold, so that no fit without this fold can know it. There may be empty folds where
    there are fewer groups than folds.
    """
    labels = np.asarray(hard, dtype=np.int64)
    if labels.ndim != 1 or (len(labels) and labels.min() < 0):
        raise UsageError("stratified_folds needs class numbers (n,) from 0.")
    if n_folds < 2:
        raise UsageError(f"There must be at least 2 folds, got {n_folds}.")
    numbers = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if numbers.shape != labels.shape:
        raise UsageError(
            f"groups must have one entry for each of {len(labels)} rows, got {numbers.shape}."
        )
    if not len(labels):
        return np.zeros(0, dtype=np.int16)
    if groups is not None:
        numbers = np.unique(numbers, return_inverse=True)[1].ravel()
    kind, counts = _kinds(labels, numbers)
    rng = np.random.default_rng(seed)
    fold_of_kind = _deal(counts, np.bincount(kind), n_folds, rng)
    order = rng.permutation(len(kind))
    order = order[np.argsort(kind[order], kind="stable")]
    fold = np.empty(len(kind), dtype=np.int16)
    fold[order] = fold_of_kind
    return fold[numbers]


def _kinds(
    labels: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind of each group (g,), and how many rows of each class a group of that kind has (t, C).

    Kinds are numbered in the order of the first group of each.
    """
    n_classes = int(labels.max()) + 1
    size = np.bincount(numbers)
    kind = np.zeros(len(size), dtype=np.int64)
    single = size[numbers] == 1
    kind[numbers[single]] = labels[single]
    several = np.flatnonzero(size > 1)
    place = np.searchsorted(several, numbers[~single])
    table = np.bincount(place * n_classes + labels[~single], minlength=len(several) * n_classes)
    found, inverse = np.unique(table.reshape(-1, n_classes), axis=0, return_inverse=True)
    kind[several] = n_classes + inverse.ravel()
    counts = np.vstack([np.eye(n_classes, dtype=np.int64), found])
    used, first, kind = np.unique(kind, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[kind.ravel()], counts[used[order]]


def _deal(
    counts: NDArray[np.int64], many: NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Fold of every group, kind by kind: ``many[t]`` groups of kind t with ``counts[t]`` rows."""
    # Rows count relative to their class, else a rare class would be dealt by chance.
    weight = 1 / np.maximum(many @ counts, 1)
    held = np.zeros((n_folds, counts.shape[1]))
    dealt: list[NDArray[np.int16]] = [np.zeros(0, dtype=np.int16)] * len(many)
    for t in np.argsort(-counts.sum(axis=1), kind="stable"):
        pull = counts[t] * weight
        # Each further group of this kind raises a fold's squared load by one step of equal height.
        level = np.round(held @ pull / (counts[t] @ pull), 9)
        order = rng.permutation(n_folds)
        order = order[np.lexsort((held.sum(axis=1)[order], level[order]))]
        share = np.empty(n_folds, dtype=np.int64)
        share[order] = _fill(level[order], int(many[t]), held.sum(axis=1)[order])
        held += share[:, None] * counts[t]
        dealt[t] = np.repeat(np.arange(n_folds, dtype=np.int16), share)
    return np.concatenate(dealt)


def _fill(level: NDArray[np.float64], many: int, size: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pour ``many`` units into folds of ascending ``level``: how many each gets."""
    line = (np.cumsum(level) + many) / np.arange(1, len(level) + 1)
    wet = np.flatnonzero(line >= level)[-1]
    share: NDArray[np.int64] = np.floor(np.clip(line[wet] - level, 0, None)).astype(np.int64)
    rest = many - int(share.sum())
    share[np.lexsort((size, np.round(level + share, 9)))[:rest]] += 1
    return share
