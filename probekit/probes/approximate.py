"""Approximate neighbours in inverted lists: a row is compared with the rows of some clusters only.

k-means divides the rows into about √n lists [1]_. A row is compared with those of the lists whose
centres are nearest to it. Their number is the smallest with which a sample of rows, whose exact
neighbours are searched first, finds ``AIM`` of them.

FAISS's own inverted lists compare one row at a time with each list: at a recall of 0.95 they were
slower than an exact search (docs/LOG.md). Here all rows that visit a list are compared with it in
one matrix product, and FAISS's heaps keep the nearest.

.. [1] Sivic & Zisserman (2003), https://doi.org/10.1109/ICCV.2003.1238663
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.probes.heaps import Heaps
from probekit.probes.ties import Found, first_of
from probekit.states import row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Approximate", "search_lists"]

AIM = 0.95  # share of the exact neighbours to find
SAMPLE = 512  # rows whose exact neighbours decide how many lists are visited
ROUNDS = 8  # of k-means
LARGEST = 0.5  # share of all lists from which on an exact search costs less
TILE = 4096  # rows that are compared with a list at a time
OF_A_LIST = 64  # rows that k-means is trained on, for each list


class Approximate(NamedTuple):
    """Squared distances and row numbers (n, width), -1 and inf for none; recall and work."""

    found: Found
    recall: float
    """Share of the k nearest others of a sample's rows that were found."""
    share: float
    """Share of the pairs of rows that were compared."""


def search_lists(rows: Any, k: int, width: int, *, seed: int = 0) -> Approximate | None:
    """The nearest rows of every row, itself included, up to recall; None if exact costs less.

    ``rows`` (n, d) float32 are an array, or give ``rows[i]`` for slices and numbers of rows; ``k``
    is the number of other rows whose recall is measured, ``width`` that of candidates.
    """
    import faiss

    n, d = rows.shape
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(n, min(SAMPLE, n), replace=False))
    exact = _nearest(rows, rows[sample], min(n, k + 1))
    near = np.array([line[line != i][:k] for i, line in zip(sample, exact, strict=True)])
    count = max(1, round(n**0.5))
    trained = np.sort(rng.choice(n, min(n, OF_A_LIST * count), replace=False))
    centres = _centres(rows[trained], count, seed=seed)
    visits = _visits(rows, centres, sample, near)
    if visits > LARGEST * len(centres):
        return None
    lists = np.empty((n, visits), np.int32)
    for part in row_chunks(n, 4 * d):
        lists[part] = faiss.knn(rows[part], centres, visits)[1]
    heaps = _Heaps(n, width)
    compared = _compare(rows, lists, len(centres), heaps)
    square, index = heaps.sorted()
    square[index < 0] = np.inf
    hits = [np.isin(a, b).mean() for a, b in zip(near, index[sample], strict=True)]
    return Approximate((square, index), float(np.mean(hits)), compared / n**2)


def _nearest(rows: Any, asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Numbers (m, k) of the nearest rows of each row asked for, up to rounding."""
    import faiss

    best: Found | None = None
    for part in row_chunks(len(rows), 4 * rows.shape[1]):
        stored = rows[part]
        square, index = faiss.knn(asked, stored, min(k, len(stored)))
        here = np.maximum(square, 0), index + part.start
        best = here if best is None else first_of(best, here, k)
    assert best is not None
    return best[1]


def _centres(rows: NDArray[np.float32], count: int, *, seed: int) -> NDArray[np.float32]:
    """Centres (count, d) of k-means."""
    import faiss

    means = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * OF_A_LIST,  # no further sample
    )
    means.train(rows)
    return np.asarray(means.centroids)


def _visits(
    rows: Any,
    centres: NDArray[np.float32],
    sample: NDArray[np.int64],
    near: NDArray[np.int64],
) -> int:
    """The number of lists that a row visits so that the ``sample`` finds AIM of ``near``."""
    import faiss

    order = faiss.knn(rows[sample], centres, len(centres))[1]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(len(centres))[None], axis=1)
    others, number = np.unique(near, return_inverse=True)
    home = faiss.knn(rows[others], centres, 1)[1][:, 0][number.reshape(near.shape)]
    # The visit at which each neighbour is found, and the first by which AIM of all are.
    visit = np.sort(np.take_along_axis(place, home, axis=1), axis=None)
    return int(visit[int(np.ceil(AIM * len(visit))) - 1]) + 1


def _compare(rows: Any, lists: NDArray[np.int32], count: int, heaps: _Heaps) -> int:
    """Compare every row with the rows of its ``lists`` (n, visits); the number of pairs."""
    import faiss
    from threadpoolctl import threadpool_limits

    norms = np.empty(len(rows), np.float32)
    for part in row_chunks(len(rows), 4 * rows.shape[1]):
        block = rows[part]
        norms[part] = np.einsum("ij,ij->i", block, block)
    members = _by_list(lists[:, :1], count)
    visitors = _by_list(lists, count)

    def compare(one: tuple[NDArray[np.int64], NDArray[np.int64]]) -> int:
        own, asking = one
        if not len(own):
            return 0
        stored = rows[own]
        for start in range(0, len(asking), TILE):
            some = asking[start : start + TILE]
            square = rows[some] @ stored.T
            square *= -2
            square += norms[own]
            square += norms[some, None]
            heaps.add(some, square, own)
        return len(own) * len(asking)

    threads = faiss.omp_get_max_threads()
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=lambda: faiss.omp_set_num_threads(1)) as pool,
    ):
        return sum(pool.map(compare, zip(members, visitors, strict=True)))


def _by_list(lists: NDArray[np.int32], count: int) -> Iterator[NDArray[np.int64]]:
    """For each list the rows that name it in ``lists`` (n, visits)."""
    order = np.argsort(lists, axis=None, kind="stable")
    ends = np.searchsorted(lists.ravel()[order], np.arange(count + 1))
    for start, stop in itertools.pairwise(ends):
        yield order[start:stop] // lists.shape[1]


class _Heaps(Heaps):
    """FAISS's heaps of the ``k`` smallest values of n rows."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k)
        self._lock = threading.Lock()

    def add(
        self, rows: NDArray[np.int64], values: NDArray[np.float32], names: NDArray[np.int64]
    ) -> None:
        """Offer values (r, c) of the rows (r,) for the columns ``names`` (c,)."""
        rows, names = np.ascontiguousarray(rows), np.ascontiguousarray(names)
        pointers = [self._pointer(each) for each in (rows, values, names)]
        with self._lock:
            self._heaps.addn_query_subset_with_ids(
                len(rows), pointers[0], values.shape[1], pointers[1], pointers[2]
            )
