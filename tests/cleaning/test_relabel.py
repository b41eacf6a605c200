from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probekit.cleaning.evaluate import summarize
from probekit.cleaning.predict import filter_labels, relabel, score_rows
from probekit.cleaning.relabel import readmit
from probekit.cuts import prior_matched
from probekit.errors import LabelsError, UsageError
from probekit.labels import WeakLabels
from probekit.probes import KNNProbe, LogisticProbe

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("how", "beta"), [({}, 0.75), ({"blend": 0.3}, 0.3), ({"blend": 1}, 1)])
def test_soft_labels_are_a_blend(blobs, how, beta):
    data = blobs(n=300, noise=(0.3, 0.1, 0.2))
    verdicts = relabel(data.X, data.weak, **how)
    scored = score_rows(data.X, data.weak)
    expected = (1 - beta) * np.eye(3)[data.weak] + beta * scored.proba
    assert np.abs(verdicts.label - expected).max() < 1e-7  # float32 columns
    assert verdicts.keep.all()
    assert (verdicts.weight == 1).all()
    assert verdicts.provenance["blend"] == beta


def test_a_known_prior_mends_what_noise_by_class_does_to_the_shares(blobs):
    """A third of class 0 is called 1: the weak shares are 1/3 and 2/3, the true ones one half."""
    data = blobs(n=600, noise=(1 / 3, 0.0))
    share = np.bincount(data.truth) / len(data.truth)
    scored = score_rows(data.X, data.weak)
    known = scored.relabel(prior=share.tolist())
    assert np.bincount(known.hard).tolist() == np.bincount(data.truth).tolist()
    right = (known.hard == data.truth).mean()
    at_weak = scored.relabel(hard=True)
    assert right > (at_weak.hard == data.truth).mean() + 0.1  # the control
    assert known.provenance["form"] == "hard, at the given prior"
    assert known.provenance["prior"] == pytest.approx(share)
    same = relabel(data.X, data.weak, prior=(np.bincount(data.weak) / 600).tolist())
    np.testing.assert_array_equal(same.hard, at_weak.hard)


@pytest.mark.parametrize("noise", [(0.2, 0.2), (0.3, 0.1, 0.2)])
def test_flipped_is_what_a_filter_of_the_same_share_drops(blobs, noise):
    data = blobs(n=600, noise=noise)
    scored = score_rows(data.X, data.weak)
    flipped = scored.relabel(flip=0.2)
    dropped = ~scored.filter(contamination=0.2).keep
    assert np.array_equal(flipped.hard != data.weak, dropped)
    others = scored.proba.copy()
    others[np.arange(600), data.weak] = -1
    assert np.array_equal(flipped.hard[dropped], others[dropped].argmax(axis=1))
    assert set(np.unique(flipped.label)) == {0, 1}
    assert flipped.keep.all()
    right = (flipped.hard == data.truth).mean()
    assert right > (data.weak == data.truth).mean() + 0.05
    assert (scored.relabel(flip=0.9).hard == data.truth).mean() < right - 0.3  # control
    same = relabel(data.X, data.weak, flip=0.2)
    assert np.array_equal(same.label, flipped.label)


def test_rows_that_are_not_flipped_have_their_weak_class_even_if_soft(blobs):
    data = blobs(n=300)
    soft = np.where(data.weak == 1, 0.6, 0.2)
    verdicts = relabel(data.X, soft, flip=0.1)
    counts = [int(0.1 * n) for n in np.bincount(data.weak)]
    assert ((verdicts.hard != data.weak) & (data.weak == 0)).sum() == counts[0]
    assert ((verdicts.hard != data.weak) & (data.weak == 1)).sum() == counts[1]


@pytest.mark.parametrize("prior", [[1.0], [0.5, 0.6], [0.2, 0.3, 0.5], [0.0, 1.0], [0.5, "x"]])
def test_a_prior_is_a_share_for_each_class(blobs, prior):
    data = blobs(n=60, noise=(0.1, 0.1))
    with pytest.raises(UsageError):
        relabel(data.X, data.weak, prior=prior)


def test_hard_labels_have_the_weak_class_shares(blobs):
    data = blobs(n=403, noise=(0.35, 0.05))
    verdicts = relabel(data.X, data.weak, hard=True)
    assert set(np.unique(verdicts.label)) == {0, 1}
    assert np.bincount(verdicts.hard).tolist() == np.bincount(data.weak).tolist()
    score = score_rows(data.X, data.weak).proba[:, 1]
    assert score[verdicts.hard == 1].min() >= score[verdicts.hard == 0].max()
    at_half = relabel(data.X, data.weak, threshold=0.5)
    assert np.bincount(at_half.hard).tolist() != np.bincount(data.weak).tolist()


def test_hard_labels_of_soft_ones_have_the_shares_of_their_classes(blobs):
    data = blobs(n=300)
    soft = np.where(data.weak == 1, 0.51, 0.2)
    verdicts = relabel(data.X, soft, hard=True)
    assert np.bincount(verdicts.hard).tolist() == np.bincount(data.weak).tolist()


def test_hard_labels_of_three_classes(blobs):
    data = blobs(n=600, noise=(0.5, 0.1, 0.2))
    verdicts = relabel(data.X, data.weak, hard=True, probe="logreg")
    share = np.bincount(data.weak) / 600
    scored = score_rows(data.X, data.weak, "logreg")
    assert np.array_equal(verdicts.hard, prior_matched(scored.proba, share))
    assert np.bincount(verdicts.hard).tolist() == np.bincount(data.weak).tolist()


def test_a_threshold_cuts_the_second_class(blobs):
    data = blobs(n=300)
    proba = score_rows(data.X, data.weak, KNNProbe(k=10)).proba[:, 1]
    for cut in (0.5, 0.3):
        verdicts = relabel(data.X, data.weak, probe=KNNProbe(k=10), threshold=cut)
        votes = np.round(proba * 10).astype(int)  # exact: a tie is class 0
        assert np.array_equal(verdicts.hard, votes > cut * 10)
        assert (votes == cut * 10).any()


def test_only_above_leaves_the_others_alone(blobs):
    data = blobs(n=300)
    score = score_rows(data.X, data.weak).disagreement
    some = relabel(data.X, data.weak, blend=1, only_above=0.6)
    full = relabel(data.X, data.weak, blend=1)
    above = score > 0.6
    assert 0 < above.sum() < 300
    assert np.array_equal(some.label[above], full.label[above])
    assert np.array_equal(some.label[~above], some.weak[~above])
    assert not np.array_equal(full.label[~above], full.weak[~above])


def test_relabelling_repairs_labels(blobs):
    data = blobs(n=1000)
    before = np.mean(data.weak == data.truth)
    for probe in ("knn", "logreg", "topofilter"):
        assert np.mean(relabel(data.X, data.weak, probe=probe).hard == data.truth) > before + 0.05


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_in_sample_is_the_reference(labels):
    golden = np.load(GOLDEN / f"eleuther_probes_{labels}.npz")
    y = golden["y"].astype(np.float64)
    for k in golden["knn_ks"]:
        verdicts = relabel(
            golden["X"], y, probe=KNNProbe(int(k), metric="euclidean"), in_sample=True, blend=1
        )
        # The reference averages in float32; so is the column.
        assert np.abs(verdicts.label[:, 1] - golden[f"knn_train_k{k}"]).max() < 1e-6
    for l2 in golden["l2s"]:
        probe = LogisticProbe(l2=float(l2), standardize=False)
        verdicts = relabel(golden["X"], y, probe=probe, in_sample=True, blend=1)
        # The reference's own float32 optimiser stops this far from the optimum.
        assert np.abs(verdicts.label[:, 1] - golden[f"log_train_l{l2}"]).max() < 1e-3


def test_seeing_the_labels_makes_relabelling_a_no_op():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 300)).astype(np.float32)  # more columns than rows: all is separable
    y = rng.integers(0, 2, 200)
    probe = LogisticProbe(l2=1e-3)
    seen = summarize(relabel(X, y, probe=probe, in_sample=True, threshold=0.5))
    assert seen.changed == 0
    assert "relabels equal the weak labels" in seen.alarms[0]
    hidden = summarize(relabel(X, y, probe=probe, threshold=0.5))
    assert hidden.changed > 60
    assert not hidden.alarms


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"blend": 0}, r"\(0, 1\], got 0"),
        ({"blend": 1.5}, r"\(0, 1\]"),
        ({"threshold": 0}, r"in \(0, 1\), got 0"),
        ({"threshold": 1.0}, r"in \(0, 1\), got 1.0"),
        ({"only_above": 1}, r"\[0, 1\)"),
        ({"hard": True, "blend": 0.5}, "one of blend, hard, threshold and flip"),
        ({"hard": True, "threshold": 0.5}, "one of blend, hard, threshold and flip"),
        ({"prior": [0.5, 0.5], "flip": 0.2}, "one of blend, hard, threshold and flip"),
        ({"flip": 0}, r"in \(0, 1\), got 0"),
        ({"flip": 1.0}, r"in \(0, 1\), got 1.0"),
    ],
)
def test_forms_that_make_no_sense(blobs, how, sentence):
    data = blobs(n=100)
    with pytest.raises(UsageError, match=sentence):
        relabel(data.X, data.weak, **how)


def test_a_threshold_needs_two_classes(blobs):
    data = blobs(n=100, noise=(0.1, 0.1, 0.1))
    with pytest.raises(UsageError, match="there are 3; use --hard"):
        relabel(data.X, data.weak, threshold=0.5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_hard_relabels_do_not_depend_on_the_order_of_the_rows(blobs, n_classes):
    data = blobs(n=500, noise=(0.3,) * n_classes)
    order = np.random.default_rng(2).permutation(500)
    how = {"probe": KNNProbe(7), "hard": True}
    as_given = relabel(data.X, data.weak, **how)
    shuffled = relabel(data.X[order], data.weak[order], **how)
    assert np.array_equal(shuffled.hard, as_given.hard[order])
    assert as_given.tied > 0
    by_row = relabel(data.X, data.weak, **how, ties="index")
    moved = relabel(data.X[order], data.weak[order], **how, ties="index")
    assert not np.array_equal(moved.hard, by_row.hard[order])  # the control
    assert relabel(data.X, data.weak, probe="knn").tied == 0  # a blend cuts nothing


def test_only_above_looks_at_the_weak_labels_class(blobs):
    data = blobs(n=300)
    soft = 0.2 * np.eye(2)[data.weak] + 0.4  # 0.6 of its class
    some = relabel(data.X, soft, probe="knn", only_above=0.5)
    moved = np.abs(some.label - some.weak).max(axis=1) > 0
    contradicted = some.probe[np.arange(300), data.weak] < 0.5 - 1e-6
    assert np.array_equal(moved, contradicted)
    published = relabel(data.X, soft, probe="knn", only_above=0.5, disagreement="distance")
    assert moved.any()
    assert np.array_equal(published.label, published.weak)  # P lies in [0.4, 0.6] here


@pytest.fixture
def filtered(blobs):
    data = blobs(n=200)
    return filter_labels(data.X, data.weak)


def predicted(verdicts, second, *, classes=("0", "1"), rows=None):
    rows = range(len(verdicts)) if rows is None else rows
    probs = np.column_stack([1 - second, second])[list(rows)]
    return WeakLabels([verdicts.ids[i] for i in rows], None, probs, classes)


def test_sure_rows_come_back_with_the_students_label(filtered):
    rng = np.random.default_rng(0)
    second = rng.random(len(filtered))
    found = readmit(filtered, predicted(filtered, second), confidence=0.8)
    dropped = ~filtered.keep
    sure = np.maximum(second, 1 - second) >= 0.8
    assert np.array_equal(found.keep, filtered.keep | (dropped & sure))
    back = found.keep & dropped
    assert 0 < back.sum() < dropped.sum()
    assert np.allclose(found.label[back, 1], second[back])
    assert np.array_equal(found.label[~back], filtered.label[~back])
    assert np.array_equal(found.weak, filtered.weak)
    assert found.provenance["readmitted"]["rows"] == back.sum()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_least_confidence_is_enough_in_any_float_type(filtered, dtype):
    at, below = (np.full(len(filtered), p, dtype=dtype).astype(np.float64) for p in (0.9, 0.8999))
    assert readmit(filtered, predicted(filtered, at), confidence=0.9).keep.all()
    found = readmit(filtered, predicted(filtered, below), confidence=0.9)
    assert np.array_equal(found.keep, filtered.keep)


def test_several_students_must_agree(filtered):
    n = len(filtered)
    one, two = np.full(n, 0.99), np.full(n, 0.99)
    two[: n // 2] = 0.4
    students = [predicted(filtered, one), predicted(filtered, two)]
    found = readmit(filtered, students, confidence=0.5)
    back = found.keep & ~filtered.keep
    expected = ~filtered.keep & (np.arange(n) >= n // 2)
    assert np.array_equal(back, expected)
    # Alone the first would have brought them all back.
    assert readmit(filtered, students[0], confidence=0.5).keep.all()


def test_classes_are_joined_by_name(filtered):
    second = np.random.default_rng(1).random(len(filtered))
    swapped = predicted(filtered, 1 - second, classes=("1", "0"))
    plain = predicted(filtered, second)
    assert np.allclose(readmit(filtered, swapped).label, readmit(filtered, plain).label)


def test_what_is_refused(filtered):
    second = np.full(len(filtered), 0.95)
    with pytest.raises(UsageError, match=r"a number in \[0.5, 1\], got 0.4"):
        readmit(filtered, predicted(filtered, second), confidence=0.4)
    with pytest.raises(LabelsError, match="no label for any row of the dropped rows"):
        readmit(filtered, predicted(filtered, second, rows=np.flatnonzero(filtered.keep)))
    with pytest.raises(LabelsError, match="classes 'a', 'b'"):
        readmit(filtered, predicted(filtered, second, classes=("a", "b")))
    all_back = readmit(filtered, predicted(filtered, second), confidence=0.5)
    with pytest.raises(UsageError, match="drop no row"):
        readmit(all_back, predicted(filtered, second))
