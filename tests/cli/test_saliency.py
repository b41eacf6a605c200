"""``probekit saliency`` as it is typed."""

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


def saliency(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["saliency", *map(str, words)])


@pytest.fixture
def words(write_jsonl: Callable[..., Path], tiny_model: Callable[..., Path]) -> list[Any]:
    rows = write_jsonl(
        [
            {"text": f"{('cat', 'hammer')[i % 2]} {i}", "label": i % 2 if i % 7 else 1 - i % 2}
            for i in range(200)
        ]
    )
    model = tiny_model("bert")
    fast = ["--epochs", "2", "--weak-lr", "5e-3", "--strong-lr", "5e-3"]
    small = ["--set", "finetune.batch_size=16", "--set", "finetune.device=cpu"]
    small += ["--set", "validation_share=0.2"]
    return ["--task", rows, "--weak", f"{model}@layers=1", "--strong", model, *fast, *small]


def test_from_flags_to_figures_that_replay(words: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    result = saliency(*words, "--layers", "1,2", "--seeds", "2", "-o", folder)
    failures = json.loads((folder / "metrics.json").read_text())["failures"]
    # So little training may leave bars that give one class; nothing else is wrong.
    assert result.exit_code == bool(failures), result.output
    assert all(": collapsed: " in failure for failure in failures)
    for text in ("5. finetune, ground truth", "Gap closed", "linear from", "over seeds"):
        assert text in result.stdout
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["layers"] == "1,2"
    assert "probekit saliency --config" in (folder / "config.yaml").read_text()
    output = json.loads((folder / "metrics.json").read_text())
    # The last layer is read too.
    assert output["pairs"][0]["tasks"][0]["curves"]["probe_truth"]["layers"] == [1, 2, 3]
    for name in ("bars.png", "layers.png", "table.md"):
        assert (folder / name).is_file()
    again = saliency("--config", folder / "config.yaml", "-o", tmp_path / "runs" / "b", "--json")
    assert again.exit_code == result.exit_code, again.output
    lines = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert lines
    assert all("done before" in line for line in lines)
    assert json.loads(again.stdout)["pairs"] == output["pairs"]


def test_dry_run_does_nothing(words: list[Any], tmp_path: Path) -> None:
    result = saliency(*words, "--dry-run", "-o", tmp_path / "runs" / "a")
    assert result.exit_code == 0, result.output
    assert "3 finetune" in result.stdout
    assert "3 linear" in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--layers", "9"], "There is no layer 9"),
        (["--layers", "middle"], "(did you mean mid?), got 'middle'"),
        (["--set", "validation_share=0"], "validation_share above 0"),
        (["--set", "probe_options.logreg.k=5"], "there are l2, penalties, standardize."),
        (["--set", "finetune.epoch=2"], "did you mean epochs"),
        (["--losses", "xnet"], "did you mean xent"),
        (["--task", "docstring"], "did you mean docstrings"),
        (["--strong", "no/such/folder"], "does not exist"),
        (["--seeds", "few"], "'--seeds': it is a number of seeds"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_is_written(
    more: list[str], sentence: str, words: list[Any], tmp_path: Path
) -> None:
    result = saliency(*words, *more, "-o", tmp_path / "runs" / "a")
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_task_is_needed() -> None:
    result = saliency("--weak", "a", "--strong", "b")
    assert result.exit_code == 2
    assert "--task" in result.stderr
