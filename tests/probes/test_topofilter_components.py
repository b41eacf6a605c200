from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from probekit.probes import TopoFilterProbe
from probekit.probes.neighbors import NeighborIndex
from probekit.probes.topofilter_components import HiddenComponents, largest_components

CONNECTIONS = {"paper": "weak", "eleuther": "strong"}


def components_without(index, hard, gone, connection):
    """L of the graph from which the rows ``gone`` are deleted, from a dense matrix."""
    n = len(index)
    edges = np.zeros((n, n), dtype=bool)
    np.put_along_axis(edges, index, True, axis=1)
    kept = np.zeros(n, dtype=bool)
    for c in np.unique(hard[~gone]):
        rows = np.flatnonzero((hard == c) & ~gone)
        graph = csr_matrix(edges[np.ix_(rows, rows)])
        part = connected_components(graph, connection=connection)[1]
        size = np.bincount(part)[part]
        kept[rows[part == part[size.argmax()]]] = True  # the first of the largest
    return kept


def some_rows(seed):
    """Neighbour lists, classes and groups of a few rows, with copies, ties and rare classes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 40))
    X = rng.integers(0, 5, (n, 2)) if seed % 2 else rng.standard_normal((n, 2))
    hard = rng.integers(0, int(rng.integers(1, 4)), n)
    if seed % 5 == 0:
        hard[int(rng.integers(n))] = hard.max() + 1  # a class of one row
    groups = np.arange(n) if seed % 3 else rng.integers(0, int(rng.integers(2, n + 1)), n)
    k = int(rng.integers(1, min(5, n - 1) + 1))
    index = NeighborIndex(X.astype(np.float64), metric="euclidean").others(k).index
    return index, hard, np.unique(groups, return_inverse=True)[1]


@pytest.mark.parametrize("connection", ["weak", "strong"])
def test_components_without_each_group_are_those_of_the_graph_without_it(connection):
    other = 0
    for seed in range(60):
        index, hard, groups = some_rows(seed)
        n = len(hard)
        component, _ = largest_components(index, hard, connection=connection)
        hidden = HiddenComponents(index, hard, groups, component=component, connection=connection)
        result = hidden.holds(np.arange(n), np.tile(np.arange(n), (n, 1)))
        for row in range(n):
            removed = groups == groups[row]
            right = components_without(index, hard, removed, connection)
            assert np.array_equal(result[row], right), (seed, row)
            assert not (right & ~hidden.pool).any()
            other += not np.array_equal(right, component & ~removed)
    # What would not do: L as it was, less the group.
    assert other > 200


@pytest.mark.parametrize("connection", ["weak", "strong"])
def test_a_long_chain_is_cut_at_every_row(connection):
    """Every row breaks it, and from the middle on the first part is the larger one."""
    n = 301
    index = np.column_stack([np.arange(n) - 1, np.arange(n) + 1]).clip(0, n - 1)
    index[0, 0], index[-1, 1] = 1, n - 2
    hidden = HiddenComponents(
        index,
        np.zeros(n, dtype=int),
        np.arange(n),
        component=np.ones(n, dtype=bool),
        connection=connection,
    )
    result = hidden.holds(np.arange(n), np.tile(np.arange(n), (n, 1)))
    for row in range(n):
        part = np.arange(n) < row if row >= n // 2 else np.arange(n) > row
        assert np.array_equal(result[row], part)  # at n // 2 both are equal: the first


@pytest.fixture(scope="module", params=["two soft classes", "three classes", "copies"])
def cloud(request):
    rng = np.random.default_rng(1)
    n = 90
    truth = rng.integers(0, 3 if request.param == "three classes" else 2, n)
    X = rng.standard_normal((n, 3)) + truth[:, None]
    wrong = rng.random(n) < 0.25
    truth[wrong] = rng.integers(0, truth.max() + 1, int(wrong.sum()))
    Y = np.eye(truth.max() + 1)[truth]
    if request.param == "two soft classes":
        Y = 0.6 * Y + 0.4 * rng.dirichlet(np.ones(2), n)
    groups = np.arange(n)
    if request.param == "copies":
        X[:20] = X[20:40]
        groups[:20] = groups[20:40]
    return X, Y, groups


@pytest.mark.parametrize("variant", ["paper", "eleuther"])
@pytest.mark.parametrize("k_cc", [3, 4, 9])
def test_every_row_is_scored_as_if_it_had_no_label(cloud, variant, k_cc):
    """Against a search by hand among the components that come out without the row's group."""
    X, Y, groups = cloud
    k_zeta = 4
    probe = TopoFilterProbe(variant, k_cc=k_cc, k_zeta=k_zeta, metric="euclidean").fit(X, Y)
    hard = Y.argmax(axis=1)
    search = NeighborIndex(X, metric="euclidean")
    index = search.others(k_cc, groups=groups if variant == "paper" else None).index
    for row in range(len(X)):
        removed = groups == groups[row]
        kept = components_without(index, hard, removed, CONNECTIONS[variant])
        away = ((X - X[row]) ** 2).sum(axis=1)
        away[~kept] = np.inf
        near = np.argsort(away, kind="stable")[: min(k_zeta, kept.sum())]
        assert np.allclose(probe.oof_proba_[row], Y[near].mean(axis=0), atol=1e-12), row


@pytest.mark.parametrize("variant", ["paper", "eleuther"])
@pytest.mark.parametrize("k_cc", [3, 6])
def test_a_rows_own_label_moves_nothing_of_its_own_probability(cloud, variant, k_cc):
    X, Y, groups = cloud
    how = {"k_cc": k_cc, "k_zeta": 4, "metric": "euclidean"}
    before = TopoFilterProbe(variant, **how).fit(X, Y)
    moved = 0
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        other = Y.copy()
        other[rows] = np.roll(Y[rows], 1, axis=1)
        after = TopoFilterProbe(variant, **how).fit(X, other)
        assert np.array_equal(before.oof_proba_[rows], after.oof_proba_[rows])
        moved += not np.array_equal(before._topolabel(X[rows]), after._topolabel(X[rows]))
    assert moved > 5  # the published label, with L made with the row, does move
