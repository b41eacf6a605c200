from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probekit.cleaning.advice import (
    LEAST_CONFIDENCE,
    PC_CAUTIOUS,
    PC_LEAVE,
    PC_RELABEL,
    Signals,
    advise,
    agreement_needed,
    concord,
    confidence_allowed,
    decide,
    draw_sample,
    least_confidence,
    read_signals,
    weigh,
)
from probekit.errors import DataError, LabelsError, UsageError
from probekit.metrics import auroc
from probekit.probes import EnsembleProbe

BASE = Signals(
    rows=2000,
    n_classes=2,
    pc=0.8,
    pc_interval=(0.78, 0.82),
    agreement=0.9,
    confidence=0.8,
    confidence_from="confidences",
)


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({}, "relabel"),
        ({"pc": PC_LEAVE - 0.01}, "leave"),
        ({"pc": PC_LEAVE}, "filter"),
        ({"pc": PC_RELABEL - 0.01}, "filter"),
        ({"pc": PC_RELABEL}, "relabel"),
        ({"agreement": agreement_needed(0.8) - 0.001}, "filter"),
        ({"agreement": agreement_needed(0.8)}, "relabel"),
        ({"confidence": 1.0, "confidence_from": "unknown", "agreement": 1.0}, "filter"),
        ({"rows": 999, "pc": PC_CAUTIOUS - 0.01}, "leave"),
        ({"rows": 999, "pc": PC_CAUTIOUS}, "relabel"),
        ({"rows": 1000, "pc": PC_CAUTIOUS - 0.01}, "relabel"),
        ({"cautious": True, "pc": PC_CAUTIOUS - 0.01}, "leave"),
        ({"confidence": LEAST_CONFIDENCE - 0.01}, "leave"),
        ({"confidence": LEAST_CONFIDENCE}, "relabel"),
        ({"confidence": 0.5, "confidence_from": "trusted accuracy"}, "relabel"),
        ({"pc": float("nan")}, "leave"),
        ({"n_classes": 12, "agreement": agreement_needed(0.8, 12)}, "relabel"),
        ({"n_classes": 12, "agreement": agreement_needed(0.8, 12) - 0.001}, "filter"),
        ({"n_classes": 12, "confidence": least_confidence(12), "agreement": 0.9}, "relabel"),
        ({"n_classes": 12, "confidence": least_confidence(12) - 0.01, "agreement": 0.9}, "leave"),
    ],
)
def test_the_rule(changes, action):
    advice = decide(replace(BASE, **changes))
    assert advice.action == action
    assert advice.filter.startswith("do it") == (action != "leave")
    assert advice.relabel.startswith("do it") == (action == "relabel")
    for what, line in (("filter", advice.filter), ("relabel", advice.relabel)):
        warning = advice.warning(what)
        if line.startswith("do it"):
            assert warning is None
        else:
            assert line in warning
            assert "probekit audit" in warning
        assert line.endswith(".")


def test_numbers_that_are_compared_are_printed_apart():
    near = decide(replace(BASE, pc=PC_LEAVE - 0.0004))
    bound = f"{PC_LEAVE:.2f}"
    assert f"agreement {PC_LEAVE - 0.0004:.4f} is below {bound}00" in near.filter
    far = decide(replace(BASE, pc=PC_LEAVE - 0.1))
    assert f"agreement {PC_LEAVE - 0.1:.2f} is below {bound}" in far.filter
    met = decide(replace(BASE, pc=PC_LEAVE))
    assert f"agreement {bound} is at least {bound}" in met.filter


def test_agreement_needed_is_that_of_two_independent_sources_and_a_margin():
    rng = np.random.default_rng(0)
    one, two = (rng.random((2, 200_000)) < 0.7).astype(int)
    # 200,000 draws: a standard error of 0.0011.
    assert agreement_needed(0.7) - 0.05 == pytest.approx((one == two).mean(), abs=0.005)
    assert agreement_needed(1.0) > 1
    assert agreement_needed(confidence_allowed(0.8)) == pytest.approx(0.8)
    assert np.isnan(confidence_allowed(0.5))


def test_agreement_of_two_sources_on_more_classes_spreads_their_errors():
    rng = np.random.default_rng(0)
    # Class 0 is right in 0.7, the other four in equal parts.
    one, two = (
        np.where(rng.random(200_000) < 0.7, 0, rng.integers(1, 5, 200_000)) for _ in range(2)
    )
    assert agreement_needed(0.7, 5) - 0.05 == pytest.approx((one == two).mean(), abs=0.005)
    assert agreement_needed(confidence_allowed(0.8, 5), 5) == pytest.approx(0.8)
    assert np.isnan(confidence_allowed(0.2, 5))


def test_a_close_call_is_one_whose_interval_holds_a_bound():
    assert decide(replace(BASE, pc=0.59, pc_interval=(0.57, 0.61))).close
    assert not decide(replace(BASE, pc=0.75, pc_interval=(0.73, 0.77))).close
    few = replace(BASE, rows=500, pc=0.75, pc_interval=(0.71, 0.77))
    assert decide(few).close


def test_pc_is_the_sum_of_correlations_within_weak_classes(blobs):
    data = blobs(n=500)
    evidence = weigh({3: data.X, 6: data.X + 1}, data.weak, np.arange(500))
    expected = []
    for layer in (3, 6):
        ridge, votes = (evidence.scores[kind, layer][:, 1] for kind in ("ridge", "knn"))
        expected.append(
            sum(
                (data.weak == k).mean()
                * np.corrcoef(ridge[data.weak == k], votes[data.weak == k])[0, 1]
                for k in (0, 1)
            )
        )
    assert concord(evidence) == pytest.approx(np.mean(expected), abs=1e-12)
    low, high = read_signals(evidence, np.eye(2)[data.weak]).pc_interval
    assert low < concord(evidence) < high


def test_evidence_is_the_ensemble_on_hard_labels(blobs):
    data = blobs(n=300)
    other = data.X[:, ::-1] * [1, 2, 1, 1, 1, 1, 1, 1]
    groups = np.arange(300)
    groups[10] = 7
    evidence = weigh({3: data.X, 6: other.astype(np.float32)}, data.weak, groups)
    X = np.hstack([data.X, other]).astype(np.float32)
    probe = EnsembleProbe(widths=(8, 8)).fit(X, data.weak, groups=groups)
    assert np.allclose(evidence.proba, probe.oof_proba_, atol=1e-9)
    assert np.bincount(evidence.decided).tolist() == np.bincount(data.weak).tolist()


def test_wrong_labels_that_states_contradict_are_worth_filtering_and_noise_is_not(
    blobs, make_store, as_labels
):
    data = blobs(n=1200, noise=(0.25, 0.25), width=8)
    good = advise(make_store(data.X), as_labels(data.weak))
    assert good.action == "filter"  # hard labels: never relabel
    assert good.signals.confidence_from == "unknown"
    relabel = advise(make_store(data.X), as_labels(data.weak), trusted_accuracy=0.6)
    assert relabel.action == "relabel"
    shuffled = np.random.default_rng(1).permutation(data.weak)
    bad = advise(make_store(data.X), as_labels(shuffled))
    assert bad.action == "leave"
    assert bad.margins["pc_filter"] < -0.1


def test_confidences_are_read_from_soft_labels_unless_an_accuracy_is_trusted(
    blobs, make_store, as_labels
):
    data = blobs(n=400)
    soft = as_labels(np.where(data.weak == 1, 0.9, 0.2))
    signals = advise(make_store(data.X), soft).signals
    share = (data.weak == 1).mean()
    assert signals.confidence == pytest.approx(0.9 * share + 0.8 * (1 - share))
    assert signals.confidence_from == "confidences"
    trusted = advise(make_store(data.X), soft, trusted_accuracy=0.7).signals
    assert (trusted.confidence, trusted.confidence_from) == (0.7, "trusted accuracy")
    assert trusted.pc == signals.pc


def test_the_sample_keeps_class_shares_rare_classes_and_leaves_broken_rows_out(
    blobs, make_store, as_labels
):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 4)).astype(np.float32)
    y = np.repeat([0, 1, 2], [2000, 998, 2])
    X[5] = np.nan
    store = make_store(X, layers=(3, 6))
    sample = draw_sample(store, as_labels(y), rows=600)
    assert np.bincount(sample.hard).tolist()[2] == 2
    assert abs(np.bincount(sample.hard)[0] - 400) <= 1
    assert sample.total == 3000
    whole = draw_sample(store, as_labels(y), rows=5000)
    assert (len(whole.hard), dict(whole.nonfinite)) == (2999, {3: 1, 6: 1})
    again = draw_sample(store, as_labels(y), rows=600)
    assert np.array_equal(again.states[6], sample.states[6])
    other = draw_sample(store, as_labels(y), rows=600, seed=1)
    assert not np.array_equal(other.states[6], sample.states[6])


def test_shuffled_labels_keep_their_counts_and_say_nothing(blobs):
    data = blobs(n=400)
    evidence = weigh({6: data.X}, data.weak, np.arange(400))
    shuffled = evidence.shuffled(20, seed=3)
    assert all(np.bincount(e.hard).tolist() == np.bincount(data.weak).tolist() for e in shuffled)
    figures = [auroc(e.hard, e.proba) for e in shuffled]
    assert abs(np.mean(figures) - 0.5) < 0.05
    assert auroc(evidence.hard, evidence.proba) > max(figures)
    fixed = weigh({6: data.X}, shuffled[0].hard, np.arange(400))
    # Only the penalty is that of the real labels.
    assert np.allclose(fixed.scores["knn", 6], shuffled[0].scores["knn", 6])


@pytest.mark.parametrize("accuracy", [0, 1.2, -0.5, 73])
def test_what_is_no_accuracy_is_refused(blobs, make_store, as_labels, accuracy):
    data = blobs(n=50)
    with pytest.raises(UsageError, match=r"trusted_accuracy is a number in \(0, 1\]"):
        advise(make_store(data.X), as_labels(data.weak), trusted_accuracy=accuracy)


def test_too_little_to_say_anything_is_refused(blobs, make_store, as_labels):
    data = blobs(n=50)
    store = make_store(data.X[:10])
    with pytest.raises(DataError, match="10 rows with a weak label and finite states; at least 20"):
        advise(store, as_labels(data.weak[:10]))
    with pytest.raises(UsageError, match="has no layer 9; it has 3"):
        advise(store, as_labels(data.weak[:10]), layers=[9])
    one = as_labels(np.eye(2)[np.zeros(50, dtype=int)])
    with pytest.raises(LabelsError, match="class '0' in all rows"):
        advise(make_store(data.X, name="b.h5"), one)
    copies = make_store(data.X, name="c.h5", hashes=["0" * 16] * 50)
    with pytest.raises(DataError, match="copies of one text"):
        advise(copies, as_labels(data.weak))


def test_it_reads_no_more_than_a_sample(make_store, as_labels):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 16)).astype(np.float32)
    store, labels = make_store(X, layers=(4, 5, 6)), as_labels(rng.integers(0, 2, 3000))
    assert advise(store, labels).signals.rows == 2000
    assert advise(store, labels, rows=100).signals.rows == 100  # the control
