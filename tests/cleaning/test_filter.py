from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probekit.cleaning.evaluate import summarize
from probekit.cleaning.filter import confident_shares, hoc
from probekit.cleaning.predict import filter_labels, score_rows
from probekit.cuts import DISAGREEMENTS
from probekit.errors import ProbeError, UsageError
from probekit.probes import KNNProbe, LogisticProbe, TopoFilterProbe
from probekit.probes.neighbors import nearest_others

GOLDEN = Path(__file__).parents[1] / "golden"


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
    scored = score_rows(data.X, data.weak)
    order = np.lexsort((scored.ties, -scored.disagreement))
    assert np.array_equal(np.flatnonzero(~verdicts.keep), np.sort(order[:40]))
    assert verdicts.provenance["contamination"] == 0.1


@pytest.mark.parametrize("share", [0.29, 0.3, 0.05, 0.999])
def test_shares_are_floored_not_rounded_by_float_error(blobs, share):
    weak = np.arange(200) % 2
    X = blobs(n=200).X
    verdicts = filter_labels(X, weak, contamination=share)
    wanted = {0.29: 29, 0.3: 30, 0.05: 5, 0.999: 99}[share]
    assert np.bincount(weak[~verdicts.keep]).tolist() == [wanted, wanted]
    # Over all rows as many as the published filter's int(c * n), whatever floats make of it.
    over_all = filter_labels(X[:100], weak[:100], contamination=share, per_class=False)
    assert (~over_all.keep).sum() == int(share * 100) == {0.29: 28}.get(share, wanted)


def test_three_classes_with_soft_labels(blobs):
    data = blobs(n=600, noise=(0.3, 0.1, 0.2))
    soft = 0.8 * np.eye(3)[data.weak] + 0.2 / 3
    verdicts = filter_labels(data.X, soft, contamination=0.25)
    assert np.bincount(data.weak[~verdicts.keep]).tolist() == [
        int(0.25 * n) for n in np.bincount(data.weak)
    ]
    expected = 1 - verdicts.probe[np.arange(600), data.weak]
    assert np.abs(verdicts.disagreement - expected).max() < 1e-6  # float32 columns
    published = filter_labels(data.X, soft, contamination=0.25, disagreement="distance")
    expected = 0.5 * np.abs(verdicts.probe - verdicts.weak).sum(axis=1)
    assert np.abs(published.disagreement - expected).max() < 1e-6
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
    with pytest.raises(UsageError, match="auto, confident or a number in \\(0, 1\\)"):
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
                disagreement="distance",
                ties="index",
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
                disagreement="distance",
                ties="index",
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


def planted_soft_labels(seed=0, n=2000):
    """Soft weak labels of a supervisor that is sure of easy rows and, of hard ones, half wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    X = (rng.normal(size=(n, 16)) + 3 * np.eye(16)[truth]).astype(np.float32)
    sure = rng.uniform(0.75, 0.99, n)  # confidence of a right label
    sure[rng.random(n) < 0.25] = 0.55  # the supervisor is unsure, and right
    wrong = rng.random(n) < 0.2
    confidence = np.where(wrong, rng.uniform(0.5, 0.7, n), sure)
    said = np.where(wrong, 1 - truth, truth)
    second = np.where(said == 1, confidence, 1 - confidence)
    return X, np.column_stack([1 - second, second]), wrong


def test_soft_labels_are_judged_by_their_class_and_not_by_their_confidence():
    X, Y, wrong = planted_soft_labels()
    found = {}
    for form in DISAGREEMENTS:
        gone = ~filter_labels(X, Y, probe="logreg", disagreement=form).keep
        assert gone.sum() == sum(int(0.2 * n) for n in np.bincount(Y.argmax(axis=1)))
        found[form] = wrong[gone].mean()
    assert found["label"] > 0.9  # what goes is wrong
    assert found["distance"] < 0.6  # the control: the published distance drops the unsure
    default = filter_labels(X, Y, probe="logreg")
    assert default.provenance["disagreement"] == "label"
    ranked = default.ranking[: int(wrong.sum() / 2)]
    assert wrong[ranked].mean() > 0.97  # review and report show the wrong ones first


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_hard_labels_have_one_disagreement(blobs, n_classes):
    data = blobs(n=300, noise=(0.2,) * n_classes)
    label, distance = (filter_labels(data.X, data.weak, disagreement=d) for d in DISAGREEMENTS)
    assert np.array_equal(label.disagreement, distance.disagreement)
    assert np.array_equal(label.keep, distance.keep)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"per_class": False}, {"contamination": "auto"}, {"contamination": "confident"}]
)
def test_verdicts_do_not_depend_on_the_order_of_the_rows(blobs, how, soft):
    data = blobs(n=600, noise=(0.3, 0.3))
    labels = np.eye(2)[data.weak] if not soft else 0.6 * np.eye(2)[data.weak] + 0.2
    order = np.random.default_rng(1).permutation(600)
    as_given = filter_labels(data.X, labels, probe="knn", **how)
    shuffled = filter_labels(data.X[order], labels[order], probe="knn", **how)
    assert np.array_equal(shuffled.keep, as_given.keep[order])
    assert as_given.tied == shuffled.tied == as_given.provenance["ties"]["rows"]
    if how != {"contamination": "confident"}:
        assert as_given.tied > 0  # kNN's votes are few
        by_row = filter_labels(data.X, labels, probe="knn", ties="index", **how)
        moved = filter_labels(data.X[order], labels[order], probe="knn", ties="index", **how)
        assert not np.array_equal(moved.keep, by_row.keep[order])
        other = filter_labels(data.X, labels, probe="knn", seed=1, **how)
        assert not np.array_equal(other.keep, as_given.keep)  # the seed decides
        gone = np.sort(other.disagreement[~other.keep])
        assert np.array_equal(gone, np.sort(as_given.disagreement[~as_given.keep]))


@pytest.mark.parametrize("known", ["ids", "texts", "neither"])
@pytest.mark.parametrize("probe", ["knn", "logreg", "topofilter", "ensemble", "mass-mean"])
def test_a_store_in_another_order_gives_every_row_its_verdict(
    blobs, make_store, as_labels, probe, known
):
    """With ids, with texts only (ids are row numbers then), and with neither."""
    data, n = blobs(n=300), 300
    order = np.random.default_rng(5).permutation(n)
    texts = [f"{i:016x}" if known == "texts" else "" for i in range(n)]
    found = []
    for name, rows in (("a.h5", np.arange(n)), ("b.h5", order)):
        # Row numbers stand in for ids that there are not.
        ids = [f"r{i}" if known == "ids" else str(place) for place, i in enumerate(rows.tolist())]
        hashes = [texts[i] for i in rows]
        store = make_store(data.X[rows], ids=ids, hashes=hashes, name=name)
        labels = as_labels(data.weak[rows], ids=ids, hashes=hashes)
        found.append(filter_labels(store, labels, probe=probe, n_folds=4))
    as_given, shuffled = found
    assert np.array_equal(shuffled.fold, as_given.fold[order])
    assert np.abs(shuffled.probe - as_given.probe[order]).max() < 1e-3  # sums in another order
    assert (shuffled.keep != as_given.keep[order]).sum() <= (0 if probe == "knn" else 2)
    assert len(set(as_given.fold)) == (4 if probe == "logreg" else 1)
