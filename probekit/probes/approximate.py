"""Approximate neighbours in inverted lists: a row is compared with the rows of some clusters only.

k-means divides the rows into about √n lists [1]_. A row is compared with those of the lists whose
centres are nearest to it. Their number is the smallest with which a sample of rows, whose exact
neighbours are searched first, finds ``AIM`` of them.

On a cluster each worker searches for a block of the rows in all lists. Lists divided among workers
would send the candidates of every row from each of them; so a row's come from one, and need no
merging.

FAISS's own inverted lists compare one row at a time with each list: at a recall of 0.95 they were
slower than an exact search (docs/LOG.md). Here all rows that visit a list are compared with it in
one matrix product, and FAISS's heaps keep the nearest.

.. [1] Sivic & Zisserman (2003), https://doi.org/10.1109/ICCV.2003.1238663
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.engine import map_here
from probekit.probes.heaps import Heaps
from probekit.probes.ties import Found, first_of
from probekit.states import COPY_BYTES, row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.engine import RayTasks

__all__ = ["Approximate", "search_lists"]

AIM = 0.95  # share of the exact neighbours to find
SAMPLE = 512  # rows whose exact neighbours decide how many lists are visited
ROUNDS = 8  # of k-means
LARGEST = 0.5  # share of all lists from which on an exact search costs less
TILE = 4096  # rows that are compared with a list at a time
OF_A_LIST = 64  # rows that k-means is trained on, for each list
BLOCKS_OF_A_WORKER = 4  # of rows in memory; of others one, as each block reads all rows


class Approximate(NamedTuple):
    """Squared distances and row numbers (n, width), -1 and inf for none; recall and work."""

    found: Found
    recall: float
    """Share of the k nearest others of a sample's rows that were found."""
    share: float
    """Share of the pairs of rows that were compared."""


def search_lists(
    rows: Any, k: int, width: int, *, seed: int = 0, tasks: RayTasks | None = None
) -> Approximate | None:
    """The nearest rows of every row, itself included, up to recall; None if exact costs less.

    ``rows`` (n, d) float32 are an array, or give ``rows[i]`` for slices and numbers of rows; ``k``
    is the number of other rows whose recall is measured, ``width`` that of candidates. ``tasks``
    share the work.
    """
    n, d = rows.shape
    do = map_here if tasks is None else tasks.map
    sent = rows if tasks is None else tasks.put(rows)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(n, min(SAMPLE, n), replace=False))
    chunks = list(row_chunks(n, 4 * d))
    exact = _nearest(do(_nearest_in, chunks, sent, rows[sample], min(n, k + 1)), k + 1)
    near = np.array([line[line != i][:k] for i, line in zip(sample, exact, strict=True)])
    count = max(1, round(n**0.5))
    trained = np.sort(rng.choice(n, min(n, OF_A_LIST * count), replace=False))
    centres = _centres(rows[trained], count, seed=seed)
    visits = _visits(rows, centres, sample, near)
    if visits > LARGEST * len(centres):
        return None
    lists, norms = np.empty((n, visits), np.int32), np.empty(n, np.float32)
    parts = [slice(0, n)] if tasks is None else _blocks(rows, tasks)
    listed = do(_listed, parts, sent, centres, visits)
    for part, each in zip(parts, listed, strict=True):
        lists[part], norms[part] = each
    asked = [(part, lists[part]) for part in parts]
    found = do(_compare, asked, sent, np.ascontiguousarray(lists[:, :1]), norms, width)
    if tasks is None:
        ((square, index, compared),) = found
    else:
        square, index = np.empty((n, width), np.float32), np.empty((n, width), np.int64)
        compared = 0
        for part, each in zip(parts, found, strict=True):
            square[part], index[part] = each[:2]
            compared += each[2]
    square[index < 0] = np.inf
    hits = [np.isin(a, b).mean() for a, b in zip(near, index[sample], strict=True)]
    return Approximate((square, index), float(np.mean(hits)), compared / n**2)


def _blocks(rows: Any, tasks: RayTasks) -> list[slice]:
    """Blocks of rows for a cluster's tasks, which hold their block and read all rows once."""
    n, d = rows.shape
    in_memory = isinstance(rows, np.ndarray)
    each = -(-n // (tasks.workers * (BLOCKS_OF_A_WORKER if in_memory else 1)))
    most = max(COPY_BYTES, tasks.memory() / tasks.workers) // (4 * d)
    return list(row_chunks(n, 1, max(1, min(each, int(most)))))


def _nearest_in(part: slice, rows: Any, asked: NDArray[np.float32], k: int) -> Found:
    """Squared distances and numbers (m, k) of the nearest rows of a part, up to rounding."""
    import faiss

    stored = rows[part]
    square, index = faiss.knn(asked, stored, min(k, len(stored)))
    return np.maximum(square, 0), index + part.start


def _nearest(found: Iterable[Found], k: int) -> NDArray[np.int64]:
    """Numbers (m, k) of the nearest rows of all parts."""
    best: Found | None = None
    for here in found:
        best = here if best is None else first_of(best, here, k)
    assert best is not None
    return best[1]


def _listed(
    block: slice, rows: Any, centres: NDArray[np.float32], visits: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The lists that each row of a block visits (b, visits), nearest first, and squared lengths."""
    import faiss

    count = block.stop - block.start
    lists, norms = np.empty((count, visits), np.int32), np.empty(count, np.float32)
    for part in row_chunks(count, 4 * rows.shape[1]):
        some = rows[block.start + part.start : block.start + part.stop]
        lists[part] = faiss.knn(some, centres, visits)[1]
        norms[part] = np.einsum("ij,ij->i", some, some)
    return lists, norms


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


def _compare(
    asked: tuple[slice, NDArray[np.int32]],
    rows: Any,
    home: NDArray[np.int32],
    norms: NDArray[np.float32],
    width: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Compare a block's rows with those whose ``home`` (n, 1) is one of their lists (b, visits).

    Returns squared distances and numbers (b, width), and the number of pairs.
    """
    import faiss
    from threadpoolctl import threadpool_limits

    block, lists = asked
    count = int(max(home.max(), lists.max())) + 1
    heaps = _Heaps(len(lists), width)
    whole = len(lists) == len(home)
    queries = rows if whole else np.asarray(rows[block])
    members, visitors = _by_list(home, count), _by_list(lists, count)

    def compare(one: tuple[NDArray[np.int64], NDArray[np.int64]]) -> int:
        own, asking = one
        if not len(own) or not len(asking):
            return 0
        stored = rows[own]
        for start in range(0, len(asking), TILE):
            some = asking[start : start + TILE]
            square = queries[some] @ stored.T
            square *= -2
            square += norms[own]
            square += norms[block.start + some, None]
            heaps.add(some, square, own)
        return len(own) * len(asking)

    threads = faiss.omp_get_max_threads()
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=lambda: faiss.omp_set_num_threads(1)) as pool,
    ):
        pairs = sum(pool.map(compare, zip(members, visitors, strict=True)))
    return *heaps.sorted(), pairs


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
