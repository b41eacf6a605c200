"""``probekit run`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    told = run(*words, *options, "--seeds", "2", "-o", tmp_path / "runs" / "a")
    assert told.exit_code == 0, told.output
    assert "filter kNN" in told.stdout
    assert "Medians of 2 seeds" in told.stdout
    folder = tmp_path / "runs" / "a"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["losses"] == ["xent", "kl"]
    assert config["seeds"] == [0, 1]
    assert config["finetune"] == {"epochs": 4.0, "batch_size": 16, "device": "cpu"}
    # The file alone makes the same run, from the steps that lie beside it.
    again = run("--config", folder / "config.yaml", "-o", tmp_path / "runs" / "b", "--json")
    assert again.exit_code == 0, again.output
    lines = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert lines
    assert all("done before" in line for line in lines)
    first = json.loads((folder / "metrics.json").read_text())
    assert json.loads(again.stdout)["groups"] == first["groups"]


def test_dry_run_does_nothing(words: list[Any], tmp_path: Path) -> None:
    told = run(*words, "--dry-run", "-o", tmp_path / "runs" / "a")
    assert told.exit_code == 0, told.output
    for word in ("steps", "rows through models", "tokens", "hidden states", "parameters"):
        assert word in told.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--losses", "xnet"], "did you mean xent"),
        (["--probes", "knm"], "did you mean knn"),
        (["--preset", "eleuter"], "did you mean eleuther"),
        (["--task", "docstring"], "did you mean docstrings"),
        (["--seeds", "few"], "'--seeds': it is how many seeds"),
        (["--set", "epochs"], "KEY=VALUE"),
        (["--set", "finetune.epoch=2"], "finetune.epoch is no setting (did you mean epochs"),
        (["--set", "ronds=2"], "ronds is no setting (did you mean rounds"),
        (["--weak", "no/such/folder"], "does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    more: list[str], sentence: str, words: list[Any], tmp_path: Path
) -> None:
    told = run(*words, *more, "-o", tmp_path / "runs" / "a")
    assert told.exit_code in (1, 2)
    assert sentence in told.stderr
    assert "Traceback" not in told.output


def test_a_folder_of_another_configuration(words: list[Any], tmp_path: Path) -> None:
    options = ["--probes", "", "--actions", "", "-o", tmp_path / "runs" / "a"]
    assert run(*words, *options).exit_code == 0
    told = run(*words, *options, "--rounds", "2")
    assert told.exit_code == 1
    assert "differs in rounds" in told.stderr


def test_a_task_is_needed() -> None:
    told = run("--weak", "a", "--strong", "b")
    assert told.exit_code == 2
    assert "--task" in told.stderr
