"""Settle what float32 rounding leaves open: near ties, and the edge of a list that was cut off.

The order that counts is (float32 of the exact distance, row number), whatever the backend. What it
is settled in is a :class:`Space`: the rows as they are searched, in memory or block by block.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from probekit.states import row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Found", "Pair", "Space", "first_of", "in_parallel", "settle"]

# Distances or their squares, and row numbers, both (m, w).
Found: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"
# Group numbers of the rows asked for (m,) and of those stored (n,).
Pair: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"

# A float32 copy of all rows may take this share of the machine's memory.
COPY_SHARE = 0.25
# Rows that are searched, and rows that are searched for, at a time. Every block of the latter
# reads all of the former again, so it is large; centring costs 2 % of the products then.
BLOCK_BYTES = 1 << 28
# A thread costs some tenths of a millisecond, so it gets at least so many rows.
LEAST_ROWS = 1024
# A row whose distance to the mean is below this share of the mean is the mean, up to rounding: of
# float32, twice the unit in the last place, as for columns (probekit.states.constant_columns).
NO_DIRECTION_32, NO_DIRECTION_64 = 2.0**-22, 1e-10
UNIT_32, UNIT_64 = 2.0**-24, 2.0**-53
TILE_BYTES = 1 << 27
CACHE_BYTES = 1 << 20
SMALLEST = 1e-36


def rounding(d: int, unit: float) -> float:
    """Bound of the error of |q|² + |b|² - 2 q·b, as a share of |q|² + |b|².

    At least 1.7 times the largest seen over FAISS, torch and NumPy: on normal, low-rank, clustered
    and all-positive rows up to 17 units; with one huge coordinate in front, where every later
    addition rounds at its size, 31 units at d = 192, 58 at 1,024, 171 at 4,096, 309 at 8,192.
    """
    return (16 + 2 * float(np.sqrt(d)) + d / 20) * unit


def in_parallel(work: Callable[[slice], None], n: int) -> None:
    """Call ``work`` with slices that make up n rows, as many at once as FAISS has threads.

    NumPy lets go of the interpreter while it computes.
    """
    import faiss

    parts = max(1, min(faiss.omp_get_max_threads(), n // LEAST_ROWS))
    if parts == 1:
        work(slice(0, n))
        return
    edges = [n * i // parts for i in range(parts + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(edges)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, slices))  # raises what a thread raised


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a float32 copy of rows (n, d) may be kept in memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * shape[0] * shape[1] <= COPY_SHARE * memory


class PickedRows:
    """Some rows of X (n, d), read when asked for: ``X[chosen]`` without its copy."""

    def __init__(self, X: Any, chosen: NDArray[np.int64]) -> None:
        self._X, self._chosen = X, chosen
        self.shape = (len(chosen), X.shape[1])
        self.dtype = X.dtype

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        picked: NDArray[Any] = self._X[self._chosen[rows]]
        return picked


class Space:
    """Rows in the geometry of one metric: centred, and for cosine scaled to unit length.

    ``X`` (n, d) is kept as given; ``rows`` (n, d) float32 are the centred rows, computed in float64
    and divided by ``scale``, a power of two that keeps squares far from the ends of float32; None
    where they would take too much memory, so that they are made again block by block.
    """

    def __init__(self, X: NDArray[Any], *, metric: str) -> None:
        self.X: Any = X
        self.unit = metric == "cosine"
        self.mean = X.mean(axis=0, dtype=np.float64)
        share = NO_DIRECTION_32 if X.dtype == np.float32 else NO_DIRECTION_64
        self.floor = share * float(np.linalg.norm(self.mean))
        largest = max(float(X.max(initial=0)), -float(X.min(initial=0)))
        self.scale = 1.0 if self.unit or not largest else 2.0 ** np.ceil(np.log2(largest))
        self.rows: NDArray[np.float32] | None = None
        if fits(X.shape):
            self.rows, self.norms = self.place(X)
            return
        self.norms = np.empty(len(X))
        for part in self.parts():
            self.norms[part] = self.place(X[part])[1]

    def subset(self, chosen: NDArray[np.int64]) -> Space:
        """Return some of the rows in the same geometry: centre and scale stay those of all rows."""
        part = copy.copy(self)
        part.norms = self.norms[chosen]
        if self.rows is None:
            part.X = PickedRows(self.X, chosen)
        else:
            part.X, part.rows = self.X[chosen], self.rows[chosen]
        return part

    def of(self, X: NDArray[Any]) -> Space:
        """Return other rows X (m, d) in the same geometry."""
        other = copy.copy(self)
        other.X, other.rows = X, None
        if self.rows is not None or fits(X.shape):
            other.rows, other.norms = self.place(X)
            return other
        other.norms = np.empty(len(X))
        for part in other.parts():
            other.norms[part] = other.place(X[part])[1]
        return other

    def parts(self) -> Iterator[slice]:
        """Cut the rows as they are read: in one piece where they fit into memory."""
        n, d = self.X.shape
        step = n if self.rows is not None else BLOCK_BYTES // (4 * d)
        return row_chunks(n, 1, max(1, step))

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Give the rows as the search takes them, part by part."""
        for part in self.parts():
            yield part, self.place(self.X[part])[0] if self.rows is None else self.rows[part]

    def centred(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Rows of X in float64, centred; of unit length for cosine, where zero rows stay zero."""
        rows: NDArray[np.float64] = X - self.mean
        if self.unit:
            length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            length[length <= self.floor] = np.inf
            rows /= length[:, None]
        return rows

    def place(self, X: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Rows of X as the search takes them (m, d), and their squared lengths (m,)."""
        rows = np.empty(X.shape, dtype=np.float32)
        norms = np.empty(len(X))

        def some(share: slice) -> None:
            start = share.start
            for chunk in row_chunks(share.stop - start, 8 * X.shape[1], CACHE_BYTES):
                part = slice(start + chunk.start, start + chunk.stop)
                exact = self.centred(X[part])
                if self.scale != 1:
                    exact /= self.scale
                rows[part] = exact
                norms[part] = np.einsum("ij,ij->i", exact, exact)

        in_parallel(some, len(X))
        return rows, norms

    def pairs(
        self, queries: NDArray[Any], i: NDArray[np.int64], j: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Exact distances between ``queries[i]`` and stored rows ``j``, by differences."""
        # Differences need no centre, and without it those of whole numbers are exact.
        place = self.centred if self.unit else np.asarray
        distance = np.empty(len(i))
        for part in row_chunks(len(i), 8 * self.X.shape[1], CACHE_BYTES):
            gap = np.subtract(place(queries[i[part]]), place(self.X[j[part]]), dtype=np.float64)
            distance[part] = np.sqrt(np.einsum("ij,ij->i", gap, gap))
        return distance


def _keys(distance: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One number per pair that sorts by float32 distance, then by row number.

    The bits of a float that is not negative grow with it, so they can lead the row number.
    """
    positive = np.ascontiguousarray(distance, dtype=np.float32) + np.float32(0)  # no -0.0
    bits = positive.view(np.uint32).astype(np.uint64)
    return (bits << np.uint64(32)) | index.astype(np.uint64)


def _split(keys: NDArray[np.uint64]) -> Found:
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    return bits.view(np.float32), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def first_of(one: Found, other: Found, width: int) -> Found:
    """The ``width`` nearest of two lists of distances and row numbers, (m, w) each."""
    keys = np.concatenate([_keys(*one), _keys(*other)], axis=1)
    if keys.shape[1] > width:
        keys = np.partition(keys, width - 1, axis=1)[:, :width]
    return _split(np.sort(keys, axis=1))


def settle(
    space: Space,
    asked: tuple[NDArray[Any], NDArray[np.float64]],
    found: Found,
    k: int,
    *,
    groups: Pair | None = None,
) -> Found:
    """Put float32 candidates in their exact order: distance (m, k) and row number (m, k).

    Parameters
    ----------
    asked
        Rows (m, d) that are asked for, and their squared lengths (m,).
    found
        Scaled squared distances and row numbers (m, w) of the candidates, w >= k; written to.
    groups
        Group numbers of the rows asked for (m,) and of those stored (n,): no row has one of its own
        group for a neighbour.
    """
    X, norms = asked
    square, index = found
    if groups is not None:
        square[groups[1][index] == groups[0][:, None]] = np.inf
    distance, index, is_open = _settle_candidates(space, X, norms, (square, index), k)
    rows = np.flatnonzero(is_open)
    if len(rows):
        pair = None if groups is None else (groups[0][rows], groups[1])
        distance[rows], index[rows] = exact_search(space, X[rows], k, groups=pair)
    return distance, index


def _settle_candidates(
    space: Space, queries: NDArray[Any], norms: NDArray[np.float64], found: Found, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Order candidates exactly: distance (m, k), row (m, k), and rows still open (m,).

    Excluded candidates have the distance inf. A row stays open where candidates are too few, or
    where one beyond the list may still belong among the first k.
    """
    complete = found[0].shape[1] == len(space.X)
    square, index = _split(np.sort(_keys(*found), axis=1))
    finite = np.isfinite(square)
    last = np.where(finite, square, 0).max(axis=1)
    error = rounding(space.X.shape[1], UNIT_32) * (norms + (np.sqrt(norms) + np.sqrt(last)) ** 2)
    error += SMALLEST  # below this, float32 loses digits
    is_open = ~finite[:, k - 1]
    if not complete:
        is_open |= last - square[:, k - 1] <= 2 * error

    unsure = np.zeros(square.shape, dtype=bool)
    with np.errstate(invalid="ignore"):  # inf - inf behind the last candidate
        near = np.diff(square, axis=1) <= 2 * error[:, None]
    unsure[:, :-1] = near
    unsure[:, 1:] |= near
    unsure |= square <= 100 * error[:, None]  # alone, but with a distance that is mostly rounding
    # Behind the first k only what hangs together with the k-th matters.
    unsure[:, k:] &= np.logical_and.accumulate(near[:, k - 1 :], axis=1)
    unsure &= finite & ~is_open[:, None]
    i, column = np.nonzero(unsure)
    exact = space.pairs(queries, i, index[i, column])
    distance = np.sqrt(square, dtype=np.float64) * space.scale
    distance[i, column] = exact
    nearest, index = _split(np.sort(_keys(distance, index), axis=1)[:, :k])
    return nearest, index, is_open


def exact_search(
    space: Space, queries: NDArray[Any], k: int, *, groups: Pair | None = None
) -> Found:
    """Return the k nearest stored rows of each query by a whole float64 row of distances.

    ``groups`` gives group numbers of queries and stored rows: a row of the query's own group is
    left out. For the few rows that their candidates leave open; twice the work of float32 per row.
    """
    distance = np.empty((len(queries), k), dtype=np.float32)
    index = np.empty((len(queries), k), dtype=np.int64)
    for part in row_chunks(len(queries), 32 * len(space.X), TILE_BYTES):
        low, high = _bounds(space, queries[part])
        if groups is not None:
            own = groups[0][part, None] == groups[1][None, :]
            low[own] = high[own] = np.inf
        # Nothing whose lower bound exceeds the k-th upper bound can be among the first k; the
        # factor keeps candidates that float32 makes equal to the k-th.
        limit = np.partition(high, k - 1, axis=1)[:, k - 1] * (1 + 8 * UNIT_32)
        i, j = np.nonzero(low <= limit[:, None])
        value = space.pairs(queries[part], i, j)
        order = np.lexsort((j, value.astype(np.float32), i))
        first = np.searchsorted(i, np.arange(len(low)))
        chosen = order[first[:, None] + np.arange(k)]
        distance[part], index[part] = value[chosen], j[chosen]
    return distance, index


def _bounds(space: Space, queries: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds (t, n) of scaled squared distances, from float64 products."""
    asked = space.centred(queries) / space.scale
    asked_norms = np.einsum("ij,ij->i", asked, asked)
    square = np.empty((len(asked), len(space.X)))
    for part in row_chunks(len(space.X), 8 * space.X.shape[1]):
        square[:, part] = asked @ (space.centred(space.X[part]) / space.scale).T
    total = asked_norms[:, None] + space.norms[None, :]
    square *= -2
    square += total
    total *= rounding(space.X.shape[1], UNIT_64)
    return square - total, square + total
