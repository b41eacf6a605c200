from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize

from probekit.probes.calibration import calibrate
from probekit.probes.ensemble import average
from probekit.states import row_chunks


def two(score, y):
    return np.column_stack([-score, score]), np.column_stack([1 - y, y]).astype(np.float64)


def softened(Y):
    count = Y.sum(axis=0)
    own = (count + 1) / (count + 2)
    soft = np.tile(((1 - own) / (len(own) - 1))[:, None], (1, len(own)))
    np.fill_diagonal(soft, own)
    return Y @ soft


def cross_entropy(slope, intercept, score, targets):
    logits = slope * score + intercept
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * log_p).sum(axis=1).mean()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_it_is_the_minimum_that_a_general_solver_finds(n_classes):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, n_classes, 400)
    score = rng.normal(size=(400, n_classes)) + 1.5 * np.eye(n_classes)[truth]
    Y = 0.8 * np.eye(n_classes)[truth] + 0.2 / n_classes
    result = calibrate(score, Y)
    targets = softened(Y)
    start = np.zeros(n_classes + 1)
    fit = minimize(lambda x: cross_entropy(x[0], x[1:], score, targets), start, tol=1e-12)
    assert cross_entropy(result.slope, result.intercept, score, targets) <= fit.fun + 1e-10
    assert result.slope == pytest.approx(fit.x[0], rel=1e-3)
    assert np.allclose(result.intercept, fit.x[1:] - fit.x[1:].mean(), atol=1e-3)


def test_two_classes_are_platts_calibration():
    rng = np.random.default_rng(1)
    score = rng.normal(size=300)
    y = (score + rng.normal(size=300) > 0.4).astype(np.float64)
    result = calibrate(*two(score, y))
    # Labels 1 and 0 with weights: the soft targets of Platt as scikit-learn's estimator takes them.
    from sklearn.linear_model import LogisticRegression

    targets = softened(two(score, y)[1])[:, 1]
    fit = LogisticRegression(C=1e10, tol=1e-12, max_iter=1000).fit(
        np.tile(score, 2)[:, None],
        np.repeat([1, 0], 300),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    log_odds = result.log_odds(two(score, y)[0])
    expected = score * fit.coef_[0, 0] + fit.intercept_[0]
    assert np.allclose(log_odds[:, 1] - log_odds[:, 0], expected, atol=1e-4)
    assert np.allclose(log_odds.sum(axis=1), 0)


def test_separable_scores_keep_their_order_and_end_at_a_finite_slope():
    rng = np.random.default_rng(2)
    y = np.repeat([0.0, 1.0], 1000)
    score = np.where(y == 1, 1.0, -1.0) + 0.01 * rng.normal(size=2000)
    result = calibrate(*two(score, y))
    assert 0 < result.slope < 100
    P = 1 / (1 + np.exp(-2 * result.log_odds(two(score, y)[0])[:, 1]))
    assert P[y == 1].min() > 0.99 > 0.01 > P[y == 0].max()


def test_far_apart_scores_of_two_scales_do_not_make_newton_diverge():
    rng = np.random.default_rng(3)
    y = (np.arange(2000) % 2).astype(np.float64)
    score = (2 * y - 1) * rng.lognormal(0, 2, 2000)
    score[:6] *= -1
    scores, Y = two(score, y)
    result = calibrate(scores, Y)
    targets = softened(Y)
    value = cross_entropy(result.slope, result.intercept, scores, targets)
    for factor in (0.9, 1.1):
        moved = cross_entropy(factor * result.slope, result.intercept, scores, targets)
        assert moved > value
    assert value < cross_entropy(0, result.intercept * 0, scores, targets)


@pytest.mark.parametrize("score", [np.ones(100), None])
def test_scores_that_say_nothing_or_the_opposite_give_the_class_shares(score):
    y = (np.arange(100) % 4 == 0).astype(np.float64)
    # What leaves a row out leans away from its label; a negative slope would read the label back.
    score = -0.01 * y if score is None else score
    result = calibrate(*two(score, y))
    assert result.slope == 0
    odds = np.diff(result.log_odds(two(score, y)[0]), axis=1)
    share = softened(two(score, y)[1])[:, 1].mean()
    assert np.allclose(odds, np.log(share / (1 - share)))


def test_weights_are_repeated_rows_but_for_the_softening():
    rng = np.random.default_rng(4)
    score = rng.normal(size=4000)
    y = (score + rng.normal(size=4000) > 0).astype(np.float64)
    weight = rng.integers(0, 3, 4000)
    scores, Y = two(score, y)
    weighted = calibrate(scores, Y, weight.astype(np.float64))
    repeated = calibrate(np.repeat(scores, weight, axis=0), np.repeat(Y, weight, axis=0))
    # Softening counts rows: 4,000 against about as many, 1e-3 apart at most.
    assert weighted.slope == pytest.approx(repeated.slope, rel=2e-3)
    assert weighted.slope != pytest.approx(calibrate(scores, Y).slope, rel=2e-3)


def test_many_rows_are_calibrated_part_by_part(monkeypatch):
    """The same sums up to rounding, and little memory beside scores, labels and results."""
    rng = np.random.default_rng(2)
    n = 200_000
    y = rng.integers(0, 2, n)
    Y, scores = np.eye(2)[y], [rng.normal(size=(n, 2)) + np.eye(2)[y] for _ in range(2)]

    def measured():
        tracemalloc.start()
        found = average(scores, Y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Beside the logits of both members, and P, which is first the mean.
        return found, peak - found.log_odds.nbytes - found.proba.nbytes

    whole, before = measured()
    for module in ("calibration", "ensemble"):
        monkeypatch.setattr(
            f"probekit.probes.{module}.row_chunks", lambda n, size: row_chunks(n, size, 1 << 16)
        )
    found, after = measured()
    np.testing.assert_allclose(found.proba, whole.proba, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.log_odds, whole.log_odds, rtol=0, atol=1e-8)
    assert after < Y.nbytes  # the weights are half of it
    assert before > 4 * Y.nbytes  # the control: one part
