from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from probekit.cli.main import cli
from probekit.data import Rows
from probekit.tasks import get_task


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["tasks", *map(str, arguments)])


def test_list_names_the_task_and_what_it_asks() -> None:
    done = run("list")
    assert done.exit_code == 0
    assert done.stdout.startswith("docstrings  ")
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
