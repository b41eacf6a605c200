"""Probes on differences of pairs: which of the two stands first must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probekit.activations.create import Plan
from probekit.activations.spec import DIFFERENCE
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.cleaning.predict import filter_labels, relabel, score_rows
from probekit.cleaning.weak_supervisor import weak_labels
from probekit.errors import ProbeError
from probekit.probes import KNNProbe, LogisticProbe, TopoFilterProbe
from probekit.probes.pairs import mirrored


@pytest.fixture
def pair_store(tmp_path):
    def make(X, name="pairs.h5"):
        n = len(X)
        with StoreWriter.open(
            tmp_path / name,
            Plan(
                spec={"model": "blobs", **DIFFERENCE},
                ids=[f"r{i}" for i in range(n)],
                hashes=[f"{i:016x}" for i in range(n)],
                widths={3: X.shape[1]},
                store_dtype="float32",
            ),
        ) as writer:
            writer.write(np.arange(n), {3: X}, np.ones(n, np.int32), np.zeros(n, bool))
            writer.finish()
        return ActivationStore(tmp_path / name)

    return make


def pairs(n=240, width=6, seed=0, wrong=0.15):
    """Differences with a bump that says which is better, true and noisy labels (1: the second)."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.5
    X = rng.normal(size=(n, width)).astype(np.float32)
    X[:, 0] += np.where(truth, 1.5, -1.5)
    X[:, 1:3] += 1  # which stands first shows, and says nothing
    return X, truth.astype(int), np.where(rng.random(n) < wrong, ~truth, truth).astype(int)


def turned(X, y, seed=1):
    which = np.random.default_rng(seed).random(len(X)) < 0.5
    return np.where(which[:, None], -X, X), np.where(which, 1 - y, y), which


PROBES = {
    "knn": KNNProbe(k=9),
    "knn, weighted": KNNProbe(k=9, weights="cosine"),
    # With the row itself nine votes: an even number may tie, and ties go to the first class.
    "topofilter": TopoFilterProbe(k_cc=4, k_zeta=8),
    "eleuther": TopoFilterProbe(variant="eleuther", k_cc=12, k_zeta=9, per_class=True),
}


@pytest.mark.parametrize("name", PROBES)
def test_turned_pairs_get_turned_probabilities(name, pair_store, as_labels):
    X, _, y = pairs()
    other, z, which = turned(X, y)
    one = score_rows(pair_store(X, "a.h5"), as_labels(y), PROBES[name])
    two = score_rows(pair_store(other, "b.h5"), as_labels(z), PROBES[name])
    # Sums in another order; with random rows no distances are equal.
    back = np.where(which[:, None], two.proba[:, ::-1], two.proba)
    np.testing.assert_allclose(one.proba, back, atol=1e-6)
    np.testing.assert_allclose(one.disagreement, two.disagreement, atol=1e-6)
    if hasattr(one.probe, "keep_"):
        keep = [
            filter_labels(pair_store(rows, f"{i}.h5"), as_labels(labels), probe=PROBES[name]).keep
            for i, (rows, labels) in enumerate(((X, y), (other, z)))
        ]
        assert len(keep[0]) == len(X)
        assert 0 < keep[0].sum() < len(X)
        assert np.array_equal(*keep)
    # As plain states the same rows are at the mercy of their order.
    plain = [score_rows(*given, PROBES[name]).proba for given in ((X, y), (other, z))]
    assert np.abs(plain[0] - np.where(which[:, None], plain[1][:, ::-1], plain[1])).max() > 0.1


def test_a_pair_does_not_vote_for_itself_the_other_way_round(pair_store, as_labels):
    # Labels at random: whoever sees a row's own mirror image is right about it.
    X, y = pairs()[0], np.random.default_rng(4).integers(0, 2, 240)
    scored = score_rows(pair_store(X), as_labels(y), KNNProbe(k=1))
    agree = (scored.proba.argmax(axis=1) == y).mean()
    # 240 fair draws: four standard deviations are 0.13.
    assert abs(agree - 0.5) < 0.13
    leaking = KNNProbe(k=1).fit(*mirrored(X, np.eye(2)[y], np.arange(240))[:2])
    own = leaking.predict_proba(X).argmax(axis=1)
    assert (own == y).all()  # the control: found again by its own label


@pytest.mark.parametrize("probe", ["logreg", "knn", LogisticRegression(C=0.1)])
def test_pairs_turned_round_add_to_each_other(probe, pair_store, as_labels):
    X, truth, y = pairs(n=200, wrong=0.25)
    scored = score_rows(pair_store(X), as_labels(y), probe)
    assert scored.proba.shape == (200, 2)
    assert ((scored.proba[:, 1] > 0.5) == truth).mean() > 0.85


def test_logistic_probe_has_no_bias_unless_told(pair_store, as_labels):
    X, _, y = pairs()
    store, labels = pair_store(X), as_labels(y)
    scored = score_rows(store, labels, "logreg")
    assert scored.probe.intercept_ == 0
    assert scored.provenance["notes"] == [
        "The states are differences of pairs, so the probe is fitted without a bias."
    ]
    told = score_rows(store, labels, LogisticProbe(fit_intercept=True))
    assert told.probe.intercept_ != 0
    assert "has a bias" in told.provenance["notes"][0]
    assert "in both orders" in score_rows(store, labels, "knn").provenance["notes"][0]
    assert "notes" not in score_rows(X, labels, "logreg").provenance
    mirror = score_rows(store, labels, LogisticRegression()).probe
    assert isinstance(mirror, LogisticRegression)


def test_in_sample_and_relabel(pair_store, as_labels):
    X, _, y = pairs()
    seen = score_rows(pair_store(X), as_labels(y), KNNProbe(k=9), in_sample=True)
    assert seen.proba.shape == (240, 2)
    np.testing.assert_allclose(seen.probe.predict_proba(-X), seen.proba[:, ::-1], atol=1e-6)
    verdicts = relabel(pair_store(X, "b.h5"), as_labels(y), probe="knn", hard=True)
    assert verdicts.label.shape == (240, 2)


def test_labels_of_pairs_have_two_classes(pair_store, as_labels):
    X = pairs(n=60)[0]
    with pytest.raises(ProbeError, match="first and second, and the labels have 3"):
        score_rows(pair_store(X), as_labels(np.arange(60) % 3), "knn")


def test_weak_supervisor_on_pairs(pair_store, as_labels):
    X, truth, _ = pairs()
    store = pair_store(X)
    done = weak_labels(store, as_labels(truth), train_rows=80)
    assert done.probe.intercept_ == 0
    assert done.labels.provenance["fit_intercept"] is False
    biased = weak_labels(store, as_labels(truth), train_rows=80, fit_intercept=True)
    assert biased.probe.intercept_ != 0
