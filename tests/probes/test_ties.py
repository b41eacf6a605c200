"""Neighbours from blocks of rows larger than memory, and from parts in threads: the same ones."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from probekit.probes import ties
from probekit.probes.knn import KNNProbe
from probekit.probes.neighbors import NeighborIndex, Neighbors, nearest_others
from probekit.probes.ties import in_parallel
from probekit.probes.topofilter import TopoFilterProbe

N, D, K = 137, 12, 7


def states() -> np.ndarray:
    """Whole numbers with many equal distances, duplicates among them, and a row of zeros."""
    rng = np.random.default_rng(0)
    X = rng.integers(-2, 3, (N, D)).astype(np.float32)
    X[5], X[60], X[61], X[100] = X[4], X[4], 0, X[99]
    return X


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    np.save(tmp_path / "X.npy", states())
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Nothing may be copied as a whole, and a block is 10 rows; their number."""
    monkeypatch.setattr(ties, "COPY_SHARE", 0)
    monkeypatch.setattr(ties, "BLOCK_BYTES", 10 * 4 * D)
    return 10


def same(one: Neighbors, other: Neighbors) -> None:
    np.testing.assert_array_equal(one.index, other.index)
    # A distance that no order hangs on keeps the rounding of its product, which blocks change.
    np.testing.assert_allclose(one.distance, other.distance, rtol=2e-6, atol=1e-6)


def all_searches(X: Any, metric: Any, backend: str) -> list[Neighbors]:
    index = NeighborIndex(X, metric=metric, backend=backend)
    groups = np.unique(states(), axis=0, return_inverse=True)[1].ravel()
    among = np.random.default_rng(1).random(N) < 0.5
    rows = np.array([3, 60, 136, 4])
    new = states()[20:60] + np.float32(0.5)
    return [
        index.others(K),
        index.others(K, groups=groups),
        index.others(K, groups=groups, rows=rows, among=among),
        index.others(N - 1),
        index.query(new, K),
        index.query(new, K, among=among),
        index.query(X, K),
    ]


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_give_the_neighbours_that_memory_gives(
    mapped: np.ndarray, metric: str, backend: str, request: pytest.FixtureRequest
) -> None:
    whole = all_searches(states(), metric, backend)
    request.getfixturevalue("in_blocks")
    index = NeighborIndex(mapped)
    assert index.space.rows is None
    for expected, result in zip(whole, all_searches(mapped, metric, backend), strict=True):
        same(result, expected)


def test_noise_without_ties_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(2).standard_normal((500, D)).astype(np.float32) + 3
    whole = NeighborIndex(X).others(K)
    monkeypatch.setattr(ties, "COPY_SHARE", 0)
    for rows in (7, 33, 499, 500):
        monkeypatch.setattr(ties, "BLOCK_BYTES", rows * 4 * D)
        same(NeighborIndex(X).others(K), whole)


def test_no_block_is_larger_than_asked_for(
    mapped: np.ndarray, in_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[int] = []
    plain = ties.Space.place

    def place(self: Any, X: np.ndarray) -> Any:
        placed.append(len(X))
        return plain(self, X)

    monkeypatch.setattr(ties.Space, "place", place)
    index = NeighborIndex(mapped)
    assert placed == [10] * 13 + [7]  # for their lengths
    placed.clear()
    index.others(K)
    # For each block of rows that are searched for, all that are searched, block by block.
    assert placed == [size for own in [10] * 13 + [7] for size in (own, *[10] * 13, 7)]


def test_probes_take_maps_and_give_the_same(
    mapped: np.ndarray, request: pytest.FixtureRequest
) -> None:
    y = (states()[:, 0] > 0).astype(int)
    proba = KNNProbe(k=5).fit(states(), y).oof_proba_
    kept = TopoFilterProbe(k_cc=4, k_zeta=8).fit(states(), y).result_
    request.getfixturevalue("in_blocks")
    np.testing.assert_array_equal(KNNProbe(k=5).fit(mapped, y).oof_proba_, proba)
    result = TopoFilterProbe(k_cc=4, k_zeta=8).fit(mapped, y).result_
    np.testing.assert_array_equal(result.keep, kept.keep)
    np.testing.assert_array_equal(result.proba, kept.proba)


def test_memory_is_that_of_blocks_and_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d = 6000, 256
    rng = np.random.default_rng(3)
    np.save(tmp_path / "X.npy", rng.standard_normal((n, d)).astype(np.float32))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    size = 4 * n * d

    def peak() -> int:
        tracemalloc.start()
        NeighborIndex(X, backend="faiss").others(3)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    NeighborIndex(X[:100]).others(3)  # imports
    monkeypatch.setattr(ties, "CACHE_BYTES", 1 << 16)
    assert peak() > size  # control: the copy
    monkeypatch.setattr(ties, "COPY_SHARE", 0)
    monkeypatch.setattr(ties, "BLOCK_BYTES", size // 16)
    assert peak() < size / 2


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 3)
    monkeypatch.setattr(ties, "LEAST_ROWS", 10)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("n", "parts"), [(0, 1), (7, 1), (20, 2), (31, 3), (100, 3)])
def test_every_row_is_worked_on_once(n: int, parts: int) -> None:
    seen, slices = np.zeros(n, int), []

    def work(part: slice) -> None:
        seen[part] += 1
        slices.append(part)

    in_parallel(work, n)
    assert seen.tolist() == [1] * n
    assert len(slices) == parts


@pytest.mark.usefixtures("three_threads")
def test_parts_run_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)  # breaks unless all three wait at the same time
    in_parallel(lambda _: void(barrier.wait()), 60)


def void(_: object) -> None:
    """Drop a result."""


@pytest.mark.usefixtures("three_threads")
def test_what_a_part_raises_is_raised() -> None:
    def work(part: slice) -> None:
        if part.start:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        in_parallel(work, 60)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_do_not_depend_on_threads(metric: str, request: pytest.FixtureRequest) -> None:
    X = np.random.default_rng(0).integers(-2, 3, (200, 6)).astype(np.float32)
    groups = np.arange(200) // 2
    alone = nearest_others(X, 9, metric=metric, groups=groups)
    request.getfixturevalue("three_threads")
    result = nearest_others(X, 9, metric=metric, groups=groups)
    np.testing.assert_array_equal(result.index, alone.index)
    np.testing.assert_array_equal(result.distance, alone.distance)
