from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from probekit.activations.extraction import extract
from probekit.activations.store import ActivationStore
from probekit.cleaning.audit import draw_rows
from probekit.cleaning.diagnose import diagnose
from probekit.cuts import prior_matched
from probekit.labels import WeakLabels
from probekit.probes import LogisticProbe
from probekit.probes.ensemble import ensemble_for, plan_layers, stack_layers


def test_figures_of_a_known_case(blobs, make_store, as_labels):
    data = blobs(n=800, noise=(0.2, 0.2))
    found = diagnose(make_store(data.X, layers=(3, 5)), as_labels(data.weak), permutations=19)
    assert (found.rows, found.rows_read, found.duplicates) == (800, 800, 0)
    assert [c.rows for c in found.classes] == np.bincount(data.weak).tolist()
    assert found.predictable.value > found.predictable.interval[1]
    assert found.predictable.p == pytest.approx(1 / 20)
    assert found.concord.value > found.concord.interval[1]
    # Blobs 4 standard deviations apart: suspected rows are the wrong labels, their neighbours are
    # of the true class.
    wrong = (data.weak != data.truth).sum()
    assert sum(c.suspected for c in found.classes) == pytest.approx(wrong, rel=0.25)
    for part in found.classes:
        assert part.expansion > part.expansion_by_chance + 0.1
    # About a fifth of either class; at 800 rows either estimate is off by a few hundredths.
    expected = [(data.truth[data.weak == c] != c).mean() for c in (0, 1)]
    assert [c.hoc for c in found.classes] == pytest.approx(expected, abs=0.08)
    assert [c.confident_joint for c in found.classes] == pytest.approx(expected, abs=0.08)
    assert found.alarms == ()
    assert found.advice.action == "filter"
    json.dumps(asdict(found))


def test_effective_rank_counts_directions(make_store, as_labels):
    rng = np.random.default_rng(0)
    X = np.zeros((2000, 12), dtype=np.float32)
    X[:, :5] = rng.normal(size=(2000, 5))
    y = rng.integers(0, 2, 2000)
    layer = diagnose(make_store(X), as_labels(y), permutations=2).layers[0]
    assert layer.effective_rank == pytest.approx(5, abs=0.05)
    assert layer.constant_columns == 7
    assert not layer.constant


def test_duplicates_are_counted_and_their_unequal_labels(blobs, make_store, as_labels):
    data = blobs(n=200)
    hashes = [f"{i:016x}" for i in range(200)]
    for i in (1, 2):
        hashes[i] = hashes[0]
    hashes[11] = hashes[10]
    weak = data.weak.copy()
    weak[:3], weak[10:12] = 1, [0, 1]
    found = diagnose(make_store(data.X, hashes=hashes), as_labels(weak), permutations=2)
    assert (found.duplicates, found.duplicates_unequal) == (5, 2)


def test_alarms(make_store, as_labels):
    rng = np.random.default_rng(1)
    n = 400
    y = (np.arange(n) < 12).astype(int)
    noise = rng.normal(size=(n, 6)).astype(np.float32)
    noise[7, 2] = np.inf
    found = diagnose(make_store(noise), as_labels(y), permutations=19)
    text = "\n".join(found.alarms)
    assert "Layer 3 has NaN or infinity in 1 of the rows" in text
    assert "Class '1' is the weak label of only 2." in text
    assert "no better than shuffled ones" in text
    assert "Relabelling at 0.5 collapses: every row would be '0'" in text
    assert "no-op" not in text
    assert found.advice.action == "leave"


def test_a_probe_that_repeats_every_label_is_alarming(make_store, as_labels):
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    X = (rng.normal(size=(300, 4)) + 8 * y[:, None]).astype(np.float32)
    found = diagnose(make_store(X), as_labels(y), permutations=2)
    assert any("no-op" in alarm for alarm in found.alarms)
    assert all(np.isnan(c.expansion) for c in found.classes)


def test_constant_states_are_alarming(make_store, as_labels):
    y = np.arange(100) % 2
    found = diagnose(make_store(np.ones((100, 4), np.float32)), as_labels(y), permutations=5)
    assert any("same state in every row" in alarm for alarm in found.alarms)
    assert found.advice.action == "leave"


def test_three_classes_have_the_same_rule(blobs, make_store, as_labels):
    data = blobs(n=1200, noise=(0.2, 0.2, 0.2))
    found = diagnose(make_store(data.X), as_labels(data.weak), permutations=9)
    assert len(found.classes) == 3
    assert found.predictable.value > found.predictable.interval[1]
    assert found.concord.value > found.concord.interval[1]
    assert found.advice.action == "filter"  # hard labels: never relabel
    trusted = diagnose(
        make_store(data.X), as_labels(data.weak), permutations=2, trusted_accuracy=0.7
    )
    assert trusted.advice.action == "relabel"
    shuffled = as_labels(np.random.default_rng(1).permutation(data.weak))
    assert diagnose(make_store(data.X), shuffled, permutations=2).advice.action == "leave"


def test_same_seed_same_diagnosis(blobs, make_store, as_labels):
    data = blobs(n=300)
    store, labels = make_store(data.X), as_labels(data.weak)
    assert diagnose(store, labels, permutations=5) == diagnose(store, labels, permutations=5)
    other = diagnose(store, labels, permutations=5, seed=1)
    assert (
        other.predictable.interval != diagnose(store, labels, permutations=5).predictable.interval
    )


# Real cases: what the advice, and an audit with the true labels, come out as.

ROWS = 1000


def _states(texts, model, folder, name, layers="3-6"):
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]
    return extract(rows, model, output=folder / f"{name}.h5", layers=layers, pool="mean")


def _judge(store, weak, truth):
    """Accuracies of weak labels, of the prior-matched probe, and of the 80 % kept per class."""
    X = stack_layers(store, plan_layers(store.layers).layers)
    P = ensemble_for(store).fit(X, weak.probs).oof_proba_
    decided = prior_matched(P, np.bincount(weak.hard, minlength=2) / len(P))
    gap = np.abs(P - weak.probs)[:, 0]
    keep = np.ones(len(P), dtype=bool)
    for k in (0, 1):
        mine = np.flatnonzero(weak.hard == k)
        keep[mine[np.argsort(-gap[mine])[: len(mine) // 5]]] = False
    right = weak.hard == truth
    return SimpleNamespace(
        weak=right.mean(), probe=(decided == truth).mean(), kept=right[keep].mean()
    )


def _audit(store, weak, truth, asked):
    draw = draw_rows(store, weak)
    true = dict(zip(weak.ids, map(str, truth), strict=True))
    return draw.conclude({name: true[name] for name in draw.ids[:asked]})


def _labels(p):
    return WeakLabels(
        [f"r{i}" for i in range(len(p))], None, np.column_stack([1 - p, p]), ("0", "1")
    )


@pytest.mark.realdata
@pytest.mark.slow
def test_planted_noise_on_sst2_asks_for_a_filter_only(realdata, minilm, tmp_path):
    path = realdata.data / "sst2" / "train.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    chosen = np.random.default_rng(0).choice(len(lines), ROWS, replace=False)
    pairs = [lines[i].rsplit("\t", 1) for i in chosen]
    truth = np.array([int(label) for _, label in pairs])
    store = _states([text.strip() for text, _ in pairs], minilm, tmp_path, "sst2")
    flip = np.random.default_rng(1).random(ROWS) < 0.25
    weak = _labels(np.where(flip, 1 - truth, truth).astype(np.float64))
    found = diagnose(store, weak)
    assert found.advice.action == "filter"
    assert found.predictable.value > found.predictable.interval[1]
    assert diagnose(store, weak, trusted_accuracy=0.75).advice.action == "filter"
    really = _judge(store, weak, truth)
    assert really.kept > really.weak + 0.05


@pytest.mark.realdata
@pytest.mark.slow
def test_sciq_labels_of_gpt2_are_left_alone(realdata, minilm, tmp_path):
    import pyarrow as pa

    path = realdata.data / "weak_labels_sciq" / "seed0.xent_lr5e-05.gpt2-medium.arrow"
    with path.open("rb") as file:
        table = pa.ipc.open_stream(file).read_all().slice(0, ROWS)
    truth = np.array(table["gt_label"].to_pylist())
    weak = _labels(np.array([soft[1] for soft in table["soft_label"].to_pylist()]))
    store = _states(table["txt"].to_pylist(), minilm, tmp_path, "sciq")
    found = diagnose(store, weak)
    assert found.advice.action == "leave"
    assert diagnose(store, weak, trusted_accuracy=0.7).advice.action == "leave"
    # The filter leaves 1.2 points fewer of its rows wrong; the relabel 15 points more.
    assert _audit(store, weak, truth, 80).action != "relabel"
    known = _audit(store, weak, truth, ROWS)
    assert known.shares["leave"].value == pytest.approx((weak.hard != truth).mean())
    assert known.action == "filter"
    assert known.shares["leave"].value - known.shares["filter"].value < 0.02
    assert known.shares["relabel"].value > known.shares["leave"].value + 0.1
    really = _judge(store, weak, truth)
    assert max(really.kept, really.probe) < really.weak


@pytest.mark.realdata
@pytest.mark.slow
def test_docstrings_are_relabelled(realdata, minilm, tmp_path):
    from probekit.tasks.registry import load_task_rows

    def rows(split, many):
        loaded = load_task_rows(f"docstrings@{split}")
        pick = np.random.default_rng(0).choice(len(loaded), many, replace=False)
        chosen = loaded.select(pick.tolist())
        return chosen.contents(), np.array([int(v) for v in chosen.columns["label"]])

    texts, truth = rows("student", ROWS)
    taught, taught_truth = rows("weak", 50)
    store = _states(texts, minilm, tmp_path, "acts", layers="1,3-6")
    supervisor = _states(taught, minilm, tmp_path, "weak", layers="1")
    probe = LogisticProbe().fit(supervisor.layer(1), taught_truth)
    weak = _labels(probe.predict_proba(store.layer(1))[:, 1])
    found = diagnose(store, weak)
    assert found.advice.action == "relabel"
    assert found.advice.filter.startswith("do it")
    # Both help; the filter leaves the smaller share of wrong labels.
    assert _audit(store, weak, truth, 20).action == "filter"
    known = _audit(store, weak, truth, ROWS).shares
    assert known["filter"].value < known["relabel"].value < known["leave"].value - 0.02
    really = _judge(store, weak, truth)
    assert min(really.probe, really.kept) > really.weak + 0.02


def test_store_is_only_read(blobs, make_store, as_labels):
    data = blobs(n=100)
    store = make_store(data.X)
    before = store.path.read_bytes()
    diagnose(store, as_labels(data.weak), permutations=2)
    assert store.path.read_bytes() == before
    assert isinstance(store, ActivationStore)
