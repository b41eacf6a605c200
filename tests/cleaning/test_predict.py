from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from probekit.cleaning.advice import draw_sample
from probekit.cleaning.predict import filter_labels, relabel, score_rows
from probekit.errors import DataError, LabelsError, ProbeError, UsageError
from probekit.experiments.sweep_probes import join_rows
from probekit.probes import EnsembleProbe, KNNProbe, LogisticProbe, TopoFilterProbe, out_of_fold
from probekit.probes.ensemble import plan_layers, stack_layers
from probekit.probes.registry import make_probe


@pytest.mark.parametrize("name", ["knn", "logreg", "topofilter"])
def test_a_row_is_scored_without_its_own_label(blobs, name):
    data = blobs(n=200)
    before = score_rows(data.X, data.weak, name)
    flipped = data.weak.copy()
    flipped[7] = 1 - flipped[7]
    after = score_rows(data.X, flipped, name)
    # The folds are stratified on the labels, so the row's own P may move a little.
    own = np.abs(after.proba[7] - before.proba[7]).max()
    seen = np.abs(
        score_rows(data.X, flipped, name, in_sample=True).proba[7]
        - score_rows(data.X, data.weak, name, in_sample=True).proba[7]
    ).max()
    if name != "logreg":
        assert own == 0
        assert seen > 0.03  # one of 30 votes: the control sees its label
    else:
        assert own < 0.1


@pytest.mark.parametrize("name", ["knn", "logreg", "topofilter", "ensemble", "mass-mean"])
def test_random_labels_cannot_be_predicted_out_of_fold(name):
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(300, 400)).astype(np.float32), 2, axis=0)
    y = np.repeat(rng.integers(0, 2, 300), 2)  # every row twice, with the same random label
    hidden = score_rows(X, y, name)
    agreement = np.mean(hidden.proba.argmax(axis=1) == y)
    assert 0.35 < agreement < 0.65
    seen = score_rows(X, y, make_probe("knn", k=2), in_sample=True)
    assert np.mean(seen.proba.argmax(axis=1) == y) == 1  # the control reads the labels back


@pytest.mark.parametrize("name", ["knn", "logreg", "topofilter", "ensemble", "mass-mean"])
def test_rows_of_other_texts_and_equal_states_are_copies(make_store, as_labels, name):
    """A model that reads only the beginning of a text gives such rows."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(200, 40)).astype(np.float32), 2, axis=0)
    y = np.repeat(rng.integers(0, 2, 200), 2)
    hidden = score_rows(make_store(X), as_labels(y), name)
    assert 0.35 < np.mean(hidden.proba.argmax(axis=1) == y) < 0.65
    away = X + np.float32(1e-3) * rng.normal(size=X.shape).astype(np.float32)
    seen = score_rows(make_store(away, name="away.h5"), as_labels(y), make_probe("knn", k=1))
    assert np.mean(seen.proba.argmax(axis=1) == y) == 1  # the control reads the labels back


@pytest.mark.parametrize("name", ["knn", "logreg", "topofilter", "ensemble", "mass-mean"])
def test_labels_copied_along_a_group_are_not_read_back(make_store, as_labels, name):
    """Rows of one user are near each other and have one (random) label."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(100, 20)), 4, axis=0) + 0.05 * rng.normal(size=(400, 20))
    y = np.repeat(rng.integers(0, 2, 100), 4)
    users = [f"user {i // 4}" for i in range(400)]
    grouped = make_store(X.astype(np.float32), groups=users)
    hidden = score_rows(grouped, as_labels(y), name)
    assert 0.35 < np.mean(hidden.proba.argmax(axis=1) == y) < 0.65
    if (hidden.fold >= 0).any():
        assert all(len(set(hidden.fold[i : i + 4].tolist())) == 1 for i in range(0, 400, 4))
    assert len(set(join_rows(grouped, as_labels(y)).groups.tolist())) == 100
    assert len(set(draw_sample(grouped, as_labels(y)).groups.tolist())) == 100
    plain = make_store(X.astype(np.float32), name="plain.h5")
    seen = score_rows(plain, as_labels(y), make_probe("knn", k=3))
    assert np.mean(seen.proba.argmax(axis=1) == y) > 0.99  # the control


def test_in_sample_all_rows_can_vote(blobs):
    """Published code runs with k = n; leave-one-out has one row too few for that."""
    data = blobs(n=40)
    mean = np.eye(2)[data.weak].mean(axis=0)
    topofilter = TopoFilterProbe("eleuther", k_cc=39, k_zeta=40)
    for probe in (KNNProbe(40), topofilter):
        scored = score_rows(data.X, data.weak, probe, in_sample=True)
        assert np.allclose(scored.proba, mean)
        assert scored.provenance["probe"]["parameters"]["self_neighbor"] is False  # as it was given
        with pytest.raises(ProbeError, match=r"k.* = 40 is too large"):
            score_rows(data.X, data.weak, probe)


def test_in_sample_is_predicted_as_new_rows_are(blobs):
    data = blobs(n=120)
    for probe in (KNNProbe(7), TopoFilterProbe(k_cc=6, k_zeta=7)):
        scored = score_rows(data.X, data.weak, probe, in_sample=True)
        fitted = clone(probe).fit(data.X, data.weak)
        assert np.array_equal(scored.proba, fitted.predict_proba(data.X))
        assert not np.array_equal(scored.proba, fitted.oof_proba_)


def test_notes_of_topofilter_name_class_and_id(blobs, make_store, as_labels):
    data = blobs(n=60)
    y = data.weak.copy()
    y[3] = 2
    labels = as_labels(y, classes=("no", "yes", "rare"))
    verdicts = filter_labels(make_store(data.X), labels, probe="topofilter")
    (note,) = verdicts.provenance["notes"]
    assert not verdicts.keep[3]
    assert note == (
        "Class rare has one row (r3), which the component step keeps, and the last step drops."
    )


def test_a_probe_of_ones_own_is_taken_as_it_is(blobs):
    data = blobs(n=150)
    probe = KNNProbe(k=7, metric="euclidean")
    scored = score_rows(data.X, data.weak, probe)
    assert np.array_equal(
        scored.proba, KNNProbe(k=7, metric="euclidean").fit(data.X, data.weak).oof_proba_
    )
    assert not hasattr(probe, "oof_proba_")
    assert (scored.fold == -1).all()


def test_any_classifier_is_cross_fitted(blobs):
    data = blobs(n=150)
    scored = score_rows(data.X, data.weak, LogisticRegression(), n_folds=3, seed=2)
    proba, fold = out_of_fold(LogisticRegression(), data.X, data.weak, n_folds=3, seed=2)
    assert np.array_equal(scored.proba, proba)
    assert np.array_equal(scored.fold, fold)
    assert set(fold) == {0, 1, 2}
    whole = score_rows(data.X, data.weak, LogisticRegression(), in_sample=True)
    expected = LogisticRegression().fit(data.X, data.weak).predict_proba(data.X)
    assert np.allclose(whole.proba, expected)


def test_the_logistic_probe_tells_folds_and_penalty(blobs):
    data = blobs(n=150)
    scored = score_rows(data.X, data.weak, "logreg", n_folds=3)
    assert set(scored.fold) == {0, 1, 2}
    assert scored.provenance["probe"]["l2"] == scored.probe.l2_
    other = score_rows(data.X, data.weak, "logreg", n_folds=3, seed=1)
    assert not np.array_equal(scored.fold, other.fold)


def test_a_store_is_joined_by_id_and_its_duplicates_are_by_text(blobs, make_store, as_labels):
    data = blobs(n=120)
    data.weak[:2] = 1 - data.truth[0]
    data.X[1] = data.X[0] + 1e-6  # the same text, states that differ in the last bits
    hashes = [f"{max(i, 1):016x}" for i in range(120)]
    order = np.random.default_rng(0).permutation(120)
    labels = as_labels(np.eye(2)[data.weak][order], ids=[f"r{i}" for i in order])
    scored = score_rows(make_store(data.X, hashes=hashes), labels, KNNProbe(k=1))
    groups = np.maximum(np.arange(120), 1)
    expected = KNNProbe(k=1).fit(data.X, data.weak, groups=groups).oof_proba_
    assert np.array_equal(scored.proba, expected)
    # The control: by their states the two are no duplicates, and copy each other's label.
    alone = KNNProbe(k=1).fit(data.X, data.weak).oof_proba_
    assert np.array_equal(alone[:2].argmax(axis=1), data.weak[:2])
    assert not np.array_equal(expected[:2].argmax(axis=1), data.weak[:2])
    assert list(scored.labels.ids) == [f"r{i}" for i in range(120)]


def test_rows_without_labels_can_be_left_out(blobs, make_store, as_labels):
    data = blobs(n=100)
    kept = np.arange(0, 100, 2)
    labels = as_labels(data.weak[kept], ids=[f"r{i}" for i in kept])
    store = make_store(data.X)
    with pytest.raises(LabelsError, match=r"no label for 50 of 100 rows.*'r1', 'r3', 'r5'"):
        score_rows(store, labels)
    scored = score_rows(store, labels, KNNProbe(k=5), only_labelled=True)
    assert np.array_equal(scored.X, data.X[kept])
    assert scored.hashes == [f"{i:016x}" for i in kept]


def test_states_that_are_not_finite_are_named(blobs, make_store, as_labels):
    data = blobs(n=60)
    data.X[[3, 5]] = np.nan
    data.X[9, 2] = np.inf
    data.X[11, 2] = -np.inf
    store, labels = make_store(data.X), as_labels(data.weak)
    with pytest.raises(DataError, match=r"in 4 of 60 rows \(first: 'r3', 'r5', 'r9', …\)"):
        score_rows(store, labels)


def test_the_layer_is_left_out_where_one_is_stored(blobs, make_store, as_labels):
    data = blobs(n=60)
    labels = as_labels(data.weak)
    one = score_rows(make_store(data.X), labels)
    assert one.provenance["layers"] == [3]
    several = make_store(data.X, name="two.h5", layers=(2, 5))
    with pytest.raises(UsageError, match=r"layers 2, 5"):
        score_rows(several, labels, "knn")
    with pytest.raises(UsageError, match=r"no layer 4; it has 2, 5"):
        score_rows(several, labels, layer=4)
    assert score_rows(several, labels, layer=5).provenance["layers"] == [5]


def test_several_layers_are_read_by_the_ensemble(blobs, make_store, as_labels):
    data = blobs(n=120)
    labels = as_labels(data.weak)
    store = make_store(data.X, layers=(0, 2, 4, 5, 6))
    scored = score_rows(store, labels)
    plan = plan_layers(store.layers)
    ensemble = EnsembleProbe(widths=[8] * len(plan.layers), ridge=plan.ridge, knn=plan.knn)
    expected = ensemble.fit(stack_layers(store, plan.layers), data.weak).oof_proba_
    assert np.array_equal(scored.proba, expected)
    assert scored.provenance["layers"] == list(plan.layers) != [0, 2, 4, 5, 6]
    assert score_rows(store, labels, EnsembleProbe(k=7)).probe.k == 7
    # Where one layer is asked for, or stored, kNN reads it unless told otherwise.
    assert type(score_rows(store, labels, layer=6).probe) is KNNProbe
    one = score_rows(store, labels, "ensemble", layer=6)
    assert np.array_equal(one.proba, EnsembleProbe().fit(data.X, data.weak).oof_proba_)
    assert one.provenance["layers"] == [6]
    assert type(score_rows(make_store(data.X, name="one.h5"), labels).probe) is KNNProbe


def test_some_rows_of_several_layers(blobs, make_store, as_labels):
    data = blobs(n=120)
    store = make_store(data.X, layers=(4, 6))
    some = as_labels(data.weak[10:90], ids=[f"r{i}" for i in range(10, 90)])
    scored = score_rows(store, some, only_labelled=True)
    assert np.array_equal(scored.X, np.hstack([data.X[10:90]] * 2))


def test_labels_must_be_of_the_same_rows(blobs, make_store):
    data = blobs(n=60)
    with pytest.raises(LabelsError, match=r"60, 8.*59 labels"):
        score_rows(data.X, data.weak[:59])
    with pytest.raises(UsageError, match="joined by id"):
        score_rows(make_store(data.X), data.weak)
    with pytest.raises(UsageError, match="from a store only"):
        score_rows(data.X, data.weak, layer=2)


def test_a_probe_refuses_in_words(blobs):
    data = blobs(n=20)
    with pytest.raises(ProbeError, match=r"k = 30 is too large.*20 rows"):
        score_rows(data.X, data.weak)
    with pytest.raises(ProbeError, match="one class only"):
        score_rows(data.X, np.zeros(20, dtype=int))
    with pytest.raises(ProbeError, match="Too few rows"):
        score_rows(data.X, np.array([1] + [0] * 19), "logreg")


def test_make_probe():
    assert make_probe("knn", k=5, weights=None).get_params()["k"] == 5
    assert isinstance(make_probe("topofilter", variant="eleuther"), TopoFilterProbe)
    probe = make_probe("logreg", l2=0.5, n_folds=3, seed=4)
    assert isinstance(probe, LogisticProbe)
    assert (probe.l2, probe.n_folds, probe.random_state) == (0.5, 3, 4)
    with pytest.raises(UsageError, match="'logreg' has no parameter k; it has l2, standardize"):
        make_probe("logreg", k=5)
    with pytest.raises(UsageError, match="no parameter n_folds"):
        make_probe("knn", n_folds=5)
    with pytest.raises(UsageError, match="no probe 'svm'; allowed are knn, logreg, topofilter"):
        make_probe("svm")


@pytest.mark.parametrize("name", ["knn", "logreg"])
def test_one_fit_serves_both_actions(blobs, make_store, as_labels, name):
    data = blobs(n=120)
    store, labels = make_store(data.X), as_labels(data.weak)
    scored = score_rows(store, labels, name)
    for how in ({}, {"contamination": 0.1, "per_class": False}, {"contamination": "auto"}):
        assert alike(scored.filter(**how), filter_labels(store, labels, probe=name, **how))
    for how in ({}, {"hard": True}, {"threshold": 0.5, "only_above": 0.3}):
        assert alike(scored.relabel(**how), relabel(store, labels, probe=name, **how))
    # The control: another amount is another verdict.
    assert not alike(scored.filter(), scored.filter(contamination=0.1))


def alike(one, other):
    same = all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("ids", "hashes", "weak", "probe", "label", "keep", "disagreement", "fold")
    )
    return same and one.provenance == other.provenance


def test_a_probe_that_drops_rows_itself_has_done_so(blobs):
    data = blobs(n=200)
    scored = score_rows(data.X, data.weak, TopoFilterProbe(rank=True, contamination=0.1))
    kept = scored.filter()
    assert np.array_equal(kept.keep, scored.probe.keep_)
    assert alike(kept, scored.filter(contamination=0.1))
    for how in ({"contamination": 0.2}, {"threshold": 0.5}, {"contamination": "auto"}):
        with pytest.raises(UsageError, match="TopoFilter drops rows by its own rule"):
            scored.filter(**how)


def test_the_methods_cannot_be_handed_a_truth():
    for method in (filter_labels, relabel, score_rows):
        assert not [n for n in inspect.signature(method).parameters if "truth" in n]


def test_provenance_says_what_was_done(blobs, make_store, as_labels):
    data = blobs(n=80)
    store, labels = make_store(data.X), as_labels(data.weak)
    said = score_rows(store, labels, "knn", seed=5).provenance
    assert said["probe"] == {"name": "KNNProbe", "parameters": KNNProbe().get_params()}
    assert said["store"]["fingerprint"] == store.fingerprint
    assert said["labels"]["fingerprint"] == labels.fingerprint
    assert said["seed"] == 5
    assert said["in_sample"] is False
