"""The search with half of the products: the same lists, and really half of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from probekit.probes import neighbors_backends
from probekit.probes.neighbors import NeighborIndex, nearest_others
from probekit.probes.neighbors_backends import pays, search_halved
from probekit.probes.ties import UNIT_32, rounding


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 50 rows, used whatever they cost."""
    monkeypatch.setattr(neighbors_backends, "TILE", 50)
    monkeypatch.setattr(neighbors_backends, "pays", lambda *_: True)


def rows_of(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("n", [40, 50, 99, 240, 251])  # one tile, full tiles, a rest of one row
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_lists_are_those_of_float64_to_the_last_tie(n, metric, by_the_book):
    rng = np.random.default_rng(1)
    blobs = (np.sign(rng.standard_normal((n, 1))) * 1000 + 1e-2 * rows_of(n, 24)).astype(np.float32)
    twice = rows_of(n, 24)
    twice[n // 2 : 2 * (n // 2)] = twice[: n // 2]
    whole = rng.integers(0, 3, (n, 4)).astype(np.float32)
    for X in (rows_of(n, 24), blobs, twice, whole):
        groups = rng.integers(0, n - 8, n)
        for given in (None, groups):
            found = nearest_others(X, 25, metric=metric, groups=given)
            assert np.array_equal(found.index, by_the_book(X, 25, metric, given)[0])


@pytest.mark.usefixtures("small_tiles")
def test_as_many_as_there_are():
    square, index = search_halved(rows_of(120, 30), 120)
    assert (np.sort(index, axis=1) == np.arange(120)).all()
    assert (np.diff(square, axis=1) >= 0).all()


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_rounding_stays_within_its_bound(size):
    """One huge coordinate in front is the worst case known; half precision is the control."""
    X = rows_of(2100, 1024)
    X[:, 0] *= size
    exact = X.astype(np.float64)
    norms = (exact**2).sum(axis=1)
    asked = range(0, len(X), 150)

    def worst(square, index):
        units = [
            np.abs(square[i] - ((exact[index[i]] - exact[i]) ** 2).sum(axis=1))
            / (norms[i] + norms[index[i]])
            for i in asked
        ]
        return np.max(units)

    bound = rounding(1024, UNIT_32)
    assert worst(*search_halved(X, 300)) < bound
    assert worst(*search_halved(X.astype(np.float16).astype(np.float32), 300)) > bound


def test_every_product_serves_both_rows(monkeypatch):
    made = []
    matmul = np.matmul

    def counted(a, b, out):
        made.append(a.shape[0] * b.shape[1])
        return matmul(a, b, out=out)

    monkeypatch.setattr(neighbors_backends, "TILE", 10)
    monkeypatch.setattr(np, "matmul", counted)
    search_halved(rows_of(205, 8), 5)
    # 20 full tiles and one of five rows: all above the diagonal, and those on it whole.
    assert sum(made) == (205**2 + 20 * 10**2 + 5**2) // 2


@pytest.mark.parametrize(
    ("n", "d", "k", "faster"),
    [
        (20_000, 1024, 67, True),
        (2048, 256, 67, True),
        (2047, 1024, 67, False),  # few rows
        (20_000, 64, 67, False),  # short rows
        (10_000, 512, 400, False),  # long lists
    ],
)
def test_used_where_it_was_measured_to_be_faster(n, d, k, faster):
    assert pays(n, d, k) is faster


def test_only_a_search_of_all_rows_on_the_processor_is_halved(monkeypatch):
    import faiss

    used = []
    halved = neighbors_backends.search_halved
    monkeypatch.setattr(
        neighbors_backends, "search_halved", lambda *a: used.append(a) or halved(*a)
    )
    X = rows_of(2100, 96)
    index = NeighborIndex(X)
    expected = NeighborIndex(X, backend="faiss").others(10)
    some, among = np.arange(2050), np.arange(2100) < 2080
    index.query(X, 10)
    index.others(10, rows=some)
    index.others(10, among=among)
    assert not used
    found = index.others(10)
    assert len(used) == 1
    assert np.array_equal(found.index, expected.index)
    assert np.array_equal(index.others(10, rows=some).index, expected.index[some])
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(
        faiss, "knn_gpu", lambda _, q, b, k, **__: faiss.knn(q, b, k), raising=False
    )
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    assert np.array_equal(index.others(10).index, expected.index)
    assert len(used) == 1


def test_what_a_thread_raises_is_raised(monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(neighbors_backends._Nearest, "add", fail)
    with pytest.raises(MemoryError, match="no room"):
        search_halved(rows_of(30, 8), 3)


def test_threads_of_others_are_left_as_they_were():
    import faiss
    from threadpoolctl import threadpool_info

    def threads():
        return faiss.omp_get_max_threads(), sorted(
            (pool["filepath"], pool["num_threads"]) for pool in threadpool_info()
        )

    before = threads()
    search_halved(rows_of(600, 16), 3)
    assert threads() == before
    # Two at once: the second must not take the first one's limit for what was there before it.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: search_halved(rows_of(n, 16), 3), [1200, 2400, 1200, 2400]))
    assert threads() == before
