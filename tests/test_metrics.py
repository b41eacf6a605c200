from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from probekit.errors import DataError
from probekit.metrics import (
    accuracy,
    agreement,
    auroc,
    brier,
    calibration_error,
    cross_entropy,
    log_loss,
    paired_bootstrap,
    pairwise_accuracy,
    pgr,
    pgr_undefined,
    recall_at_fpr,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "auroc.npz")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def dirichlet(rng, n, n_classes):
    return rng.dirichlet(np.ones(n_classes), n)


def test_cross_entropy_of_soft_labels(rng):
    labels, proba = dirichlet(rng, 50, 3), dirichlet(rng, 50, 3)
    # A soft label is a mixture of hard ones, and cross-entropy is linear in the label.
    hard = [
        sklearn.metrics.log_loss([c], [row], labels=[0, 1, 2]) for row in proba for c in range(3)
    ]
    expected = (labels * np.reshape(hard, (50, 3))).sum(axis=1)
    assert np.allclose(cross_entropy(labels, proba), expected, rtol=1e-12, atol=0)
    stacked = cross_entropy(labels, np.stack([proba, labels]))
    assert stacked.shape == (2, 50)
    assert (stacked[1] <= stacked[0] + 1e-12).all()  # a label is its own best prediction
    assert cross_entropy([[1.0, 0.0]], [[0.0, 1.0]], floor=1e-3)[0] == -np.log(1e-3)


@pytest.mark.parametrize("kind", ["continuous", "rounded", "binary", "constant"])
def test_auroc_is_the_golden_midrank_value(kind):
    scores = GOLDEN[f"scores_{kind}"]
    assert abs(auroc(GOLDEN["y"], scores) - GOLDEN[f"midrank_{kind}"]) < 1e-12
    assert auroc(GOLDEN["y"][::-1], scores[::-1]) == auroc(GOLDEN["y"], scores)


def test_golden_auroc_tells_the_tie_bug_apart():
    for kind in ("rounded", "binary", "constant"):
        assert abs(GOLDEN[f"w2s_{kind}"] - GOLDEN[f"midrank_{kind}"]) > 1e-4


def test_auroc_of_many_classes_is_scikit_learns(rng):
    truth, proba = rng.integers(0, 4, 300), dirichlet(rng, 300, 4)
    expected = sklearn.metrics.roc_auc_score(truth, proba, multi_class="ovr", average="macro")
    assert abs(auroc(truth, proba) - expected) < 1e-12


def test_auroc_with_one_class_or_nan(rng):
    assert np.isnan(auroc(np.ones(5), rng.random(5)))
    assert np.isnan(auroc(np.ones(5), dirichlet(rng, 5, 3)))
    with pytest.raises(DataError, match="1 scores are NaN"):
        auroc([0, 1], [0.5, np.nan])


def test_auroc_of_a_class_that_never_occurs_is_left_out(rng):
    truth, proba = rng.integers(0, 2, 100), dirichlet(rng, 100, 3)
    by_class = [sklearn.metrics.roc_auc_score(truth == c, proba[:, c]) for c in (0, 1)]
    assert abs(auroc(truth, proba) - np.mean(by_class)) < 1e-12


@pytest.mark.parametrize("n_classes", [2, 3])
def test_brier_and_log_loss_are_scikit_learns(rng, n_classes):
    truth, proba = rng.integers(0, n_classes, 200), dirichlet(rng, 200, n_classes)
    proba[0] = np.eye(n_classes)[(truth[0] + 1) % n_classes]  # sure and wrong: loss must be finite
    given = proba[:, 1] if n_classes == 2 else proba
    assert abs(brier(truth, given) - sklearn.metrics.brier_score_loss(truth, given)) < 1e-12
    # scikit-learn renormalises the clipped row, which moves one row of 200 by less than 1e-12.
    assert abs(log_loss(truth, given) - sklearn.metrics.log_loss(truth, given)) < 1e-12


def test_both_forms_of_two_classes_are_one(rng):
    truth, one = rng.integers(0, 2, 100), rng.random(100)
    both = np.column_stack([1 - one, one])
    for metric in (auroc, brier, log_loss, calibration_error):
        assert metric(truth, one) == pytest.approx(metric(truth, both), abs=1e-15)


def test_calibration_error_bin_by_bin(rng):
    truth, proba = rng.integers(0, 3, 500), dirichlet(rng, 500, 3)
    proba[:50] = np.round(proba[:50] * 15) / 15  # some on the edges of bins
    proba /= proba.sum(axis=1, keepdims=True)
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == truth
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert abs(calibration_error(truth, proba) - total) < 1e-12
    assert calibration_error([0, 1, 1], [0.0, 1.0, 1.0]) == 0


@pytest.mark.parametrize("decimals", [1, 8])
def test_recall_at_fpr_is_the_roc_curves(rng, decimals):
    truth = rng.integers(0, 2, 1000)
    score = np.round(rng.normal(size=1000) + truth, decimals)
    fpr, tpr, _ = sklearn.metrics.roc_curve(truth, score, drop_intermediate=False)
    for level in (0.01, 0.2):
        assert recall_at_fpr(truth, score, fpr=level) == pytest.approx(tpr[fpr <= level].max())
    assert np.isnan(recall_at_fpr(np.ones(3), np.arange(3)))
    assert recall_at_fpr([0, 1], [1.0, 0.0]) == 0


@pytest.mark.parametrize("end", [np.inf, -np.inf, 1e308, 0.0])
def test_recall_at_fpr_keeps_equal_scores_together_wherever_they_stand(end):
    truth, score = np.array([1, 0, 1, 0]), np.array([end, end, -1.0, -2.0])
    if end == -np.inf:
        score[2:] = 1.0, 0.0
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]):
        result = recall_at_fpr(truth[order], score[order], fpr=0.0)
        assert result == (0.5 if end == -np.inf else 0.0)
    assert recall_at_fpr([1, 0], [0.0, -0.0], fpr=0) == 0  # -0.0 is 0.0
    shares = np.arange(100) / 100
    assert recall_at_fpr([0] * 100 + [1], [*shares, 0.705], fpr=0.29) == 1  # 29 lie above


def test_no_order_without_numbers():
    for measure in (recall_at_fpr, auroc):
        with pytest.raises(DataError, match="1 scores are NaN"):
            measure([0, 1, 1], [0.1, np.nan, 0.3])


def test_agreement_obeys_its_identities(rng):
    for n_classes in (2, 4):
        truth, weak, student = rng.integers(0, n_classes, (3, 500))
        parts = agreement(truth, weak, student)
        w = accuracy(truth, weak)
        assert parts.weak == w
        assert parts.overall == pytest.approx(w * parts.right + (1 - w) * parts.wrong)
        got = w * parts.right + (1 - w) * (1 - parts.wrong)
        is_identity = got == pytest.approx(accuracy(truth, student))
        assert is_identity == (n_classes == 2)  # wrong otherwise: more than one way to be wrong
    assert np.isnan(agreement([0, 1], [0, 1], [0, 0]).wrong)


def test_rows_must_be_the_same():
    for metric in (accuracy, auroc, brier):
        with pytest.raises(DataError, match="same rows"):
            metric([0, 1, 1], [0.5, 0.5])
    with pytest.raises(DataError, match="class numbers from 0 to 1"):
        brier([0, 2], [0.5, 0.5])
    assert np.isnan(accuracy([], []))


def test_pairwise_accuracy_counts_ties_as_half():
    truth, second = np.array([1, 1, 0, 0, 1]), np.array([0.9, 0.5, 0.2, 0.7, 0.3])
    # right, tie, right, wrong, wrong
    assert pairwise_accuracy(truth, second) == pytest.approx(2.5 / 5)
    both = np.column_stack([1 - second, second])
    assert pairwise_accuracy(truth, both) == pytest.approx(2.5 / 5)
    # Turning every pair round changes nothing, which plain accuracy cannot say of ties.
    assert pairwise_accuracy(1 - truth, both[:, ::-1]) == pytest.approx(2.5 / 5)
    assert accuracy(truth, both.argmax(1)) != accuracy(1 - truth, both[:, ::-1].argmax(1))
    votes = np.full(3, 0.1).sum() + np.full(2, 0.1).sum()  # a half but for rounding
    assert pairwise_accuracy([0, 1], [votes, votes]) == 0.5
    assert np.isnan(pairwise_accuracy([], []))


def correctness(rng, n, *shares):
    return [rng.random(n) < share for share in shares]


def plain_bootstrap(columns, draws, seed, metric):
    """PGR and gain of every draw, one at a time, by row indices."""
    rng = np.random.default_rng(seed)
    n = len(columns[0])
    out = []
    for _ in range(draws):
        rows = rng.integers(0, n, n)
        w, s, c = (metric(column, rows) for column in columns)
        out.append(((s - w) / (c - w), s - w))
    return np.percentile(np.array(out), [2.5, 97.5], axis=0)


def test_pgr_is_not_clipped_and_undefined_without_a_gap():
    assert pgr(0.6, 0.7, 0.8) == pytest.approx(0.5)
    assert pgr(0.6, 0.9, 0.8) == pytest.approx(1.5)
    assert pgr(0.6, 0.5, 0.8) == pytest.approx(-0.5)
    assert np.isnan(pgr(0.8, 0.9, 0.8))
    assert np.isnan(pgr(0.9, 0.9, 0.8))
    assert "0.8000) is not above the weak supervisor (0.9000" in pgr_undefined(0.9, 0.8)
    assert "NaN" in pgr_undefined(float("nan"), 0.8)
    assert pgr_undefined(0.6, 0.8) is None


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    columns = correctness(rng, 800, 0.6, 0.7, 0.85)
    result = paired_bootstrap(*columns, seed=1)
    plain = plain_bootstrap(columns, 4000, 2, lambda column, rows: column[rows].mean())
    # Percentiles of 10,000 and 4,000 draws: standard error of each about 3 % of the interval.
    width = plain[1] - plain[0]
    assert abs(result.pgr_low - plain[0, 0]) < 0.1 * width[0]
    assert abs(result.pgr_high - plain[1, 0]) < 0.1 * width[0]
    assert abs(result.gain_low - plain[0, 1]) < 0.1 * width[1]
    assert abs(result.gain_high - plain[1, 1]) < 0.1 * width[1]
    assert result.pgr == pytest.approx(pgr(*(c.mean() for c in columns)))
    assert not result.unbounded
    assert result.reason is None


def test_the_pairing_matters():
    rng = np.random.default_rng(3)
    weak, ceiling = correctness(rng, 500, 0.6, 0.9)
    student = weak.copy()
    student[np.flatnonzero(~weak)[:20]] = True  # never worse than weak on any row
    paired = paired_bootstrap(weak, student, ceiling)
    shuffled = paired_bootstrap(weak, rng.permutation(student), ceiling)
    assert paired.gain == pytest.approx(shuffled.gain)
    assert paired.gain_low > 0 > shuffled.gain_low


def test_auroc_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 150)
    # Rounded: ties within and between the classes.
    columns = [np.round(rng.normal(size=150) + a * truth, 1) for a in (0.4, 1.2, 2.5)]
    result = paired_bootstrap(*columns, truth=truth, draws=4000, seed=0)
    plain = plain_bootstrap(columns, 800, 5, lambda column, rows: auroc(truth[rows], column[rows]))
    width = plain[1] - plain[0]
    # 800 draws give their percentiles within about 6 % of the interval.
    assert (np.abs([result.pgr_low, result.gain_low] - plain[0]) < 0.2 * width).all()
    assert (np.abs([result.pgr_high, result.gain_high] - plain[1]) < 0.2 * width).all()
    expected = pgr(*(auroc(truth, c) for c in columns))
    assert result.pgr == pytest.approx(expected, abs=1e-12)


def test_few_draws_without_a_gap_leave_the_interval_bounded():
    rng = np.random.default_rng(5)
    weak, student, ceiling = correctness(rng, 250, 0.70, 0.74, 0.78)
    result = paired_bootstrap(weak, student, ceiling)
    assert 0 < result.no_gap <= 0.025
    assert not result.unbounded
    assert np.isfinite([result.pgr_low, result.pgr_high]).all()


def test_without_a_gap_the_interval_is_unbounded_and_the_gain_is_reported():
    rng = np.random.default_rng(1)
    weak, student, ceiling = correctness(rng, 300, 0.75, 0.9, 0.76)
    result = paired_bootstrap(weak, student, ceiling)
    assert result.unbounded
    assert (result.pgr_low, result.pgr_high) == (-np.inf, np.inf)
    assert result.no_gap > 0.025
    assert "draws have no gap" in result.reason or "not above" in result.reason
    assert result.gain_low < result.gain < result.gain_high
    assert np.isfinite([result.gain_low, result.gain_high]).all()


def test_seed_decides():
    columns = correctness(np.random.default_rng(0), 100, 0.5, 0.7, 0.9)
    assert paired_bootstrap(*columns, seed=1) == paired_bootstrap(*columns, seed=1)
    assert paired_bootstrap(*columns, seed=1) != paired_bootstrap(*columns, seed=2)


def test_nothing_to_draw_from():
    with pytest.raises(DataError, match="needs rows"):
        paired_bootstrap([], [], [])
    with pytest.raises(DataError, match="not NaN"):
        paired_bootstrap([1.0, np.nan], [1, 0], [1, 1])
