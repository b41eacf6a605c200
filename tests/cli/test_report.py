from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from probekit.errors import DataError
from probekit.verdicts import Verdicts


@pytest.fixture
def verdicts(probekit, chain):
    result = probekit("filter", chain.acts, "--labels", chain.weak, "-o", chain.out)
    assert result.exit_code == 0, result.output
    return chain.out


@pytest.fixture
def report(probekit, chain):
    path = chain.folder / "report.html"

    def start(*arguments):
        result = probekit("report", *arguments, "-o", path, "--overwrite")
        assert result.exit_code == 0, result.output
        html = path.read_text(encoding="utf-8")
        output = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
        return html, None if output is None else json.loads(output[1]), result

    return start


def test_verdicts_with_all_that_is_known_of_their_rows(report, chain, verdicts):
    html, data, result = report(verdicts, "--truth", chain.truth)
    loaded = Verdicts.load(verdicts)
    rows = data["rows"]
    order = np.array([chain.ids.index(name) for name in rows["id"]])
    assert data["listed"] == data["total"] == len(set(order)) == 300
    assert (np.diff(loaded.disagreement[order]) <= 0).all()  # ties stand in an order of their own
    assert rows["text"] == [chain.texts[i] for i in order]
    assert rows["truth"] == chain.truth_of[order].tolist()
    assert data["near"]["k"] == 8  # the store lies beside them and has the fingerprint they name
    assert len(data["map"]["x"]) == 300
    assert "of layer 6" in html
    assert "Against the truth" in html
    assert "open it in a browser" in result.stderr


def test_options_reach_the_page(report, chain, verdicts):
    _, data, _ = report(verdicts, "--neighbors", "3", "--limit", "10", "--no-text")
    assert (data["listed"], data["total"], data["near"]["k"]) == (10, 300, 3)
    assert data["rows"]["text"] is None
    assert 10 < len(data["rows"]["id"]) <= 40
    result = json.loads(report(verdicts, "--json")[2].stdout)
    assert (result["of"], result["rows"]) == ("verdicts", 300)


def test_rows_without_a_store(report, chain, verdicts):
    chain.acts.unlink()
    html, data, _ = report(verdicts, "--rows", chain.rows)
    assert data["rows"]["text"][0] in chain.texts
    assert data["near"] is data["map"] is None
    assert "Nearest rows and a map need stored states" in html


@pytest.mark.parametrize(
    "arguments",
    [
        ["filter", "--k", "7", "--metric", "euclidean", "--contamination", "0.3"],
        ["filter", "--probe", "logreg", "--l2", "0.1", "--folds", "3", "--seed", "4", "--global"],
        ["filter", "--probe", "logreg", "--no-intercept", "--threshold", "0.6"],
        ["filter", "--probe", "topofilter", "--k-cc", "6", "--rank", "--contamination", "0.3"],
        ["filter", "--probe", "topofilter", "--variant", "eleuther", "--cap", "--global"],
        ["filter", "--probe", "mass-mean", "--contamination", "auto"],
        ["filter", "--preset", "eleuther"],
        ["filter", "--probe", "logreg", "--preset", "eleuther"],
        ["filter", "--in-sample", "--weights", "cosine"],
        ["relabel", "--blend", "0.4", "--only-above", "0.2"],
        ["relabel", "--hard"],
        ["relabel", "--threshold", "0.7", "--probe", "logreg"],
        ["relabel", "--preset", "eleuther"],
    ],
    ids=" ".join,
)
def test_the_replay_command_makes_the_same_verdicts(
    probekit, report, chain, arguments, monkeypatch
):
    action, *rest = arguments
    first = probekit(action, chain.acts, "--labels", chain.weak, "-o", chain.out, *rest)
    assert first.exit_code == 0, first.output
    html, _, _ = report(chain.out)
    command = re.search(r'<pre class="command".*?><code>(.*?)</code>', html)[1]
    before = Verdicts.load(chain.out)
    chain.out.unlink()
    monkeypatch.chdir(chain.folder)
    name, *words = shlex.split(command)
    assert name == "probekit"
    assert words[0] == action
    again = probekit(*words)
    assert again.exit_code == 0, again.output
    after = Verdicts.load(chain.out)
    assert after.provenance == before.provenance
    for matrix in ("label", "probe", "keep"):
        assert np.array_equal(getattr(after, matrix), getattr(before, matrix)), matrix


def test_several_layers_are_replayed_by_the_ensemble(
    probekit, report, chain, make_acts, monkeypatch
):
    acts = make_acts(chain.X, chain.ids, chain.texts, name="two.h5", layers=(5, 6))
    first = probekit("filter", acts, "--labels", chain.weak, "-o", chain.out)
    assert first.exit_code == 0, first.output
    html, data, _ = report(chain.out)
    assert data["near"] is not None
    command = re.search(r'<pre class="command".*?><code>(.*?)</code>', html)[1]
    assert "--layer" not in command
    before = Verdicts.load(chain.out)
    assert before.provenance["probe"]["name"] == "EnsembleProbe"
    chain.out.unlink()
    monkeypatch.chdir(chain.folder)
    assert probekit(*shlex.split(command)[1:]).exit_code == 0
    assert np.array_equal(Verdicts.load(chain.out).keep, before.keep)
    layer = report(chain.out, "--layer", "5")[0]
    assert "of layer 5" in layer


def test_verdicts_without_a_command_of_their_own_show_none(probekit, report, chain, verdicts):
    html, _, _ = report(verdicts)
    assert f"probekit filter {chain.acts} --labels {chain.weak} -o {chain.out}" in html
    made = Verdicts.load(verdicts)
    old = {key: value for key, value in made.provenance.items() if key != "command"}
    for provenance in (old, {**made.provenance, "command": "rm -rf ~"}):
        replace(made, provenance=provenance).save(verdicts)
        assert 'class="command"' not in report(verdicts)[0]
    review = chain.folder / "review.csv"
    made.save(verdicts)
    assert probekit("review", verdicts, "-n", "5", "-o", review).exit_code == 0
    merged = chain.folder / "merged.parquet"
    assert probekit("review", verdicts, "--merge", review, "-o", merged).exit_code == 0
    assert 'class="command"' not in report(merged)[0]


def test_classes_are_recorded_as_they_are_typed(probekit, report, chain):
    typed = ("filter", chain.acts, "--labels", chain.weak, "--classes", "0,1", "-o", chain.out)
    assert probekit(*typed).exit_code == 0
    assert "--classes 0,1" in report(chain.out)[0]


def test_a_sweep(probekit, report, refused, chain):
    path = chain.folder / "sweep.parquet"
    result = probekit(
        *("sweep", chain.acts, "--labels", chain.weak, "--truth", chain.truth),
        *("--probes", "knn", "--k", "5,10,20", "-o", path),
    )
    assert result.exit_code == 0, result.output
    html, data, _ = report(path)
    assert data is None
    assert html.count("data:image/png") == 2
    assert "Choice without ground truth: knn" in html
    assert "Every strength (3)" in html
    assert "probekit sweep" in html
    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[b"probekit"])
    del known["choice"]
    pq.write_table(table.replace_schema_metadata({"probekit": json.dumps(known)}), path)
    sentence = refused("report", path, "-o", chain.folder / "p.html")
    assert "is damaged: metadata.choice is missing" in sentence
    bare = chain.folder / "bare.parquet"
    result = probekit(
        *("sweep", chain.acts, "--labels", chain.weak, "--probes", "mass-mean", "-o", bare)
    )
    assert result.exit_code == 0, result.output
    assert "data:image/png" not in report(bare)[0]


def test_what_cannot_be_shown_gets_one_sentence(refused, chain, verdicts):
    folder = chain.folder
    page = ("-o", folder / "p.html")
    no = folder / "nothing"
    assert "does not exist" in refused("report", no, *page)
    (folder / "empty").mkdir()
    assert "is not a run: it has no metrics.json" in refused("report", folder / "empty", *page)
    (folder / "empty/metrics.json").write_text("{}", encoding="utf-8")
    assert "holds no results of `probekit run`" in refused("report", folder / "empty", *page)
    (folder / "empty/metrics.json").write_text("[{", encoding="utf-8")
    assert "metrics.json: not JSON" in refused("report", folder / "empty", *page)
    assert "has no verdicts" in refused("report", chain.weak, *page)
    assert "must end in .html" in refused("report", verdicts, "-o", folder / "p.txt")
    assert "exists already" in refused("report", verdicts, "-o", chain.rows)
    assert "--arm cannot be used for verdicts" in refused("report", verdicts, "--arm", "x", *page)
    for given in (("--truth", chain.truth), ("--layer", "0"), ("--no-text",)):
        sentence = refused("report", folder / "empty", *given, *page)
        assert f"{given[0]} cannot be used for a folder" in sentence
    assert not (folder / "p.html").exists()


def test_truth_and_rows_of_others_are_refused(refused, chain, verdicts, write_rows):
    page = ("-o", chain.folder / "p.html")
    other = write_rows("other.jsonl", [{"id": f"x{i}", "label": 1} for i in range(300)])
    assert "no label for any row" in refused("report", verdicts, "--truth", other, *page)
    part = write_rows("part.jsonl", [{"id": i, "label": 1} for i in chain.ids[:200]])
    assert "no label for 100 of 300 rows" in refused("report", verdicts, "--truth", part, *page)
    texts = write_rows("texts.jsonl", [{"id": i, "text": f"another {i}"} for i in chain.ids])
    assert "another text" in refused("report", verdicts, "--rows", texts, *page)
    assert not (chain.folder / "p.html").exists()


def test_states_of_others_are_refused(refused, chain, verdicts, make_acts):
    page = ("-o", chain.folder / "p.html", "--no-text")
    strange = make_acts(chain.X, [f"x{i}" for i in range(300)], chain.texts, name="x.h5")
    assert "lacks 300 of 300 rows" in refused("report", verdicts, "--acts", strange, *page)
    texts = [f"other {t}" for t in chain.texts]
    changed = make_acts(chain.X, chain.ids, texts, name="y.h5")
    assert "another text" in refused("report", verdicts, "--acts", changed, *page)
    assert "5" in refused("report", verdicts, "--acts", chain.acts, "--layer", "5", *page)


def test_verdicts_without_texts_say_how_to_repair(report, refused, chain, verdicts):
    chain.rows.unlink()
    page = ("-o", chain.folder / "p.html")
    assert "--rows" in refused("report", verdicts, *page)
    chain.acts.unlink()
    sentence = refused("report", verdicts, *page)
    for way in ("--rows", "--acts", "--no-text"):
        assert way in sentence
    assert "--layer" in refused("report", verdicts, "--layer", "6", "--no-text", *page)
    assert report(verdicts, "--no-text")[1]["rows"]["text"] is None


def test_another_store_of_the_name_is_not_taken(report, chain, verdicts, make_acts):
    chain.acts.unlink()
    make_acts(chain.X + 1, chain.ids, chain.texts[::-1])
    _, data, _ = report(verdicts, "--rows", chain.rows)
    assert data["near"] is None


def test_the_report_of_a_run(probekit, chain, write_rows, tiny_model, monkeypatch):
    truth = dict(zip(chain.ids, chain.truth_of.tolist(), strict=True))
    words = ("the heron stood in the reeds", "nobody at the harbour had seen the boat")
    task = write_rows(
        "task.jsonl",
        [
            {"id": name, "text": f"{words[truth[name]]} {i}", "label": truth[name]}
            for i, name in enumerate(chain.ids[:120])
        ],
    )
    folder = chain.folder / "runs/first"
    folder.parent.mkdir()
    model = tiny_model("bert")
    command = [
        *("run", "--task", task, "--weak", model, "--strong", model, "-o", folder),
        *("--losses", "xent", "--probes", "knn", "--actions", "filter", "--epochs", "4"),
        *("--set", "probe_options.knn.k=5", "--set", "random_drops=0"),
        *("--set", "validation_share=0.25", "--set", "finetune.lr=0.003"),
        *("--set", "finetune.batch_size=4"),
    ]
    result = probekit(*command)
    assert result.exit_code == 0, result.output
    path = folder / "report.html"
    html = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    assert "Rows: filter kNN" in html
    assert html.count("data:image/png") == 1
    assert "probekit run --config first/config.yaml" in html
    assert data["rows"]["text"][0].startswith(words)
    assert data["near"]["k"] == 8
    # A truth that the run kept from its students is shown to people.
    by_id = dict(zip(data["rows"]["id"], data["rows"]["truth"], strict=True))
    assert all(truth[name] == output for name, output in by_id.items())
    # Again, from the folder alone.
    again = probekit("report", folder)
    assert again.exit_code == 0, again.output
    assert path.read_text(encoding="utf-8") == html

    # Whatever ails the rows, a run ends with its tables.
    def ill(_):
        raise DataError("The rows are ill.")

    monkeypatch.setattr("probekit.reports.rows.run_rows", ill)
    without = probekit(*command)
    assert without.exit_code == 0, without.output
    assert "has no rows: The rows are ill." in without.stderr
    assert 'id="data"' not in path.read_text(encoding="utf-8")
    monkeypatch.undo()
    wrong = probekit("report", folder, "--arm", "filter logistic")
    assert wrong.exit_code == 2
    assert "it has filter kNN" in wrong.stderr
    shutil.rmtree(folder.parent / "steps")
    bare = probekit("report", folder)
    assert bare.exit_code == 0
    assert "Note: the page has no rows" in bare.stderr
    assert 'id="data"' not in path.read_text(encoding="utf-8")
