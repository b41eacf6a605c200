"""Nearest rows and the map of states."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.cleaning.evidence import map_states, nearest_rows


def cloud(n=40, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_neighbours_are_the_rows_of_largest_cosine():
    X = cloud()
    centred = X - X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    found = nearest_rows(X, 4, groups=np.arange(40))
    assert found.measure == "cosine of the centred states"
    assert np.array_equal(found.index, np.argsort(-cosine, axis=1)[:, :4])
    assert found.value == pytest.approx(np.sort(cosine, axis=1)[:, :-5:-1], abs=1e-5)


def test_neighbours_by_euclidean_distance():
    X = cloud()
    distance = np.linalg.norm(X[:, None] - X[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    found = nearest_rows(X, 3, groups=np.arange(40), metric="euclidean")
    assert np.array_equal(found.index, np.argsort(distance, axis=1)[:, :3])
    assert found.value == pytest.approx(np.sort(distance, axis=1)[:, :3], abs=1e-4)


def test_a_duplicate_is_no_evidence():
    X = cloud(10)
    X[3] = X[7]
    groups = np.arange(10)
    near = nearest_rows(X, 3, groups=groups)
    assert near.index[3, 0] == 7  # the control
    groups[3] = groups[7]
    assert 7 not in nearest_rows(X, 3, groups=groups).index[3]


def test_as_many_neighbours_as_there_are():
    assert nearest_rows(cloud(4), 8, groups=np.arange(4)).index.shape == (4, 3)
    assert nearest_rows(cloud(3), 8, groups=np.zeros(3, int)) is None
    assert nearest_rows(cloud(1), 8, groups=np.zeros(1, int)) is None


def test_the_map_is_of_the_two_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 8)) * np.array([9, 5, 1, 1, 1, 1, 1, 1])
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    found = map_states((X @ basis).astype(np.float32))
    for drawn, true in ((found.x, X[:, 0]), (found.y, X[:, 1])):
        assert abs(np.corrcoef(drawn, true)[0, 1]) > 0.99  # edges and sampling take the rest
        assert drawn.min() >= 0
        assert drawn.max() <= 1
    variance = np.sort(np.linalg.eigvalsh(np.cov(X.T)))[::-1]
    assert found.share == pytest.approx(variance[:2] / variance.sum(), rel=1e-3)
    assert found.outside < 10


def test_one_row_far_away_does_not_squeeze_the_map():
    X = cloud(1000)
    X[0] = 1e4
    found = map_states(X)
    assert found.outside >= 1
    assert np.ptp(found.x[1:]) > 0.5


def test_what_has_no_two_components_has_no_map():
    assert map_states(np.ones((5, 3), np.float32)) is None
    assert map_states(cloud(5, 1)) is None
    assert map_states(cloud(1, 5)) is None
    assert map_states(np.outer(np.arange(5.0), np.ones(3)).astype(np.float32)) is not None
