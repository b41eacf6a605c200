from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sklearn.metrics

from probekit.cleaning.evaluate import evaluate, summarize
from probekit.cleaning.predict import filter_labels, relabel
from probekit.cuts import largest
from probekit.errors import LabelsError


def test_summary_counts_each_weak_class(blobs):
    data = blobs(n=300)
    verdicts = filter_labels(data.X, data.weak, contamination=0.25)
    summary = summarize(verdicts)
    for c, part in enumerate(summary.classes):
        mine = data.weak == c
        assert part.name == str(c)
        assert part.weak == mine.sum()
        assert part.dropped == int(0.25 * mine.sum())
        assert part.changed == 0
        assert part.shift == 0
        assert part.disagreement == pytest.approx(verdicts.disagreement[mine].mean())
    assert summary.dropped == sum(part.dropped for part in summary.classes)
    assert summary.alarms == ()


def test_summary_of_relabels(blobs):
    data = blobs(n=300)
    verdicts = relabel(data.X, data.weak)
    summary = summarize(verdicts)
    moved = verdicts.hard != data.weak
    assert summary.changed == moved.sum() > 0
    assert summary.dropped == 0
    for c, part in enumerate(summary.classes):
        mine = data.weak == c
        assert part.changed == (mine & moved).sum()
        # β = 0.75 moves a label by three quarters of the disagreement.
        assert part.shift == pytest.approx(0.75 * verdicts.disagreement[mine].mean(), rel=1e-5)


def test_alarms(blobs):
    data = blobs(n=200)
    verdicts = relabel(data.X, data.weak)
    one_class = np.tile(np.float32([0.9, 0.1]), (200, 1))
    collapsed = summarize(dataclasses.replace(verdicts, label=one_class))
    assert "collapses: only class '0'" in collapsed.alarms[0]
    nothing = summarize(dataclasses.replace(verdicts, keep=np.zeros(200, dtype=bool)))
    assert "nothing is left" in nothing.alarms[0]
    same = summarize(dataclasses.replace(verdicts, label=verdicts.weak))
    assert "relabels equal the weak labels" in same.alarms[0]
    filtered = filter_labels(data.X, data.weak, threshold=1)
    assert "No row is dropped" in summarize(filtered).alarms[0]
    left = dataclasses.replace(filtered, provenance={**filtered.provenance, "action": "leave"})
    assert summarize(left).alarms == ()  # nobody meant to drop one
    assert summarize(verdicts).alarms == ()


def test_an_alarm_where_a_whole_class_is_dropped(blobs):
    data = blobs(n=200, noise=(0.1, 0.1, 0.1))
    verdicts = filter_labels(data.X, data.weak)
    assert summarize(verdicts).alarms == ()
    without = dataclasses.replace(verdicts, keep=verdicts.keep & (data.weak != 1))
    assert summarize(without).alarms == ("No row of class '1' is left to learn from.",)


def test_figures_are_scikit_learns(blobs):
    data = blobs(n=300)
    verdicts = filter_labels(data.X, data.weak)
    found = evaluate(verdicts, data.truth)
    p = verdicts.probe[:, 1].astype(np.float64)
    assert found["probe"]["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(data.truth, p))
    assert found["probe"]["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(data.truth, p))
    assert found["probe"]["accuracy"] == np.mean((p > 0.5) == data.truth)
    wrong = data.weak != data.truth
    assert found["weak"]["accuracy"] == found["labels"]["before"] == np.mean(~wrong)
    assert found["labels"]["after"] == np.mean(~wrong[verdicts.keep])
    dropped = found["dropped"]
    assert dropped["precision"] == sklearn.metrics.precision_score(wrong, ~verdicts.keep)
    assert dropped["recall"] == sklearn.metrics.recall_score(wrong, ~verdicts.keep)


def test_prior_matched_accuracy_has_the_weak_shares(blobs):
    data = blobs(n=400, noise=(0.4, 0.0))
    verdicts = relabel(data.X, data.weak, hard=True)
    found = evaluate(verdicts, data.truth)
    # Hard relabelling decides by the very same rule.
    assert found["probe"]["accuracy_prior_matched"] == found["labels"]["after"]
    assert found["probe"]["accuracy_prior_matched"] != found["probe"]["accuracy"]


def test_the_random_drop_is_the_mean_of_many(blobs):
    data = blobs(n=240, noise=(0.4, 0.1))
    verdicts = filter_labels(data.X, data.weak)
    found = evaluate(verdicts, data.truth)
    counts = np.bincount(data.weak[~verdicts.keep])
    rng = np.random.default_rng(0)
    wrong = data.weak != data.truth
    draws = []
    for _ in range(2000):
        gone = largest(rng.random(240), counts, data.weak).selected
        hit = (gone & wrong).sum()
        draws.append([hit / gone.sum(), hit / wrong.sum(), np.mean(~wrong[~gone])])
    mean, error = np.mean(draws, axis=0), np.std(draws, axis=0) / np.sqrt(2000)
    exact = [
        found["dropped"]["precision_random"],
        found["dropped"]["recall_random"],
        found["labels"]["after_random"],
    ]
    assert (np.abs(mean - exact) < 4 * error).all()  # four standard errors of 2,000 draws
    assert found["dropped"]["precision"] > 1.5 * exact[0]


def test_the_random_relabelling_is_the_mean_of_many(blobs):
    data = blobs(n=240, noise=(0.4, 0.1, 0.3))
    verdicts = relabel(data.X, data.weak)
    found = evaluate(verdicts, data.truth)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        shuffled = verdicts.hard.copy()
        for c in range(3):
            mine = data.weak == c
            shuffled[mine] = rng.permutation(shuffled[mine])
        draws.append(np.mean(shuffled == data.truth))
    error = np.std(draws) / np.sqrt(2000)
    assert abs(np.mean(draws) - found["labels"]["after_random"]) < 4 * error
    assert "dropped" not in found


def test_without_wrong_labels_there_is_no_recall(blobs):
    data = blobs(n=200, noise=(0.0, 0.0))
    found = evaluate(filter_labels(data.X, data.weak), data.truth)
    assert found["dropped"]["precision"] == 0
    assert np.isnan(found["dropped"]["recall"])


def test_every_row_needs_a_truth(blobs):
    data = blobs(n=200)
    with pytest.raises(LabelsError, match=r"200 verdicts need as many true labels, got \(199,\)"):
        evaluate(filter_labels(data.X, data.weak), data.truth[:-1])
