from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probekit.errors import ProbeError
from probekit.metrics import auroc
from probekit.probes import EnsembleProbe, KNNProbe, load_probe, out_of_fold
from probekit.probes.calibration import calibrate
from probekit.probes.ensemble import plan_layers
from probekit.probes.neighbors import NeighborIndex
from probekit.probes.ridge import RidgeStates, choose_penalty


def layers(n=300, widths=(8, 12), *, n_classes=2, distance=2.0, seed=0):
    """States of several layers side by side, each with some signal of its own."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % n_classes
    parts = []
    for width in widths:
        part = rng.normal(size=(n, width))
        part[np.arange(n), truth] += distance
        parts.append(part)
    return np.hstack(parts).astype(np.float32), truth


def two_columns(p):
    return np.column_stack([1 - p, p])


def test_probabilities_are_the_mean_of_calibrated_members_calibrated_again():
    X, truth = layers()
    y = np.where(np.random.default_rng(1).random(300) < 0.8, truth, 1 - truth).astype(np.float64)
    probe = EnsembleProbe(widths=(8, 12), ridge=(1,), knn=(0, 1), k=20).fit(X, y)
    Y = two_columns(y)
    ridge = choose_penalty(RidgeStates(X[:, 8:]), Y)[1]
    votes = [KNNProbe(20).fit(part, y).oof_proba_ for part in (X[:, :8], X[:, 8:])]
    members = [calibrate(s, Y).log_odds(s) for s in (ridge, *votes)]
    assert np.allclose(probe.member_log_odds_, members, atol=1e-12)
    mean = np.mean(members, axis=0)
    z = calibrate(mean, Y).log_odds(mean)
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert np.allclose(probe.oof_proba_, expected, atol=1e-12)
    assert auroc(truth, probe.oof_proba_) > auroc(truth, votes[0])


def test_a_rows_own_label_has_no_say_beyond_calibration_and_penalty():
    X, truth = layers(200, (10,))
    y = truth.astype(np.float64)
    probe = EnsembleProbe(penalties=(0.1,), k=15).fit(X, y)
    changed = y.copy()
    changed[17] = 1 - changed[17]
    other = EnsembleProbe(penalties=(0.1,), k=15).fit(X, changed)
    # Members' scores of row 17 are bit-identical; two fitted numbers each move by O(1 / n).
    before, after = probe.oof_proba_[17, 1], other.oof_proba_[17, 1]
    assert abs(before - after) < 0.02
    moved = np.abs(probe.oof_proba_ - other.oof_proba_)[:, 1]
    assert moved.max() > 2 * abs(before - after)  # the control: it does move its neighbours


def test_random_labels_are_not_read_back():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 30)).astype(np.float32)
    y = rng.integers(0, 2, 400)
    for X_, groups in ((X, None), (np.vstack([X, X]), None), (np.vstack([X, X]), "text")):
        labels = np.concatenate([y] * (len(X_) // 400))
        numbers = None if groups is None else np.tile(np.arange(400), 2)
        probe = EnsembleProbe().fit(X_, labels, groups=numbers)
        # 400 labels: two standard errors of an AUROC of 0.5 are 0.058.
        assert abs(auroc(labels, probe.oof_proba_) - 0.5) < 0.06
    leaky = EnsembleProbe(k=1).fit(np.vstack([X, X]), labels, groups=np.arange(800))
    assert auroc(labels, leaky.oof_proba_) > 0.9  # the control: copies vote for each other


def test_new_rows_are_predicted_as_well_as_those_left_out():
    X, truth = layers(800, distance=1.2)
    y = np.where(np.random.default_rng(1).random(400) < 0.75, truth[:400], 1 - truth[:400])
    probe = EnsembleProbe(widths=(8, 12)).fit(X[:400], y)
    new = auroc(truth[400:], probe.predict_proba(X[400:]))
    assert new == pytest.approx(auroc(truth[:400], probe.oof_proba_), abs=0.05)
    assert new > 0.9
    assert np.allclose(probe.predict_proba(X[400:]).sum(axis=1), 1)


def test_more_classes_are_the_same_formulas():
    X, truth = layers(450, n_classes=3)
    rng = np.random.default_rng(2)
    y = np.where(rng.random(450) < 0.7, truth, (truth + rng.integers(1, 3, 450)) % 3)
    probe = EnsembleProbe(widths=(8, 12)).fit(X, y)
    assert (probe.oof_proba_.argmax(axis=1) == truth).mean() > 0.9 > (y == truth).mean()
    names = np.array(["a", "b", "c"])
    named = EnsembleProbe(widths=(8, 12)).fit(X, names[y])
    assert np.array_equal(named.oof_proba_, probe.oof_proba_)
    assert set(named.predict(X[:9])) <= set(names)


def test_two_classes_may_be_swapped():
    X, truth = layers(200, (10,))
    p = 0.1 + 0.7 * truth
    one = EnsembleProbe().fit(X, p).oof_proba_
    assert np.allclose(EnsembleProbe().fit(X, 1 - p).oof_proba_, one[:, ::-1], atol=1e-9)


def test_out_of_fold_uses_the_closed_form():
    X, truth = layers(200, (10,))
    groups = np.arange(200) // 2
    proba, fold = out_of_fold(EnsembleProbe(), X, truth, groups=groups)
    expected = EnsembleProbe().fit(X, truth, groups=groups).oof_proba_
    assert np.array_equal(proba, expected)
    assert (fold == -1).all()


def test_weights_of_zero_take_rows_out():
    X, truth = layers(240, (10,))
    weight = np.ones(240)
    weight[200:] = 0
    wrong = truth.copy()
    wrong[200:] = 1 - wrong[200:]
    options = {"penalties": (0.1,), "k": 60}
    weighted = EnsembleProbe(**options).fit(X, wrong, sample_weight=weight)
    plain = EnsembleProbe(**options).fit(X, wrong)
    # They do not vote, but take places among the neighbours.
    right = np.eye(2)[truth[200:]].astype(bool)
    assert weighted.oof_proba_[200:][right].mean() > 0.1 + plain.oof_proba_[200:][right].mean()
    assert weighted.predict_proba(X[:5]).shape == (5, 2)


def test_few_rows_have_fewer_neighbours_to_ask():
    X, truth = layers(12, (4,), distance=5.0)
    probe = EnsembleProbe(k=30).fit(X, truth)
    assert probe.oof_proba_.shape == (12, 2)
    with pytest.raises(ProbeError, match="copies of one text"):
        EnsembleProbe().fit(X, truth, groups=np.zeros(12))


def test_saved_and_loaded_it_predicts_bit_for_bit(tmp_path):
    X, truth = layers()
    probe = EnsembleProbe(widths=(8, 12), ridge=(1,), knn=(0,)).fit(X, truth)
    probe.save(tmp_path / "probe")
    loaded = load_probe(tmp_path / "probe")
    assert np.array_equal(loaded.predict_proba(X), probe.predict_proba(X))
    assert np.array_equal(loaded.oof_proba_, probe.oof_proba_)
    assert loaded.penalties_ == probe.penalties_
    assert tuple(loaded.widths) == (8, 12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (8, 8)}, "X has 20 columns, and the layers' widths"),
        ({"widths": (8, 12), "ridge": (2,)}, "ridge and knn must name layers 0 to 1"),
        ({"ridge": (), "knn": ()}, "at least one"),
        ({"k": 0}, "k is a whole number"),
        ({"penalties": (0.1, 0)}, "penalties is a list"),
        ({"penalties": ()}, "penalties is a list"),
    ],
)
def test_bad_parameters_are_refused(options, words):
    X, truth = layers()
    with pytest.raises(ProbeError, match=words):
        EnsembleProbe(**options).fit(X, truth)


@pytest.mark.parametrize(
    ("stored", "ridge", "knn"),
    [
        (range(7), (4, 5, 6), (3, 5, 6)),
        ([6], (6,), (6,)),
        ([3, 6], (3, 6), (3, 6)),
        (range(33), (21, 27, 32), (16, 27, 32)),
        ([0], (0,), (0,)),
    ],
)
def test_layers_are_planned_by_depth(stored, ridge, knn):
    plan = plan_layers(stored)
    assert tuple(plan.layers[i] for i in plan.ridge) == ridge
    assert tuple(plan.layers[i] for i in plan.knn) == knn
    assert plan.layers == tuple(sorted({*ridge, *knn}))


def expected_failures(probe):
    return {
        "check_sample_weight_equivalence_on_dense_data": "A row of weight 0 has no vote but keeps "
        "its place among the k nearest, and one of weight 2 takes one place, not two."
    }


@parametrize_with_checks([EnsembleProbe(k=3)], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_each_layer_is_decomposed_and_searched_once(monkeypatch):
    """What the time goes into; no fit for a penalty, a row or a fold of its own."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 7 * 8)).astype(np.float32)
    y = rng.integers(0, 2, 60)
    done = Counter()
    decompose, search = np.linalg.eigh, NeighborIndex.others
    svd = np.linalg.svd

    def counted(name, function):
        def call(*args, **how):
            done[name] += 1
            return function(*args, **how)

        return call

    for place, name, function in (
        (np.linalg, "eigh", decompose),
        (np.linalg, "svd", svd),
        (NeighborIndex, "others", search),
    ):
        monkeypatch.setattr(place, name, counted(name, function))
    EnsembleProbe(widths=[8] * 7).fit(X, y)
    assert done["eigh"] + done["svd"] == 7
    assert done["others"] == 7
