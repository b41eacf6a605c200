from __future__ import annotations

import json
import os
import re
import resource
import signal
import time

import h5py
import numpy as np
import pytest

import probekit.labels
import probekit.sources
from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import filter_labels
from probekit.data import Rows
from probekit.labels import load_labels
from probekit.probes import (
    KNNProbe,
    LogisticProbe,
    TopoFilterProbe,
    logistic_solver,
    neighbors,
)
from probekit.tasks import registry
from probekit.verdicts import Verdicts


@pytest.fixture
def run(probekit, chain):
    def start(*more, output=chain.out):
        result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", output, *more)
        assert result.exit_code == 0, result.output
        return result

    return start


@pytest.fixture
def no(refused, chain):
    """Refused, and nothing written."""

    def start(*more, acts=None, labels=chain.weak, output=chain.out, code=(1, 2)):
        acts = chain.acts if acts is None else acts
        before = sorted(chain.folder.iterdir())
        sentence = refused("filter", acts, "--labels", labels, "-o", output, *more, code=code)
        assert sorted(chain.folder.iterdir()) == before
        return sentence

    return start


@pytest.mark.filterwarnings("always")
def test_a_fit_that_did_not_converge_is_told_in_one_line(run, monkeypatch):
    monkeypatch.setattr(logistic_solver, "SAFETY", 1e12)  # nothing will do
    said = run("--probe", "logreg", "--l2", "1e-3").stderr.splitlines()
    result = [line for line in said if "converge" in line]
    assert len(result) == 1
    assert result[0].startswith("Warning: The logistic fit did not converge for l2 = 0.001")
    assert "probabilities may be off by" in result[0]


def python(chain, **how):
    with ActivationStore(chain.acts) as store:
        return filter_labels(store, load_labels(chain.weak), **how)


def test_the_command_is_the_function(run, chain):
    result = run()
    values, expected = Verdicts.load(chain.out), python(chain)
    for name in ("keep", "probe", "weak", "label", "disagreement", "fold", "weight"):
        assert np.array_equal(getattr(values, name), getattr(expected, name)), name
    assert values.ids == chain.ids
    assert values.classes == ("0", "1")
    command = values.provenance["command"]
    assert command.startswith(f"probekit filter {chain.acts} --labels {chain.weak} ")
    assert values.provenance == {**expected.provenance, "command": command}
    assert "verdicts written to" in result.stderr
    assert "KNNProbe (k 30, metric cosine" in result.stdout
    weak = np.bincount(chain.weak_of)
    line = next(line for line in result.stdout.splitlines() if line.startswith("0 "))
    assert line.split()[:3] == ["0", str(weak[0]), str(int(0.2 * weak[0]))]


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (["--k", "7", "--metric", "euclidean"], {"probe": KNNProbe(7, metric="euclidean")}),
        (["--weights", "cosine"], {"probe": KNNProbe(weights="cosine")}),
        (["--probe", "logreg", "--l2", "0.1", "--folds", "3", "--seed", "4"], {
            "probe": LogisticProbe(0.1, n_folds=3, random_state=4), "seed": 4}),
        (["--probe", "logreg", "--l2", "auto"], {"probe": "logreg"}),
        (["--probe", "topofilter"], {"probe": "topofilter"}),
        (["--probe", "topofilter", "--rank", "--contamination", "0.3"], {
            "probe": TopoFilterProbe(rank=True), "contamination": 0.3}),
        (["--probe", "topofilter", "--k-cc", "6", "--k-zeta", "9", "--zeta", "0.7"], {
            "probe": TopoFilterProbe(k_cc=6, k_zeta=9, zeta=0.7)}),
        (["--probe", "topofilter", "--variant", "eleuther", "--cap", "--global", "--k-cc", "8"], {
            "probe": TopoFilterProbe("eleuther", k_cc=8, cap=True), "per_class": False}),
        (["--contamination", "confident"], {"contamination": "confident"}),
        (["--contamination", "0.1", "--global"], {"contamination": 0.1, "per_class": False}),
        (["--contamination", "auto"], {"contamination": "auto"}),
        (["--threshold", "0.7"], {"threshold": 0.7}),
        (["--in-sample", "--layer", "6"], {"in_sample": True, "layer": 6}),
        (["--preset", "eleuther"], {
            "probe": KNNProbe(50, metric="euclidean", self_neighbor=True), "in_sample": True,
                "disagreement": "distance",
                "ties": "index",
            "per_class": False, "contamination": 0.1}),
        (["--preset", "eleuther", "--probe", "logreg", "--contamination", "0.2"], {
            "probe": LogisticProbe(1e-2, standardize=False), "in_sample": True,
                "disagreement": "distance",
                "ties": "index",
            "per_class": False, "contamination": 0.2}),
        (["--preset", "eleuther", "--probe", "topofilter", "--k-cc", "9"], {
            "probe": TopoFilterProbe("eleuther", k_cc=9, metric="euclidean", self_neighbor=True),
            "in_sample": True,
                "disagreement": "distance",
                "ties": "index", "per_class": False, "contamination": 0.1}),
    ],
)  # fmt: skip
def test_options_reach_the_method(run, chain, options, how):
    run(*options)
    verdicts, expected = Verdicts.load(chain.out), python(chain, **how)
    assert np.array_equal(verdicts.keep, expected.keep)
    assert np.array_equal(verdicts.probe, expected.probe)
    command = verdicts.provenance["command"]
    assert command.startswith(f"probekit filter {chain.acts} --labels {chain.weak} ")
    assert verdicts.provenance == {**expected.provenance, "command": command}


def test_json_is_for_machines(run, chain):
    result = run("--json", "--truth", chain.truth, "--contamination", "auto")
    outcome = json.loads(result.stdout)
    assert outcome["summary"]["rows"] == 300
    assert outcome["action"] == "filter"
    assert set(outcome["estimates"]) == {"hoc", "confident_joint"}
    assert outcome["evaluation"]["labels"]["before"] == np.mean(chain.weak_of == chain.truth_of)
    assert outcome["output"] == str(chain.out)


def test_truth_is_compared_beside_a_random_drop(run, chain):
    result = run("--truth", chain.truth)
    for words in ("random choice", "precision of the drop", "recall of the drop", "at weak prior",
                  "AUROC", "Brier", "label accuracy before", "label accuracy after"):  # fmt: skip
        assert words in result.stdout


def test_truth_is_opened_only_after_the_verdicts_are_written(run, chain, monkeypatch):
    opened = []
    original = probekit.labels.read_table

    def watched(path):
        opened.append((str(path), chain.out.exists()))
        return original(path)

    for module in (probekit.labels, probekit.sources):  # weak labels, and the truth
        monkeypatch.setattr(module, "read_table", watched)
    run("--truth", chain.truth)
    assert opened == [(str(chain.weak), False), (str(chain.truth), True)]


def searches(monkeypatch):
    """Numbers of neighbours of each search of all rows."""
    widths = []
    search = neighbors.NeighborIndex._search

    def counted(self, space, asked, k, groups=None):
        if asked is space:
            widths.append(k)
        return search(self, space, asked, k, groups)

    monkeypatch.setattr(neighbors.NeighborIndex, "_search", counted)
    return widths


@pytest.mark.parametrize("more", [(), ("--weights", "cosine")], ids=["shared", "not shared"])
def test_several_probes_write_what_each_writes_alone(run, chain, monkeypatch, more):
    names, data = ("knn", "logreg", "topofilter"), chain.folder / "train.jsonl"
    widths = searches(monkeypatch)
    together = run("--probe", ",".join(names), "--k", "20", "--write-data", data, *more)
    # kNN's 20 and TopoFilter's 48 come from one search, unless distances count; the last is that
    # of the advice.
    assert widths[:-1] == ([20, 48] if more else [48])
    assert not chain.out.exists()
    assert not data.exists()
    written = {}
    for name in names:
        output, rows = (
            chain.folder / f"verdicts.{name}.parquet",
            chain.folder / f"train.{name}.jsonl",
        )
        assert f"verdicts written to {output}" in together.stderr
        written[name] = output.read_bytes(), rows.read_bytes()
        own = ("--k", "20", *more) if name == "knn" else ()
        run("--probe", name, *own, "--write-data", rows, "--overwrite", output=output)
        assert written[name] == (output.read_bytes(), rows.read_bytes()), name
    assert len({verdicts for verdicts, _ in written.values()}) == 3
    result = json.loads(
        run(
            "--probe", "knn,logreg", "--json", "--overwrite", output=chain.folder / "v.jsonl"
        ).stdout
    )
    assert [each["output"] for each in result["verdicts"]] == [
        str(chain.folder / f"v.{name}.jsonl") for name in ("knn", "logreg")
    ]


def test_approximate_neighbours_and_the_share_found_are_printed(run, no, chain, monkeypatch):
    run("--probe", "knn", "--k", "10")
    exact = Verdicts.load(chain.out)
    said = run("--probe", "knn", "--k", "10", "--approximate", "--overwrite").stderr
    assert re.search(r"Note: Neighbours were searched approximately: [0-9.]+% of the exact", said)
    verdicts = Verdicts.load(chain.out)
    assert verdicts.provenance["probe"]["parameters"]["approximate"] is True
    assert (verdicts.keep == exact.keep).mean() > 0.9
    assert "has no --approximate" in no(
        "--probe", "logreg", "--approximate", output=chain.folder / "other.parquet"
    )


def test_a_long_search_is_announced_with_what_is_faster(run, monkeypatch):
    assert "minutes here" not in run("--probe", "knn").stderr
    monkeypatch.setattr("probekit.probes.neighbors.exact_seconds", lambda *_: 3600.0)
    said = run("--probe", "knn", "--overwrite").stderr
    assert "takes about 60 minutes here; a GPU, --approximate or --probe logreg is faster" in said
    assert "60 minutes here; a GPU or --probe" in run("--probe", "topofilter", "--overwrite").stderr
    for other in (("--probe", "knn", "--approximate"), ("--probe", "logreg")):
        assert "minutes here" not in run(*other, "--overwrite").stderr


def test_several_probes_that_cannot_be(no, chain):
    assert "or several, each once, commas between" in no("--probe", "knn,knn")
    assert "it is one of knn, logreg" in no("--probe", "knn,")
    assert "None of the probes knn, topofilter has --l2" in no(
        "--probe", "knn,topofilter", "--l2", "1"
    )
    (chain.folder / "verdicts.logreg.parquet").write_bytes(b"mine")
    assert "verdicts.logreg.parquet" in no("--probe", "knn,logreg")


def test_truth_changes_nothing_but_what_is_printed(run, chain, write_rows):
    run("--truth", chain.truth)
    first = chain.out.read_bytes()
    lies = write_rows("lies.jsonl", [{"id": i, "label": 0} for i in chain.ids])
    run("--truth", lies, "--overwrite")
    assert chain.out.read_bytes() == first
    run("--overwrite")
    assert chain.out.read_bytes() == first


def test_truth_may_know_more_rows_but_not_fewer(run, refused, chain, write_rows):
    records = [{"id": i, "gold": int(t)} for i, t in zip(chain.ids, chain.truth_of, strict=True)]
    more = write_rows("more.jsonl", [*records, {"id": "other", "gold": 1}])
    assert "random choice" in run("--truth", more, "--truth-column", "gold").stdout
    fewer = write_rows("fewer.jsonl", records[:-2])
    sentence = refused(
        "filter", chain.acts, "--labels", chain.weak, "-o", chain.folder / "v2.parquet",
        "--truth", fewer, "--truth-column", "gold",
    )  # fmt: skip
    assert "no label for 2 of 300 rows of the verdicts (ids 'r298', 'r299')" in sentence
    assert sentence.endswith("; add them.")  # --only-labelled leaves out rows without a weak label
    named = write_rows("named.jsonl", [{"id": i, "label": "yes"} for i in chain.ids])
    sentence = refused(
        "filter", chain.acts, "--labels", chain.weak, "-o", chain.folder / "v3.parquet",
        "--truth", named,
    )  # fmt: skip
    assert "has the classes 'yes', the labels have '0', '1'" in sentence


def test_a_truth_that_fails_is_corrected_without_overwrite(run, refused, no, chain, write_rows):
    """It is read after the verdicts are written, which stand; another probe is a new command."""
    lacking = write_rows("lacking.jsonl", [{"id": chain.ids[0], "label": 1}])
    command = ("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert "no label for" in refused(*command, "--probe", "knn", "--truth", lacking)
    assert "random choice" in run("--probe", "knn", "--truth", chain.truth).stdout
    assert "exists already" in no("--probe", "knn", "--truth", chain.truth)
    chain.out.unlink()
    assert "no label for" in refused(*command, "--probe", "knn", "--truth", lacking)
    assert "exists already" in refused(*command, "--probe", "logreg", "--truth", chain.truth)


def test_written_data_is_the_kept_rows(run, chain):
    data = chain.folder / "clean.jsonl"
    result = run("--write-data", data)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    verdicts = Verdicts.load(chain.out)
    assert [line["id"] for line in lines] == list(np.array(chain.ids)[verdicts.keep])
    first = lines[0]
    assert set(first) == {"id", "text", "note", "label", "probs", "weight"}
    assert first["label"] == int(verdicts.hard[verdicts.keep][0])
    assert f"{len(lines)} rows written" in result.stderr


@pytest.mark.parametrize(
    "source", [None, "../secret.jsonl", "ABSOLUTE", "link.jsonl", "gone.jsonl", "no-such-task"]
)
def test_rows_are_found_beside_the_store_and_nowhere_else(run, no, chain, source):
    folder = chain.folder / "inner"
    folder.mkdir()
    acts = chain.acts.rename(folder / "acts.h5")
    secret = chain.rows.rename(chain.folder / "secret.jsonl")  # the right rows, out of bounds
    (folder / "link.jsonl").symlink_to(secret)
    with h5py.File(acts, "r+") as file:
        del file.attrs["source"]
        if source is not None:
            file.attrs["source"] = str(secret) if source == "ABSOLUTE" else source
    data = chain.folder / "clean.jsonl"
    sentence = no("--write-data", data, acts=acts, code=2)
    assert (
        "does not record" if source is None else "which is neither a task nor a file beside"
    ) in sentence
    assert sentence.endswith("name them with --rows.")
    chain.acts = acts
    run("--write-data", data, "--rows", secret)
    assert data.exists()


def test_a_task_is_rows_and_truth(run, chain, make_acts, monkeypatch):
    columns = {"id": chain.ids, "text": chain.texts, "label": chain.truth_of.tolist()}
    task = registry.Task(
        name="toy", description="", source="", licence="", classes=("0", "1"), splits=("all",),
        load=lambda *_: Rows(columns, source="toy"),
    )  # fmt: skip
    monkeypatch.setitem(registry._registered, "toy", task)
    chain.acts = make_acts(chain.X, chain.ids, chain.texts, name="toy.h5", source="toy@all")
    data = chain.folder / "clean.jsonl"
    result = run("--write-data", data, "--truth", "toy@all")
    assert "random choice" in result.stdout
    assert len(data.read_text().splitlines()) == Verdicts.load(chain.out).keep.sum()


def test_other_rows_are_refused(no, chain, write_rows):
    data = chain.folder / "clean.jsonl"
    few = write_rows("few.jsonl", [{"id": "r0", "text": chain.texts[0]}])
    sentence = no("--write-data", data, "--rows", few)
    assert "lacks 299 of 300 rows" in sentence
    assert "'r1', 'r2', 'r3', …" in sentence
    other = write_rows("o.jsonl", [{"id": i, "text": "x" + i} for i in chain.ids])
    assert "another text than" in no("--write-data", data, "--rows", other)


def test_columns_of_other_names(run, chain):
    table = chain.folder / "table.csv"
    lines = [f"{i},{t},{'ok' if w else 'bad'}" for i, t, w in
             zip(chain.ids, chain.texts, chain.weak_of, strict=True)]  # fmt: skip
    table.write_text("key,body,verdict\n" + "\n".join(lines) + "\n")
    data = chain.folder / "clean.jsonl"
    run("--labels", table, "--id-column", "key", "--label-column", "verdict",
        "--text-column", "body", "--rows", table, "--write-data", data)  # fmt: skip
    first = json.loads(data.read_text().splitlines()[0])
    assert first["label"] in ("ok", "bad")
    assert set(first) == {"key", "body", "verdict", "label", "probs", "weight"}
    assert Verdicts.load(chain.out).classes == ("bad", "ok")


def test_a_subset_with_labels(run, no, chain, write_rows):
    half = write_rows("half.jsonl", [
        {"id": i, "label": int(w)} for i, w in zip(chain.ids[::2], chain.weak_of[::2], strict=True)
    ])  # fmt: skip
    assert "no label for 150 of 300 rows" in no(labels=half)
    data = chain.folder / "clean.jsonl"
    run("--labels", half, "--only-labelled", "--write-data", data)
    verdicts = Verdicts.load(chain.out)
    assert verdicts.ids == chain.ids[::2]
    assert len(data.read_text().splitlines()) == verdicts.keep.sum()


def test_overshoot_and_alarms_are_told(run, chain, write_rows):
    result = run("--probe", "topofilter", "--variant", "eleuther", "--k-cc", "3",
               "--contamination", "0.01")  # fmt: skip
    assert "Note: The component step alone dropped" in result.stderr
    nothing = run("--threshold", "1", "--overwrite")
    assert "Warning: No row is dropped" in nothing.stderr


# --- refusals -----------------------------------------------------------------------------------


def test_files_that_are_no_store(no, chain, tmp_path):
    missing = no(acts=tmp_path / "none.h5")
    assert "none.h5 does not exist" in missing
    (tmp_path / "empty.h5").touch()
    assert "is empty" in no(acts=tmp_path / "empty.h5")
    assert "is not an HDF5 file" in no(acts=chain.rows)
    cut = tmp_path / "cut.h5"
    cut.write_bytes(chain.acts.read_bytes()[:3000])
    assert "damaged or cut off" in no(acts=cut)


def test_an_incomplete_store(no, chain, make_acts):
    acts = make_acts(chain.X, chain.ids, chain.texts, name="half.h5", finish=False)
    sentence = no(acts=acts)
    assert "is incomplete" in sentence
    assert "run the same extract command again" in sentence


def test_labels_that_do_not_fit(no, chain, write_rows):
    records = [{"id": i, "label": int(w)} for i, w in zip(chain.ids, chain.weak_of, strict=True)]
    assert "does not exist" in no(labels=chain.folder / "none.parquet")
    fewer = no(labels=write_rows("fewer.jsonl", records[4:]))
    assert "no label for 4 of 300 rows" in fewer
    assert "'r0', 'r1', 'r2', …" in fewer
    twice = no(labels=write_rows("twice.jsonl", [*records, *records[:2]]))
    assert "2 ids more than once (ids 'r0', 'r1')" in twice
    other = [{**r, "text_hash": "0" * 16} for r in records[:5]] + records[5:]
    differ = no(labels=write_rows("other.jsonl", other))
    assert "another text than" in differ
    assert "5 of 300 rows (ids 'r0', 'r1', 'r2', …)" in differ
    one = no(labels=write_rows("one.jsonl", [{**r, "label": 1} for r in records]))
    assert "one class only" in one


def test_labels_of_other_rows_are_left_out_and_told(run, chain, write_rows):
    records = [{"id": i, "label": int(w)} for i, w in zip(chain.ids, chain.weak_of, strict=True)]
    chain.weak = write_rows("more.jsonl", [*records, {"id": "x", "label": 1}])
    result = run().stderr
    assert "1 label for an id that is not in" in result
    assert "(id 'x'); it is left out" in result


@pytest.mark.parametrize("value", [1.2, -0.1, float("inf")])
def test_probabilities_that_are_none(no, chain, write_rows, value):
    records = [{"id": i, "prob": 0.4} for i in chain.ids]
    records[5]["prob"] = records[9]["prob"] = value
    sentence = no(labels=write_rows("p.jsonl", records))
    assert "2 rows whose 'prob' is not a probability" in sentence
    assert "(ids 'r5', 'r9'); allowed is" in sentence


def test_states_that_are_not_finite(no, chain, make_acts):
    chain.X[[4, 8], 1] = np.nan
    acts = make_acts(chain.X, chain.ids, chain.texts, name="nan.h5")
    sentence = no(acts=acts)
    assert "Layer 6 contains NaN or inf in 2 of 300 rows (first: 'r4', 'r8')" in sentence


def test_layers(no, run, chain, make_acts):
    sentence = no("--layer", "3", code=2)
    assert "has no layer 3; it has 6" in sentence
    acts = make_acts(chain.X, chain.ids, chain.texts, name="two.h5", layers=(2, 6))
    assert "holds the layers 2, 6; choose one with --layer" in no(
        "--probe", "knn", acts=acts, code=2
    )


def test_k_must_leave_a_row_out(no):
    sentence = no("--k", "300", code=1)
    assert "k = 300 is too large" in sentence
    assert "300 rows have 299 others" in sentence


@pytest.mark.parametrize("share", ["0", "1", "-0.2", "1.5", "nan"])
def test_contamination_outside_0_and_1(no, share):
    assert "auto, confident or a number in (0, 1), got" in no("--contamination", share, code=2)


@pytest.mark.parametrize(
    "options", [["--contamination", "0.2"], ["--global"]], ids=["contamination", "global"]
)
def test_contamination_with_a_variant_that_has_none(no, options):
    assert "add --rank (rank=True), or use --variant eleuther" in no(
        "--probe", "topofilter", *options, code=2
    )


def test_cap_with_a_variant_that_has_none(no):
    assert "'paper' has no cap" in no("--probe", "topofilter", "--cap")


@pytest.mark.parametrize(
    ("probe", "option"),
    [
        ("logreg", ["--k", "5"]),
        ("logreg", ["--metric", "cosine"]),
        ("logreg", ["--variant", "paper"]),
        ("knn", ["--l2", "1"]),
        ("knn", ["--folds", "3"]),
        ("knn", ["--cap"]),
        ("knn", ["--zeta", "0.5"]),
        ("topofilter", ["--k", "5"]),
        ("topofilter", ["--weights", "cosine"]),
    ],
)
def test_an_option_that_the_probe_does_not_have(no, probe, option):
    sentence = no("--probe", probe, *option, code=2)
    assert sentence.startswith(f"The probe '{probe}' has no {option[0]}; its options are --")


def test_options_that_exclude_each_other(no):
    assert "not both" in no("--contamination", "0.1", "--threshold", "0.5", code=2)


def test_nothing_is_overwritten(no, run, chain):
    chain.out.write_text("mine")
    sentence = no()
    assert "exists already; pass --overwrite" in sentence
    assert chain.out.read_text() == "mine"
    data = chain.folder / "clean.jsonl"
    data.write_text("mine")
    other = chain.folder / "v.parquet"
    assert "clean.jsonl exists already" in no("--write-data", data, output=other)
    run("--overwrite", "--write-data", data)
    assert Verdicts.load(chain.out).ids == chain.ids
    assert data.read_text() != "mine"


def test_outputs_that_cannot_be_written(no, chain):
    assert "must end in .parquet or .jsonl" in no(output=chain.folder / "v.csv", code=2)
    assert "does not exist" in no(output=chain.folder / "none" / "v.parquet")
    assert "must end in .jsonl" in no("--write-data", chain.folder / "c.csv", code=2)
    assert "named twice" in no(
        "--write-data", chain.folder / "v.jsonl", output=chain.folder / "v.jsonl", code=2
    )
    assert "is read here" in no("--overwrite", output=chain.weak, code=2)
    assert "is read here" in no("--overwrite", "--write-data", chain.rows, "--rows", chain.rows,
                                code=2)  # fmt: skip


def test_a_truth_that_is_not_there_is_told_before_any_work(no, chain):
    assert "none.csv does not exist" in no("--truth", chain.folder / "none.csv")


def test_a_full_disk(no, chain):
    """A file-size limit stands in for it: the write fails, and nothing half-made is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        sentence = no(code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert re.search(r"verdicts\.parquet needs \d.* a file may have 2\.0 kB here", sentence)


def test_ctrl_c(chain, probekit, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("probekit.cleaning.predict.score_rows", interrupt)
    result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert result.exit_code == 130
    assert "Interrupted. No output was changed; the same command begins again." in result.stderr
    assert not chain.out.exists()


def test_sigterm_is_told_like_ctrl_c(chain, probekit, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("probekit.cleaning.predict.score_rows", stop)
    result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert result.exit_code == 143
    assert "Interrupted. No output was changed" in result.stderr


def test_memory_that_does_not_suffice_is_one_sentence(chain, probekit, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("probekit.cleaning.predict.score_rows", fail)
        result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("Error: The memory does not suffice: take")


def test_what_nobody_expected_keeps_its_traceback(chain, probekit, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("probekit.cleaning.predict.score_rows", fail)
    result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert isinstance(result.exception, RuntimeError)


def test_help_has_an_example(probekit):
    text = probekit("filter", "-h").stdout
    assert "probekit filter acts.h5 --labels weak.parquet" in " ".join(text.split())


def test_several_layers_are_read_by_the_ensemble(probekit, chain, make_acts, refused):
    acts = make_acts(chain.X, chain.ids, chain.texts, name="many.h5", layers=(3, 4, 5, 6))
    result = probekit("filter", acts, "--labels", chain.weak, "-o", chain.out)
    assert result.exit_code == 0, result.output
    assert "EnsembleProbe (k 30), layers 3, 4, 5, 6" in result.stdout
    with ActivationStore(acts) as store:
        expected = filter_labels(store, load_labels(chain.weak))
    assert np.array_equal(Verdicts.load(chain.out).probe, expected.probe)
    again = ("filter", acts, "--labels", chain.weak, "-o", chain.out, "--overwrite")
    assert "layers 3, 4, 5, 6" in refused(*again, "--probe", "knn")
    assert "has no --l2" in refused(*again, "--l2", "1")
    assert "has settings for knn" in refused(*again, "--probe", "ensemble", "--preset", "eleuther")


def test_acting_against_the_advice_is_told(run, chain, probekit):
    """The warning is diagnose's line, on stderr and in the JSON, and ends nothing."""
    diagnosed = json.loads(
        probekit("diagnose", chain.acts, "--labels", chain.weak, "--json").stdout
    )
    result = run("--json")
    outcome = json.loads(result.stdout)["advice"]
    assert outcome["action"] == diagnosed["advice"]["action"]
    rng = np.random.default_rng(0)
    chain.weak.write_text(
        "".join(f'{{"id": "{n}", "label": {rng.integers(0, 2)}}}\n' for n in chain.ids)
    )
    random = run("--overwrite", "--json")
    assert "Warning: filter is not advised here: leave the labels alone" in random.stderr
    assert json.loads(random.stdout)["advice"]["warning"].startswith("filter is not advised here")
    assert Verdicts.load(chain.out).keep.sum() < len(chain.ids)


def test_confident_learning_counts_within_classes(no):
    assert "leave out --global" in no("--contamination", "confident", "--global", code=2)


def test_ties_are_told_and_the_preset_goes_by_row_number(run, chain):
    result = run("--probe", "knn", "--json")
    said = json.loads(result.stdout)
    output = Verdicts.load(chain.out)
    assert said["ties"]["rows"] == output.tied > 0
    assert 0 < said["ties"]["taken"] < output.tied
    assert said["disagreement"] == "label"
    again = run("--probe", "knn", "--overwrite").stdout
    assert (
        f"{output.tied:,} rows are equal at the cut; a hash of seed and id decided which" in again
    )
    result = run("--preset", "eleuther", "--overwrite", "--json")
    said = json.loads(result.stdout)
    assert (said["disagreement"], said["ties_by"]) == ("distance", "index")
    outcome = run("--preset", "eleuther", "--disagreement", "label", "--overwrite", "--json")
    assert json.loads(outcome.stdout)["disagreement"] == "label"


def test_verdicts_may_be_a_folder(probekit, refused, chain, monkeypatch):
    """Of Parquet files, with the content of one file; whatever reads a file reads it."""
    monkeypatch.setattr("probekit.output_tables.ROWS_OF_A_FILE", 100)
    command = ("filter", chain.acts, "--labels", chain.weak)
    assert probekit(*command, "-o", chain.out).exit_code == 0
    folder = chain.folder / "verdicts"
    result = probekit(*command, "-o", f"{folder}/")
    assert result.exit_code == 0, result.output
    assert f"300 verdicts written to {folder}" in result.stderr
    assert len(list(folder.iterdir())) == 3
    one, other = Verdicts.load(chain.out), Verdicts.load(folder)
    assert (one.ids, one.classes) == (other.ids, other.classes)
    assert np.array_equal(one.keep, other.keep)
    assert np.array_equal(one.label, other.label)
    assert probekit("report", folder, "--no-text", "-o", chain.folder / "a.html").exit_code == 0
    assert "exists already" in refused(*command, "-o", folder)
    part = folder / "part-00001.parquet"
    inside = refused("filter", chain.acts, "--labels", part, "-o", folder, "--overwrite")
    assert f"{part} lies in {folder}, which would be replaced" in inside
    assert probekit(*command, "-o", folder, "--overwrite").exit_code == 0
    assert "must end in .parquet or .jsonl, or be a folder" in refused(*command, "-o", "a.csv")


def test_a_folder_for_each_of_several_probes(probekit, chain):
    command = ("filter", chain.acts, "--labels", chain.weak, "-o", chain.folder / "verdicts")
    assert probekit(*command, "--probe", "knn,logreg").exit_code == 0
    for name in ("knn", "logreg"):
        assert Verdicts.load(chain.folder / f"verdicts-{name}").provenance["probe"]
