from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from probekit.probes import EnsembleProbe, KNNProbe, approximate, neighbors
from probekit.probes.knn import neighbor_means
from probekit.probes.neighbors import NeighborIndex, exact_seconds


def clustered(n=3000, d=16, apart=3.0):
    rng = np.random.default_rng(0)
    centres = apart * rng.standard_normal((40, d))
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, d))).astype(np.float32)


def hits(found, exact):
    return np.mean([np.isin(a, b).mean() for a, b in zip(exact.index, found.index, strict=True)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_most_neighbours_are_found_and_the_share_is_known(metric, monkeypatch):
    X = clustered(apart=1.5)
    index = NeighborIndex(X, metric=metric, approximate=True)
    found, exact = index.others(20), NeighborIndex(X, metric=metric).others(20)
    assert (found.index != np.arange(len(X))[:, None]).all()
    # Lists are visited until the sample finds 95 %; all rows find as many, up to chance.
    assert index.recall >= 0.95
    assert hits(found, exact) == pytest.approx(index.recall, abs=0.02)
    # Distances of a row's list are those of float32 products, nearest first.
    assert (np.diff(found.distance, axis=1) >= 0).all()
    complete = (np.sort(found.index, axis=1) == np.sort(exact.index, axis=1)).all(axis=1)
    assert np.mean(complete) > 0.3
    np.testing.assert_allclose(
        found.distance[complete], exact.distance[complete], rtol=1e-4, atol=1e-4
    )
    # Control: one list each finds fewer, and says so.
    monkeypatch.setattr(approximate, "_visits", lambda *_: 1)
    few = NeighborIndex(X, metric=metric, approximate=True)
    least = hits(few.others(20), exact)
    assert least < 0.93
    assert few.recall == pytest.approx(least, abs=0.05)


def test_fewer_pairs_are_compared():
    X = clustered()
    search = approximate.search_lists(X, 10, 20)
    assert sum(len(rows) for rows, _ in search) == len(X)
    assert 0 < search.share < 0.5


def test_more_lists_are_made_where_that_saves_comparisons(monkeypatch):
    """A thousand topics: a row of √n = 141 lists has its neighbours in many of them."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, 16))
    X = centres[rng.integers(0, 1000, 20_000)] + 0.5 * rng.standard_normal((20_000, 16))
    X = X.astype(np.float32)
    # With few rows k-means costs more than it saves; here it is short.
    monkeypatch.setattr(approximate, "OF_A_LIST", 4)
    monkeypatch.setattr(approximate, "ROUNDS", 2)

    def search():
        found = approximate.search_lists(X, 8, 12)
        assert sum(len(rows) for rows, _ in found) == len(X)
        return found

    more = search()
    monkeypatch.setattr(approximate, "MORE", len(X))  # the control: too many to try
    few = search()
    assert min(more.recall, few.recall) > 0.94
    # Distances to four times as many centres are 0.02 of all pairs more.
    assert more.share + 0.03 < few.share / 1.5


def test_wide_rows_get_into_lists_by_their_principal_components(monkeypatch):
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((16, 300)).astype(np.float32)
    X = clustered(apart=1.5) @ spread + rng.standard_normal((3000, 300)).astype(np.float32)
    axes = approximate._principal_axes(X, rng)
    assert axes.shape == (300, approximate.AXES)
    np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-5)
    # The same directions as those of an exact decomposition, where they stand out from the noise.
    exact = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][:16].T
    np.testing.assert_allclose(np.linalg.norm(axes.T @ exact, axis=0), 1, atol=1e-3)
    index = NeighborIndex(X, approximate=True)
    found, near = index.others(20), NeighborIndex(X).others(20)
    assert index.recall >= 0.95
    assert hits(found, near) == pytest.approx(index.recall, abs=0.02)
    # Distances are those of all columns, also where the lists see one of them.
    monkeypatch.setattr(approximate, "AXES", 1)
    least = NeighborIndex(X, approximate=True).others(20)
    same = (np.sort(least.index, axis=1) == np.sort(near.index, axis=1)).all(axis=1)
    assert same.any()
    np.testing.assert_allclose(least.distance[same], near.distance[same], rtol=1e-4, atol=1e-4)


def test_rows_without_clusters_are_searched_exactly():
    X = np.random.default_rng(0).standard_normal((600, 40)).astype(np.float32)
    index = NeighborIndex(X, approximate=True)
    assert np.array_equal(index.others(5).index, NeighborIndex(X).others(5).index)
    assert index.recall == 1


def test_copies_are_left_out_also_where_they_fill_the_list():
    X = clustered(1500)
    groups = np.arange(1500)
    X[:100], groups[:100] = X[0], 0  # more than the candidates of a row
    found = NeighborIndex(X, approximate=True).others(10, groups=groups)
    assert (groups[found.index] != groups[:, None]).all()
    exact = NeighborIndex(X).others(10, groups=groups)
    assert np.array_equal(found.index[:100], exact.index[:100])


def test_no_row_is_alone_in_a_list_that_is_too_short():
    rng = np.random.default_rng(0)
    X = clustered(3000)
    X[:40] = 9 * rng.standard_normal((40, 16))  # each far from all others
    axes = np.eye(16, dtype=np.float32)
    centres = approximate._centres(X, np.arange(3000), 55, 30, np.random.default_rng(0))
    home, _ = approximate._listed(slice(0, 3000), X, axes, centres, 1)
    assert 10 < len(centres) < 55
    assert np.bincount(home[:, 0], minlength=len(centres)).min() >= 20
    # Control: of any length.
    every = approximate._centres(X, np.arange(3000), 55, 0, np.random.default_rng(0))
    home, _ = approximate._listed(slice(0, 3000), X, axes, every, 1)
    assert np.bincount(home[:, 0], minlength=55).min() < 10


def test_rows_that_are_not_copied_have_the_same_neighbours(monkeypatch):
    X = clustered(1500)
    index = NeighborIndex(X, approximate=True)
    found = index.others(10)
    assert 0.9 < index.recall < 1
    monkeypatch.setattr("probekit.probes.ties.COPY_SHARE", 0)
    again = NeighborIndex(X, approximate=True)
    assert again.space.rows is None
    assert np.array_equal(again.others(10).index, found.index)
    assert again.recall == index.recall


@pytest.mark.parametrize("copied", [True, False])
def test_blocks_find_the_same_neighbours(copied, monkeypatch):
    X = clustered(1500)
    if not copied:
        monkeypatch.setattr("probekit.probes.ties.COPY_SHARE", 0)
    groups = np.arange(1500) // 2
    index = NeighborIndex(X, approximate=True)
    whole = index.others(10, groups=groups)
    # Ten neighbours, the row itself, and sixteen that may replace copies: 12 bytes each.
    monkeypatch.setattr(approximate, "HEAP_BYTES", 400 * 12 * 27)
    shared = NeighborIndex(X, approximate=True)
    sizes = [len(rows) for rows, _ in shared.blocks(10, groups=groups)]
    assert sizes == [400, 400, 400, 300]
    again = shared.others(10, groups=groups)
    assert np.array_equal(again.index, whole.index)
    # Products of other shapes round otherwise.
    np.testing.assert_allclose(again.distance, whole.distance, rtol=0, atol=1e-5)
    assert 0.9 < index.recall < 1
    assert shared.recall == index.recall


def test_memory_holds_the_candidates_of_one_block(monkeypatch):
    n, k = 20_000, 30
    X = clustered(n, 4)
    Y = np.eye(2)[(X[:, 0] > 0).astype(int)]

    def peak():
        search = approximate.search_lists(X, k, 47)
        tracemalloc.start()
        size = 0
        for rows, found in search:
            _, near = approximate.outside_groups(found, rows, np.arange(n), k)
            votes[rows] = neighbor_means(near, Y, [k])[0]
            size = max(size, len(rows))
            del found, near
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / n, size

    # 47 candidates and 30 neighbours of 12 bytes: 924 of each row.
    monkeypatch.setattr(approximate, "HEAP_BYTES", 2000 * 12 * 47)
    votes = np.empty((n, 2))
    assert peak() == (pytest.approx(0, abs=500), 2000)
    # Control: one block of all rows.
    monkeypatch.setattr(approximate, "HEAP_BYTES", n * 12 * 47)
    whole = peak()
    assert whole[0] > 924
    assert whole[1] == n


class Played:
    """Tasks of a cluster, each with its own copies."""

    workers = 3

    def __init__(self):
        self.blocks = []

    def put(self, value):
        return value

    def memory(self):
        return 0.0

    def map(self, work, pieces, *common):
        for piece in pieces:
            self.blocks.append(piece)
            yield work(*pickle.loads(pickle.dumps((piece, *common))))


@pytest.mark.parametrize("copied", [True, False])
def test_a_cluster_finds_the_same_neighbours(copied, monkeypatch):
    X = clustered(1500)
    if not copied:
        monkeypatch.setattr("probekit.probes.ties.COPY_SHARE", 0)
    index = NeighborIndex(X, approximate=True)
    found = index.others(10)
    monkeypatch.setattr(neighbors, "SHARED_QUERIES", 1500)
    monkeypatch.setattr(neighbors, "ray_tasks", lambda: tasks)
    tasks = Played()
    shared = NeighborIndex(X, approximate=True)
    again = shared.others(10)
    assert len(tasks.blocks) >= 2 * 3
    assert np.array_equal(again.index, found.index)
    # Products of other shapes round otherwise.
    np.testing.assert_allclose(again.distance, found.distance, rtol=0, atol=1e-5)
    assert 0.9 < index.recall < 1
    assert shared.recall == index.recall


def test_probes_say_how_many_neighbours_were_found():
    X = clustered(1500)
    y = (X[:, 0] > 0).astype(int)
    exact = KNNProbe().fit(X, y)
    assert exact.recall_ is None
    assert exact.notes_for(["0", "1"]) == []
    probe = KNNProbe(approximate=True).fit(X, y)
    (note,) = probe.notes_for(["0", "1"])
    assert note.startswith(f"Neighbours were searched approximately: {probe.recall_:.1%} of the ")
    # A twentieth of the votes differs, so P by less on average; new rows are searched exactly.
    assert np.abs(probe.oof_proba_ - exact.oof_proba_).mean() < 0.05
    assert np.array_equal(probe.predict_proba(X[:9]), exact.predict_proba(X[:9]))
    assert EnsembleProbe(approximate=True).fit(X, y).notes_for(["0", "1"]) != []


def test_the_estimate_grows_with_the_square_of_the_rows(monkeypatch):
    assert exact_seconds(10_000, 100) == 0  # not timed
    monkeypatch.setattr(neighbors, "QUICK", 0)
    monkeypatch.setattr(neighbors, "TIMED_ROWS", 512)
    clock = iter([0.0, 1.0, 5.0, 6.0])
    monkeypatch.setattr(neighbors.time, "perf_counter", lambda: next(clock))
    assert exact_seconds(5120, 8) == 100
    assert exact_seconds(10_240, 8) == 400
