"""Any probe as one of differences: which of the two states comes first does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from probekit.errors import ProbeError
from probekit.probes import (
    EnsembleProbe,
    KNNProbe,
    LogisticProbe,
    MassMeanProbe,
    PairProbe,
    TopoFilterProbe,
    out_of_fold,
)
from probekit.probes.pairs import mirrored

PROBES = {
    "knn": KNNProbe(k=9),
    "topofilter": TopoFilterProbe(k_cc=6, k_zeta=9),
    "ensemble": EnsembleProbe(k=9),
    "mass-mean": MassMeanProbe(),
    "logistic": LogisticProbe(l2=0.1, fit_intercept=False),
    "scikit-learn's": LogisticRegression(C=0.1),
}


@pytest.fixture
def rows():
    """Differences (120, 5) whose first column says which is better; the second never changes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5)).astype(np.float32)
    y = (X[:, 0] + rng.normal(size=120) > 0).astype(int)
    X[:, 1] += 2
    return X, y, rng.normal(size=(30, 5)).astype(np.float32)


@pytest.mark.parametrize("name", PROBES)
def test_turned_rows_get_turned_probabilities(rows, name):
    X, y, new = rows
    probe = PairProbe(PROBES[name]).fit(X, y)
    # Sums in another order; with random rows no distances are equal.
    assert np.allclose(probe.predict_proba(-new), 1 - probe.predict_proba(new), atol=1e-5)
    biased = LogisticProbe(l2=0.1) if name == "logistic" else PROBES[name]
    alone = clone(biased).fit(X, y)  # the control
    assert not np.allclose(alone.predict_proba(-new), 1 - alone.predict_proba(new), atol=1e-2)


@pytest.mark.parametrize("name", ["knn", "topofilter", "ensemble", "mass-mean"])
def test_what_it_learned_is_of_the_rows_without_their_images(rows, name):
    X, y, new = rows
    groups = np.arange(120) // 2
    probe = PairProbe(PROBES[name]).fit(X, y, groups=groups)
    both = clone(PROBES[name]).fit(*mirrored(X, np.eye(2)[y]), groups=np.tile(groups, 2))
    assert np.array_equal(probe.oof_proba_, both.oof_proba_[:120])
    assert np.array_equal(probe.predict_proba(new), both.predict_proba(new))
    assert hasattr(probe, "keep_") == (name == "topofilter")
    if name == "topofilter":
        assert np.array_equal(probe.keep_, both.keep_[:120])
        assert np.array_equal(probe.tied_, both.tied_[:120])
    assert not hasattr(probe, "fold_")


def test_a_logistic_probe_is_fitted_as_it_is(rows):
    X, y, new = rows
    probe, alone = (p.fit(X, y) for p in (PairProbe(PROBES["logistic"]), PROBES["logistic"]))
    assert np.array_equal(probe.oof_proba_, alone.oof_proba_)
    assert np.array_equal(probe.fold_, alone.fold_)
    assert np.array_equal(probe.predict_proba(new), alone.predict_proba(new))
    for given, own in zip(
        out_of_fold(probe, X, y, seed=3), out_of_fold(alone, X, y, seed=3), strict=True
    ):
        assert np.array_equal(given, own)


def test_no_row_is_predicted_by_its_image(rows):
    X = rows[0]
    y = np.random.default_rng(1).integers(0, 2, 120)  # whoever sees the image is right about it
    nearest = KNeighborsClassifier(1)
    proba, fold = out_of_fold(PairProbe(nearest), X, y, n_folds=4)
    assert proba.shape == (120, 2)
    assert set(fold) == {0, 1, 2, 3}
    assert abs((proba.argmax(axis=1) == y).mean() - 0.5) < 0.2
    # The control: the row goes into another fold than its image, and is found again.
    turned = np.concatenate([X, X]), np.concatenate([y, y])
    leaking = out_of_fold(nearest, *turned, groups=np.arange(240), n_folds=20)[0]
    assert (leaking.argmax(axis=1) == turned[1]).mean() > 0.9


def test_labels_keep_their_names_and_weights_their_rows(rows):
    X, y, new = rows
    names = np.array(["first", "second"])[y]
    probe = PairProbe(KNNProbe(k=9)).fit(X, names)
    assert probe.classes_.tolist() == ["first", "second"]
    assert set(probe.predict(new)) == {"first", "second"}
    weight = np.random.default_rng(2).random(120)
    weighed = PairProbe(KNNProbe(k=9)).fit(X, y, sample_weight=weight)
    both = KNNProbe(k=9).fit(
        *mirrored(X, np.eye(2)[y]), np.tile(weight, 2), np.tile(np.arange(120), 2)
    )
    assert np.array_equal(weighed.oof_proba_, both.oof_proba_[:120])
    assert not np.array_equal(weighed.oof_proba_, probe.oof_proba_)


def test_three_classes_are_refused(rows):
    X = rows[0]
    with pytest.raises(ProbeError, match="first and second, and the labels have 3"):
        PairProbe(KNNProbe(k=9)).fit(X, np.arange(120) % 3)
