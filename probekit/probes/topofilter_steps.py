"""The steps of TopoFilter, each a function of neighbour lists and labels.

Sources: Wu et al. 2020, https://arxiv.org/abs/2012.04835 (``paper``), and
https://github.com/EleutherAI/w2s, branch topo (``eleuther``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from probekit.cuts import DECIMALS, Cut, count_of, largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Connection",
    "Note",
    "drop_ranked",
    "drop_to_share",
    "label_components",
    "largest_components",
    "majority",
    "with_outcome",
]

Connection = Literal["weak", "strong"]


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the caller on a class, with ``{name}`` and ``{row}`` to be filled in."""

    text: str
    number: int | None = None
    """Class that ``{name}`` stands for."""
    row: int | None = None
    """Row that ``{row}`` stands for."""

    def told(self, classes: Sequence[Any], ids: Sequence[str] | None = None) -> str:
        """The sentence with the name of the class and the id of the row, else its number."""
        name = "" if self.number is None else str(classes[self.number])
        row = str(self.row) if self.row is None or ids is None else ids[self.row]
        return self.text.format(name=name, row=row)


def largest_components(
    index: NDArray[np.int64], hard: NDArray[np.int64], *, connection: Connection
) -> tuple[NDArray[np.bool_], list[Note]]:
    """Return the rows in the largest component of their class (n,), and notes for the caller.

    Edges go from a row to those of its ``index`` (n, k) that have its class. Of equally large
    components the one with the smallest row number is kept. Memory is O(n k).
    """
    _, part = label_components(index, hard, connection=connection)
    size = np.bincount(part)[part]
    keep = np.zeros(len(index), dtype=bool)
    notes = []
    for number in np.unique(hard):
        rows = np.flatnonzero(hard == number)
        largest = rows[size[rows] == size[rows].max()]
        keep[rows[part[rows] == part[largest[0]]]] = True
        many = len(np.unique(part[largest]))
        if len(rows) == 1:
            text = "Class {name} has one row ({row}), which the component step leaves in"
            notes.append(Note(text, int(number), int(rows[0])))
        elif many > 1:
            text = (
                f"Class {{name}} has {many} components of {size[largest[0]]} rows and none larger; "
                "the component step leaves in the one that holds row {row}"
            )
            notes.append(Note(text, int(number), int(largest[0])))
    return keep, notes


def with_outcome(
    notes: Sequence[Note],
    component: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    hard: NDArray[np.int64],
) -> list[Note]:
    """Finish notes of :func:`largest_components` with what the last step did to these rows."""
    finished = []
    for note in notes:
        rows = np.flatnonzero(component & (hard == note.number))
        kept = int(keep[rows].sum())
        if kept == len(rows):
            end = "and the last step keeps." if len(rows) == 1 else "and the last step keeps all."
        elif not kept:
            end = "and the last step drops." if len(rows) == 1 else "and the last step drops it."
        else:
            end = f"and the last step drops {len(rows) - kept} of its rows."
        finished.append(replace(note, text=f"{note.text}, {end}"))
    return finished


def label_components(
    index: NDArray[np.int64], hard: NDArray[np.int64], *, connection: Connection
) -> tuple[csr_matrix, NDArray[np.int64]]:
    """Graph (n, n) of edges from a row to those of its ``index`` (n, k) that have its class.

    Beside it the number of the component (n,) of each row.
    """
    n, k = index.shape
    target = index.ravel()
    same = np.repeat(hard, k) == hard[target]
    degree = same.reshape(n, k).sum(axis=1)
    start = np.concatenate([[0], np.cumsum(degree)])
    graph = csr_matrix((np.ones(start[-1], dtype=np.int8), target[same], start), shape=(n, n))
    part = connected_components(graph, directed=True, connection=connection)[1]
    return graph, part.astype(np.int64)


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


def _scopes(
    hard: NDArray[np.int64], *, per_class: bool
) -> Iterator[tuple[int | None, NDArray[np.int64]]]:
    if not per_class:
        yield None, np.arange(len(hard))
        return
    for number in np.unique(hard):
        yield int(number), np.flatnonzero(hard == number)


def drop_to_share(
    component: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    cap: bool,
    ties: NDArray[Any] | None = None,
) -> tuple[Cut, list[Note]]:
    """Drop the rows of the component that disagree most until ``share`` of all rows is gone.

    Where the component step dropped more than round(n · share) already, nothing more goes, and
    with ``cap`` the least-disagreeing of those it dropped come back. Equal ones go by ``ties``
    (n,), smaller first, by default by row number.
    """
    taken, tied = ~component, np.zeros(len(component), dtype=bool)
    score = np.round(disagreement, DECIMALS)
    notes = []
    for number, rows in _scopes(hard, per_class=per_class):
        whose = "" if number is None else " of class {name}"
        target = round(len(rows) * share)
        inside, outside = rows[component[rows]], rows[~component[rows]]
        more = target - len(outside)
        if more >= 0:
            cut = largest(score[inside], more, ties=None if ties is None else ties[inside])
            taken[inside[cut.taken]] = tied[inside[cut.tied]] = True
        elif cap:
            cut = largest(-score[outside], -more, ties=None if ties is None else ties[outside])
            taken[outside[cut.taken]] = False
            tied[outside[cut.tied]] = True
            text = (
                f"The component step dropped {len(outside)} of {len(rows)} rows{whose} where "
                f"{target} were asked for; {-more} that disagree least were taken back."
            )
            notes.append(Note(text, number))
        else:
            text = (
                f"The component step alone dropped {len(outside)} of {len(rows)} rows{whose} where "
                f"{target} were asked for; a larger k_cc drops fewer, cap=True holds the share."
            )
            notes.append(Note(text, number))
    return Cut(taken, tied), notes


def drop_ranked(
    accepted: NDArray[np.bool_],
    disagreement: NDArray[np.float64],
    hard: NDArray[np.int64],
    *,
    share: float,
    per_class: bool,
    ties: NDArray[Any] | None = None,
) -> Cut:
    """Drop exactly ⌊share · n⌋ rows: rejected ones first, each by disagreement, then by ``ties``.

    ``ties`` (n,) as in :func:`drop_to_share`.
    """
    taken, tied = np.zeros(len(hard), dtype=bool), np.zeros(len(hard), dtype=bool)
    # A disagreement is at most 1, so that every rejected row is above every accepted one.
    score = np.round(disagreement, DECIMALS) + 2 * ~accepted
    for _, rows in _scopes(hard, per_class=per_class):
        count = count_of(share, len(rows))
        cut = largest(score[rows], count, ties=None if ties is None else ties[rows])
        taken[rows[cut.taken]] = tied[rows[cut.tied]] = True
    return Cut(taken, tied)
