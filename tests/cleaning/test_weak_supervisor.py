from __future__ import annotations

import numpy as np
import pytest

from probekit.cleaning.weak_supervisor import score_labels, split_rows, weak_labels
from probekit.errors import DataError, LabelsError, UsageError
from probekit.probes import LogisticProbe


def test_the_split_keeps_class_shares_and_groups():
    rng = np.random.default_rng(0)
    hard = rng.choice(3, 900, p=[0.2, 0.3, 0.5])
    single = np.arange(900)
    chosen = split_rows(hard, single, rows=300, seed=1)
    assert chosen.sum() == 300
    wanted = np.bincount(hard) / 3
    assert np.abs(np.bincount(hard[chosen]) - wanted).max() < 1
    groups = single.copy()
    groups[rng.integers(0, 900, 200)] = rng.integers(0, 900, 200)
    chosen = split_rows(hard, groups, rows=300, seed=1)
    assert 290 < chosen.sum() <= 300
    sides = {(g, c) for g, c in zip(groups.tolist(), chosen.tolist(), strict=True)}
    assert len(sides) == len(np.unique(groups))
    assert not np.array_equal(chosen, split_rows(hard, groups, rows=300, seed=2))
    assert split_rows(hard, groups, rows=900).all()


def test_only_rows_that_were_not_trained_on_are_labelled(blobs, make_store, as_labels):
    data = blobs(n=300, distance=2.0)
    done = weak_labels(make_store(data.X), as_labels(data.truth), train_rows=100, seed=3)
    assert len(done.trained) == 100
    assert sorted([*done.trained, *done.labelled]) == list(range(300))
    assert done.labels.ids == [f"r{i}" for i in done.labelled]
    assert done.labels.hashes == [f"{i:016x}" for i in done.labelled]
    probe = LogisticProbe(random_state=3).fit(data.X[done.trained], data.truth[done.trained])
    assert np.array_equal(done.labels.probs, probe.predict_proba(data.X[done.labelled]))
    assert done.labels.provenance["trained_rows"] == 100
    assert done.labels.provenance["l2"] == probe.l2_


def test_truth_of_the_labelled_rows_is_not_used(blobs, make_store, as_labels):
    data = blobs(n=200)
    store = make_store(data.X)
    ids = [f"r{i}" for i in range(80)]
    whole = weak_labels(store, as_labels(data.truth), train_ids=ids)
    part = weak_labels(store, as_labels(data.truth[:80], ids=ids), train_ids=ids)
    assert np.array_equal(whole.labels.probs, part.labels.probs)
    other = data.truth.copy()
    other[:40] = 1 - other[:40]  # the control: truth that was trained on matters
    changed = weak_labels(store, as_labels(other), train_ids=ids)
    assert not np.array_equal(whole.labels.probs, changed.labels.probs)


def test_shares(blobs, make_store, as_labels):
    data = blobs(n=200)
    store, truth = make_store(data.X), as_labels(data.truth)
    assert len(weak_labels(store, truth).trained) == 100
    assert len(weak_labels(store, truth, train_share=0.3).trained) == 60
    known = as_labels(data.truth[:50])  # all that is known is trained on, the rest is labelled
    done = weak_labels(store, known, train_share=1)
    assert done.trained.tolist() == list(range(50))
    assert len(done.labels) == 150


def test_copies_of_trained_texts_are_not_labelled(blobs, make_store, as_labels):
    data = blobs(n=100)
    hashes = [f"{i % 90:016x}" for i in range(100)]  # the last ten repeat the first ten
    store = make_store(data.X, hashes=hashes)
    ids = [f"r{i}" for i in range(40)]
    done = weak_labels(store, as_labels(data.truth), train_ids=ids)
    assert done.labelled.tolist() == list(range(40, 90))
    split = weak_labels(store, as_labels(data.truth))
    trained = {hashes[i] for i in split.trained}
    assert not trained & {hashes[i] for i in split.labelled}


def test_three_classes_and_names(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0, 0, 0))
    truth = as_labels(np.eye(3)[data.truth], classes=("a", "b", "c"))
    done = weak_labels(make_store(data.X), truth)
    assert done.labels.classes == ("a", "b", "c")
    assert score_labels(done.labels, truth)["accuracy"] > 0.8


def test_judging(blobs, make_store, as_labels):
    data = blobs(n=200)
    truth = as_labels(data.truth)
    done = weak_labels(make_store(data.X), truth, train_rows=40)
    found = score_labels(done.labels, truth)
    right = done.labels.hard == data.truth[done.labelled]
    assert found["judged_rows"] == 160
    assert found["accuracy"] == right.mean()
    assert 0.5 < found["auroc"] <= 1
    trained_only = as_labels(data.truth[done.trained], ids=[f"r{i}" for i in done.trained])
    assert score_labels(done.labels, trained_only) == {
        "judged_rows": 0,
        "accuracy": None,
        "auroc": None,
    }


def test_refusals(blobs, make_store, as_labels):
    data = blobs(n=60)
    store, truth = make_store(data.X), as_labels(data.truth)
    with pytest.raises(UsageError, match="one of train ids"):
        weak_labels(store, truth, train_share=0.5, train_rows=3)
    with pytest.raises(UsageError, match=r"60 rows with truth .*, got 61"):
        weak_labels(store, truth, train_rows=61)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(UsageError, match=r"\(0, 1\]"):
            weak_labels(store, truth, train_share=share)
    with pytest.raises(UsageError, match="leaves none of the 60 to label"):
        weak_labels(store, truth, train_share=1)
    with pytest.raises(LabelsError, match=r"2 of 3 train ids are not in .*'x', 'y'"):
        weak_labels(store, truth, train_ids=["r1", "x", "y"])
    with pytest.raises(LabelsError, match=r"1 of 2 train ids have no truth \(ids 'r50'\)"):
        weak_labels(store, as_labels(data.truth[:50]), train_ids=["r1", "r50"])
    ones = [f"r{i}" for i in np.flatnonzero(data.truth == 1)]
    with pytest.raises(LabelsError, match="hold one class only"):
        weak_labels(store, truth, train_ids=ones)
    bad = data.X.copy()
    bad[4] = np.nan
    with pytest.raises(DataError, match=r"NaN or inf in 1 of .* rows \(first: 'r4'\)"):
        weak_labels(make_store(bad, name="bad.h5"), truth)
