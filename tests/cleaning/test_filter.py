from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probekit.cleaning.evaluate import summarize
from probekit.cleaning.filter import filter_labels, most_disagreeing
from probekit.cleaning.noise import confident_shares, hoc
from probekit.cleaning.scoring import score_rows
from probekit.errors import ProbeError, UsageError
from probekit.probes import KNNProbe, LogisticProbe, TopoFilterProbe
from probekit.probes.neighbors import nearest_others

GOLDEN = Path(__file__).parents[1] / "golden"


def test_most_disagreeing_takes_the_first_of_equal_rows():
    score = np.array([0.5, 0.9, 0.5, 0.1, 0.5])
    assert np.flatnonzero(most_disagreeing(score, 2)).tolist() == [0, 1]
    assert np.flatnonzero(most_disagreeing(score, 3)).tolist() == [0, 1, 2]
    hard = np.array([0, 0, 1, 1, 1])
    assert np.flatnonzero(most_disagreeing(score, [1, 2], hard)).tolist() == [1, 2, 4]
    assert most_disagreeing(score, 0).sum() == 0


def test_by_default_a_fifth_of_each_weak_class_goes(blobs):
    data = blobs(n=403)
    verdicts = filter_labels(data.X, data.weak)
    size = np.bincount(data.weak)
    gone = np.bincount(data.weak[~verdicts.keep])
    assert gone.tolist() == [int(0.2 * n) for n in size]
    scored = score_rows(data.X, data.weak)
    for c in range(2):
        mine = data.weak == c
        kept = scored.disagreement[mine & verdicts.keep]
        assert scored.disagreement[mine & ~verdicts.keep].min() >= kept.max()
    assert np.array_equal(verdicts.label, np.eye(2)[data.weak])
    assert np.array_equal(verdicts.weak, verdicts.label)
    assert (verdicts.weight == 1).all()


def test_wrong_labels_are_what_goes(blobs):
    data = blobs(n=1000, noise=(0.2, 0.2))
    wrong = data.weak != data.truth
    for probe in ("knn", "logreg", "topofilter"):
        gone = ~filter_labels(data.X, data.weak, probe=probe).keep
        assert wrong[gone].mean() > 3 * wrong.mean(), probe


def test_over_all_rows_a_tenth_goes_whatever_their_class(blobs):
    data = blobs(n=405, noise=(0.4, 0.0))
    verdicts = filter_labels(data.X, data.weak, per_class=False)
    assert (~verdicts.keep).sum() == 40
    score = score_rows(data.X, data.weak).disagreement
    order = np.lexsort((np.arange(405), -score))
    assert np.array_equal(np.flatnonzero(~verdicts.keep), np.sort(order[:40]))
    assert verdicts.provenance["contamination"] == 0.1


@pytest.mark.parametrize("share", [0.29, 0.3, 0.05, 0.999])
def test_shares_are_floored_not_rounded_by_float_error(blobs, share):
    data = blobs(n=100)
    verdicts = filter_labels(data.X, data.weak, contamination=share, per_class=False)
    assert (~verdicts.keep).sum() == {0.29: 29, 0.3: 30, 0.05: 5, 0.999: 99}[share]


def test_three_classes_with_soft_labels(blobs):
    data = blobs(n=600, noise=(0.3, 0.1, 0.2))
    soft = 0.8 * np.eye(3)[data.weak] + 0.2 / 3
    verdicts = filter_labels(data.X, soft, contamination=0.25)
    assert np.bincount(data.weak[~verdicts.keep]).tolist() == [
        int(0.25 * n) for n in np.bincount(data.weak)
    ]
    expected = 0.5 * np.abs(verdicts.probe - verdicts.weak).sum(axis=1)
    assert np.abs(verdicts.disagreement - expected).max() < 1e-6  # float32 columns
    assert np.allclose(verdicts.label, soft)


def test_a_threshold_drops_what_is_above_it(blobs):
    data = blobs(n=300)
    verdicts = filter_labels(data.X, data.weak, threshold=0.6)
    score = score_rows(data.X, data.weak).disagreement
    assert np.array_equal(verdicts.keep, score <= 0.6)
    assert 0 < (~verdicts.keep).sum() < 300
    assert "contamination" not in verdicts.provenance


def test_auto_drops_the_smaller_of_two_estimates_of_each_class(blobs):
    data = blobs(n=1500, noise=(0.3, 0.05))
    verdicts = filter_labels(data.X, data.weak, contamination="auto")
    near = nearest_others(data.X, 2).index
    joint = confident_shares(data.weak, score_rows(data.X, data.weak).proba)
    estimate = hoc(data.weak, near, 2).shares
    size = np.bincount(data.weak)
    expected = np.floor(np.minimum(joint, estimate) * size).astype(int)
    assert np.bincount(data.weak[~verdicts.keep], minlength=2).tolist() == expected.tolist()
    told = verdicts.provenance["estimates"]
    assert np.allclose(told["hoc"], estimate)
    assert np.allclose(told["confident_joint"], joint)
    everywhere = filter_labels(data.X, data.weak, contamination="auto", per_class=False)
    assert (~everywhere.keep).sum() == int((np.minimum(joint, estimate) * size).sum())


def test_topofilter_decides_itself(blobs):
    data = blobs(n=500)
    verdicts = filter_labels(data.X, data.weak, probe="topofilter")
    probe = TopoFilterProbe().fit(data.X, data.weak)
    assert np.array_equal(verdicts.keep, probe.keep_)
    assert np.allclose(verdicts.probe, probe.oof_proba_, atol=1e-7)
    assert (verdicts.fold == -1).all()


def test_topofilters_amount(blobs):
    data = blobs(n=500)
    given = TopoFilterProbe(rank=True)
    ranked = filter_labels(data.X, data.weak, probe=given, contamination=0.25)
    assert (~ranked.keep).sum() == 125
    assert given.contamination is None
    eleuther = TopoFilterProbe("eleuther", k_cc=10, k_zeta=10, cap=True)
    capped = filter_labels(data.X, data.weak, probe=eleuther, contamination=0.1, per_class=False)
    assert (~capped.keep).sum() == 50


def test_topofilters_overshoot_is_told(blobs):
    data = blobs(n=500)
    probe = TopoFilterProbe("eleuther", k_cc=3, k_zeta=10, contamination=0.02)
    verdicts = filter_labels(data.X, data.weak, probe=probe)
    assert (~verdicts.keep).sum() > 10
    assert "component step alone dropped" in verdicts.provenance["notes"][0]


@pytest.mark.parametrize("how", [{"contamination": 0.1}, {"per_class": False}])
def test_plain_topofilter_has_no_amount(blobs, how):
    data = blobs(n=100)
    with pytest.raises(UsageError, match=r"'paper' has no .*; add --rank"):
        filter_labels(data.X, data.weak, probe="topofilter", **how)


@pytest.mark.parametrize("how", [{"contamination": "auto"}, {"threshold": 0.5}])
def test_topofilter_drops_by_its_own_rule(blobs, how):
    data = blobs(n=100)
    with pytest.raises(UsageError, match="by its own rule"):
        filter_labels(data.X, data.weak, probe=TopoFilterProbe(rank=True), **how)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), "much"])
def test_contamination_lies_inside_0_and_1(blobs, share):
    data = blobs(n=100)
    with pytest.raises(UsageError, match="'auto', 'confident' or lie between 0 and 1"):
        filter_labels(data.X, data.weak, contamination=share)
    if not isinstance(share, str):
        with pytest.raises((UsageError, ProbeError)):
            filter_labels(data.X, data.weak, probe=TopoFilterProbe(rank=True, contamination=share))


def test_share_and_threshold_exclude_each_other(blobs):
    data = blobs(n=100)
    with pytest.raises(UsageError, match="not both"):
        filter_labels(data.X, data.weak, contamination=0.1, threshold=0.5)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        filter_labels(data.X, data.weak, threshold=1.5)


def keeps_like_reference(golden, key, tie, verdicts, tolerance):
    """The same rows are kept, or, where the cut is not unique, as many and none that is worse."""
    mask = golden[key].astype(bool)
    assert verdicts.keep.sum() == mask.sum()
    score = verdicts.disagreement.astype(np.float64)
    assert score[verdicts.keep].max() <= score[~verdicts.keep].min() + 1e-6
    if not golden[tie]:
        different = verdicts.keep != mask
        edge = score[~verdicts.keep].min()
        assert (np.abs(score[different] - edge) < tolerance).all()


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_reference_knn_filter(labels):
    golden = np.load(GOLDEN / f"eleuther_probes_{labels}.npz")
    for k in golden["knn_ks"]:
        for c in golden["filter_contamination"]:
            verdicts = filter_labels(
                golden["X"],
                golden["y"].astype(np.float64),
                probe=KNNProbe(int(k), metric="euclidean"),
                in_sample=True,
                contamination=float(c),
                per_class=False,
            )
            name = f"k{k}_c{c}"
            keeps_like_reference(golden, f"knn_keep_{name}", f"aux_knn_tie_{name}", verdicts, 0)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_reference_logistic_filter(labels):
    golden = np.load(GOLDEN / f"eleuther_probes_{labels}.npz")
    for l2 in golden["l2s"]:
        for c in golden["filter_contamination"]:
            verdicts = filter_labels(
                golden["X"],
                golden["y"].astype(np.float64),
                probe=LogisticProbe(l2=float(l2), standardize=False, dtype="float64"),
                in_sample=True,
                contamination=float(c),
                per_class=False,
            )
            name = f"l{l2}_c{c}"
            # The reference's float32 optimiser is off by up to 1e-3 in probability, on both sides.
            keeps_like_reference(golden, f"log_keep_{name}", f"aux_log_tie_{name}", verdicts, 2e-3)


def test_verdicts_are_in_data_order_and_repeat(blobs, make_store, as_labels):
    data = blobs(n=200)
    store, labels = make_store(data.X), as_labels(data.weak)
    first = filter_labels(store, labels, probe="logreg", seed=3)
    again = filter_labels(store, labels, probe="logreg", seed=3)
    assert first.ids == store.ids
    assert first.hashes == store.hashes
    for name in ("keep", "probe", "disagreement", "fold"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert summarize(first).dropped == sum(int(0.2 * n) for n in np.bincount(data.weak))
