from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import ProbeError
from probekit.probes.ridge import PENALTIES, RidgeStates, choose_penalty


def problem(n, d, *, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + 5  # centring must matter
    y = (signal * (X[:, 0] - 5) + rng.normal(size=n) > 0).astype(np.float64)
    return X, np.column_stack([1 - y, y])


def refit(X, Y, weight, keep, absolute):
    """Plain normal equations on some rows, intercept free."""
    A = np.column_stack([np.ones(len(X)), X])[keep]
    penalty = np.diag([0.0] + [absolute] * X.shape[1])
    return np.linalg.solve(
        A.T @ (weight[keep, None] * A) + penalty, A.T @ (weight[keep, None] * Y[keep])
    )


@pytest.mark.parametrize(("n", "d"), [(60, 8), (25, 40)])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_those_of_refits_without_the_group(n, d, weighted):
    X, Y = problem(n, d)
    groups = np.arange(n)
    groups[[5, 7]] = 2  # three together, not copies of each other: any group is left out exactly
    groups[9] = 11
    weight = np.ones(n)
    if weighted:
        weight = np.random.default_rng(1).random(n) + 0.1
        weight[[3, 5]] = 0
    states = RidgeStates(X, groups=groups, weight=weight if weighted else None)
    mean_one = weight * n / weight.sum()
    for penalty in (1e-3, 0.3):
        absolute = penalty * n * states.scale**2
        expected = np.empty_like(Y)
        for number in np.unique(groups):
            out = groups == number
            coef = refit(X, Y, mean_one, ~out, absolute)
            expected[out] = np.column_stack([np.ones(out.sum()), X[out]]) @ coef
        assert np.allclose(states.leave_out(Y, penalty), expected, atol=1e-9)
        coef, intercept = states.fit(Y, penalty)
        whole = refit(X, Y, mean_one, np.ones(n, dtype=bool), absolute)
        assert np.allclose(np.vstack([intercept, coef]), whole, atol=1e-9)


def test_leaving_out_single_rows_is_not_enough_for_copies():
    X, Y = problem(40, 3)
    X, Y = np.vstack([X, X]), np.vstack([Y, Y])
    alone = RidgeStates(X).leave_out(Y, 0.1)
    together = RidgeStates(X, groups=np.tile(np.arange(40), 2)).leave_out(Y, 0.1)
    # A copy of the row carries its label: what has seen one is nearer to it.
    assert np.abs(alone - Y).mean() < np.abs(together - Y).mean() - 0.01
    assert np.allclose(together[:40], together[40:])


def test_many_rows_are_kept_in_float32(monkeypatch):
    X, Y = problem(400, 10)
    groups = np.arange(400)
    groups[1::40] -= 1  # some copies
    exact, small = RidgeStates(X, groups=groups), None
    with monkeypatch.context() as patch:
        patch.setattr("probekit.probes.ridge.EXACT_BYTES", 0)
        small = RidgeStates(X, groups=groups)
    one, other = exact.leave_out(Y, 1e-3), small.leave_out(Y, 1e-3)
    assert (exact._frame.exact, small._frame.exact) == (True, False)
    assert not np.array_equal(one, other)
    # Scores are about 1; a projection is rounded by 6e-8 of itself, and a score sums ten of them.
    np.testing.assert_allclose(other, one, atol=1e-6)
    assert np.abs(exact.leave_out(Y, 3e-3) - one).max() > 1e-6
    assert choose_penalty(exact, Y)[0] == choose_penalty(small, Y)[0]


def test_states_and_labels_may_be_scaled_and_moved():
    X, Y = problem(50, 6)
    plain = RidgeStates(X).leave_out(Y, 0.1)
    assert np.allclose(RidgeStates(1000 * X - 7).leave_out(Y, 0.1), plain)
    assert not np.allclose(RidgeStates(X * [9, 1, 1, 1, 1, 1]).leave_out(Y, 0.1), plain)


def test_float32_states_with_a_large_mean_keep_their_digits():
    X, Y = problem(80, 5)
    shifted = (X + 300).astype(np.float32)
    exact = RidgeStates(shifted.astype(np.float64)).leave_out(Y, 1e-3)
    assert np.allclose(RidgeStates(shifted).leave_out(Y, 1e-3), exact, atol=1e-12)


def test_the_one_standard_error_rule_takes_the_stronger_penalty():
    X, Y = problem(200, 30, signal=2.0)
    states = RidgeStates(X)
    penalty, score = choose_penalty(states, Y)
    errors = [((states.leave_out(Y, p) - Y) ** 2).sum(axis=1) for p in PENALTIES]
    means = np.array([e.mean() for e in errors])
    best = int(means.argmin())
    bound = means[best] + errors[best].std() / np.sqrt(200)
    place = PENALTIES.index(penalty)
    assert means[place] <= bound
    assert all(means[place + 1 :] > bound)
    assert place > best  # the control: the plain minimum would be another
    assert np.array_equal(score, states.leave_out(Y, penalty))


def test_constant_states_give_the_mean_of_the_others():
    Y = np.eye(2)[[0, 1, 1, 1]]
    score = RidgeStates(np.full((4, 3), 2.5)).leave_out(Y, 0.1)
    assert np.allclose(score[:, 1], [1, 2 / 3, 2 / 3, 2 / 3])


def test_copies_of_one_text_are_refused():
    X = problem(5, 2)[0]
    with pytest.raises(ProbeError, match="All 5 rows with weight are copies of one text"):
        RidgeStates(X, groups=np.zeros(5, dtype=np.int64))
