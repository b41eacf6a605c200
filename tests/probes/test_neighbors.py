from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from probekit.errors import ProbeError
from probekit.probes import neighbors_backends, ties
from probekit.probes.neighbors import NeighborIndex, nearest_others

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
        found = nearest_others(rows, K, metric=metric, backend=backend, groups=given)
        assert np.array_equal(found.index, index)
        # Distances of single pairs stay those of float32 where at most 1 % of the squared distance
        # can be rounding, so half of that, and in practice a hundredth.
        assert np.allclose(found.distance, distance, rtol=5e-3, atol=0)


def test_float32_order_alone_would_not_do(by_the_book):
    """The control: the raw list of a backend gets ties and near ties wrong."""
    X = hard_inputs()["far blobs"]
    placed = ties.Space(X, metric="euclidean").rows
    for backend in ("faiss", "torch"):
        raw = neighbors_backends.search(placed, placed, N, backend=backend)[1]
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
        found = NeighborIndex(base, metric=metric, backend=backend).query(queries, K)
        assert np.array_equal(found.index, np.argsort(distance, axis=1)[:, :K])
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
    found = nearest_others(X, 5)
    assert found.distance[2].tolist() == [0, 1, 1, 1, 1]
    assert found.index[2].tolist() == [5, 0, 1, 3, 4]


def test_torch_goes_through_columns_in_tiles(monkeypatch, by_the_book):
    monkeypatch.setattr(neighbors_backends, "TILE_COLUMNS", 16)  # fewer than k
    monkeypatch.setattr(neighbors_backends, "TILE_BYTES", 16 * 4 * 50)
    X = hard_inputs()["normal"]
    found = nearest_others(X, K, backend="torch")
    assert np.array_equal(found.index, by_the_book(X, K, "cosine")[0])


def test_exact_rows_go_tile_by_tile(monkeypatch, by_the_book):
    monkeypatch.setattr(ties, "TILE_BYTES", 1 << 12)
    X = hard_inputs()["far blobs"]
    found = nearest_others(X, K, metric="euclidean")
    assert np.array_equal(found.index, by_the_book(X, K, "euclidean")[0])


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
        found = nearest_others(X, K, backend="torch")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found.index, nearest_others(X, K, backend="faiss").index)


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_is_faiss(monkeypatch, gpus):
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus)
    assert neighbors_backends.choose(10) == "faiss"


def test_auto_is_torch_where_only_torch_can_use_the_gpu(monkeypatch):
    import faiss
    import torch

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert neighbors_backends.choose(neighbors_backends.FAISS_GPU_MAX_K + 1) == "torch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert neighbors_backends.choose(neighbors_backends.FAISS_GPU_MAX_K + 1) == "faiss"


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
        (lambda X: NeighborIndex(X).query(X[:, :2], 2), "2 columns, those stored 3"),
        (lambda X: NeighborIndex(X).query(X, 11), "k = 11.*n = 10"),
        (lambda X: nearest_others(X[0], 2), r"shape \(n, d\)"),
        (lambda X: nearest_others(np.where(X > 1, np.nan, X), 2), "NaN or inf"),
        (lambda X: NeighborIndex(X).query(np.where(X > 1, np.inf, X), 2), "NaN or inf"),
    ],
)
def test_what_cannot_be_searched_is_told(call, words):
    with pytest.raises(ProbeError, match=words):
        call(np.random.default_rng(0).standard_normal((10, 3)))


def test_no_queries_no_neighbours():
    X = np.eye(4)
    assert NeighborIndex(X).query(X[:0], 2).index.shape == (0, 2)


def test_several_devices_share_the_queries(monkeypatch):
    import torch

    rng = np.random.default_rng(5)
    base, queries = (rng.standard_normal((n, 9)).astype(np.float32) for n in (60, 31))
    alone = neighbors_backends.search(base, queries, 4, backend="torch")
    asked = []
    plain = neighbors_backends._search_torch_on

    def see(device, base, queries, k):
        asked.append(len(queries))
        return plain(device, base, queries, k)

    monkeypatch.setattr(neighbors_backends, "_torch_devices", lambda: [torch.device("cpu")] * 3)
    monkeypatch.setattr(neighbors_backends, "_search_torch_on", see)
    distance, index = neighbors_backends.search(base, queries, 4, backend="torch")
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
    distance, index = neighbors_backends.search(base, queries, 4, backend="faiss")
    assert asked == {0: 16, 1: 15}
    np.testing.assert_array_equal(index, alone[1])
    np.testing.assert_allclose(distance, alone[0], rtol=1e-5)
