"""``probekit demo``: two runs of the preset, what they leave behind, and what they leave alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from probekit.cli.demo import _outcome as outcome
from probekit.cli.main import cli
from probekit.experiments.presets import demo
from probekit.experiments.presets.demo import KEYWORDS, demo_configs
from probekit.experiments.run import Run
from probekit.labels import load_labels
from probekit.tables import read_file
from probekit.tasks import get_task

SIZES = ("--student-rows", "160", "--test-rows", "200")
RUNS = ("bag-of-words", "keywords")
WORDS = (*KEYWORDS, "comput", "function", "method", "parameter", "given")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, arguments)])


class Ran:
    """One run of the demo with a tiny model."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.result = run("-o", folder, "--model", model, *SIZES)
        self.stored = {
            name: json.loads((folder / name / "metrics.json").read_text()) for name in RUNS
        }
        # The states of a tiny model may leave students that give one class; nothing else is wrong.
        failures = [each for stored in self.stored.values() for each in stored["failures"]]
        assert all(": collapsed: " in each for each in failures)
        self.code = int(bool(failures))
        assert self.result.exit_code == self.code, self.result.output

    def arms(self, name: str) -> dict[str, dict[str, Any]]:
        return {arm["name"]: arm for arm in self.stored[name]["results"][0]["arms"]}


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], one_thread: None
) -> Iterator[Ran]:
    # A tiny model tells nothing apart; more words, that is more labels of class 1, keep its
    # students from giving one class.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "KEYWORDS", WORDS)
        # A blank and a quote in the path: the script has to carry them.
        folder = tmp_path_factory.mktemp("demo") / "it's here"
        yield Ran(folder, str(tiny_model("bert")))


def truth_of(part: str) -> dict[str, int]:
    rows = get_task("docstrings").rows(part)
    return dict(zip(rows.columns["id"], rows.columns["label"], strict=True))


def test_every_file_is_there_and_no_others(ran: Ran) -> None:
    paths = {str(p.relative_to(ran.folder)) for p in ran.folder.rglob("*") if p.is_file()}
    mine = {name for name in paths if not name.startswith("steps/")}
    assert {name.partition("/")[0] for name in mine} == {"commands.sh", "keywords.jsonl", *RUNS}
    for name in RUNS:
        files = {each for each in mine if each.startswith(f"{name}/")}
        predictions = {each for each in files if each.startswith(f"{name}/predictions/")}
        expected = (
            "config.yaml",
            "metrics.json",
            "table.md",
            "report.html",
            "arms-1.png",
            "arms-2.png",
        )
        assert files - predictions == {f"{name}/{each}" for each in expected}
        assert len([each for each in predictions if "/filter-kNN.parquet" in each]) == 2
        assert (ran.folder / name / "arms-1.png").read_bytes().startswith(b"\x89PNG")
        assert "data:image/png" in (ran.folder / name / "report.html").read_text()


def test_one_short_table_on_stdout_and_the_commands_on_stderr(ran: Ran) -> None:
    table = ran.result.stdout.splitlines()
    header = re.split(r"\s{2,}", table[0])
    assert header == ["what", "labels right", "student right", "PGR [95 %]", "gain"]
    rows = table[2 : table.index("")]
    assert len(rows) == 8
    shown = [re.split(r"\s{2,}", row)[:3] for row in rows]
    arms = {name: ran.arms(name) for name in RUNS}
    drop = next(name for name in arms["bag-of-words"] if name.startswith("random as kNN"))
    expected = [
        *(("bag-of-words", name) for name in ("weak labels", drop, "filter kNN", "relabel kNN")),
        *(("keywords", name) for name in ("weak labels", "filter kNN", "relabel kNN")),
        ("bag-of-words", "ground truth"),
    ]
    for (_, labels, student), (name, arm) in zip(shown, expected, strict=True):
        assert labels == f"{100 * arms[name][arm]['label_accuracy']:.1f}"
        assert student == f"{100 * arms[name][arm]['accuracy']:.1f}"
    commands = [line for line in ran.result.stderr.splitlines() if line.startswith("$ ")]
    assert [line.split(" -o ")[1] for line in commands] == list(RUNS)
    assert "commands.sh in" in ran.result.stderr
    # What to do with one's own rows, and where everything else stands.
    assert ran.result.stdout.count("\n  probekit ") == 3
    assert f"{ran.folder}/bag-of-words/report.html" in ran.result.stdout


def test_the_advice_is_compared_with_what_was_better(ran: Ran) -> None:
    lines = ran.result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("advice on labels of"))
    shown = [re.split(r"\s{2,}", line) for line in lines[start + 2 : start + 4]]
    assert [name for name, *_ in shown] == ["bag of words", "keywords"]
    for name, (_, diagnose, audit, better, named) in zip(RUNS, shown, strict=True):
        gains = {
            action: ran.arms(name)[f"{action} kNN"]["accuracy"]
            - ran.arms(name)["weak labels"]["accuracy"]
            for action in ("filter", "relabel")
        }
        best = max(gains, key=gains.__getitem__)
        best = best if gains[best] > 0 else "leave"
        assert better.split(",")[0] == best
        right = [each.split(" ")[0] == best for each in (diagnose, audit)]
        words = {(True, True): "both", (True, False): "diagnose", (False, True): "audit"}
        assert named == words.get((right[0], right[1]), "neither")


@pytest.mark.parametrize(
    ("named", "gains", "shown"),
    [
        (("filter", "relabel"), (5.7, -0.4), ("filter, by 6.1 points", "diagnose")),
        (("relabel", "relabel"), (1.9, 2.9), ("relabel, by 1.0 points", "both")),
        (("leave", "filter"), (-1.0, -2.0), ("leave", "diagnose")),
        (("filter", None), (1.0, 2.0), ("relabel, by 1.0 points", "neither")),
    ],
)
def test_whose_advice_was_right(
    named: tuple[str, str | None], gains: tuple[float, float], shown: tuple[str, str]
) -> None:
    best = "leave" if max(gains) <= 0 else ("filter", "relabel")[int(gains[1] > gains[0])]
    each = {
        "diagnose": named[0],
        "audit": named[1],
        "gains": dict(zip(("filter", "relabel"), gains, strict=True)),
        "best": best,
    }
    assert outcome(each) == shown


def test_the_advice_reads_no_test_row(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its audit is given the true labels of at most 20 training rows and of no others."""
    asked: list[str] = []
    audit = demo.audit

    def spy(store: Any, labels: Any, answers: dict[str, str], **how: Any) -> Any:
        asked.extend(answers)
        return audit(store, labels, answers, **how)

    monkeypatch.setattr(demo, "audit", spy)
    monkeypatch.chdir(ran.folder)
    runs = demo_configs(ran.model, student_rows=160, test_rows=200)
    run_ = Run(runs["keywords"], Path("steps"), lambda _: None)
    advice = demo.demo_advice(run_, ran.stored["keywords"], "kNN")
    assert advice["error"] is None
    assert 0 < len(asked) <= demo.AUDITED
    assert set(asked) <= set(truth_of("student")) - set(truth_of("test"))


def test_the_table_of_the_run_is_in_its_folder(ran: Ran) -> None:
    page = (ran.folder / "bag-of-words" / "table.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in page if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    arms = ran.stored["bag-of-words"]["results"][0]["arms"]
    for arm, row in zip(arms, cells, strict=False):
        assert row[0].startswith(arm["name"])
        assert row[3] == f"{100 * arm['accuracy']:.1f}"


def test_the_supervisors_are_words(ran: Ran) -> None:
    assert yaml.safe_load((ran.folder / "bag-of-words/config.yaml").read_text())["weak"] == [
        "bag-of-words"
    ]
    columns = read_file(ran.folder / "keywords.jsonl").columns
    assert set(columns) == {"id", "text", "label"}
    truth = truth_of("student") | truth_of("test")
    assert list(columns["id"]) == list(truth)
    for text, label in zip(columns["text"], columns["label"], strict=True):
        assert label == any(word in text.lower() for word in WORDS)
    # The control: they are not the truth, which is of both classes.
    right = np.mean([truth[i] == y for i, y in zip(columns["id"], columns["label"], strict=True)])
    assert 0.55 < right < 0.9
    assert len(KEYWORDS) == 10
    assert 0.3 < np.mean(list(truth.values())) < 0.7
    steps = [json.loads(path.read_text()) for path in ran.folder.glob("steps/*/step.json")]
    assert "finetune" not in {step["kind"] for step in steps}
    assert {step["params"]["layer"] for step in steps if step["kind"] == "states"} == {"last"}
    # Rows and states are shared by the two runs.
    assert len([step for step in steps if step["kind"] == "states"]) == 2


def test_the_figures_follow_from_the_files(ran: Ran) -> None:
    truth, arms = truth_of("test"), ran.arms("bag-of-words")
    (folder,) = (ran.folder / "bag-of-words/predictions").glob("*-linear/seed0")
    names = {"weak-supervisor": "weak supervisor", "filter-kNN": "filter kNN"}
    for file, name in {**names, "ground-truth": "ground truth"}.items():
        predicted = load_labels(folder / f"{file}.parquet", one_class=True)
        right = [truth[i] == c for i, c in zip(predicted.ids, predicted.hard, strict=True)]
        assert len(right) == 200
        assert arms[name]["accuracy"] == pytest.approx(np.mean(right))
    labels = read_file(ran.folder / "keywords.jsonl").columns
    given = dict(zip(labels["id"], labels["label"], strict=True))
    test = load_labels(folder / "filter-kNN.parquet", one_class=True).ids
    floor = ran.arms("keywords")["weak supervisor"]["accuracy"]
    assert floor == np.mean([given[name] == truth[name] for name in test])


@pytest.mark.parametrize("name", RUNS)
def test_every_filter_has_a_random_drop_of_its_size(ran: Ran, name: str) -> None:
    arms = list(ran.arms(name).values())
    drops = {arm["name"].removeprefix("random as "): arm for arm in arms if arm["kind"] == "random"}
    assert "kNN, logistic" in drops or {"kNN", "logistic"} <= set(drops)
    filters = [arm for arm in arms if arm["kind"] == "filter"]
    assert len(filters) == 3
    for arm in filters:
        probe = arm["name"].removeprefix("filter ")
        matching = [drop for names, drop in drops.items() if probe in names.split(", ")]
        assert [drop["rows"] for drop in matching] == [arm["rows"]]
        assert [drop["draws"] for drop in matching] == [3]


def test_results_say_with_what_they_were_made(ran: Ran) -> None:
    for results in ran.stored.values():
        assert {"probekit", "torch", "transformers", "python"} <= set(results["versions"])
        assert sum(results["results"][0]["seconds"].values()) > 0
        rows = results["results"][0]["rows"]
        assert (rows["student"], rows["test"]) == (160, 200)
        assert [result["student"] for result in results["results"]] == ["linear", "memorising"]


@pytest.mark.slow
def test_the_script_repeats_the_runs(ran: Ran, tmp_path: Path) -> None:
    """Bash itself reads the script; a stand-in for Python writes down what it is handed."""
    recorder = tmp_path / "recorder"
    recorder.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "log = pathlib.Path(__file__).with_name('log')\n"
        "with log.open('a') as file: file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    recorder.chmod(0o755)
    script = ran.folder / "commands.sh"
    environment = {**os.environ, "PYTHON": str(recorder)}
    subprocess.run(["bash", script], cwd=tmp_path, env=environment, check=True)
    typed = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all(words[:3] == ["-m", "probekit", "run"] for words in typed)
    shown = [line for line in ran.result.stderr.splitlines() if line.startswith("$ ")]
    for words, line in zip(typed, shown, strict=True):
        assert words[2:] == shlex.split(line.replace('"$MODEL"', shlex.quote(ran.model)))[2:]
    # Elsewhere, beside a copy of the labels, the commands make the same results.
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(ran.folder / "keywords.jsonl", fresh)
    monkey = pytest.MonkeyPatch()
    monkey.chdir(fresh)
    try:
        for words in typed:
            done = CliRunner().invoke(cli, words[2:])
            assert done.exit_code <= ran.code, done.output
    finally:
        monkey.undo()
    for name in RUNS:
        again = json.loads((fresh / name / "metrics.json").read_text())
        assert again["groups"] == ran.stored[name]["groups"]
        assert again["config"] == ran.stored[name]["config"]


def test_again_it_resumes_and_prints_the_same(ran: Ran) -> None:
    done = {path: path.stat().st_mtime_ns for path in ran.folder.glob("steps/*/done.json")}
    again = run("-o", ran.folder, "-m", ran.model, *SIZES, "--json")
    assert again.exit_code == ran.code, again.output
    assert json.loads(again.stdout)["runs"] == ran.stored
    assert {p: p.stat().st_mtime_ns for p in ran.folder.glob("steps/*/done.json")} == done


@pytest.mark.slow
def test_another_demo_is_replaced_only_if_asked_for(ran: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran.folder, folder)
    (folder / "keywords" / "mine.txt").write_text("mine")
    other = ("-o", folder, "-m", ran.model, *SIZES[:3], "150")
    refused = run(*other)
    assert refused.exit_code == 1
    assert "has a demo of other options; pass --overwrite" in refused.stderr
    assert json.loads((folder / "keywords/metrics.json").read_text()) == ran.stored["keywords"]
    assert "has a demo of other options" not in run(*other, "--overwrite").stderr
    output = json.loads((folder / "keywords/metrics.json").read_text())
    assert output["results"][0]["rows"]["test"] == 150
    assert (folder / "keywords" / "mine.txt").read_text() == "mine"
    assert "--test-rows 150" in (folder / "commands.sh").read_text()


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_other_folders_are_refused_and_foreign_files_stay(
    ran: Ran, tmp_path: Path, overwrite: tuple[str, ...]
) -> None:
    def refused(folder: Path) -> str:
        result = run("-o", folder, "-m", ran.model, *SIZES, *overwrite)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1
        return result.stderr

    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty and not of `probekit demo`" in refused(tmp_path)
    assert "is a file; name a folder" in refused(tmp_path / "mine.txt")
    assert "of the output x does not exist" in refused(tmp_path / "no" / "x")
    # The folder of a run is not that of a demo.
    shutil.copytree(ran.folder / "keywords", tmp_path / "run")
    assert "is not empty and not of `probekit demo`" in refused(tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["mine.txt", "run"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    output = json.loads((tmp_path / "run/metrics.json").read_text())
    assert output == ran.stored["keywords"]


def test_a_missing_wheel_and_a_missing_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = run("-o", tmp_path / "new", "--strong", tmp_path / "no-model")
    assert refused.exit_code == 1
    assert "no-model" in refused.stderr
    assert "Traceback" not in refused.stderr
    monkeypatch.setattr("probekit.extras.find_spec", lambda _: None)
    refused = run("-o", tmp_path / "new")
    assert refused.exit_code == 1
    assert "`pip install 'probekit-w2s[demo]'` installs it" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert run("--student-rows", "3").exit_code == 2


def test_the_preset_is_what_the_pages_say() -> None:
    configs = demo_configs("m")
    assert list(configs) == list(RUNS)
    first, second = configs.values()
    assert first.differences(second) == ["weak", "weak_labels"]
    assert (first.supervisor_rows, first.student_rows, first.test_rows) == (500, 2000, 2000)
    assert first.probes == ("knn", "logreg", "topofilter")
    assert first.actions == ("filter", "relabel")
