"""Exact nearest neighbours, ties included: one search at the largest k serves every smaller k.

The neighbours of all rows can be searched approximately (:mod:`probekit.probes.approximate`).

Distance is Euclidean between rows that are centred and, for ``cosine``, then scaled to unit length
(the default: in Euclidean distance a few rows of real hidden states are neighbours of almost all
others). Equal float32 distances go to the smaller row number.

Candidates come from an exact float32 search: FAISS, torch in tiles, or FAISS with half of the
products. All rank by |q|² + |b|² - 2 q·b, so their order is right only up to float32 rounding;
:mod:`probekit.probes.ties` settles what rounding leaves open.

Measured on 2 cores (AMD EPYC, AVX-512), 10,000 x 1,024, k = 67: FAISS 1.2-1.4 s, torch 1.5-1.8 s,
the bare matrix product 1.3-1.5 s: without a GPU ``auto`` is FAISS. Several GPUs share the queries.

The search of all rows among themselves needs half of the products, because each serves both its
rows. Square tiles of the distance matrix go to threads with one processor each: NumPy computes the
products and FAISS keeps the nearest in its heaps, so that no thread waits for another library's.
If lists are long for the number of columns, keeping them costs more than the products: a fifth more
time than ``faiss.knn`` at 64 columns. docs/speed.md and docs/LOG.md have times of wider rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probekit.engine import map_here, ray_tasks
from probekit.errors import ProbeError
from probekit.probes.approximate import outside_groups, search_lists
from probekit.probes.heaps import Heaps
from probekit.probes.ties import Found, Pair, Space, first_of, in_parallel, settle
from probekit.states import as_rows, check_finite

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Metric",
    "NeighborIndex",
    "Neighbors",
    "exact_seconds",
    "nearest_others",
    "recall_notes",
    "shared_searches",
]

Metric = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")

# Candidates beyond k: they show whether the order is open, and replace excluded duplicates.
MARGIN = 16

# Width of a shared list: kNN asks for 30 neighbours, TopoFilter for 48.
SHARED_K = 48

# Blocks of queries for each worker of a cluster: one that ends late holds up few others. Fewer
# queries than these are not worth a cluster.
BLOCKS_OF_A_WORKER, SHARED_QUERIES = 4, 4096

BACKENDS = ("auto", "faiss", "torch")

FAISS_GPU_MAX_K = 2048
# From this k on FAISS uses a reservoir, not a heap: 3 to 9 % faster at k = 66.
RESERVOIR_K = 20
TILE_COLUMNS = 1 << 16
TILE_BYTES = 1 << 27
TILE_BYTES_CUDA = 1 << 30
# Rows of a tile of half the products: its product uses a whole processor, and fits into the cache.
TILE = 512
# The limit of BLAS threads is global: two searches would undo each other's.
_ALONE = threading.Lock()
# Rows² x columns up to which no search takes ten minutes; and rows of the one that is timed.
QUICK = 10**13
TIMED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Row numbers (m, k) int64 and distances (m, k) float32, nearest first."""

    index: NDArray[np.int64]
    distance: NDArray[np.float32]


class _Shared:
    """Spaces and lists of neighbours by what was asked; X is kept, so that no other has its place.

    One of each is kept, the last.
    """

    def __init__(self) -> None:
        self._spaces: dict[tuple[Any, ...], tuple[Any, Space]] = {}
        self._lists: dict[tuple[Any, ...], Neighbors] = {}

    def space(self, X: Any, metric: str) -> Space:
        """The space of these rows: one for all arrays at the same place in memory."""
        key: tuple[Any, ...] = (id(X), metric)
        if isinstance(X, np.ndarray):
            place = X.__array_interface__
            key = (place["data"][0], place["strides"], X.shape, X.dtype.str, metric)
        if key not in self._spaces:
            self._spaces, self._lists = {key: (X, Space(X, metric=metric))}, {}
        return self._spaces[key][1]

    def found(self, key: tuple[Any, ...], k: int, search: Callable[[], Neighbors]) -> Neighbors:
        """The first k of the list ``key``, which is searched unless one as wide is known."""
        known = self._lists.get(key)
        if known is None or known.index.shape[1] < k:
            known = search()
            self._lists = {key: known}
        index, distance = known.index[:, :k], known.distance[:, :k]
        return Neighbors(np.ascontiguousarray(index), np.ascontiguousarray(distance))


_SHARED: ContextVar[_Shared | None] = ContextVar("shared searches", default=None)


@contextmanager
def shared_searches() -> Iterator[None]:
    """Within it, indexes of the same rows prepare them once, and search once for their others.

    Row numbers are those of separate searches; of distances the last digit may differ.
    """
    token = _SHARED.set(_Shared())
    try:
        yield
    finally:
        _SHARED.reset(token)


class NeighborIndex:
    """Rows X, prepared once for many searches.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Stored rows, finite. Kept, not copied, beside a centred float32 copy; blocks of a memory map
        that is too large for a copy are read again in every search.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance of centred unit rows, or of centred rows.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Library of the search; all give the same neighbours.
    approximate : bool, default=False
        Search :meth:`others` of all rows in inverted lists; other searches are exact.

    Attributes
    ----------
    recall
        Share of the exact neighbours of a sample that an approximate search found; None: exact.
    """

    def __init__(
        self,
        X: ArrayLike,
        *,
        metric: Metric = "cosine",
        backend: str = "auto",
        approximate: bool = False,
    ) -> None:
        if metric not in METRICS:
            raise ProbeError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
        self.X = _rows(X)
        self.backend, self.approximate = backend, approximate
        self.recall: float | None = None
        shared = _SHARED.get()
        if shared is None:
            self.space = Space(self.X, metric=metric)
        else:
            self.space = shared.space(self.X, metric)

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
        """The k nearest other rows of every stored row, without its group.

        ``rows`` are the numbers of the queries, by default all; ``among`` (n,) is a mask of the
        rows that may be neighbours.

        Raises
        ------
        ProbeError
            If k > n - 1, or a row has fewer than k others outside its group.
        """
        n = len(self)
        chosen = np.arange(n) if among is None else np.flatnonzero(among)
        numbers, fewest = self._numbers(k, groups, chosen)
        if self.approximate and rows is None and among is None:
            found = Neighbors(np.empty((n, k), np.int64), np.empty((n, k), np.float32))
            for block, nearest in self._approximate(k, numbers):
                found.index[block], found.distance[block] = nearest.index, nearest.distance
            return found
        shared = _SHARED.get()
        if shared is not None and rows is None and among is None:
            # Enough for each probe's default; a list's beginning is the list of a smaller k.
            wide = max(k, min(SHARED_K, fewest))
            key = (id(self.space), self.backend, numbers.tobytes())
            return shared.found(
                key, k, lambda: self._search(self.space, self.space, wide, (numbers, numbers))
            )
        space = self.space if among is None else self.space.subset(chosen)
        asked = self.space if rows is None else self.space.subset(rows)
        pair = (numbers if rows is None else numbers[rows], numbers[chosen])
        nearest = self._search(space, asked, k, pair)
        return nearest if among is None else Neighbors(chosen[nearest.index], nearest.distance)

    def blocks(
        self, k: int, *, groups: ArrayLike | None = None
    ) -> Iterator[tuple[slice | NDArray[np.int64], Neighbors]]:
        """:meth:`others` of all rows, of some rows at a time: their numbers, and theirs alone.

        One block of all rows, unless the search is approximate. Then drop each before the next, so
        that memory holds one; rows whose lists hold too few others come again in the last.
        """
        if self.approximate:
            yield from self._approximate(k, self._numbers(k, groups, np.arange(len(self)))[0])
        else:
            yield slice(0, len(self)), self.others(k, groups=groups)

    def _numbers(
        self, k: int, groups: ArrayLike | None, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Check k; return group numbers (n,), and how many of the chosen the fewest may have."""
        n, m = len(self), len(chosen)
        k = _check_k(k, m - 1, f"n = {m} rows have {m - 1} others each")
        numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        if numbers.shape != (n,):
            raise ProbeError(f"groups must have one entry for each of {n} rows.")
        left = m - np.bincount(numbers[chosen], minlength=n)[numbers]
        row = int(left.argmin())
        if left[row] < k:
            raise ProbeError(
                f"k = {k} is too large: row {row} has {left[row]} others that are not duplicates "
                f"of it (n = {m}); use a smaller k or leave duplicates out."
            )
        return numbers, int(left[row])

    def query(
        self,
        X: ArrayLike,
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
    ) -> Neighbors:
        """The k nearest stored rows of each new row of X (m, d), or of those in ``among`` (n,).

        Every stored row may be a neighbour: a query that is stored finds itself.
        """
        chosen = np.arange(len(self)) if among is None else np.flatnonzero(among)
        k = _check_k(k, len(chosen), f"there are n = {len(chosen)} stored rows")
        queries = _rows(X)
        if queries.shape[1] != self.X.shape[1]:
            raise ProbeError(
                f"The queries have {queries.shape[1]} columns, the stored rows {self.X.shape[1]}."
            )
        space = self.space if among is None else self.space.subset(chosen)
        nearest = self._search(space, space.of(queries), k)
        return nearest if among is None else Neighbors(chosen[nearest.index], nearest.distance)

    def _approximate(
        self, k: int, numbers: NDArray[np.int64]
    ) -> Iterator[tuple[slice | NDArray[np.int64], Neighbors]]:
        """Others of blocks of rows from inverted lists; then exactly where these hold too few."""
        n = len(self)
        width, tasks = min(n, k + MARGIN + 1), ray_tasks() if n >= SHARED_QUERIES else None
        blocks = search_lists(self.space.searched(), k, width, tasks=tasks)
        if blocks is None:
            self.recall = 1.0
            yield slice(0, n), self._search(self.space, self.space, k, (numbers, numbers))
            return
        short = np.zeros(0, np.int64)
        for rows, found in blocks:
            distance, near = outside_groups(found, rows, numbers, k)
            del found
            distance *= self.space.scale
            short = np.append(short, rows[np.isinf(distance[:, -1])])
            yield rows, Neighbors(near, distance)
            del near, distance
        self.recall = blocks.recall
        if len(short):
            pair = numbers[short], numbers
            yield short, self._search(self.space, self.space.subset(short), k, pair)

    def _search(self, space: Space, asked: Space, k: int, groups: Pair | None = None) -> Neighbors:
        """Nearest rows of ``space`` for those of ``asked``, block by block of both."""
        m, tasks = len(asked.X), ray_tasks()
        if m < SHARED_QUERIES:
            tasks = None
        index, distance = np.empty((m, k), np.int64), np.empty((m, k), np.float32)
        blocks = asked.parts() if tasks is None else asked.parts(BLOCKS_OF_A_WORKER * tasks.workers)
        pieces = list(blocks)
        others = None if asked is space else asked
        do = map_here if tasks is None else tasks.map
        found = do(search_block, pieces, space, others, k, groups, self.backend)
        for block, (near, order) in zip(pieces, found, strict=True):
            distance[block], index[block] = near, order
        return Neighbors(index, distance)


def search_block(
    block: slice, space: Space, others: Space | None, k: int, groups: Pair | None, backend: str
) -> Found:
    """Distances and numbers (b, k) of the rows of ``space`` nearest to a block of ``others``.

    None: to a block of its own rows.
    """
    asked = space if others is None else others
    rows = asked.placed(block)
    width = min(len(space.X), k + MARGIN + (groups is not None))
    if asked is space and len(rows) == len(asked.X):
        candidates = search_among(rows, width, backend=backend)
    else:
        candidates = _candidates(space, rows, width, backend)
    index, distance = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)

    def settle_some(share: slice) -> None:
        part = slice(block.start + share.start, block.start + share.stop)
        pair = None if groups is None else (groups[0][part], groups[1])
        own = asked.X[part], asked.norms[part]
        some = candidates[0][share], candidates[1][share]
        distance[share], index[share] = settle(space, own, some, k, groups=pair)

    in_parallel(settle_some, len(rows))
    return distance, index


def _candidates(space: Space, rows: NDArray[np.float32], width: int, backend: str) -> Found:
    """Squared distances and numbers (m, width) of the nearest stored rows, up to rounding."""
    best: Found | None = None
    for part in space.parts():
        stored = space.placed(part)
        square, index = search(stored, rows, min(width, len(stored)), backend=backend)
        part_best = square, index + part.start if part.start else index
        best = part_best if best is None else first_of(best, part_best, width)
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
    """The k nearest other rows of every row of X (n, d).

    A row is left out of its own list by its number, never by distance, and so are the rows of its
    group (duplicates). Distances that are equal in float32 are ties.

    Raises
    ------
    ProbeError
        If k > n - 1, a row has fewer than k others outside its group, or metric or backend is
        unknown.
    """
    return NeighborIndex(X, metric=metric, backend=backend).others(k, groups=groups)


def recall_notes(indexes: Sequence[NeighborIndex]) -> list[str]:
    """A sentence for the user about approximate searches of these indexes, if there were any."""
    recalls = [index.recall for index in indexes if index.recall is not None]
    if not recalls:
        return []
    return [
        f"Neighbours were searched approximately: {min(recalls):.1%} of the exact ones were found, "
        "measured on 512 rows."
    ]


def exact_seconds(n: int, d: int, *, k: int = 30) -> float:
    """Estimate the time of an exact search among n rows of d columns on this machine.

    It is measured on a few rows, and grows with n². 0 where it is below ten minutes anyway.
    """
    if n * n * d < QUICK:
        return 0.0
    rows = np.random.default_rng(0).standard_normal((TIMED_ROWS, d), dtype=np.float32)
    search_among(rows[: TIMED_ROWS // 4], k + MARGIN)  # starts threads, imports libraries
    start = time.perf_counter()
    search_among(rows, k + MARGIN)
    return (time.perf_counter() - start) * (n / TIMED_ROWS) ** 2


def _rows(X: Any) -> Any:
    rows = as_rows(X)
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


def search(
    base: NDArray[np.float32], queries: NDArray[np.float32], k: int, *, backend: str = "auto"
) -> Found:
    """Squared distances and row numbers (m, k) of the k nearest base rows of each query.

    Nearest first; distances within float32 rounding of each other may come in either order.
    ``base`` (n, d) and ``queries`` (m, d) are float32 and C-contiguous, ``k`` is at most n.
    """
    if backend not in BACKENDS:
        raise ProbeError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        backend = choose(k)
    if backend == "faiss":
        return _search_faiss(base, queries, k)
    return _search_torch(base, queries, k)


def search_among(rows: NDArray[np.float32], k: int, *, backend: str = "auto") -> Found:
    """``search(rows, rows, k)``, with half of the products if that is faster."""
    n, d = rows.shape
    if backend == "auto" and choose(k) == "faiss" and not _gpus() and pays(n, d, k):
        return search_halved(rows, k)
    return search(rows, rows, k, backend=backend)


def _gpus() -> int:
    import faiss

    return int(faiss.get_num_gpus())


def choose(k: int) -> str:
    """The faster backend on this machine for ``k``."""
    import faiss

    if _gpus() and k <= FAISS_GPU_MAX_K:
        return "faiss"
    if _gpus() or not hasattr(faiss, "StandardGpuResources"):
        # This FAISS cannot use a GPU for the search, but torch may have one.
        import torch

        if torch.cuda.is_available():
            return "torch"
    return "faiss"


def _search_faiss(base: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Found:
    import faiss

    def on_gpu(part: NDArray[np.float32], device: int) -> Found:
        nearest: Found = faiss.knn_gpu(faiss.StandardGpuResources(), part, base, k, device=device)
        return nearest

    if (gpus := _gpus()) and k <= FAISS_GPU_MAX_K:
        distance, index = _shared(on_gpu, list(range(gpus)), queries)
    else:
        usual = faiss.cvar.distance_compute_min_k_reservoir
        faiss.cvar.distance_compute_min_k_reservoir = min(usual, RESERVOIR_K)
        try:
            distance, index = faiss.knn(queries, base, k)
        finally:
            faiss.cvar.distance_compute_min_k_reservoir = usual
    return np.maximum(distance, 0, out=distance), index


def _shared(
    work: Callable[[NDArray[np.float32], Any], Found], devices: Sequence[Any], queries: Any
) -> Found:
    """Search for a part of the queries on each device, at the same time."""
    if len(devices) == 1:
        return work(queries, devices[0])
    parts = np.array_split(queries, len(devices))
    with ThreadPoolExecutor(len(devices)) as pool:
        distance, index = zip(*pool.map(work, parts, devices), strict=True)
    return np.concatenate(distance), np.concatenate(index)


def _torch_devices() -> list[torch.device]:
    import torch

    if not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _search_torch(base: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Found:
    from probekit.probes.base import full_float32

    def work(part: NDArray[np.float32], device: torch.device) -> Found:
        return _search_torch_on(device, base, part, k)

    with full_float32():  # around all threads, which end in any order
        return _shared(work, _torch_devices(), queries)


def _search_torch_on(
    device: torch.device, base: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> Found:
    import torch

    budget = TILE_BYTES_CUDA if device.type == "cuda" else TILE_BYTES
    rows = max(1, budget // (4 * min(len(base), TILE_COLUMNS)))
    distance = np.empty((len(queries), k), dtype=np.float32)
    index = np.empty((len(queries), k), dtype=np.int64)
    with torch.inference_mode():
        stored = _tensor(base).to(device)
        norms = (stored * stored).sum(1)
        for start in range(0, len(queries), rows):
            asked = _tensor(queries[start : start + rows]).to(device)
            value, place = _nearest_in_tiles(stored, norms, asked, k)
            value += (asked * asked).sum(1)[:, None]
            distance[start : start + rows] = value.clamp_(min=0).cpu().numpy()
            index[start : start + rows] = place.cpu().numpy()
    return distance, index


def _nearest_in_tiles(
    base: torch.Tensor, norms: torch.Tensor, asked: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest |b|² - 2 q·b over all columns, one tile of columns after another."""
    import torch

    best: tuple[torch.Tensor, torch.Tensor] | None = None
    for start in range(0, len(base), TILE_COLUMNS):
        columns = slice(start, start + TILE_COLUMNS)
        score = torch.addmm(norms[None, columns], asked, base[columns].T, alpha=-2)
        value, place = score.topk(min(k, score.shape[1]), dim=1, largest=False, sorted=True)
        place += start
        if best is not None:
            value, place = torch.cat([best[0], value], 1), torch.cat([best[1], place], 1)
            value, chosen = value.topk(min(k, value.shape[1]), dim=1, largest=False, sorted=True)
            place = place.gather(1, chosen)
        best = value, place
    assert best is not None
    return best


def _tensor(rows: NDArray[np.float32]) -> torch.Tensor:
    import torch

    # torch warns of read-only arrays, which it could write to.
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def pays(n: int, d: int, k: int) -> bool:
    """Whether ``search_halved`` is faster than ``faiss.knn``, for n rows, d columns, lists of k."""
    return n >= 4 * TILE and 3 * k <= d


def search_halved(rows: NDArray[np.float32], k: int) -> Found:
    """``search(rows, rows, k)`` with half of the products: each serves both its rows.

    Every row finds itself. ``rows`` (n, d) are float32, ``k`` is at most n.
    """
    import faiss
    from threadpoolctl import threadpool_limits

    n = len(rows)
    norms = np.einsum("ij,ij->i", rows, rows)
    nearest = _Nearest(n, k)
    own = threading.local()

    def begin() -> None:
        faiss.omp_set_num_threads(1)  # of this thread
        own.square, own.turned = np.empty((2, TILE * TILE), dtype=np.float32)

    def search_tile(corner: tuple[int, int]) -> None:
        i, j = corner
        one, other = slice(i, i + TILE), slice(j, j + TILE)
        shape = len(norms[one]), len(norms[other])
        square = own.square[: shape[0] * shape[1]].reshape(shape)
        np.matmul(rows[one], rows[other].T, out=square)
        square *= -2
        square += norms[other]
        square += norms[one, None]
        nearest.add(square, i, j)
        if i != j:
            turned = own.turned[: square.size].reshape(shape[::-1])
            turned[...] = square.T
            nearest.add(turned, j, i)

    # Along the diagonals: tiles that are worked on at the same time share few rows.
    corners = [(i, i + gap) for gap in range(0, n, TILE) for i in range(0, n - gap, TILE)]
    threads = faiss.omp_get_max_threads()
    with (
        _ALONE,
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=begin) as pool,
    ):
        list(pool.map(search_tile, corners))  # re-raises errors of the threads
    square, index = nearest.sorted()
    return np.maximum(square, 0, out=square), index


class _Nearest(Heaps):
    """FAISS's heaps of the ``k`` smallest values of n rows, filled by several threads."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k)
        self._locks = [threading.Lock() for _ in range(0, n, TILE)]

    def add(self, tile: NDArray[np.float32], row: int, column: int = 0) -> None:
        """Offer the tile (r, c) of all values (n, n) that begins at ``row`` and ``column``."""
        with self._locks[row // TILE]:
            super().add(tile, row, column)
