from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from probekit.errors import ProbeError
from probekit.probes import neighbors, ties
from probekit.probes.neighbors import NeighborIndex, nearest_others, pays, search_halved
from probekit.probes.ties import UNIT_32, rounding

METRICS = ("cosine", "euclidean")
N, K = 240, 25


def hard_inputs():
    """Rows on which |q|² + |b|² - 2 q·b in float32 goes wrong, or where distances tie."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((N, 24))
    outlier = normal.copy()
    outlier[:, 0] = 1e5 + 1e4 * outlier[:, 0]
    copies = normal.copy()
    copies[N // 2 :] = copies[: N // 2]
    crowd = normal.copy()
    crowd[N // 3 :] = crowd[0]
    blobs = np.sign(normal[:, :1]) * 1000 + 1e-2 * normal
    lone = normal.copy()
    lone[5] *= 1e30
    return {
        "normal": normal.astype(np.float32),
        "whole numbers": rng.integers(0, 3, (N, 4)).astype(np.float32),
        "thirds": rng.integers(0, 5, (N, 3)) + 1 / 3,
        "binary": rng.integers(0, 2, (N, 9)).astype(np.float32),
        "one column": rng.integers(0, 40, (N, 1)).astype(np.float32),
        "low rank": (normal[:, :2] @ rng.standard_normal((2, 60))).astype(np.float32),
        "huge column": outlier.astype(np.float32),
        "each row twice": copies.astype(np.float32),
        "160 copies": crowd.astype(np.float32),
        "all equal": np.full((N, 5), 0.1, np.float32),
        "far blobs": blobs,
        "tiny": 1e-25 * normal,
        "huge": 1e25 * normal,
        "one huge row": lone,
    }


@pytest.fixture(params=hard_inputs().items(), ids=lambda item: item[0])
def rows(request):
    return request.param[1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_others_are_those_of_float64_to_the_last_tie(rows, metric, backend, by_the_book):
    groups = np.random.default_rng(1).integers(0, N - 40, N)
    for given in (None, groups):
        index, distance = by_the_book(rows, K, metric, given)
        result = nearest_others(rows, K, metric=metric, backend=backend, groups=given)
        assert np.array_equal(result.index, index)
        # Distances of single pairs stay those of float32 where at most 1 % of the squared distance
        # can be rounding, so half of that, and in practice a hundredth.
        assert np.allclose(result.distance, distance, rtol=5e-3, atol=0)


def test_float32_order_alone_would_not_do(by_the_book):
    """The control: the raw list of a backend gets ties and near ties wrong."""
    X = hard_inputs()["far blobs"]
    placed = ties.Space(X, metric="euclidean").rows
    for backend in ("faiss", "torch"):
        raw = neighbors.search(placed, placed, N, backend=backend)[1]
        raw = np.stack([row[row != i][:K] for i, row in enumerate(raw)])
        assert not np.array_equal(raw, by_the_book(X, K, "euclidean")[0])


@pytest.mark.parametrize("metric", METRICS)
def test_new_rows_meet_all_stored_rows_around_their_centre(metric, by_the_book):
    rng = np.random.default_rng(2)
    base, queries = rng.standard_normal((N, 12)) + 3, rng.standard_normal((30, 12)) + 5
    centre = base.mean(axis=0)
    moved_base, moved = base - centre, queries - centre
    if metric == "cosine":
        moved_base /= np.linalg.norm(moved_base, axis=1, keepdims=True)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    distance = np.linalg.norm(moved[:, None] - moved_base[None], axis=2)
    for backend in ("faiss", "torch"):
        result = NeighborIndex(base, metric=metric, backend=backend).query(queries, K)
        assert np.array_equal(result.index, np.argsort(distance, axis=1)[:, :K])
    itself = NeighborIndex(base, metric=metric).query(base, 1)
    assert itself.index[:, 0].tolist() == list(range(N))


def test_a_search_among_some_rows_keeps_their_numbers_and_the_common_centre(by_the_book):
    X = np.random.default_rng(3).standard_normal((N, 10))
    among = np.random.default_rng(4).random(N) < 0.4
    index = NeighborIndex(X)
    expected = by_the_book(X, K, "cosine", among=among)[0]
    assert np.array_equal(index.others(K, among=among).index, expected)
    assert among[index.query(X[:9], K, among=among).index].all()


def test_self_is_left_out_by_number_and_duplicates_by_group():
    X = np.repeat(np.random.default_rng(5).standard_normal((20, 6)), 2, axis=0)
    twin = np.arange(40) ^ 1
    assert nearest_others(X, 3).index[:, 0].tolist() == twin.tolist()
    alone = nearest_others(X, 3, groups=np.arange(40) // 2).index
    assert not (alone == twin[:, None]).any()
    assert not (alone == np.arange(40)[:, None]).any()


def test_one_search_serves_every_smaller_k(rows):
    everything = nearest_others(rows, N - 1)
    for k in (1, 7, N - 2):
        assert np.array_equal(nearest_others(rows, k).index, everything.index[:, :k])


def test_what_is_equal_in_float32_goes_by_row_number():
    X = np.zeros((4, 2))
    X[:, 0] = [0, 2 + 1e-12, -2, 9]
    assert nearest_others(X, 2, metric="euclidean").index[0].tolist() == [1, 2]


def test_centre_and_scale_of_the_rows_do_not_matter_to_cosine():
    X = np.random.default_rng(6).standard_normal((N, 8))
    expected = nearest_others(X, K).index
    # Powers of two and small whole numbers: scaling is exact, moving loses the last bits only.
    assert np.array_equal(nearest_others(X * 1024, K).index, expected)
    assert np.array_equal(nearest_others(X + 64, K).index, expected)
    assert not np.array_equal(nearest_others(X, K, metric="euclidean").index, expected)


def test_rows_at_the_centre_have_no_direction():
    X = np.array([[1, 0], [-1, 0], [0, 0], [0, 1], [0, -1], [0, 0]], dtype=np.float32)
    result = nearest_others(X, 5)
    assert result.distance[2].tolist() == [0, 1, 1, 1, 1]
    assert result.index[2].tolist() == [5, 0, 1, 3, 4]


def test_torch_goes_through_columns_in_tiles(monkeypatch, by_the_book):
    monkeypatch.setattr(neighbors, "TILE_COLUMNS", 16)  # fewer than k
    monkeypatch.setattr(neighbors, "TILE_BYTES", 16 * 4 * 50)
    X = hard_inputs()["normal"]
    result = nearest_others(X, K, backend="torch")
    assert np.array_equal(result.index, by_the_book(X, K, "cosine")[0])


def test_exact_rows_go_tile_by_tile(monkeypatch, by_the_book):
    monkeypatch.setattr(ties, "TILE_BYTES", 1 << 12)
    X = hard_inputs()["far blobs"]
    result = nearest_others(X, K, metric="euclidean")
    assert np.array_equal(result.index, by_the_book(X, K, "euclidean")[0])


def test_ordinary_rows_need_no_second_search(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("searched again")

    monkeypatch.setattr(ties, "exact_search", refuse)
    X = np.random.default_rng(7).standard_normal((2000, 64)).astype(np.float32)
    nearest_others(X, 50)
    with pytest.raises(AssertionError, match="searched again"):  # the control
        nearest_others(hard_inputs()["160 copies"], 5)


def test_lower_precision_set_by_others_does_not_reach_the_search():
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        X = hard_inputs()["normal"]
        result = nearest_others(X, K, backend="torch")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(result.index, nearest_others(X, K, backend="faiss").index)


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_is_faiss(monkeypatch, gpus):
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus)
    assert neighbors.choose(10) == "faiss"


def test_auto_is_torch_where_only_torch_can_use_the_gpu(monkeypatch):
    import faiss
    import torch

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert neighbors.choose(neighbors.FAISS_GPU_MAX_K + 1) == "torch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert neighbors.choose(neighbors.FAISS_GPU_MAX_K + 1) == "faiss"


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_faiss_and_torch_share_one_process(order):
    """Two OpenMP runtimes in one process have hung and crashed before."""
    program = f"""
import {order}
import numpy as np
from probekit.probes.neighbors import nearest_others
X = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
lists = [nearest_others(X, 20, backend=b).index for b in ("faiss", "torch", "faiss", "torch")]
assert all(np.array_equal(lists[0], other) for other in lists)
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X: nearest_others(X, 10), "k = 10 is too large: n = 10 rows have 9 others"),
        (lambda X: nearest_others(X, 9, groups=[0] * 2 + list(range(2, 10))), "row 0 has 8 others"),
        (lambda X: nearest_others(X, 0), "at least 1, got 0"),
        (lambda X: nearest_others(X, 2.5), r"whole number.*2\.5"),
        (lambda X: nearest_others(X, 2, metric="dot"), "cosine, euclidean, got 'dot'"),
        (lambda X: nearest_others(X, 2, backend="gpu"), "auto, faiss, torch, got 'gpu'"),
        (lambda X: nearest_others(X, 2, groups=[0, 1]), "each of 10 rows"),
        (lambda X: NeighborIndex(X).query(X[:, :2], 2), "2 columns, the stored rows 3"),
        (lambda X: NeighborIndex(X).query(X, 11), "k = 11.*n = 10"),
        (lambda X: nearest_others(X[0], 2), r"shape \(n, d\)"),
        (lambda X: nearest_others(np.where(X > 1, np.nan, X), 2), "NaN or inf"),
        (lambda X: NeighborIndex(X).query(np.where(X > 1, np.inf, X), 2), "NaN or inf"),
    ],
)
def test_what_cannot_be_searched_is_reported(call, words):
    with pytest.raises(ProbeError, match=words):
        call(np.random.default_rng(0).standard_normal((10, 3)))


def test_no_queries_no_neighbours():
    X = np.eye(4)
    assert NeighborIndex(X).query(X[:0], 2).index.shape == (0, 2)


def test_several_devices_share_the_queries(monkeypatch):
    import torch

    rng = np.random.default_rng(5)
    base, queries = (rng.standard_normal((n, 9)).astype(np.float32) for n in (60, 31))
    alone = neighbors.search(base, queries, 4, backend="torch")
    asked = []
    plain = neighbors._search_torch_on

    def see(device, base, queries, k):
        asked.append(len(queries))
        return plain(device, base, queries, k)

    monkeypatch.setattr(neighbors, "_torch_devices", lambda: [torch.device("cpu")] * 3)
    monkeypatch.setattr(neighbors, "_search_torch_on", see)
    distance, index = neighbors.search(base, queries, 4, backend="torch")
    assert sorted(asked) == [10, 10, 11]
    np.testing.assert_array_equal(index, alone[1])
    np.testing.assert_allclose(distance, alone[0], rtol=1e-5)


def test_faiss_gives_every_gpu_a_share(monkeypatch):
    import faiss

    rng = np.random.default_rng(6)
    base, queries = (rng.standard_normal((n, 9)).astype(np.float32) for n in (60, 31))
    alone = faiss.knn(queries, base, 4)
    asked = {}

    def knn_gpu(resources, queries, base, k, device):
        asked[device] = len(queries)
        return faiss.knn(queries, base, k)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    distance, index = neighbors.search(base, queries, 4, backend="faiss")
    assert asked == {0: 16, 1: 15}
    np.testing.assert_array_equal(index, alone[1])
    np.testing.assert_allclose(distance, alone[0], rtol=1e-5)


# With half of the products: the same lists, and really half of the products


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 50 rows, used whatever they cost."""
    monkeypatch.setattr(neighbors, "TILE", 50)
    monkeypatch.setattr(neighbors, "pays", lambda *_: True)


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
            result = nearest_others(X, 25, metric=metric, groups=given)
            assert np.array_equal(result.index, by_the_book(X, 25, metric, given)[0])


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
    created = []
    matmul = np.matmul

    def counted(a, b, out):
        created.append(a.shape[0] * b.shape[1])
        return matmul(a, b, out=out)

    monkeypatch.setattr(neighbors, "TILE", 10)
    monkeypatch.setattr(np, "matmul", counted)
    search_halved(rows_of(205, 8), 5)
    # 20 full tiles and one of five rows: all above the diagonal, and those on it whole.
    assert sum(created) == (205**2 + 20 * 10**2 + 5**2) // 2


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
    halved = neighbors.search_halved
    monkeypatch.setattr(neighbors, "search_halved", lambda *a: used.append(a) or halved(*a))
    X = rows_of(2100, 96)
    index = NeighborIndex(X)
    expected = NeighborIndex(X, backend="faiss").others(10)
    some, among = np.arange(2050), np.arange(2100) < 2080
    index.query(X, 10)
    index.others(10, rows=some)
    index.others(10, among=among)
    assert not used
    result = index.others(10)
    assert len(used) == 1
    assert np.array_equal(result.index, expected.index)
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

    monkeypatch.setattr(neighbors._Nearest, "add", fail)
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
