from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from probekit.cuts import (
    by_content,
    by_id,
    class_counts,
    count_of,
    disagreement_of,
    largest,
    prior_matched,
    prior_threshold,
    tied_decisions,
)
from probekit.errors import DataError, UsageError
from probekit.groups import content_digests


def test_largest_by_hand():
    score = np.array([0.5, 0.9, 0.5, 0.1, 0.5])
    cut = largest(score, 2)
    assert np.flatnonzero(cut.selected).tolist() == [0, 1]  # without ties by row number
    assert np.flatnonzero(cut.tied).tolist() == [0, 2, 4]
    assert cut.tie_counts() == {"rows": 3, "taken": 1}
    ties = np.array([3, 9, 2, 0, 1])
    assert np.flatnonzero(largest(score, 2, ties=ties).selected).tolist() == [1, 4]
    assert np.flatnonzero(largest(score, 3, ties=ties).selected).tolist() == [1, 2, 4]
    hard = np.array([0, 0, 1, 1, 1])
    each = largest(score, [1, 1], hard, ties=ties)
    assert np.flatnonzero(each.selected).tolist() == [1, 4]
    assert np.flatnonzero(each.tied).tolist() == [2, 4]


@pytest.mark.parametrize("count", [0, 4, 5, 9])
def test_where_all_equals_go_or_stay_no_tie_decides(count):
    cut = largest(np.array([0.5, 0.9, 0.5, 0.1, 0.5]), count)
    assert cut.selected.sum() == min(count, 5)
    assert not cut.tied.any()


def test_all_scores_equal_and_infinite():
    cut = largest(np.full(6, np.inf), 2, ties=np.arange(6)[::-1])
    assert np.flatnonzero(cut.selected).tolist() == [4, 5]
    assert cut.tied.all()
    assert np.flatnonzero(largest(np.array([0.0, -0.0, 0.0]), 1).selected).tolist() == [0]


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


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def dirichlet(rng, n, n_classes):
    return rng.dirichlet(np.ones(n_classes), n)


def test_prior_matched_takes_the_largest_scores_and_the_first_of_equal_ones():
    score = [0.2, 0.9, 0.4, 0.4, 0.4, 0.1]
    assert prior_matched(score, 0.5).tolist() == [0, 1, 1, 1, 0, 0]
    assert prior_matched(score, 0).sum() == 0
    assert prior_matched(score, 1).sum() == 6
    assert prior_matched(score, 2.5 / 6).sum() == 3  # halves are rounded up


def test_prior_matched_gives_a_count_back_exactly():
    score = np.linspace(0, 1, 997)
    for count in range(0, 998, 7):
        assert prior_matched(score, count / 997).sum() == count


@pytest.mark.parametrize(("n_classes", "votes"), [(3, 5), (4, 30), (5, None), (3, 4)])
def test_prior_matched_for_many_classes_is_the_optimal_assignment(rng, n_classes, votes):
    P = dirichlet(rng, 150, n_classes)
    if votes:  # a kNN probe's probabilities: almost all of them tied
        P = np.array([rng.multinomial(votes, p) for p in P]) / votes
    share = rng.dirichlet(np.ones(n_classes) * 2)
    counts = class_counts(150, share)
    decided = prior_matched(P, share)
    assert np.bincount(decided, minlength=n_classes).tolist() == counts.tolist()
    seats = np.repeat(np.arange(n_classes), counts)
    rows, seat = linear_sum_assignment(-P[:, seats])
    # Both sum the same float64 numbers in another order.
    assert P[np.arange(150), decided].sum() == pytest.approx(P[rows, seats[seat]].sum(), abs=1e-9)
    assert P[np.arange(150), P.argmax(axis=1)].sum() > P[rows, seats[seat]].sum()


def test_two_columns_are_one_score(rng):
    P = dirichlet(rng, 80, 2)
    assert np.array_equal(prior_matched(P, [0.3, 0.7]), prior_matched(P[:, 1], 0.7))


def test_class_counts_sum_up():
    assert class_counts(10, [1 / 3, 1 / 3, 1 / 3]).tolist() == [3, 3, 4]
    assert class_counts(5, 0.5).tolist() == [2, 3]
    assert class_counts(7, [0, 1.0]).tolist() == [0, 7]
    with pytest.raises(DataError, match="sum to 1"):
        class_counts(5, [0.5, 0.6])


def test_equal_scores_go_by_the_row_number_or_by_ties():
    assert prior_matched([0.3, 0.3, 0.3, 0.3], 0.5).tolist() == [1, 1, 0, 0]
    assert prior_matched([0.3] * 4, 0.5, ties=np.array([3, 1, 2, 0])).tolist() == [0, 1, 0, 1]
    P = np.full((6, 3), 1 / 3)
    ties = np.array([5, 4, 3, 2, 1, 0])
    by_ties = prior_matched(P, np.full(3, 1 / 3), ties=ties)
    assert np.array_equal(by_ties, prior_matched(P, np.full(3, 1 / 3))[::-1])


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="as many shares"):
        prior_matched(np.ones((2, 3)) / 3, [0.5, 0.5])
    with pytest.raises(DataError, match="without NaN"):
        prior_matched([0.5, np.nan], 0.5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_threshold_between_neighbouring_floats_parts_them(dtype):
    for start in (0.5, -0.5, 0.0, 1e-3, 1000.0):
        low = dtype(start)
        middle = np.nextafter(low, dtype(np.inf), dtype=dtype)
        high = np.nextafter(middle, dtype(np.inf), dtype=dtype)
        for below, above in ((low, middle), (middle, high), (low, high)):
            score = np.array([above, below], dtype=dtype)
            threshold = prior_threshold(score, 0.5)
            assert (score > threshold).tolist() == [True, False]
            assert (score.astype(np.float64) > threshold).tolist() == [True, False]


def test_thresholds_at_the_ends_of_the_scores():
    with pytest.raises(DataError, match="without NaN"):
        prior_threshold([0.1, np.nan], 0.5)
    assert prior_threshold([np.inf, 0.0], 0.5) == 0.0
    assert prior_threshold([0.0, -np.inf], 0.5) == -np.inf
    assert prior_threshold([1.7e308, 1.6e308], 0.5) == pytest.approx(1.65e308)
    assert prior_threshold([0.3, 0.3, 0.3, 0.3], 0.5) == 0.3  # equal: no threshold parts them


def test_prior_threshold_decides_as_prior_matched():
    score = np.random.default_rng(0).random(300)
    for share in (0.1, 0.5, 0.77):
        assert np.array_equal(score > prior_threshold(score, share), prior_matched(score, share))
    assert prior_threshold(score, 0) == np.inf
    assert prior_threshold(score, 1) == -np.inf
