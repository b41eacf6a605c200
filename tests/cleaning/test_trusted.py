from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from probekit.cleaning.filter import TRUSTED
from probekit.cleaning.predict import filter_labels, relabel, score_rows
from probekit.cleaning.trust import UNKNOWN
from probekit.cleaning.trusted import other_probes
from probekit.errors import LabelsError, StatesError, UsageError
from probekit.metrics import auroc
from probekit.probes import EnsembleProbe
from probekit.verdicts import Verdicts


@pytest.fixture
def data(blobs):
    """Classes that overlap, with 40 and 5 % of the labels wrong."""
    return blobs(n=600, noise=(0.4, 0.05), distance=2.0)


def some(data, m=60):
    """True labels of the first m rows: ids are row numbers."""
    return {str(i): str(data.truth[i]) for i in range(m)}


def test_trusted_rows_keep_their_true_label_and_are_never_dropped(data):
    for verdicts in (
        filter_labels(data.X, data.weak, trusted=some(data)),
        relabel(data.X, data.weak, trusted=some(data)),
        relabel(data.X, data.weak, hard=True, trusted=some(data)),
        relabel(data.X, data.weak, flip=0.3, trusted=some(data)),
    ):
        assert verdicts.keep[:60].all()
        assert np.array_equal(verdicts.label[:60], np.eye(2)[data.truth[:60]])
        used = verdicts.provenance["trusted"]
        assert used["rows"] == 60
        assert used["wrong"] == (data.truth[:60] != data.weak[:60]).sum() > 5
    plain = filter_labels(data.X, data.weak)
    assert not plain.keep[:60].all()
    assert "trusted" not in plain.provenance


def test_they_correct_what_the_probe_says_of_all_other_rows(data):
    wrong = data.truth != data.weak
    before, after = score_rows(data.X, data.weak), score_rows(data.X, data.weak, trusted=some(data))
    gain = [auroc(wrong[60:], scored.disagreement[60:]) for scored in (before, after)]
    assert gain[1] > gain[0] + 0.03
    right = [
        (verdicts.hard[60:] == data.truth[60:]).mean()
        for verdicts in (before.relabel(hard=True), after.relabel(hard=True))
    ]
    assert right[1] > right[0] + 0.02  # the weak labels' class shares mislead the first


def test_nothing_but_the_trusted_labels_is_read_of_the_truth(data, make_store, as_labels):
    """The same file with other classes for rows without a weak label gives the same verdicts."""
    store = make_store(data.X)
    weak = as_labels(data.weak[:500], ids=[f"r{i}" for i in range(500)])
    verdicts = []
    for change in (0, 1):
        truth = data.truth.copy()
        truth[500:] = (truth[500:] + change) % 2
        rows = [*range(60), *range(500, 600)]
        trusted = as_labels(truth[rows], ids=[f"r{i}" for i in rows])
        verdicts.append(filter_labels(store, weak, trusted=trusted, only_labelled=True))
    assert np.array_equal(verdicts[0].probe, verdicts[1].probe)
    assert np.array_equal(verdicts[0].keep, verdicts[1].keep)
    assert "100 rows without a weak label" in verdicts[0].provenance["notes"][-1]


def test_a_file_and_labels_are_the_same(data, make_store, as_labels, tmp_path):
    store, weak = make_store(data.X), as_labels(data.weak)
    trusted = as_labels(data.truth[:60], ids=[f"r{i}" for i in range(60)])
    path = tmp_path / "truth.csv"
    lines = [f"r{i},{data.truth[i]}" for i in range(60)]
    path.write_text("\n".join(["id,label", *lines]) + "\n", encoding="utf-8")
    one, two = (filter_labels(store, weak, trusted=t) for t in (trusted, path))
    assert np.array_equal(one.probe, two.probe)
    two.save(tmp_path / "verdicts.jsonl")
    provenance = json.loads((tmp_path / "verdicts.jsonl.meta.json").read_text())["provenance"]
    assert provenance["trusted"] == one.provenance["trusted"]
    assert Verdicts.load(tmp_path / "verdicts.jsonl").provenance["trusted"]["rows"] == 60


def test_an_ensemble_is_compared_with_shallower_layers_and_a_second_round(
    data, make_store, as_labels
):
    store = make_store(data.X, layers=(1, 2, 3, 4))
    weak = as_labels(data.weak)
    scored = score_rows(store, weak)
    half, deeper, second = other_probes(scored, store)
    X = np.hstack([data.X, data.X])  # layers 1 and 2
    alone = EnsembleProbe(widths=(8, 8), ridge=(0, 1), knn=(0, 1)).fit(X, weak.probs)
    assert np.allclose(half, alone.oof_proba_, atol=1e-6)
    assert half.shape == deeper.shape == second.shape == (600, 2)
    assert np.abs(second - scored.proba).max() > 0.1
    # A second round is surer: it has not seen the labels that the first one doubts most.
    assert np.abs(second - 0.5).mean() > np.abs(scored.proba - 0.5).mean()
    trusted = {f"r{i}": str(data.truth[i]) for i in range(60)}
    assert "other 2" in score_rows(store, weak, trusted=trusted).trust.coef_
    # A chosen layer is not exchanged for others, and one that is not an ensemble has none.
    assert len(other_probes(score_rows(store, weak, "ensemble", layer=3), store)) == 1
    assert other_probes(score_rows(store, weak, "knn", layer=3), store) == []
    assert other_probes(score_rows(store, weak, in_sample=True), store) == []


def test_copies_count_once(data):
    X = np.concatenate([data.X, np.repeat(data.X[:1], 40, axis=0)])
    weak = np.concatenate([data.weak, np.repeat(data.weak[:1], 40)])
    trusted = some(data) | {str(600 + i): str(data.truth[0]) for i in range(40)}
    scored = score_rows(X, weak, trusted=trusted)
    assert scored.trust.n_trusted_ == 60
    assert (scored.truth[600:] == data.truth[0]).all()


def test_three_classes_with_soft_labels(blobs):
    data = blobs(n=600, noise=(0.4, 0.1, 0.1))
    soft = 0.7 * np.eye(3)[data.weak] + 0.1
    trusted = {str(i): str(data.truth[i]) for i in range(100)}
    verdicts = relabel(data.X, soft, hard=True, trusted=trusted)
    assert verdicts.provenance["form"] == "hard, as trusted labels calibrated it"
    assert np.allclose(verdicts.probe.sum(axis=1), 1, atol=1e-6)
    assert (verdicts.hard == data.truth).mean() > (data.weak == data.truth).mean() + 0.1


def test_few_labels_only_keep_their_own_rows(data):
    plain = filter_labels(data.X, data.weak)
    verdicts = filter_labels(data.X, data.weak, trusted=some(data, 9))
    assert np.array_equal(verdicts.probe, plain.probe)
    assert np.array_equal(verdicts.keep[9:], plain.keep[9:])
    assert "9 trusted texts are too few" in verdicts.provenance["notes"][-1]
    assert np.array_equal(verdicts.label[:9], np.eye(2)[data.truth[:9]])


@pytest.mark.parametrize("which", ["right", "one class"])
def test_labels_of_one_class_or_all_right_work(data, which):
    chosen = (data.truth == data.weak) if which == "right" else (data.truth == 1)
    trusted = {str(i): str(data.truth[i]) for i in np.flatnonzero(chosen)[:50]}
    scored = score_rows(data.X, data.weak, trusted=trusted)
    assert np.isfinite(scored.proba).all()
    assert 0.5 < scored.proba[np.arange(600), data.weak].mean() < 1


def test_wrong_trusted_labels_are_refused_in_one_sentence(data, make_store, as_labels):
    store, weak = make_store(data.X), as_labels(data.weak)

    def no(trusted, match, error=LabelsError, states=store):
        with pytest.raises(error, match=match):
            score_rows(states, weak, trusted=trusted)

    no({}, "There are no trusted labels")
    no({"x1": "0"}, "has no label for any row of .*acts.h5")
    no({"r1": "positive"}, "has the classes 'positive', the labels have '0', '1'")
    no(as_labels(data.truth[:2], ids=["r0", "r1"], hashes=["0" * 16, "f" * 16]), "another text")
    copies = make_store(
        data.X, name="copies.h5", hashes=["a" * 16] * 2 + [f"{i:016x}" for i in range(2, 600)]
    )
    no({"r0": "0", "r1": "1"}, "copies of one text different true labels", states=copies)
    no("missing.csv", "missing.csv", error=Exception)
    notes = score_rows(store, weak, trusted={"r1": "0", "zz": "1"}).provenance["notes"]
    assert "1 label for an id that is not in" in notes[0]


def test_the_weak_labels_themselves_are_not_trusted(data, make_store, as_labels):
    store, weak = make_store(data.X), as_labels(data.weak)
    own = {f"r{i}": str(label) for i, label in enumerate(data.weak.tolist())}
    for trusted in (own, as_labels(data.weak)):
        with pytest.raises(LabelsError, match="has the weak label of each of the 600 rows"):
            score_rows(store, weak, trusted=trusted)
    # A part of them may be what people said, so that only a note says so.
    part = dict(list(own.items())[:50])
    notes = score_rows(store, weak, trusted=part).provenance["notes"]
    assert "All 50 labels of the trusted labels are the weak ones" in notes[0]
    # Without any of the two: one label differs, or there are too few to learn from.
    for fine in (own | {"r0": str(1 - data.weak[0])}, dict(list(own.items())[:9])):
        notes = score_rows(store, weak, trusted=fine).provenance.get("notes", ())
        assert not any("weak ones" in note for note in notes)


def test_supervisor_states_must_be_of_the_same_rows(data, make_store, as_labels):
    store, weak = make_store(data.X), as_labels(data.weak)
    trusted = {f"r{i}": str(data.truth[i]) for i in range(60)}
    own = make_store(data.X[:, :3], name="weak.h5")
    with_store = score_rows(store, weak, trusted=trusted, supervisor_states=own)
    with_array = score_rows(store, weak, trusted=trusted, supervisor_states=data.X[:, :3])
    assert np.allclose(with_store.proba, with_array.proba)
    assert "component 10" in with_store.trust.coef_
    ids = [f"r{i}" for i in range(1, 601)]
    lacking = make_store(data.X, name="lacking.h5", ids=ids)
    other = make_store(data.X, name="other.h5", hashes=["b" * 16] * 600)
    for states, match in (
        (lacking, "lacks 1 of 600 rows"),
        (other, "another text in 600 rows"),
        (data.X[:5], "are not of the 600 rows"),
    ):
        with pytest.raises(StatesError, match=match):
            score_rows(store, weak, trusted=trusted, supervisor_states=states)
    with pytest.raises(UsageError, match="with trusted labels only"):
        score_rows(store, weak, supervisor_states=own)


def test_trusted_labels_make_a_filter_drop_more_where_more_is_wrong(blobs):
    shares = []
    for noise in (0.05, 0.4):
        data = blobs(n=800, noise=(noise, noise), distance=4.0)
        scored = score_rows(data.X, data.weak, trusted=some(data, 100))
        chosen, fixed = scored.filter(), scored.filter(contamination=0.2)
        assert chosen.provenance["contamination"] == TRUSTED
        shares.append((1 - chosen.keep.mean(), 1 - fixed.keep.mean()))
        likelier = (scored.trust.right_ >= 0.5) | (scored.truth != UNKNOWN)
        if noise == 0.4:
            assert np.array_equal(chosen.keep, likelier)
            right = data.weak == data.truth
            assert right[chosen.keep].mean() > right[fixed.keep].mean() + 0.1
        else:  # never less than without trusted labels
            assert np.array_equal(chosen.keep, fixed.keep)
            assert likelier.mean() > chosen.keep.mean() + 0.05
        # All rows in one order, and no trusted labels: as they were.
        assert scored.filter(per_class=False).provenance["contamination"] == 0.1
        assert score_rows(data.X, data.weak).filter().provenance["contamination"] == 0.2
    assert shares[0][0] < 0.2 < 0.3 < shares[1][0]


def test_no_class_loses_more_than_half_of_its_rows(data):
    scored = score_rows(data.X, data.weak, trusted=some(data))
    own = data.weak == 1
    low = np.where(own, np.linspace(0.1, 0.4, 600), 0.9)  # as if most of the class were wrong
    keep = replace(scored, trust=SimpleNamespace(right_=low)).filter().keep
    rows = np.flatnonzero(own)
    half = rows[len(rows) // 2 :]  # the less doubtful ones
    assert np.array_equal(np.flatnonzero(keep & own), np.union1d(half, rows[rows < 60]))
