"""Every figure of a sweep, computed a second way; one search and one factorisation per layer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.cleaning.evaluate import evaluate
from probekit.cleaning.predict import filter_labels, relabel
from probekit.data import text_hash
from probekit.errors import LabelsError, ProbeError, UsageError
from probekit.experiments import sweep as sweep_module
from probekit.experiments.sweep import (
    KEYS,
    choose,
    choose_each,
    run_sweep,
    truth_columns,
    write_sweep,
)
from probekit.experiments.sweep_probes import SweepSettings, join_rows
from probekit.labels import WeakLabels
from probekit.metrics import accuracy, auroc
from probekit.probes import KNNProbe, LogisticProbe, TopoFilterProbe
from probekit.probes.logistic_path import logistic_path
from probekit.probes.neighbors import NeighborIndex

N, LAYERS, CLASSES = 240, (1, 4), ("no", "yes")
SETTINGS = SweepSettings(
    layers=LAYERS,
    k=(1, 7, 30),
    l2=(1e-3, 1e-1),
    k_cc=(3, 6),
    k_zeta=(5, 12),
    zeta=(0.5, 0.8),
    contaminations=(0.1, 0.25),
)


def labels_of(ids, probs, source="weak", classes=CLASSES):
    return WeakLabels(list(ids), None, np.asarray(probs, dtype=float), classes, source)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """Store of two layers, weak labels (soft, a fifth wrong) and truth; five texts stand twice."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, N)
    ids = [f"r{i}" for i in range(N)]
    texts = [f"text {i % (N - 5)}" for i in range(N)]
    X = {}
    for layer, shift in zip(LAYERS, (1.0, 2.5), strict=True):
        X[layer] = rng.normal(size=(N, 8)).astype(np.float32)
        X[layer][:, 0] += shift * truth
        X[layer][N - 5 :] = X[layer][:5]
    path = tmp_path_factory.mktemp("sweep") / "acts.h5"
    with StoreWriter.open(
        path,
        Plan(
            spec={"model": "blobs"},
            ids=ids,
            hashes=[text_hash(text) for text in texts],
            widths=dict.fromkeys(LAYERS, 8),
            store_dtype="float32",
            source="rows.jsonl",
        ),
    ) as writer:
        writer.write(np.arange(N), X, np.ones(N, np.int32), np.zeros(N, bool))
        writer.finish()
    wrong = rng.random(N) < 0.2
    second = np.where(wrong, 1 - truth, truth) * 0.8 + 0.1 + rng.uniform(-0.09, 0.09, N)
    weak = labels_of(ids, np.column_stack([1 - second, second]))
    return ActivationStore(path), weak, labels_of(ids, np.eye(2)[truth], "truth")


@pytest.fixture(scope="module")
def swept(blobs):
    return run_sweep(join_rows(*blobs), SETTINGS)


def rows_of(sweep, **named):
    found = [r for r in sweep.rows if all(r[name] == value for name, value in named.items())]
    assert found
    return found


def probe_of(row):
    if row["probe"] == "knn":
        return KNNProbe(row["k"])
    if row["probe"] == "logreg":
        return LogisticProbe(row["l2"])
    return TopoFilterProbe(k_cc=row["k_cc"], k_zeta=row["k_zeta"], zeta=row["zeta"])


def test_there_is_a_row_for_every_layer_probe_and_strength(swept):
    many = len(SETTINGS.k) + len(SETTINGS.l2) + 2 * 2 * 2
    assert len(swept.rows) == len(LAYERS) * many
    keys = [tuple(row[name] for name in KEYS) for row in swept.rows]
    assert len(set(keys)) == len(keys)
    assert list(dict.fromkeys(row["layer"] for row in swept.rows)) == list(LAYERS)
    assert {row["seed"] for row in rows_of(swept, probe="logreg")} == {0}
    assert {row["seed"] for row in rows_of(swept, probe="knn")} == {None}


@pytest.mark.parametrize("probe", ["knn", "logreg", "topofilter"])
def test_every_figure_is_what_filter_relabel_and_evaluate_give_for_that_strength(
    blobs, swept, probe
):
    store, weak, truth = blobs
    true = truth.hard
    for row in rows_of(swept, probe=probe, layer=4) + rows_of(swept, probe=probe, layer=1)[:1]:
        made, layer = probe_of(row), row["layer"]
        soft = relabel(store, weak, probe=made, layer=layer)
        hard = relabel(store, weak, probe=made, layer=layer, hard=True)
        told = evaluate(soft, true)
        # A path of penalties and a single one stop at 1e-6 of gradient, which moves P by some 1e-5;
        # the neighbours are the same, and verdicts hold float32.
        close = 1e-4 if probe == "logreg" else 1e-6
        assert row["accuracy"] == pytest.approx(told["probe"]["accuracy"], abs=close)
        assert row["auroc"] == pytest.approx(told["probe"]["auroc"], abs=close)
        assert row["auroc_gain"] == pytest.approx(
            told["probe"]["auroc"] - told["weak"]["auroc"], abs=close
        )
        assert row["relabelled_soft"] == pytest.approx(told["labels"]["after"], abs=close)
        assert row["relabelled_hard"] == pytest.approx(
            evaluate(hard, true)["labels"]["after"], abs=close
        )
        assert row["changed"] == pytest.approx(np.mean(hard.hard != weak.hard), abs=close)
        assert row["weak_accuracy"] == pytest.approx(
            accuracy(weak.hard, soft.probe.argmax(axis=1)), abs=close
        )
        assert row["weak_auroc"] == pytest.approx(auroc(weak.hard, soft.probe), abs=close)
        ranked = made if probe != "topofilter" else made.set_params(rank=True)
        for share in SETTINGS.contaminations:
            kept = filter_labels(store, weak, probe=ranked, layer=layer, contamination=share)
            after = evaluate(kept, true)["labels"]["after"]
            assert row[f"filtered_{share:g}"] == pytest.approx(after, abs=1e-12)
        if probe == "topofilter":
            own = filter_labels(store, weak, probe=probe_of(row), layer=layer)
            assert row["kept_own"] == own.keep.mean()
            assert row["filtered_own"] == evaluate(own, true)["labels"]["after"]


def test_the_log_loss_of_penalties_is_that_of_the_probe(blobs, swept):
    store, weak, _ = blobs
    from probekit.groups import duplicate_groups

    groups = duplicate_groups(hashes=store.hashes)
    probe = LogisticProbe(penalties=SETTINGS.l2).fit(store.layer(4), weak.probs, groups=groups)
    found = [row["weak_log_loss"] for row in rows_of(swept, probe="logreg", layer=4)]
    np.testing.assert_allclose(found, probe.l2_scores_, atol=1e-5)


def test_the_log_loss_of_votes_has_one_more_voter(blobs, swept):
    store, weak, _ = blobs
    from probekit.groups import duplicate_groups

    groups = duplicate_groups(hashes=store.hashes)
    for row in rows_of(swept, probe="knn", layer=1):
        P = KNNProbe(row["k"]).fit(store.layer(1), weak.probs, groups=groups).oof_proba_
        voted = (row["k"] * P + 0.5) / (row["k"] + 1)
        loss = -(weak.probs * np.log(voted)).sum(axis=1)
        assert row["weak_log_loss"] == pytest.approx(loss.mean(), abs=1e-9)
        # Sums over the texts: five of them stand for two rows each.
        by_text = np.array([(loss - loss.mean())[groups == g].sum() for g in np.unique(groups)])
        many = len(by_text)
        expected = np.sqrt(many) * by_text.std(ddof=0) * np.sqrt(many / (many - 1)) / N
        assert row["weak_log_loss_se"] == pytest.approx(expected, rel=1e-3)


def test_duplicates_never_predict_a_row(tmp_path):
    """Labels drawn by lot, every text twice: k = 1 would read each label back from the other."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(60, 5)).astype(np.float32)
    X, coin = np.concatenate([half, half]), np.tile(rng.integers(0, 2, 60), 2)
    ids = [str(i) for i in range(120)]
    with StoreWriter.open(
        tmp_path / "twice.h5",
        Plan(
            spec={"model": "blobs"},
            ids=ids,
            hashes=[text_hash(f"t{i % 60}") for i in range(120)],
            widths={0: 5},
            store_dtype="float32",
            source="x",
        ),
    ) as writer:
        writer.write(np.arange(120), {0: X}, np.ones(120, np.int32), np.zeros(120, bool))
        writer.finish()
    rows = join_rows(ActivationStore(tmp_path / "twice.h5"), labels_of(ids, np.eye(2)[coin]))
    settings = SweepSettings(layers=(0,), probes=("knn", "logreg"), k=(1,), l2=(1e-4,))
    for row in run_sweep(rows, settings).rows:
        assert 0.25 < row["weak_accuracy"] < 0.75
    # The control: without groups the label is read back.
    alone = replace(rows, groups=np.arange(120))
    knn = run_sweep(alone, replace(settings, probes=("knn",))).rows[0]
    assert knn["weak_accuracy"] == 1


def test_one_search_and_one_computation_per_layer(blobs, monkeypatch):
    searched, factorised = [], []
    others, path = NeighborIndex._search, logistic_path

    def search(self, space, asked, *more, **options):
        searched.append(len(asked.X))
        return others(self, space, asked, *more, **options)

    def fit(X, Y, penalties, **options):
        factorised.append(len(penalties))
        return path(X, Y, penalties, **options)

    monkeypatch.setattr(NeighborIndex, "_search", search)
    monkeypatch.setattr("probekit.experiments.sweep_probes.logistic_path", fit)
    import torch

    decomposed = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: decomposed.append(a.shape) or eigh(a))
    run_sweep(join_rows(*blobs), SETTINGS)
    assert searched.count(N) == len(LAYERS)  # the rest: rows whose lists the component step thinned
    assert factorised == [len(SETTINGS.l2)] * len(LAYERS)
    assert decomposed.count((8, 8)) == len(LAYERS)  # the rest: small blocks of the solver


def test_the_choice_does_not_read_the_truth(blobs, swept):
    store, weak, truth = blobs
    turned = labels_of(truth.ids, truth.probs[:, ::-1], "turned")
    flipped = run_sweep(join_rows(store, weak, turned), SETTINGS)
    blind = run_sweep(join_rows(store, weak), SETTINGS)
    assert flipped.choice == blind.choice == swept.choice
    assert flipped.rows[0]["auroc"] == pytest.approx(1 - swept.rows[0]["auroc"])
    assert blind.regret == {}
    assert all(row[name] is None for row in blind.rows for name in truth_columns((0.1, 0.25)))
    for seen, unseen in zip(swept.rows, blind.rows, strict=True):
        assert {k: v for k, v in unseen.items() if v is not None}.items() <= seen.items()


def test_regret_is_the_distance_from_the_best_row(swept):
    chosen = rows_of(swept, **{n: v for n, v in swept.choice.items() if n in KEYS})[0]
    assert "filtered_own" not in swept.regret or chosen["probe"] == "topofilter"
    for measure, found in swept.regret.items():
        best = max(swept.rows, key=lambda row: row[measure] or -1)
        assert found["oracle"] == best[measure]
        assert found["chosen"] == chosen[measure]
        assert found["regret"] == best[measure] - chosen[measure] >= 0
        assert found["at"].items() <= best.items()
        same = rows_of(swept, layer=chosen["layer"], probe=chosen["probe"])
        assert found["by_strength"] == max(r[measure] for r in same) - chosen[measure]
    assert {"auroc", "filtered_0.25", "relabelled_soft", "relabelled_hard"} <= set(swept.regret)


def a_row(probe="knn", layer=1, loss=0.5, se=0.1, seed=None, **strength):
    named = {**dict.fromkeys(KEYS), "layer": layer, "probe": probe, **strength}
    return {**named, "seed": seed, "weak_log_loss": loss, "weak_log_loss_se": se}


def test_one_standard_error_towards_more_regularisation():
    rows = [a_row(k=1, loss=0.9), a_row(k=10, loss=0.5), a_row(k=50, loss=0.6, se=0)]
    assert choose(rows)["k"] == 50
    assert choose([*rows[:2], a_row(k=50, loss=0.6001)])["k"] == 10
    penalties = [a_row("logreg", l2=l2, loss=loss) for l2, loss in ((0, 0.3), (1, 0.35), (9, 0.5))]
    assert choose(penalties)["l2"] == 1


def test_ties_between_layers_and_probes_go_to_the_first():
    rows = [a_row(layer=2, k=5), a_row(layer=6, k=9), a_row("logreg", layer=2, l2=1.0)]
    assert (choose(rows)["layer"], choose(rows)["probe"]) == (2, "knn")
    better = a_row("logreg", layer=6, l2=1.0, loss=0.4)
    assert choose([*rows, better])["probe"] == "logreg"
    assert len(choose_each(rows)) == 3


def test_of_equal_topofilters_the_one_that_drops_least():
    strengths = [(16, 4, 0.5), (32, 4, 0.5), (32, 8, 0.7), (32, 8, 0.5)]
    rows = [a_row("topofilter", k_zeta=z, k_cc=c, zeta=s) for z, c, s in strengths]
    chosen = choose(rows)
    assert (chosen["k_zeta"], chosen["k_cc"], chosen["zeta"]) == strengths[-1]


def test_several_seeds_are_averaged_before_the_choice(blobs):
    settings = replace(SETTINGS, probes=("knn", "logreg"), seeds=(0, 5), layers=(4,))
    sweep = run_sweep(join_rows(*blobs), settings)
    fits = rows_of(sweep, probe="logreg")
    assert [row["seed"] for row in fits] == [0, 0, 5, 5]
    assert fits[0]["weak_log_loss"] != fits[2]["weak_log_loss"]
    assert len(rows_of(sweep, probe="knn")) == len(SETTINGS.k)
    rows = [a_row("logreg", l2=1.0, loss=loss, seed=s) for s, loss in ((0, 0.2), (1, 0.6))]
    assert choose_each(rows)[0]["least"] == pytest.approx(0.4)


def test_killed_and_resumed_is_the_same_file(blobs, tmp_path, monkeypatch):
    rows, parts = join_rows(*blobs), tmp_path / "parts"
    write_sweep(run_sweep(rows, SETTINGS), tmp_path / "whole.parquet", command="x")
    real, done = sweep_module.predictions, []

    def dies(probe, states, settings, note):
        done.append((states.layer, probe))
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(probe, states, settings, note)

    monkeypatch.setattr(sweep_module, "predictions", dies)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(rows, SETTINGS, parts=parts)
    assert len(list(parts.iterdir())) == 3
    said = []
    resumed = run_sweep(rows, SETTINGS, parts=parts, say=said.append)
    assert done[4:] == [(4, "knn"), (4, "logreg"), (4, "topofilter")]
    assert sum("done before" in line for line in said) == 3
    write_sweep(resumed, tmp_path / "resumed.parquet", command="x")
    assert (tmp_path / "resumed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_other_labels_or_grids_are_not_taken(blobs, tmp_path, monkeypatch):
    store, weak, _ = blobs
    parts = tmp_path / "parts"
    run_sweep(join_rows(store, weak), SETTINGS, parts=parts)
    real, done = sweep_module.predictions, []

    def counted(probe, *more):
        done.append(probe)
        return real(probe, *more)

    monkeypatch.setattr(sweep_module, "predictions", counted)
    run_sweep(join_rows(store, weak), replace(SETTINGS, k=(1, 7)), parts=parts)
    assert done == ["knn"] * len(LAYERS)
    other = labels_of(weak.ids, weak.probs[:, ::-1])
    run_sweep(join_rows(store, other), replace(SETTINGS, k=(1, 7)), parts=parts)
    assert len(done) == len(LAYERS) * 4
    (parts / "1-knn.json").write_text("{", encoding="utf-8")  # a part that was cut off
    run_sweep(join_rows(store, other), replace(SETTINGS, k=(1, 7)), parts=parts)
    assert len(done) == len(LAYERS) * 4 + 1


def test_the_file_says_what_was_chosen_and_from_what(swept, tmp_path):
    write_sweep(swept, tmp_path / "s.parquet", command="probekit sweep x")
    table = pq.read_table(tmp_path / "s.parquet")
    told = json.loads(table.schema.metadata[b"probekit"])
    assert told["format"] == "probekit-sweep"
    assert told["choice"] == swept.choice
    assert told["command"] == "probekit sweep x"
    assert told["provenance"]["settings"]["k"] == list(SETTINGS.k)
    assert table.to_pylist() == list(swept.rows)
    assert str(table.schema.field("k").type) == "int32"


def test_the_published_variant_has_contamination_as_its_strength(blobs):
    store, weak, truth = blobs
    settings = replace(SETTINGS, probes=("topofilter",), variant="eleuther", layers=(4,))
    for row in run_sweep(join_rows(*blobs), settings).rows:
        probe = TopoFilterProbe("eleuther", k_cc=row["k_cc"], k_zeta=row["k_zeta"])
        own = filter_labels(store, weak, probe=probe, layer=4, contamination=row["contamination"])
        assert row["kept_own"] == own.keep.mean()
        assert row["filtered_own"] == evaluate(own, truth.hard)["labels"]["after"]
        assert row["filtered_own"] == row[f"filtered_{row['contamination']:g}"]
        assert row["zeta"] is None


def test_probes_without_a_strength(blobs):
    store, weak, truth = blobs
    settings = replace(SETTINGS, probes=("mass-mean", "ensemble"))
    sweep = run_sweep(join_rows(*blobs), settings)
    assert [(row["probe"], row["layer"]) for row in sweep.rows] == [
        *(("mass-mean", layer) for layer in LAYERS),
        ("ensemble", None),
    ]
    for row in sweep.rows:
        made = relabel(store, weak, probe=row["probe"], layer=row["layer"])
        assert row["relabelled_soft"] == evaluate(made, truth.hard)["labels"]["after"]
        # Verdicts hold float32, in which a pair of rows or two come out equal.
        assert row["auroc"] == pytest.approx(auroc(truth.hard, made.probe), abs=1e-4)


def test_topofilter_that_leaves_too_few_is_left_out_with_a_note(blobs):
    settings = replace(SETTINGS, probes=("topofilter",), k_cc=(1, 6), k_zeta=(100,), layers=(1,))
    sweep = run_sweep(join_rows(*blobs), settings)
    assert {row["k_cc"] for row in sweep.rows} == {6}
    assert len(sweep.notes) == 1
    assert "k_cc = 1" in sweep.notes[0]
    with pytest.raises(ProbeError, match="No strength"):
        run_sweep(join_rows(*blobs), replace(settings, k_cc=(1,)))


def test_k_beyond_the_rows_is_refused_before_any_work(blobs):
    # 240 rows, a text of which stands twice: 238 others.
    with pytest.raises(UsageError, match=r"--k: k = 239.*n = 240.*1 to 238"):
        run_sweep(join_rows(*blobs), replace(SETTINGS, k=(1, 239)))
    with pytest.raises(UsageError, match="--k-zeta"):
        run_sweep(join_rows(*blobs), replace(SETTINGS, k_zeta=(500,)))
    settings = replace(SETTINGS, probes=("knn",), k=(238,), layers=(1,), k_zeta=(500,))
    assert run_sweep(join_rows(*blobs), settings).rows[0]["k"] == 238


def test_labels_that_do_not_fit_are_refused(blobs):
    store, weak, truth = blobs
    strangers = labels_of([f"x{i}" for i in range(N)], truth.probs, "other.jsonl")
    with pytest.raises(LabelsError, match=r"other.jsonl has no label for any row"):
        join_rows(store, weak, strangers)
    with pytest.raises(LabelsError, match="one class only"):
        join_rows(store, labels_of(weak.ids, np.eye(2)[np.zeros(N, int)]))
    with pytest.raises(LabelsError, match="no label for 1 of 240"):
        join_rows(store, weak, labels_of(truth.ids[1:], truth.probs[1:]))
    with pytest.raises(UsageError, match=r"each one of knn, .* and it contains 'svm'"):
        replace(SETTINGS, probes=("svm",))
    with pytest.raises(UsageError, match="probes is a list of at least 1"):
        replace(SETTINGS, probes=())


def test_rows_without_a_label_may_be_left_out(blobs):
    store, weak, truth = blobs
    part = labels_of(weak.ids[40:], weak.probs[40:])
    rows = join_rows(store, part, truth, only_labelled=True)
    settings = replace(SETTINGS, layers=(4,), probes=("knn", "mass-mean"))
    for row in run_sweep(rows, settings).rows:
        probe = row["probe"] if row["k"] is None else KNNProbe(row["k"])
        made = relabel(store, part, probe=probe, layer=4, only_labelled=True)
        assert row["rows"] == N - 40
        assert row["relabelled_soft"] == evaluate(made, truth.hard[40:])["labels"]["after"]


def test_three_classes(blobs):
    store, _, _ = blobs
    rng = np.random.default_rng(5)
    true = np.digitize(store.layer(4)[:, 0], [0.5, 2.0])
    true[N - 5 :] = true[:5]
    noisy = np.where(rng.random(N) < 0.15, (true + 1) % 3, true)
    names = ("a", "b", "c")
    weak = labels_of(store.ids, np.eye(3)[noisy], classes=names)
    truth = labels_of(store.ids, np.eye(3)[true], "truth", classes=names)
    settings = replace(SETTINGS, layers=(4,), k=(9,), k_cc=(6,), k_zeta=(9,), zeta=(0.5,))
    for row in run_sweep(join_rows(store, weak, truth), settings).rows:
        made = probe_of(row)
        hard = evaluate(relabel(store, weak, probe=made, layer=4, hard=True), true)
        close = 1e-3 if row["probe"] == "logreg" else 1e-6
        assert row["auroc"] == pytest.approx(hard["probe"]["auroc"], abs=close)
        assert row["auroc_gain"] == pytest.approx(row["auroc"] - hard["weak"]["auroc"], abs=1e-6)
        assert row["relabelled_hard"] == pytest.approx(hard["labels"]["after"], abs=close)


@pytest.mark.parametrize("name", ["seeds", "k", "layers", "probes", "l2"])
def test_a_value_named_twice_is_no_repetition(name):
    values = {"seeds": (1, 1), "k": (3, 5, 3), "layers": (4, 4), "l2": (1.0, 1)}
    given = {"layers": (4,), name: values.get(name, ("knn", "knn"))}
    with pytest.raises(UsageError, match=f"{name} is a list without repetition"):
        SweepSettings(**given)
