"""``probekit run`` as it is typed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from probekit.cli.main import cli

pytestmark = pytest.mark.usefixtures("one_thread")

Files = Callable[..., Path]


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, words)])


@pytest.fixture
def words(write_jsonl: Files, tiny_model: Callable[..., Path], tmp_path: Path) -> list[Any]:
    rows = write_jsonl(
        [
            {"text": f"{('cat', 'hammer')[i % 2]} {i}", "label": i % 2 if i % 7 else 1 - i % 2}
            for i in range(200)
        ]
    )
    model = tiny_model("bert")
    fast = ["--epochs", "4", "--weak-lr", "5e-3", "--strong-lr", "5e-3"]
    small = ["--set", "finetune.batch_size=16", "--set", "finetune.device=cpu"]
    small += ["--set", "validation_share=0.2"]
    return ["--task", rows, "--weak", f"{model}@layers=1", "--strong", model, *fast, *small]


def test_from_flags_to_a_table_that_replays(words: list[Any], tmp_path: Path) -> None:
    options = ["--probes", "knn", "--actions", "filter", "--losses", "xent,kl", "--layer", "last"]
    result = run(*words, *options, "--seeds", "2", "-o", tmp_path / "runs" / "a")
    folder = tmp_path / "runs" / "a"
    failures = json.loads((folder / "metrics.json").read_text())["failures"]
    # So little training may leave students that give one class; nothing else is wrong.
    assert result.exit_code == bool(failures), result.output
    assert all(": collapsed: " in failure for failure in failures)
    assert "filter kNN" in result.stdout
    assert "Medians of 2 seeds" in result.stdout
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["losses"] == ["xent", "kl"]
    assert config["seeds"] == [0, 1]
    assert config["finetune"] == {"epochs": 4.0, "batch_size": 16, "device": "cpu"}
    # The file alone makes the same run, from the steps that lie beside it.
    again = run("--config", folder / "config.yaml", "-o", tmp_path / "runs" / "b", "--json")
    assert again.exit_code == result.exit_code, again.output
    quiet = run("--config", folder / "config.yaml", "-o", folder, "--quiet")
    assert not any(line.startswith("[") for line in quiet.stderr.splitlines())
    assert "filter kNN" in quiet.stdout
    lines = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert lines
    assert all("done before" in line for line in lines)
    first = json.loads((folder / "metrics.json").read_text())
    assert json.loads(again.stdout)["groups"] == first["groups"]


def test_linear_students_of_a_file_of_labels(
    words: list[Any], write_jsonl: Files, tmp_path: Path
) -> None:
    """The flags overrule each other's field in a file: a file of labels, then a supervisor."""
    labels = write_jsonl(
        [{"id": str(i), "label": i % 2 if i % 3 else 0} for i in range(200)], "w.jsonl"
    )
    options = ["--task", words[1], "--strong", words[5], "--student", "linear"]
    options += ["--probes", "knn", "--actions", "filter", "--set", "probe_options.knn.k=5"]
    folder = tmp_path / "runs" / "a"
    result = run(*options, "--weak-labels", labels, "-o", folder)
    assert "w.jsonl → " in result.stdout, result.output
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["weak"], config["student"]) == ([], ["linear"])
    assert config["weak_labels"] == str(labels)
    replaced = ["--config", folder / "config.yaml", "--weak", "bag-of-words"]
    result = run(*replaced, "-o", tmp_path / "runs" / "b", "--json")
    output = json.loads(result.stdout)["config"]
    assert (output["weak"], output["weak_labels"]) == (["bag-of-words"], None)
    both = run(*options, "--weak-labels", labels, "--weak", "bag-of-words", "-o", tmp_path / "c")
    assert both.exit_code == 2
    assert "weak and weak_labels both give the weak labels" in both.stderr
    # The control: what was said of the file's rows alone leaves its labels in place.
    result = run("--config", folder / "config.yaml", "--dry-run", "-o", folder)
    assert result.exit_code == 0, result.output


def test_groups_go_to_one_part(words: list[Any], write_jsonl: Files, tmp_path: Path) -> None:
    """Each text stands in one line, so that without the column it is a row like any other."""
    rows = [
        {"text": f"{'cat' if i % 2 else 'hammer'} {i}", "label": i % 2, "user": i // 10}
        for i in range(300)
    ]
    task = ["--task", write_jsonl(rows, "users.jsonl"), "--weak", "bag-of-words"]
    options = [*task, "--strong", words[5], "--student", "linear", "--probes", ""]
    parts = {}
    for name, more in (("users", ["--group-column", "user"]), ("rows", [])):
        folder = tmp_path / "runs" / name
        assert run(*options, *more, "-o", folder).exit_code == 0
        tested = pq.read_table(next(folder.glob("predictions/**/*.parquet"))).column("id")
        parts[name] = Counter(int(i) // 10 for i in tested.to_pylist())
    assert set(parts["users"].values()) == {10}
    assert set(parts["rows"].values()) != {10}  # the control
    wrong = run(*options, "--group-column", "usr", "-o", tmp_path / "runs" / "c")
    assert wrong.exit_code == 1
    assert "no column 'usr'" in wrong.stderr


def test_dry_run_does_nothing(words: list[Any], tmp_path: Path) -> None:
    result = run(*words, "--dry-run", "-o", tmp_path / "runs" / "a")
    assert result.exit_code == 0, result.output
    for word in ("steps", "rows through models", "tokens", "hidden states", "parameters"):
        assert word in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--losses", "xnet"], "did you mean xent"),
        (["--student", "lineal"], "did you mean linear"),
        (["--student", "linear", "--rounds", "2"], "rounds is for finetuned students"),
        (["--weak-labels", "no.csv"], "both give the weak labels"),
        (["--probes", "knm"], "did you mean knn"),
        (["--preset", "eleuter"], "did you mean eleuther"),
        (["--task", "docstring"], "did you mean docstrings"),
        (["--seeds", "few"], "'--seeds': it is a number of seeds"),
        (["--set", "epochs"], "KEY=VALUE"),
        (["--set", "finetune.epoch=2"], "finetune.epoch is not a setting (did you mean epochs"),
        (["--set", "ronds=2"], "ronds is not a setting (did you mean rounds"),
        (["--weak", "no/such/folder"], "does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    more: list[str], sentence: str, words: list[Any], tmp_path: Path
) -> None:
    result = run(*words, *more, "-o", tmp_path / "runs" / "a")
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["run", "saliency"])
@pytest.mark.parametrize(
    ("more", "sentence", "code"),
    [
        (["--set", "probe_options.knn.k=151"], "others; take fewer neighbours", 2),
        (["--set", "layer=9"], "There is no layer 9", 2),
        (["--task", "ROWS"], "has 1 rows without a label", 1),
        (["--weak", "no/such/folder"], "does not exist", 1),
        (["--strong", "FOLDER"], "has no config.json", 1),
        (["-o", "FOLDER"], "holds other files", 1),
        (["--set", "validation_share=0.001"], "leaves one side empty", 2),
        (["--set", "finetune.max_length=1000"], "reads at most 128 tokens", 2),
    ],
)
def test_run_and_dry_run_refuse_the_same_before_any_work(
    command: str,
    more: list[str],
    sentence: str,
    code: int,
    words: list[Any],
    write_jsonl: Files,
    tmp_path: Path,
) -> None:
    if command == "saliency" and ("layer" in more[1] or "probe_options" in more[1]):
        pytest.skip("it has no such field")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("")
    rows = [{"text": f"a {i}", "label": None if i == 3 else i % 2} for i in range(60)]
    places = {"ROWS": write_jsonl(rows, "unlabelled.jsonl"), "FOLDER": tmp_path / "folder"}
    given = [str(places.get(word, word)) for word in more]
    outcomes = []
    for dry in ([], ["--dry-run"]):
        common = [*words, "-o", tmp_path / "runs" / "a", *given, *dry]
        result = CliRunner().invoke(cli, [command, *map(str, common)])
        outcomes.append((result.exit_code, result.stderr))
        assert result.stdout == ""
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == code, outcomes
    assert sentence in outcomes[0][1]
    assert not (tmp_path / "runs").exists()
    # The control: without the mistake the dry run goes through.
    assert run(*words, "-o", tmp_path / "runs" / "a", "--dry-run").exit_code == 0


def test_one_broken_task_of_two_ends_with_exit_code_1(
    words: list[Any], write_jsonl: Files, tmp_path: Path
) -> None:
    broken = write_jsonl([{"text": f"a {i}"} for i in range(60)], "broken.jsonl")
    tasks = f"{broken},{words[1]}"
    options = ["--set", "probes=[]", "--set", "actions=[]", "--task", tasks]
    outcome = run(*words, *options, "-o", tmp_path / "a", "--json")
    assert outcome.exit_code == 1
    result = json.loads(outcome.stdout)
    assert [group["task"] for group in result["groups"]] == ["rows.jsonl"]
    first, warning = outcome.stderr.splitlines()[:2]
    assert first.startswith("Computing in ")
    assert warning.startswith(f"Warning: {broken}, seed 0: failed: ")
    listed = outcome.stderr.split("Error: ")[1]
    assert "has no column 'label'" in listed
    assert "the same command tries what failed again" in listed
    assert (tmp_path / "a" / "report.html").is_file()


def test_a_folder_of_another_configuration(words: list[Any], tmp_path: Path) -> None:
    options = ["--probes", "", "--actions", "", "-o", tmp_path / "runs" / "a"]
    assert run(*words, *options).exit_code == 0
    result = run(*words, *options, "--rounds", "2")
    assert result.exit_code == 1
    assert "differs in rounds" in result.stderr


def test_a_task_is_needed() -> None:
    result = run("--weak", "a", "--strong", "b")
    assert result.exit_code == 2
    assert "--task" in result.stderr
