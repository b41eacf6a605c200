from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from probekit.metrics import auroc
from probekit.probes import MassMeanProbe, load_probe
from probekit.probes.calibration import calibrate


def expected_failures(probe):
    return {
        "check_sample_weight_equivalence_on_dense_data": "Copies of a row are left out together, "
        "so that a row of weight 2 is predicted otherwise than two copies of it."
    }


@parametrize_with_checks([MassMeanProbe()], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    truth = np.arange(240) % 2
    X = rng.standard_normal((240, 12)) + 7
    X[:, 0] += 2 * truth
    return X, truth


@pytest.mark.parametrize("n_classes", [2, 3])
def test_hard_labels_give_the_nearest_centroid(n_classes):
    rng = np.random.default_rng(1)
    y = np.arange(150) % n_classes
    X = rng.standard_normal((150, 6)) + 3 * np.eye(6)[y]
    probe, peer = MassMeanProbe().fit(X, y), NearestCentroid().fit(X, y)
    assert np.allclose(probe.means_, peer.centroids_)
    # Of balanced, separated classes the calibration moves no boundary by much.
    assert (probe.predict(X) == peer.predict(X)).mean() > 0.97


def test_each_row_is_scored_by_means_without_it_and_its_copies(rows):
    X, truth = rows
    y = 0.7 * truth + 0.3 * np.random.default_rng(2).random(240)
    X = X.copy()
    X[5] = X[100] = X[6]
    Y = np.column_stack([1 - y, y])
    weight = np.random.default_rng(3).random(240) + 0.1
    score = np.empty((240, 2))
    for i in range(240):
        others = (X[i] != X).any(axis=1)
        share = Y[others] * weight[others, None]
        means = share.T @ X[others] / share.sum(axis=0)[:, None]
        score[i] = means @ X[i] - 0.5 * (means**2).sum(axis=1)
    logits = calibrate(score, Y, weight).log_odds(score)
    probe = MassMeanProbe().fit(X, y, sample_weight=weight)
    assert np.allclose(probe.oof_proba_, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    alone = MassMeanProbe().fit(X, y, sample_weight=weight, groups=np.arange(240))
    assert not np.allclose(alone.oof_proba_[5], probe.oof_proba_[5]), "copies must matter here"


def test_a_random_label_is_not_read_back():
    rng = np.random.default_rng(4)
    X, y = rng.standard_normal((300, 200)), rng.integers(0, 2, 300)
    probe = MassMeanProbe().fit(X, y)
    in_sample = X @ (probe.means_[1] - probe.means_[0])
    assert auroc(y, in_sample) > 0.8, "means with the row do read it back"
    assert abs(auroc(y, probe.oof_proba_[:, 1]) - 0.5) < 0.1


def test_direction_is_in_the_space_of_the_states(rows):
    X, truth = rows
    probe = MassMeanProbe().fit(X, truth)
    logits = X @ probe.coef_.T + probe.intercept_
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(probe.predict_proba(X), expected)
    difference = probe.coef_[1] - probe.coef_[0]
    gap = X[truth == 1].mean(axis=0) - X[truth == 0].mean(axis=0)
    assert np.allclose(difference / np.linalg.norm(difference), gap / np.linalg.norm(gap))


def test_a_class_of_one_row_is_predicted_from_the_others():
    X = np.random.default_rng(5).standard_normal((20, 3))
    y = np.zeros(20, dtype=int)
    y[3] = 1
    assert np.isfinite(MassMeanProbe().fit(X, y).oof_proba_).all()


def test_save_and_load(rows, tmp_path):
    X, truth = rows
    probe = MassMeanProbe().fit(X, truth).save(tmp_path / "probe")
    again = load_probe(tmp_path / "probe")
    assert np.array_equal(again.predict_proba(X), probe.predict_proba(X))
    assert np.array_equal(again.oof_proba_, probe.oof_proba_)
