from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from probekit.cli.main import cli
from probekit.data import Rows
from probekit.tasks import Task, get_task, registry


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["tasks", *map(str, arguments)])


def test_list_names_the_task_and_what_it_asks() -> None:
    done = run("list")
    assert done.exit_code == 0
    assert "\ndocstrings  " in done.stdout
    listed = json.loads(run("list", "--json").stdout)["tasks"]
    assert "docstrings" in [task["name"] for task in listed]


def test_show_tells_source_licence_splits_shares_and_two_rows() -> None:
    text = run("show", "docstrings").stdout
    assert "scikit-learn 1." in text
    assert "BSD-3-Clause" in text
    shown = json.loads(run("show", "docstrings", "--json").stdout)
    for split, facts in shown["splits"].items():
        assert facts["rows"] == len(get_task("docstrings").rows(split))
        assert facts["class_shares"] == [0.5, 0.5]
        assert f"{split:<12}{facts['rows']:>8,}  50.0% / 50.0%" in text
    assert [row["label"] for row in shown["examples"]] == [0, 1]
    assert all(row["text"] in text and row["id"] in text for row in shown["examples"])


def test_export_writes_the_rows_of_the_split(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = run("export", "docstrings", "--split", "validation", "-o", output)
    assert done.exit_code == 0, done.stderr
    rows = get_task("docstrings").rows("validation")
    assert f"{len(rows):,} rows of docstrings@validation (id, text, label)" in done.stdout
    assert Rows.from_any(output).fingerprint == rows.fingerprint
    first = json.loads(output.read_text(encoding="utf-8").splitlines()[0])
    assert first == next(rows.records())


def test_export_can_leave_the_truth_out_and_stop_early(tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    options = ["--no-label", "--limit", "7", "--seed", "3", "--json"]
    done = run("export", "docstrings", "--split", "weak", "-o", output, *options)
    assert json.loads(done.stdout)["rows"] == 7
    written = Rows.from_any(output)
    assert list(written.columns) == ["id", "text"]
    assert written.ids == get_task("docstrings").rows("weak", seed=3).ids[:7]
    assert written.ids != get_task("docstrings").rows("weak", seed=0).ids[:7]


def test_a_limit_beyond_the_split_is_told(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = run("export", "docstrings", "--split", "weak", "-o", output, "--limit", "999999")
    assert done.exit_code == 0
    assert "fewer than the 999,999 asked for" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "docstring"], 2, "no task 'docstring' (did you mean docstrings?)"),
        (["export", "docstrings", "--split", "tst", "-o", "x.jsonl"], 2, "no split 'tst'"),
        (["export", "docstrings", "--split", "test", "-o", "x.csv"], 1, "the ending '.csv'"),
        (["export", "docstrings", "--split", "test", "-o", "no/x.jsonl"], 1, "The folder no"),
        (["export", "docstrings", "-o", "x.jsonl"], 2, "Missing option '--split'"),
    ],
)
def test_wrong_use_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text("mine")
    arguments = ["export", "docstrings", "--split", "weak", "-o", output, "--limit", "2"]
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "exists already; pass --overwrite" in refused.stderr
    assert output.read_text() == "mine"
    assert run(*arguments, "--overwrite").exit_code == 0
    assert len(output.read_text().splitlines()) == 2


def test_list_imports_and_reads_nothing_that_takes_time(tmp_path: Path) -> None:
    code = (
        "import sys; from probekit.cli.main import cli\n"
        "try: cli(['tasks', 'list'])\n"
        "except SystemExit: pass\n"
        "heavy = {'datasets', 'pandas', 'torch', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    environment = {**os.environ, "PROBEKIT_DATASETS": str(tmp_path / "nowhere")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.endswith("heavy: []\n")
    assert "sst2" in done.stdout


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty phrases where PROBEKIT_DATASETS has SST-2."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub" / "stanfordnlp" / "sst2"
    folder.mkdir(parents=True)
    for split, many in (("train", 60), ("validation", 30)):
        rows = [{"sentence": f"{split} film {i} ", "label": i % 2} for i in range(many)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path / "hub"))


def test_show_and_export_of_a_task_on_the_hub(films: None, tmp_path: Path) -> None:
    text = run("show", "sst2").stdout
    assert "https://huggingface.co/datasets/stanfordnlp/sst2" in text
    assert "test              30  50.0% / 50.0%" in text
    assert text.count("film ") == 2 + text.splitlines()[0].count("film ")
    output = tmp_path / "rows.jsonl"
    done = run("export", "sst2", "--split", "test", "-o", output, "--limit", "4")
    assert done.exit_code == 0, done.stderr
    rows = Rows.from_any(output)
    assert len(rows) == 4
    assert all(str(text).startswith("validation film ") for text in rows.contents())


def test_show_without_the_data_tells_all_but_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROBEKIT_DATASETS", raising=False)  # and the tests run offline
    done = run("show", "boolq")
    assert done.exit_code == 0
    for result in ("google/boolq", "CC-BY-SA-3.0", "0 = no, 1 = yes", "Passage: {passage}", "test"):
        assert result in done.stdout
    assert "\n           Question: {question}" in done.stdout
    assert done.stdout.count("No rows here: ") == 1
    assert "set PROBEKIT_DATASETS to a folder" in done.stdout
    shown = json.loads(run("show", "boolq", "--json").stdout)
    assert shown["examples"] == []
    assert shown["splits"] == {"train": None, "validation": None, "test": None}
    assert "PROBEKIT_DATASETS" in shown["unread"]


def test_export_without_the_data_fails_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PROBEKIT_DATASETS", raising=False)
    output = tmp_path / "rows.jsonl"
    done = run("export", "boolq", "--split", "test", "-o", output)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: hf:google/boolq@validation cannot be read: ")
    assert "PROBEKIT_DATASETS" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not output.exists()


def test_tasks_without_classes_show_and_export_completions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(split: str, seed: int) -> Rows:
        columns = {"id": ["a", "b", "c"], "text": ["1+1=", "2+2=", "3+3="]}
        return Rows({**columns, "completion": ["2", "4", "6"]}, source=f"sums@{split}")

    task = Task("sums", "Add.", "mine", "CC0-1.0", (), ("train", "test"), load, kind="completion")
    monkeypatch.setitem(registry._registered, "sums", task)
    text = run("show", "sums").stdout
    assert "completion  2" in text
    assert "completion  4" in text
    assert "completion  6" not in text
    assert "share" not in text
    output = tmp_path / "rows.jsonl"
    assert run("export", "sums", "--split", "test", "-o", output, "--no-label").exit_code == 0
    assert json.loads(output.read_text().splitlines()[0]) == {"id": "a", "text": "1+1="}
