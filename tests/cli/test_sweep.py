from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.evaluate import evaluate
from probekit.cleaning.predict import relabel
from probekit.labels import load_labels
from probekit.probes import KNNProbe

SMALL = ("--k", "1,9", "--l2", "1e-2,1", "--k-cc", "4", "--k-zeta", "9")


@pytest.fixture
def sweep(probekit, chain):
    output = chain.folder / "sweep.parquet"

    def run(*more, code=0):
        result = probekit("sweep", chain.acts, "--labels", chain.weak, "-o", output, *SMALL, *more)
        assert result.exit_code == code, result.output
        return result

    run.output = output
    return run


def metadata(path):
    return json.loads(pq.read_schema(path).metadata[b"probekit"])


def test_rows_table_choice_and_regret(sweep, chain):
    shown = sweep("--truth", chain.truth)
    rows = pq.read_table(sweep.output).to_pylist()
    assert [(row["probe"], row["strength"]) for row in rows] == [
        *(("knn", 1), ("knn", 9), ("logreg", 0.01), ("logreg", 1), ("topofilter", 9)),
    ]
    with ActivationStore(chain.acts) as store:
        made = relabel(store, load_labels(chain.weak), probe=KNNProbe(9))
    result = evaluate(made, chain.truth_of)
    assert rows[1]["auroc"] == pytest.approx(result["probe"]["auroc"], abs=1e-6)
    assert rows[1]["relabelled_soft"] == result["labels"]["after"]
    assert "Choice without ground truth: " in shown.stdout
    assert "regret" in shown.stdout
    assert "[3/3] layer 6 · topofilter · 1 rows" in shown.stderr
    choice = metadata(sweep.output)["choice"]
    assert f"Choice without ground truth: {choice['probe']} on layer 6" in shown.stdout


def test_json_says_the_same_and_nothing_is_left_beside_the_output(sweep, chain):
    result = json.loads(sweep("--truth", chain.truth, "--json").stdout)
    assert result["rows"] == pq.read_table(sweep.output).to_pylist()
    assert result["choice"] == metadata(sweep.output)["choice"]
    assert result["weak_labels"]["accuracy"] == np.mean(chain.weak_of == chain.truth_of)
    assert not list(chain.folder.glob(".sweep*"))


@pytest.mark.parametrize("probe", ["knn", "logreg", "topofilter", "mass-mean", "ensemble"])
def test_the_choice_can_be_filtered_with_as_it_was_swept(probekit, chain, probe, monkeypatch):
    import shlex

    monkeypatch.chdir(chain.folder)
    options = ("--labels", chain.weak, "--truth", chain.truth, "-o", "s.parquet", *SMALL, "--json")
    result = probekit("sweep", chain.acts, *options, "--probes", probe)
    outcome = json.loads(result.stdout)
    command = shlex.split(outcome["next"])
    assert command[:2] == ["probekit", "filter"]
    filtered = probekit(*command[1:], "--truth", chain.truth, "--json")
    assert filtered.exit_code == 0, filtered.output
    after = json.loads(filtered.stdout)["evaluation"]["labels"]["after"]
    choice = outcome["choice"]
    row = next(
        r for r in outcome["rows"] if all(r[n] == choice.get(n) for n in ("k", "l2", "k_zeta"))
    )
    name = "filtered_own" if probe == "topofilter" else "filtered_0.2"
    assert row[name] == pytest.approx(after, abs=1e-12)


def test_without_truth_there_is_a_choice_and_no_regret(sweep, chain):
    seen = json.loads(sweep("--truth", chain.truth, "--json").stdout)
    blind = json.loads(sweep("--json", "--overwrite").stdout)
    assert blind["choice"] == seen["choice"]
    assert blind["regret"] == {}
    assert {row["auroc"] for row in blind["rows"]} == {None}
    assert "regret" not in sweep("--overwrite").stdout


def test_the_recorded_command_makes_the_same_file(sweep, chain, probekit):
    import shlex

    sweep("--truth", chain.truth, "--no-standardize", "--seeds", "2")
    before = sweep.output.read_bytes()
    command = shlex.split(metadata(sweep.output)["command"])
    assert command[:2] == ["probekit", "sweep"]
    assert probekit(*command[1:], "--overwrite").exit_code == 0
    assert sweep.output.read_bytes() == before


def test_killed_and_started_again(sweep, chain, monkeypatch):
    from probekit.experiments import sweep as module

    sweep()
    whole = sweep.output.read_bytes()
    sweep.output.unlink()
    real = module.predictions

    def dies(probe, *more):
        if probe == "topofilter":
            raise KeyboardInterrupt
        return real(probe, *more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "predictions", dies)
        sweep(code=130)  # as any command that Ctrl-C stops
    assert not sweep.output.exists()
    resumed = sweep()
    assert resumed.stderr.count("done before") == 2
    assert sweep.output.read_bytes() == whole
    assert not list(chain.folder.glob(".sweep*"))


def test_jsonl_and_figures(probekit, chain):
    output, figures = chain.folder / "sweep.jsonl", chain.folder / "figures"
    options = ("-o", output, "--figures", figures, "--probes", "knn,logreg", "--json")
    result = probekit("sweep", chain.acts, "--labels", chain.weak, *SMALL, *options)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    outcome = json.loads((chain.folder / "sweep.jsonl.meta.json").read_text(encoding="utf-8"))
    assert outcome["format"] == "probekit-sweep"
    drawn = json.loads(result.stdout)["figures"]
    assert drawn == [str(figures / name) for name in ("strengths.png", "layers.png")]
    assert all((figures / name).read_bytes()[:4] == b"\x89PNG" for name in ("strengths.png",))


def test_grids_that_nobody_asked_for_fit_the_rows(probekit, chain):
    output = chain.folder / "sweep.parquet"
    options = ("--probes", "knn", "-o", output)
    assert probekit("sweep", chain.acts, "--labels", chain.weak, *options).exit_code == 0
    ks = pq.read_table(output).column("k").to_pylist()
    assert ks[0] == 1
    assert 150 < ks[-1] <= 299


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "500:1:log"], ("--k", "empty range")),
        (["--k", "1:500:log"], ("--k", "500", "n = 300", "1 to 299")),
        (["--k", ""], ("--k", "empty")),
        (["--l2", "-1,1"], ("--l2", "holds -1", "0 to 1e+12")),
        (["--l2", "0:1:log"], ("--l2", "log range")),
        (["--layers", "3"], ("--layers", "holds no 3", "holds 6")),
        (["--probes", "svm"], ("svm", "knn")),
        (["--probes", "knn,logerg"], ("did you mean logreg",)),
        (["--k", "٣"], ("--k", "not a number")),
        (["--probes", ","], ("--probes", "some of knn")),
        (["--contaminations", "0.2,1"], ("--contaminations", "excluded")),
        (["--k-zeta", "300"], ("--k-zeta", "1 to 299")),
        (["--zeta", "0.5", "--variant", "eleuther"], ("--zeta", "--contaminations")),
        (["--seeds", "0"], ("--seeds",)),
        (["--seeds", "one"], ("--seeds", "a number of seeds")),
    ],
)
def test_bad_options_are_one_sentence(refused, chain, options, words):
    output = chain.folder / "s.parquet"
    said = refused("sweep", chain.acts, "--labels", chain.weak, "-o", output, *options)
    assert all(word in said for word in words), said
    assert not output.exists()
    assert not list(chain.folder.glob(".s.parquet*"))


def test_bad_files_are_one_sentence(refused, chain, write_rows):
    output = chain.folder / "s.parquet"
    base = ("sweep", chain.acts, "--labels", chain.weak, "-o", output)
    strangers = write_rows("other.jsonl", [{"id": f"x{i}", "label": i % 2} for i in range(300)])
    assert "other.jsonl has no label for any row" in refused(*base, "--truth", strangers)
    names = [{"id": i, "label": "spam"} for i in chain.ids]
    assert "spam" in refused(*base, "--truth", write_rows("spam.jsonl", names))
    short = [{"id": i, "label": 1} for i in chain.ids[:200]]
    assert "100 of 300" in refused(*base, "--truth", write_rows("short.jsonl", short))
    assert "does not exist" in refused(*base, "--truth", chain.folder / "none.jsonl")
    one = write_rows("one.jsonl", [{"id": i, "label": 1} for i in chain.ids])
    assert "one class only" in refused("sweep", chain.acts, "--labels", one, "-o", output)
    assert ".parquet or .jsonl" in refused(*base[:-1], chain.folder / "s.csv")
    assert "is read here" in refused(*base[:-1], chain.weak, "--overwrite")
    output.write_text("x", encoding="utf-8")
    assert "--overwrite" in refused(*base)
    assert "is a file" in refused(*base, "--overwrite", "--figures", chain.weak)


def test_pairs_are_seen_both_ways_round(probekit, tmp_path, write_rows):
    """On differences x and −x say the same: a probe that knew which stands first would not."""
    from probekit.activations.create import Plan
    from probekit.activations.spec import DIFFERENCE
    from probekit.activations.writer import StoreWriter
    from probekit.data import text_hash
    from probekit.probes import LogisticProbe

    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 120)
    X = rng.normal(size=(120, 5)).astype(np.float32)
    X[:, 0] += 3 * (truth - 0.5)
    ids = [f"p{i}" for i in range(120)]
    with StoreWriter.open(
        tmp_path / "pairs.h5",
        Plan(
            spec={"model": "blobs", **DIFFERENCE},
            ids=ids,
            hashes=[text_hash(i) for i in ids],
            widths={2: 5},
            store_dtype="float32",
            source="x",
        ),
    ) as writer:
        writer.write(np.arange(120), {2: X}, np.ones(120, np.int32), np.zeros(120, bool))
        writer.finish()
    weak = np.where(rng.random(120) < 0.2, 1 - truth, truth)
    labels = write_rows(
        "w.jsonl", [{"id": i, "label": int(w)} for i, w in zip(ids, weak, strict=True)]
    )
    right = write_rows(
        "t.jsonl", [{"id": i, "label": int(t)} for i, t in zip(ids, truth, strict=True)]
    )
    out = tmp_path / "s.parquet"
    options = ("--labels", labels, "--truth", right, "-o", out, *SMALL)
    result = probekit("sweep", tmp_path / "pairs.h5", *options)
    assert result.exit_code == 0, result.output
    rows = pq.read_table(out).to_pylist()
    for row, probe in zip(
        rows,
        [KNNProbe(1), KNNProbe(9), *(LogisticProbe(l2, fit_intercept=False) for l2 in (0.01, 1))],
        strict=False,
    ):
        with ActivationStore(tmp_path / "pairs.h5") as store:
            made = relabel(store, load_labels(labels), probe=probe)
        outcome = evaluate(made, truth)
        # 59 x 61 pairs of rows: a path of penalties may decide one of them otherwise.
        assert row["auroc"] == pytest.approx(outcome["probe"]["auroc"], abs=5e-4)
        assert row["relabelled_soft"] == outcome["labels"]["after"]
