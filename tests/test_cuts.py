from __future__ import annotations

import numpy as np
import pytest

from probekit.cuts import (
    by_content,
    by_id,
    count_of,
    disagreement_of,
    largest,
    tied_decisions,
)
from probekit.errors import UsageError
from probekit.groups import content_digests


def test_largest_by_hand():
    score = np.array([0.5, 0.9, 0.5, 0.1, 0.5])
    cut = largest(score, 2)
    assert np.flatnonzero(cut.taken).tolist() == [0, 1]  # without ties by row number
    assert np.flatnonzero(cut.tied).tolist() == [0, 2, 4]
    assert cut.told() == {"rows": 3, "taken": 1}
    ties = np.array([3, 9, 2, 0, 1])
    assert np.flatnonzero(largest(score, 2, ties=ties).taken).tolist() == [1, 4]
    assert np.flatnonzero(largest(score, 3, ties=ties).taken).tolist() == [1, 2, 4]
    hard = np.array([0, 0, 1, 1, 1])
    each = largest(score, [1, 1], hard, ties=ties)
    assert np.flatnonzero(each.taken).tolist() == [1, 4]
    assert np.flatnonzero(each.tied).tolist() == [2, 4]


@pytest.mark.parametrize("count", [0, 4, 5, 9])
def test_where_all_equals_go_or_stay_no_tie_decides(count):
    cut = largest(np.array([0.5, 0.9, 0.5, 0.1, 0.5]), count)
    assert cut.taken.sum() == min(count, 5)
    assert not cut.tied.any()


def test_all_scores_equal_and_infinite():
    cut = largest(np.full(6, np.inf), 2, ties=np.arange(6)[::-1])
    assert np.flatnonzero(cut.taken).tolist() == [4, 5]
    assert cut.tied.all()
    assert np.flatnonzero(largest(np.array([0.0, -0.0, 0.0]), 1).taken).tolist() == [0]


def test_hashes_of_ids_are_those_of_any_order_and_differ_by_seed():
    ids = [f"r{i}" for i in range(1000)] + ["é", "日本", "\ud83d"]
    order = np.random.default_rng(0).permutation(len(ids))
    keys = by_id(ids, seed=3)
    assert np.array_equal(by_id([ids[i] for i in order], seed=3), keys[order])
    assert len(set(keys.tolist())) == len(ids)
    assert not np.array_equal(np.argsort(keys), np.argsort(by_id(ids, seed=4)))
    assert not np.array_equal(by_id(ids, seed=[3, 1]), keys)
    # No trend with the place: the mean place of the first half is that of all, within 4 errors.
    assert abs(np.argsort(keys)[:500].mean() - 501) < 4 * 290 / np.sqrt(500)


def test_content_stands_in_for_ids():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(50, 3)).astype(np.float32), np.eye(2)[rng.integers(0, 2, 50)]
    X[10:20], Y[10:15] = X[20:30], 1 - Y[20:25]  # copies, half of them with another label
    X[0] = 0.0
    order = rng.permutation(50)
    place, moved = by_content(X, Y, seed=1), by_content(X[order], Y[order], seed=1)
    sure = np.r_[0:15, 20:25, 30:50]  # exact copies are left to the row number
    back = moved[np.argsort(order)]
    assert np.array_equal(np.argsort(place[sure]), np.argsort(back[sure]))
    assert np.array_equal(by_content(X.astype(np.float64), Y, seed=1), place)
    zero = -X[:1] * 1.0
    assert content_digests(zero) == content_digests(X[:1])  # -0.0 is 0.0


def test_shares_are_as_they_are_written():
    assert [count_of(0.29, 100), count_of(1 / 3, 3), count_of(0.1, 9), count_of(0.999, 2)] == [
        *(29, 1, 0, 1)
    ]
    assert int(0.29 * 100) == 28  # the control: floats say otherwise


@pytest.mark.parametrize("n_classes", [2, 3, 6])
def test_disagreement_with_hard_labels_is_one_number(n_classes):
    rng = np.random.default_rng(n_classes)
    P = rng.dirichlet(np.ones(n_classes), 400)
    P[:3] = np.eye(n_classes)[[0, 1, 1]]
    Y = np.eye(n_classes)[rng.integers(0, n_classes, 400)]
    label, distance = disagreement_of(P, Y), disagreement_of(P, Y, "distance")
    assert np.array_equal(label, distance)
    assert not np.signbit(label).any()
    assert label.max() <= 1
    soft = 0.9 * Y + 0.1 / n_classes
    assert np.array_equal(disagreement_of(P, soft), label)
    assert not np.array_equal(disagreement_of(P, soft, "distance"), label)
    with pytest.raises(UsageError, match="label or distance"):
        disagreement_of(P, Y, "l2")


def test_decisions_of_equal_rows():
    P = np.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.2, 0.8]])
    assert tied_decisions(P, np.array([0, 1, 1, 1])).tolist() == [True, False, True, False]
