"""The steps of TopoFilter, each a function of neighbour lists and labels.

Sources: Wu et al. 2020, https://arxiv.org/abs/2012.04835 (``paper``), and
https://github.com/EleutherAI/w2s, branch topo (``eleuther``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["drop_ranked", "drop_to_share", "largest_components", "majority"]

# Scores that differ by less are sums of the same numbers in another order.
SCORE_DECIMALS = 12


def largest_components(
    index: NDArray[np.int64],
    hard: NDArray[np.int64],
    *,
    connection: Literal["weak", "strong"],
    classes: NDArray[Any],
) -> tuple[NDArray[np.bool_], list[str]]:
    """Return the rows in the largest component of their class (n,), and notes for the caller.

    Edges go from a row to those of its ``index`` (n, k) that have its class. Of equally large
    components the one with the smallest row number is kept. Memory is O(n k).
    """
    n, k = index.shape
    target = index.ravel()
    same = np.repeat(hard, k) == hard[target]
    degree = same.reshape(n, k).sum(axis=1)
    start = np.concatenate([[0], np.cumsum(degree)])
    graph = csr_matrix((np.ones(start[-1], dtype=np.int8), target[same], start), shape=(n, n))
    part = connected_components(graph, directed=True, connection=connection)[1]
    size = np.bincount(part)[part]
    keep = np.zeros(n, dtype=bool)
    notes = []
    for number in np.unique(hard):
        rows = np.flatnonzero(hard == number)
        largest = rows[size[rows] == size[rows].max()]
        keep[rows[part[rows] == part[largest[0]]]] = True
        many = len(np.unique(part[largest]))
        if len(rows) == 1:
            notes.append(f"Class {classes[number]} has one row, which is kept.")
        elif many > 1:
            notes.append(
                f"Class {classes[number]} has {many} components of {size[largest[0]]} rows and "
                f"none larger; the one that holds row {largest[0]} is kept."
            )
    return keep, notes


def majority(
    index: NDArray[np.int64], hard: NDArray[np.int64], n_classes: int, *, zeta: float
) -> NDArray[np.bool_]:
    """Tell whose own label wins among itself and its k neighbours (n,).

    Winning is having the most votes, ties going to the smallest label, and, unless zeta > 1, at
    least k · zeta of the k + 1 votes.
    """
    n, k = index.shape
    cell = np.arange(n)[:, None] * n_classes + hard[index]
    votes = np.bincount(cell.ravel(), minlength=n * n_classes).reshape(n, n_classes)
    votes[np.arange(n), hard] += 1
    won = votes.argmax(axis=1) == hard
    if zeta <= 1:
        won &= votes.max(axis=1) >= k * zeta - 1e-9
    return np.asarray(won)


def _scopes(hard: NDArray[np.int64], *, per_class: bool) -> Iterator[NDArray[np.int64]]:
    if not per_class:
        yield np.arange(len(hard))
        return
    for number in np.unique(hard):
        yield np.flatnonzero(hard == number)


def drop_to_share(
    component: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    cap: bool,
) -> tuple[NDArray[np.bool_], list[str]]:
    """Drop the rows of the component that disagree most until ``share`` of all rows is gone.

    Where the component step dropped more than round(n · share) already, nothing more goes, and
    with ``cap`` the least-disagreeing of those it dropped come back. Ties go by row number.
    """
    keep = component.copy()
    score = np.round(disagreement, SCORE_DECIMALS)
    notes = []
    for rows in _scopes(hard, per_class=per_class):
        target = round(len(rows) * share)
        inside, outside = rows[component[rows]], rows[~component[rows]]
        more = target - len(outside)
        if more >= 0:
            keep[inside[np.argsort(-score[inside], kind="stable")[:more]]] = False
        elif cap:
            keep[outside[np.argsort(score[outside], kind="stable")[:-more]]] = True
            notes.append(
                f"The component step dropped {len(outside)} of {len(rows)} rows where {target} "
                f"were asked for; {-more} that disagree least were taken back."
            )
        else:
            notes.append(
                f"The component step alone dropped {len(outside)} of {len(rows)} rows where "
                f"{target} were asked for; a larger k_cc drops fewer, cap=True holds the share."
            )
    return keep, notes


def drop_ranked(
    accepted: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
) -> NDArray[np.bool_]:
    """Drop exactly ⌊share · n⌋ rows: rejected ones first, each by disagreement, ties by number."""
    keep = np.ones(len(hard), dtype=bool)
    score = np.round(disagreement, SCORE_DECIMALS)
    for rows in _scopes(hard, per_class=per_class):
        order = rows[np.lexsort((-score[rows], accepted[rows]))]
        # 0.29 * 100 is 28.999999999999996, yet 29 rows are meant.
        keep[order[: math.floor(len(rows) * share + 1e-9)]] = False
    return keep
