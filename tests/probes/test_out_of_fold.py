from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit.errors import ProbeError
from probekit.groups import duplicate_groups, stratified_folds
from probekit.probes import KNNProbe, TopoFilterProbe, out_of_fold
from probekit.probes.base import BaseProbe


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 4))
    y = (X[:, 0] + 0.5 * rng.standard_normal(120) > 0).astype(int)
    return X, y


class Prior(BaseProbe):
    """Predicts the mean soft label of what it was fitted on, and tells what it was given."""

    def fit(self, X, y, sample_weight=None, groups=None):
        data = self._check_fit(X, y, sample_weight, groups)
        self.prior_ = np.average(data.Y, axis=0, weights=data.weight)
        self.given_groups_ = data.groups
        return self

    def predict_proba(self, X):
        return np.tile(self.prior_, (len(self._check_predict(X)), 1))


class OneNearest(ClassifierMixin, BaseEstimator):
    """Reads labels back: right on every row it was fitted on."""

    def fit(self, X, y):
        self.classes_, self.X_, self.y_ = np.unique(y), X, y
        return self

    def predict_proba(self, X):
        near = ((X[:, None] - self.X_[None]) ** 2).sum(axis=2).argmin(axis=1)
        return (self.y_[near][:, None] == self.classes_[None]).astype(float)


@pytest.mark.parametrize("probe", [KNNProbe(k=5), TopoFilterProbe(k_cc=5, k_zeta=5)], ids=repr)
def test_leave_one_out_probes_need_no_folds(rows, probe):
    X, y = rows
    proba, fold = out_of_fold(probe, X, y)
    assert np.array_equal(proba, probe.fit(X, y).oof_proba_)
    assert fold.dtype == np.int16
    assert set(fold) == {-1}


def test_other_classifiers_predict_folds_that_they_have_not_seen(rows):
    X, y = rows
    proba, fold = out_of_fold(GaussianNB(), X, y, seed=3)
    assert np.array_equal(fold, stratified_folds(y, n_folds=5, groups=duplicate_groups(X), seed=3))
    for number in range(5):
        held_out = fold == number
        expected = GaussianNB().fit(X[~held_out], y[~held_out]).predict_proba(X[held_out])
        assert np.array_equal(proba[held_out], expected)
    assert not np.array_equal(out_of_fold(GaussianNB(), X, y, seed=4)[1], fold)


def test_the_estimator_given_stays_unfitted(rows):
    probe, model = KNNProbe(k=3), GaussianNB()
    out_of_fold(probe, *rows)
    out_of_fold(model, *rows)
    assert not hasattr(probe, "classes_")
    assert not hasattr(model, "classes_")


def test_copies_are_held_out_together(rows):
    X = np.repeat(rows[0], 2, axis=0)
    y = np.repeat(np.random.default_rng(1).integers(0, 2, 120), 2)
    proba, fold = out_of_fold(OneNearest(), X, y)
    assert np.array_equal(fold[::2], fold[1::2])
    assert (proba.argmax(axis=1) == y).mean() < 0.7  # random labels
    read_back, _ = out_of_fold(OneNearest(), X, y, groups=np.arange(240))  # the control
    assert (read_back.argmax(axis=1) == y).mean() > 0.85


def test_probes_get_soft_labels_groups_and_weights_others_hard_labels(rows):
    X, y = rows
    soft = np.where(y == 1, 0.9, 0.3)
    weight = np.random.default_rng(2).random(120)
    for probe in (Prior(), make_pipeline(StandardScaler(), Prior())):
        proba, fold = out_of_fold(probe, X, soft, sample_weight=weight)
        for number in range(5):
            seen = fold != number
            expected = np.average(soft[seen], weights=weight[seen])
            assert np.allclose(proba[~seen, 1], expected, atol=1e-12)
    hard = out_of_fold(GaussianNB(), X, y, sample_weight=weight)[0]
    assert np.array_equal(out_of_fold(GaussianNB(), X, soft, sample_weight=weight)[0], hard)


def test_string_classes_keep_their_columns(rows):
    X, y = rows
    named = out_of_fold(LogisticRegression(), X, np.where(y == 1, "b", "a"))[0]
    assert np.array_equal(named, out_of_fold(LogisticRegression(), X, y)[0])


def test_a_class_that_no_row_is_surest_of_gets_no_probability_but_its_column(rows):
    X, y = rows
    soft = np.column_stack([np.where(y == 0, 0.8, 0.1), np.where(y == 1, 0.8, 0.1), [0.1] * 120])
    proba, _ = out_of_fold(GaussianNB(), X, soft)
    assert proba.shape == (120, 3)
    assert np.array_equal(proba[:, 2], np.zeros(120))
    assert np.allclose(out_of_fold(Prior(), X, soft)[0][:, 2], 0.1)


def test_a_class_that_lies_in_one_fold_is_reported(rows):
    X, y = rows
    three = y.copy()
    three[5] = 2
    with pytest.raises(ProbeError, match=r"Class 2 has no row outside fold \d"):
        out_of_fold(GaussianNB(), X, three)


def test_rows_and_labels_must_be_equally_many(rows):
    with pytest.raises(ProbeError, match="120 rows but y has 119"):
        out_of_fold(GaussianNB(), rows[0], rows[1][:-1])


def test_the_package_imports_light_and_all_its_names_are_callable():
    program = """
import sys
import probekit.probes
assert probekit.probes.__all__ == sorted(probekit.probes.__all__)
heavy = {"numpy", "sklearn", "torch", "faiss", "scipy"} & set(sys.modules)
assert not heavy, heavy
assert all(callable(getattr(probekit.probes, name)) for name in probekit.probes.__all__)
assert callable(probekit.probes.out_of_fold)
import probekit.probes.base
assert callable(probekit.probes.out_of_fold)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
