"""Nearest rows, exactly, to the last tie: one search at the largest k serves every smaller one.

Distance is Euclidean between rows that are centred and, for ``cosine``, then scaled to unit length
(the default: in Euclidean distance a few rows of real hidden states are neighbours of almost all
others). Equal float32 distances go to the smaller row number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probekit.errors import ProbeError
from probekit.probes.neighbors_backends import search, search_among
from probekit.probes.ties import Found, Pair, Space, first_of, in_parallel, settle
from probekit.states import as_states, check_finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Metric", "NeighborIndex", "Neighbors", "nearest_others"]

Metric = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")

# Candidates beyond k: they show where the order is open, and stand in for excluded duplicates.
MARGIN = 16


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Row numbers (m, k) int64 and distances (m, k) float32, nearest first."""

    index: NDArray[np.int64]
    distance: NDArray[np.float32]


class NeighborIndex:
    """Rows X (n, d), made ready once to be searched many times.

    Parameters
    ----------
    X
        Stored rows, float32 or float64, finite. Kept, not copied, beside a centred float32 copy;
        of a memory map that is too large for one, blocks of it are read again and again.
    metric
        ``"cosine"`` (centred unit rows) or ``"euclidean"`` (centred rows).
    backend
        ``"auto"``, ``"faiss"`` or ``"torch"``: all give the same neighbours.
    """

    def __init__(self, X: ArrayLike, *, metric: Metric = "cosine", backend: str = "auto") -> None:
        if metric not in METRICS:
            raise ProbeError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
        self.X = _rows(X)
        self.backend = backend
        self.space = Space(self.X, metric=metric)

    def __len__(self) -> int:
        return len(self.X)

    def others(
        self,
        k: int,
        *,
        groups: ArrayLike | None = None,
        rows: NDArray[np.int64] | None = None,
        among: NDArray[np.bool_] | None = None,
    ) -> Neighbors:
        """Return the k nearest other rows of every stored row, its group left out.

        ``rows`` are the numbers of the rows asked for, by default all; ``among`` (n,) is a mask of
        those that may be neighbours.

        Raises
        ------
        ProbeError
            k > n - 1, or a row whose group leaves fewer than k others.
        """
        n = len(self)
        chosen = np.arange(n) if among is None else np.flatnonzero(among)
        k = _check_k(
            k, len(chosen) - 1, f"n = {len(chosen)} rows have {len(chosen) - 1} others each"
        )
        numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        if numbers.shape != (n,):
            raise ProbeError(f"groups must have one entry for each of {n} rows.")
        left = len(chosen) - np.bincount(numbers[chosen], minlength=n)[numbers]
        if left.min() < k:
            row = int(left.argmin())
            raise ProbeError(
                f"k = {k} is too large: row {row} has {left[row]} others that are not duplicates "
                f"of it (n = {len(chosen)}); use a smaller k or leave duplicates out."
            )
        space = self.space if among is None else self.space.subset(chosen)
        asked = self.space if rows is None else self.space.subset(rows)
        pair = (numbers if rows is None else numbers[rows], numbers[chosen])
        nearest = self._search(space, asked, k, pair)
        return nearest if among is None else Neighbors(chosen[nearest.index], nearest.distance)

    def query(
        self,
        X: ArrayLike,
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
    ) -> Neighbors:
        """Return the k nearest stored rows of each new row of X (m, d), or of those in ``among``.

        Every stored row counts: one that is asked for finds itself.
        """
        chosen = np.arange(len(self)) if among is None else np.flatnonzero(among)
        k = _check_k(k, len(chosen), f"there are n = {len(chosen)} stored rows")
        queries = _rows(X)
        if queries.shape[1] != self.X.shape[1]:
            raise ProbeError(
                f"The rows asked for have {queries.shape[1]} columns, those stored "
                f"{self.X.shape[1]}."
            )
        space = self.space if among is None else self.space.subset(chosen)
        nearest = self._search(space, space.of(queries), k)
        return nearest if among is None else Neighbors(chosen[nearest.index], nearest.distance)

    def _search(self, space: Space, asked: Space, k: int, groups: Pair | None = None) -> Neighbors:
        """Nearest rows of ``space`` for those of ``asked``, block by block of both."""
        m = len(asked.X)
        index, distance = np.empty((m, k), np.int64), np.empty((m, k), np.float32)
        width = min(len(space.X), k + MARGIN + (groups is not None))
        for block, rows in asked.blocks():
            if asked is space and len(rows) == m:
                found = search_among(rows, width, backend=self.backend)
            else:
                found = self._candidates(space, rows, width)

            def settle_some(share: slice, first: int = block.start, found: Found = found) -> None:
                part = slice(first + share.start, first + share.stop)
                pair = None if groups is None else (groups[0][part], groups[1])
                own, some = (asked.X[part], asked.norms[part]), (found[0][share], found[1][share])
                distance[part], index[part] = settle(space, own, some, k, groups=pair)

            in_parallel(settle_some, len(rows))
        return Neighbors(index, distance)

    def _candidates(self, space: Space, rows: NDArray[np.float32], width: int) -> Found:
        """Squared distances and numbers (m, width) of the nearest stored rows, up to rounding."""
        best: Found | None = None
        for part, stored in space.blocks():
            square, index = search(stored, rows, min(width, len(stored)), backend=self.backend)
            found = square, index + part.start if part.start else index
            best = found if best is None else first_of(best, found, width)
        assert best is not None
        return best


def nearest_others(
    X: ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    groups: ArrayLike | None = None,
    backend: str = "auto",
) -> Neighbors:
    """Return the k nearest other rows of every row of X (n, d).

    A row is left out of its own list by its number, never by distance, and so are the rows of its
    group (duplicates). Distances count as equal when they are equal in float32.

    Raises
    ------
    ProbeError
        k > n - 1, a group that leaves fewer than k others, or an unknown metric or backend.
    """
    return NeighborIndex(X, metric=metric, backend=backend).others(k, groups=groups)


def _rows(X: ArrayLike) -> NDArray[Any]:
    rows = as_states(X)
    if rows.ndim != 2:
        raise ProbeError(f"Rows must have shape (n, d), got {rows.shape}.")
    check_finite(rows)
    return rows


def _check_k(k: int, largest: int, why: str) -> int:
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise ProbeError(f"k must be a whole number of at least 1, got {k!r}.")
    if k > largest:
        raise ProbeError(f"k = {k} is too large: {why}; allowed are 1 to {largest}.")
    return int(k)
