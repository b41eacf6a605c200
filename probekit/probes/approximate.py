"""Approximate neighbours in inverted lists: a row is compared with the rows of some clusters only.

k-means divides the rows into about √n lists [1]_, or more where that saves comparisons. It sees
their first principal components only: on wide rows the distances to the centres would cost as much
as the search. A row is compared, in all columns, with those of the lists whose centres are nearest
to it. Their number is the smallest with which a sample of rows, whose exact neighbours are searched
first, finds ``AIM`` of them.

Rows are asked in blocks, list by list, so that the candidates of one block only are in memory, and
a block reads few other lists. On a cluster each worker has blocks of its own. Lists divided among
workers would send the candidates of every row from each of them; so a row's come from one, and need
no merging.

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
from probekit.states import row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.engine import RayTasks

__all__ = ["Approximate", "outside_groups", "search_lists"]

AIM = 0.95  # share of the exact neighbours to find
AXES = 128  # principal components by which rows get into lists
AXES_ROWS = 4096  # rows from which the components are learnt
SAMPLE = 512  # rows whose exact neighbours decide how many lists are visited
ROUNDS = 8  # of k-means
LARGEST = 0.5  # share of all lists from which on an exact search costs less
OF_A_LIST = 64  # rows that k-means is trained on, for each list
MORE = 4  # times as many lists are tried next
MOST = 1 << 16  # lists, whose numbers are uint16
HEAP_BYTES = 3 << 27  # of the candidates of a block of rows
BLOCKS_OF_A_WORKER = 4  # of rows in memory; of others one, as blocks may read the same lists


class Approximate:
    """A search in inverted lists, block by block of the rows.

    Attributes
    ----------
    recall
        Share of the k nearest others of a sample's rows that were found; after the last block.
    share
        Share of the pairs of rows that have been compared.
    """

    def __init__(
        self, blocks: list[NDArray[np.int64]], found: Iterator[tuple[Found, int]], sample: Sample
    ) -> None:
        self._blocks, self._found, self._sample = blocks, found, sample
        self.recall = self.share = 0.0

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Found]]:
        """Yield numbers (b,) of rows, and squared distances and numbers (b, width) of the nearest.

        A row is among its own; -1 and inf stand for none.
        """
        n, hits = sum(map(len, self._blocks)), 0
        for rows in self._blocks:
            found, pairs = next(self._found)
            at = np.flatnonzero(np.isin(rows, self._sample.rows))
            near = self._sample.near[np.searchsorted(self._sample.rows, rows[at])]
            hits += sum(int(np.isin(a, b).sum()) for a, b in zip(near, found[1][at], strict=True))
            self.share += pairs / n**2
            yield rows, found
            del found  # before the next block is searched
        self.recall = hits / self._sample.near.size


class Sample(NamedTuple):
    """Numbers (s,) of some rows, and of their k exact nearest others (s, k)."""

    rows: NDArray[np.int64]
    near: NDArray[np.int64]


def search_lists(
    rows: Any, k: int, width: int, *, seed: int = 0, tasks: RayTasks | None = None
) -> Approximate | None:
    """Search for the nearest rows of every row, itself included; None if exact costs less.

    ``rows`` (n, d) float32 are an array, or give ``rows[i]`` for slices and numbers of rows; ``k``
    is the number of other rows whose recall is measured, ``width`` that of candidates. ``tasks``
    share the work.
    """
    n, d = rows.shape
    do: Any = map_here if tasks is None else tasks.map
    sent = rows if tasks is None else tasks.put(rows)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(n, min(SAMPLE, n), replace=False))
    chunks = list(row_chunks(n, 4 * max(d, SAMPLE)))
    exact = _nearest(do(_nearest_in, chunks, sent, rows[sample], min(n, k + 1)), k + 1)
    near = np.array([line[line != i][:k] for i, line in zip(sample, exact, strict=True)])
    axes = _principal_axes(rows, rng)
    centres, visits = _cheapest_lists(Projected(rows, axes), sample, near, width, rng)
    if visits > LARGEST * len(centres):
        return None
    visited, norms = np.empty((n, visits), np.uint16), np.empty(n, np.float32)
    parts = [slice(0, n)] if tasks is None else list(row_chunks(n, 1, -(-n // tasks.workers)))
    for part, each in zip(parts, do(_listed, parts, sent, axes, centres, visits), strict=True):
        visited[part], norms[part] = each
    lists = Lists(rows, visited, norms)
    blocks = np.split(lists.members, np.arange(0, n, _block_rows(rows, width, tasks))[1:])
    return Approximate(blocks, do(_compare, blocks, lists, width), Sample(sample, near))


def outside_groups(
    found: Found, rows: NDArray[np.int64], groups: NDArray[np.int64], k: int
) -> Found:
    """Distances and numbers (b, k) of the first found outside the group of each row, else inf.

    ``groups`` (n,) are numbers of all rows.
    """
    square, index = found
    distance, near = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), np.int64)
    for part in row_chunks(len(rows), 32 * index.shape[1]):
        none = groups[index[part]] == groups[rows[part], None]
        none |= np.isinf(square[part])
        first = np.argsort(none, axis=1, kind="stable")[:, :k]
        near[part] = np.take_along_axis(index[part], first, axis=1)
        distance[part] = np.sqrt(np.take_along_axis(square[part], first, axis=1), dtype=np.float64)
        distance[part][np.take_along_axis(none, first, axis=1)] = np.inf
    return distance, near


def _block_rows(rows: Any, width: int, tasks: RayTasks | None) -> int:
    """Rows of a block, whose candidates fit into memory; each block reads the lists again."""
    most = HEAP_BYTES // (12 * width)
    if tasks is None:
        return most
    n, in_memory = len(rows), isinstance(rows, np.ndarray)
    return min(most, -(-n // (tasks.workers * (BLOCKS_OF_A_WORKER if in_memory else 1))))


def _nearest_in(part: slice, rows: Any, asked: NDArray[np.float32], k: int) -> Found:
    """Squared distances and numbers (m, k) of the nearest rows of a part, up to rounding."""
    stored = rows[part]
    square, index = _closest(asked, stored, min(k, len(stored)))
    return np.maximum(square + _norms(asked)[:, None], 0), index + part.start


def _nearest(found: Iterable[Found], k: int) -> NDArray[np.int64]:
    """Numbers (m, k) of the nearest rows of all parts."""
    best: Found | None = None
    for here in found:
        best = here if best is None else first_of(best, here, k)
    assert best is not None
    return best[1]


def _closest(asked: NDArray[np.float32], stored: NDArray[np.float32], k: int) -> Found:
    """The k smallest |b|² - 2 q·b of each row asked, and the numbers of the stored rows (m, k).

    NumPy's products: FAISS's BLAS does not know processors younger than itself.
    """
    heaps, norms, turned = Heaps(len(asked), k), _norms(stored), (stored * np.float32(-2)).T
    for part in row_chunks(len(asked), 4 * len(stored)):
        square = asked[part] @ turned
        square += norms
        heaps.add(square, part.start)
    return heaps.sorted()


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared lengths (n,)."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)


def _listed(
    block: slice, rows: Any, axes: NDArray[np.float32], centres: NDArray[np.float32], visits: int
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """The lists that each row of a block visits (b, visits), nearest first, and squared lengths."""
    count = block.stop - block.start
    visited, norms = np.empty((count, visits), np.uint16), np.empty(count, np.float32)
    for part in row_chunks(count, 4 * rows.shape[1]):
        some = rows[block.start + part.start : block.start + part.stop]
        visited[part], norms[part] = _closest(some @ axes, centres, visits)[1], _norms(some)
    return visited, norms


class Projected:
    """Rows (n, q) along some axes (d, q), computed when they are asked for."""

    def __init__(self, rows: Any, axes: NDArray[np.float32]) -> None:
        self.rows, self.axes = rows, axes
        self.shape = (len(rows), axes.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        projected: NDArray[np.float32] = self.rows[index] @ self.axes
        return projected


def _principal_axes(rows: Any, rng: np.random.Generator) -> NDArray[np.float32]:
    """The first ``AXES`` principal axes (d, q) of the rows, or all d if they are fewer."""
    from sklearn.utils.extmath import randomized_svd

    n, d = rows.shape
    if d <= AXES:
        return np.eye(d, dtype=np.float32)
    some = rows[np.sort(rng.choice(n, min(AXES_ROWS, n), replace=False))]
    # The right singular vectors of the centred rows.
    seed = int(rng.integers(1 << 31))
    axes = randomized_svd(some - some.mean(axis=0), min(AXES, len(some)), random_state=seed)[2]
    return np.ascontiguousarray(axes.T)


def _centres(
    rows: Any, chosen: NDArray[np.int64], count: int, width: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Centres of k-means on the chosen rows, at most ``count``.

    Lists with fewer than ``width`` rows, by the share of the chosen ones, are left to the others:
    a row that visits nothing else would find too few.
    """
    some = np.empty((len(chosen), rows.shape[1]), np.float32)
    for part in row_chunks(len(chosen), 4 * rows.shape[1]):
        some[part] = rows[chosen[part]]
    centres: NDArray[np.float32] = some[rng.choice(len(some), count, replace=False)]
    for _ in range(ROUNDS):
        members, ends = _by_list(_closest(some, centres, 1)[1][:, 0], count)
        for number, (start, stop) in enumerate(itertools.pairwise(ends)):
            if start < stop:  # a list without rows keeps its centre
                centres[number] = some[members[start:stop]].mean(axis=0)
    long = np.diff(ends) * len(rows) >= width * len(some)
    return centres[long] if long.any() else centres


def _cheapest_lists(
    rows: Projected,
    sample: NDArray[np.int64],
    near: NDArray[np.int64],
    width: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], int]:
    """The centres of the lists, and how many of them a row visits.

    It begins with √n lists, and tries ``MORE`` times their number while the search gets cheaper.
    """
    n, count, least = len(rows), max(1, round(len(rows) ** 0.5)), float("inf")
    # A distance to a centre costs this share of one between two rows.
    share = rows.shape[1] / rows.rows.shape[1]
    while True:
        trained = np.sort(rng.choice(n, min(n, OF_A_LIST * count), replace=False))
        centres = _centres(rows, trained, count, width, rng)
        visits = _visits(rows, centres, sample, near)
        # Distances of all rows to the centres, and to the rows of the lists that they visit.
        compared = visits * n * (n / len(centres))
        cost = share * n * len(centres) + compared
        if cost < least:
            least, best = cost, (centres, visits)
        count *= MORE
        # A trial must cost less than half of what it may save.
        trial = share * (n * count + ROUNDS * OF_A_LIST * count**2)
        if cost > least or count > min(n // width, MOST) or 2 * trial > compared:
            return best


def _visits(
    rows: Any,
    centres: NDArray[np.float32],
    sample: NDArray[np.int64],
    near: NDArray[np.int64],
) -> int:
    """The number of lists that a row visits so that the ``sample`` finds AIM of ``near``."""
    order = _closest(rows[sample], centres, len(centres))[1]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(len(centres))[None], axis=1)
    others, number = np.unique(near, return_inverse=True)
    home = _closest(rows[others], centres, 1)[1][:, 0][number.reshape(near.shape)]
    # The visit at which each neighbour is found, and the first by which AIM of all are.
    visit = np.sort(np.take_along_axis(place, home, axis=1), axis=None)
    return int(visit[int(np.ceil(AIM * len(visit))) - 1]) + 1


def _by_list(lists: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in ``lists`` (m,) by their list, and where each list begins and the last ends."""
    order = np.argsort(lists, kind="stable")
    return order, np.searchsorted(lists[order], np.arange(count + 1))


class Lists:
    """Rows in inverted lists, ready to be compared.

    Parameters
    ----------
    rows
        As in :func:`search_lists`.
    visited : ndarray of shape (n, v)
        The lists that each row visits, nearest first: it is in the first.
    norms : ndarray of shape (n,)
        Squared lengths of the rows.
    """

    def __init__(self, rows: Any, visited: NDArray[np.uint16], norms: NDArray[np.float32]) -> None:
        self.rows, self.visited, self.norms = rows, visited, norms
        self.members, self.ends = _by_list(visited[:, 0], int(visited.max()) + 1)

    def compare(self, asked: NDArray[np.int64], width: int) -> tuple[Found, int]:
        """Compare some rows with those of the lists that they visit.

        Returns squared distances and numbers (b, width), nearest first, -1 and inf for none; and
        the number of pairs.
        """
        import faiss
        from threadpoolctl import threadpool_limits

        heaps = _Heaps(len(asked), width)
        # Places among the asked, by the list that they visit.
        places, ends = _by_list(self.visited[asked].ravel(), len(self.ends) - 1)
        places //= self.visited.shape[1]

        def compare(number: int) -> int:
            own = self.members[self.ends[number] : self.ends[number + 1]]
            asking = places[ends[number] : ends[number + 1]]
            if not len(own) or not len(asking):
                return 0
            for part in row_chunks(len(own), 4 * self.rows.shape[1]):
                stored = self.rows[own[part]] * np.float32(-2)
                for tile in row_chunks(len(asking), 4 * len(stored)):
                    square = self.rows[asked[asking[tile]]] @ stored.T
                    square += self.norms[own[part]]
                    heaps.offer(asking[tile], square, own[part])
            return len(own) * len(asking)

        threads = faiss.omp_get_max_threads()
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(threads, initializer=lambda: faiss.omp_set_num_threads(1)) as pool,
        ):
            pairs = sum(pool.map(compare, range(len(ends) - 1)))
        square, index = heaps.sorted()
        # FAISS's heaps keep the order of |b|² - 2 q·b.
        square += self.norms[asked, None]
        np.maximum(square, 0, out=square)
        square[index < 0] = np.inf
        return (square, index), pairs


def _compare(asked: NDArray[np.int64], lists: Lists, width: int) -> tuple[Found, int]:
    """:meth:`Lists.compare`, for a task."""
    return lists.compare(asked, width)


class _Heaps(Heaps):
    """FAISS's heaps of the ``k`` smallest values of n rows."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k)
        self._lock = threading.Lock()

    def offer(
        self, rows: NDArray[np.int64], values: NDArray[np.float32], names: NDArray[np.int64]
    ) -> None:
        """Offer values (r, c) of the rows (r,) for the columns ``names`` (c,)."""
        rows, names = np.ascontiguousarray(rows), np.ascontiguousarray(names)
        pointers = [self._pointer(each) for each in (rows, values, names)]
        with self._lock:
            self._heaps.addn_query_subset_with_ids(
                len(rows), pointers[0], values.shape[1], pointers[1], pointers[2]
            )
