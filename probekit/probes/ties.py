"""Exact order of neighbours whose float32 distances are too close to tell, and at the list's end.

The order is by (float32 of the exact distance, row number), for every backend. It is computed in a
:class:`Space`: the rows as they are searched, in memory or block by block.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from probekit.states import Streamed, column_means, extremes, row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Found", "Pair", "Space", "first_of", "in_parallel", "settle"]

# Distances or squared distances, and row numbers, both (m, w).
Found: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"
# Group numbers of the queries (m,) and of the stored rows (n,).
Pair: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"

# Share of the machine's memory that a float32 copy of all rows may use.
COPY_SHARE = 0.25
# Bytes of stored rows, and of queries, at a time. Every block of queries reads all stored rows
# again, so it is large; centring then costs 2 % of the products.
BLOCK_BYTES = 1 << 28
# Rows of a thread, which costs some tenths of a millisecond.
LEAST_ROWS = 1024
# A row whose distance to the mean is below this share of the mean's length equals the mean up to
# rounding: for float32, twice the unit in the last place (as probekit.states.constant_columns).
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
    """Call ``work`` with slices that make up n rows, in as many threads as FAISS has.

    NumPy releases the interpreter's lock while it computes.
    """
    import faiss

    parts = max(1, min(faiss.omp_get_max_threads(), n // LEAST_ROWS))
    if parts == 1:
        work(slice(0, n))
        return
    edges = [n * i // parts for i in range(parts + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(edges)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, slices))  # re-raises errors of the threads


def fits(X: Any) -> bool:
    """Whether a float32 copy of the rows X (n, d) may be kept in memory."""
    if isinstance(X, Streamed):
        return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return bool(4 * len(X) * X.shape[1] <= COPY_SHARE * memory)


class PickedRows:
    """Some rows of X (n, d), read on demand: ``X[chosen]`` without a copy."""

    def __init__(self, X: Any, chosen: NDArray[np.int64]) -> None:
        self._X, self._chosen = X, chosen
        self.shape = (len(chosen), X.shape[1])
        self.dtype = X.dtype

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        picked: NDArray[Any] = self._X[self._chosen[rows]]
        return picked


class PlacedRows:
    """Rows of a space as they are searched, computed on demand: ``space.rows`` without a copy."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.shape: tuple[int, int] = space.X.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self._space.place(self._space.X[rows])[0]


class Space:
    """Rows in the geometry of one metric: centred, and for cosine scaled to unit length.

    ``X`` (n, d) is kept as given; ``rows`` (n, d) float32 are the centred rows, computed in float64
    and divided by ``scale``, a power of two that keeps squares within the range of float32; None if
    they would need too much memory, so that they are computed again block by block.
    """

    def __init__(self, X: Any, *, metric: str) -> None:
        self.X: Any = X
        self.unit = metric == "cosine"
        self.mean = column_means(X)
        share = NO_DIRECTION_32 if X.dtype == np.float32 else NO_DIRECTION_64
        self.floor = share * float(np.linalg.norm(self.mean))
        largest = float(np.abs(extremes(X)).max())
        self.scale = 1.0 if self.unit or not largest else 2.0 ** np.ceil(np.log2(largest))
        self.rows: NDArray[np.float32] | None = None
        if fits(X):
            self.rows, self.norms = self.place(X)
            return
        self.norms = np.empty(len(X))
        for part in self.parts():
            self.norms[part] = self.place(X[part])[1]

    def subset(self, chosen: NDArray[np.int64]) -> Space:
        """Some of the rows in the same geometry, with centre and scale of all rows."""
        part = copy.copy(self)
        part.norms = self.norms[chosen]
        if self.rows is None:
            part.X = PickedRows(self.X, chosen)
        else:
            part.X, part.rows = self.X[chosen], self.rows[chosen]
        return part

    def of(self, X: Any) -> Space:
        """Other rows X (m, d) in the same geometry."""
        other = copy.copy(self)
        other.X, other.rows = X, None
        if fits(X):
            other.rows, other.norms = self.place(X)
            return other
        other.norms = np.empty(len(X))
        for part in other.parts():
            other.norms[part] = other.place(X[part])[1]
        return other

    def searched(self) -> NDArray[np.float32] | PlacedRows:
        """Rows as they are searched, in memory or on demand."""
        return PlacedRows(self) if self.rows is None else self.rows

    def parts(self, least: int = 1) -> Iterator[slice]:
        """Slices of the rows as they are read: ``least`` if they fit into memory."""
        n, d = self.X.shape
        step = n if self.rows is not None else BLOCK_BYTES // (4 * d)
        return row_chunks(n, 1, max(1, min(step, -(-n // least))))

    def placed(self, part: slice) -> NDArray[np.float32]:
        """Some rows as they are searched."""
        return self.searched()[part]

    def centred(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Rows of X in float64, centred; for cosine of unit length, except rows of zeros."""
        rows: NDArray[np.float64] = X - self.mean
        if self.unit:
            length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            length[length <= self.floor] = np.inf
            rows /= length[:, None]
        return rows

    def place(self, X: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Rows of X as they are searched (m, d), and their squared lengths (m,)."""
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
        """Exact distances between ``queries[i]`` and stored rows ``j``, from differences."""
        # Differences need no centring, and without it those of whole numbers are exact.
        place = self.centred if self.unit else np.asarray
        distance = np.empty(len(i))
        for part in row_chunks(len(i), 8 * self.X.shape[1], CACHE_BYTES):
            gap = np.subtract(place(queries[i[part]]), place(self.X[j[part]]), dtype=np.float64)
            distance[part] = np.sqrt(np.einsum("ij,ij->i", gap, gap))
        return distance


def _keys(distance: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One number per pair, which sorts by float32 distance, then by row number.

    The bits of a float that is not negative increase with it, so they can precede the row number.
    """
    positive = np.ascontiguousarray(distance, dtype=np.float32) + np.float32(0)  # no -0.0
    bits = positive.view(np.uint32).astype(np.uint64)
    return (bits << np.uint64(32)) | index.astype(np.uint64)


def _split(keys: NDArray[np.uint64]) -> Found:
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    return bits.view(np.float32), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def first_of(one: Found, other: Found, width: int) -> Found:
    """The ``width`` nearest of two lists of distances and row numbers, each (m, w)."""
    keys = np.concatenate([_keys(*one), _keys(*other)], axis=1)
    if keys.shape[1] > width:
        keys = np.partition(keys, width - 1, axis=1)[:, :width]
    return _split(np.sort(keys, axis=1))


def settle(
    space: Space,
    asked: tuple[NDArray[Any], NDArray[np.float64]],
    candidates: Found,
    k: int,
    *,
    groups: Pair | None = None,
) -> Found:
    """Distances and row numbers (m, k) of float32 candidates, in their exact order.

    Parameters
    ----------
    asked
        Queries (m, d) and their squared lengths (m,).
    candidates
        Scaled squared distances and row numbers (m, w), w >= k; overwritten.
    groups
        Group numbers of the queries (m,) and of the stored rows (n,): rows of one group are not
        neighbours.
    """
    X, norms = asked
    square, index = candidates
    if groups is not None:
        square[groups[1][index] == groups[0][:, None]] = np.inf
    distance, index, is_open = _settle_candidates(space, X, norms, (square, index), k)
    rows = np.flatnonzero(is_open)
    if len(rows):
        pair = None if groups is None else (groups[0][rows], groups[1])
        distance[rows], index[rows] = exact_search(space, X[rows], k, groups=pair)
    return distance, index


def _settle_candidates(
    space: Space, queries: NDArray[Any], norms: NDArray[np.float64], candidates: Found, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Order candidates exactly: distance and row number (m, k), and a mask (m,) of open queries.

    Excluded candidates have the distance inf. A query stays open if it has too few candidates, or
    if a row beyond the list may belong among the first k.
    """
    complete = candidates[0].shape[1] == len(space.X)
    square, index = _split(np.sort(_keys(*candidates), axis=1))
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
    unsure |= square <= 100 * error[:, None]  # not tied, but the distance is mostly rounding
    # After the first k only candidates that are tied with the k-th matter.
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
    """The k nearest stored rows of each query, from float64 distances to all rows.

    For the few queries that their candidates leave open; twice the work of float32 per query. Rows
    of the query's own group (``groups``) are left out.
    """
    distance = np.empty((len(queries), k), dtype=np.float32)
    index = np.empty((len(queries), k), dtype=np.int64)
    for part in row_chunks(len(queries), 32 * len(space.X), TILE_BYTES):
        low, high = _bounds(space, queries[part])
        if groups is not None:
            own = groups[0][part, None] == groups[1][None, :]
            low[own] = high[own] = np.inf
        # A row whose lower bound exceeds the k-th upper bound cannot be among the first k; the
        # factor keeps candidates whose float32 distance equals the k-th.
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
