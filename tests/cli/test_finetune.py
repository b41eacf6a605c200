"""``probekit finetune`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from probekit.cli.main import cli
from probekit.labels import load_labels

pytestmark = pytest.mark.usefixtures("one_thread")

Files = Callable[..., Path]
FAST = ["--lr", "5e-3", "--epochs", "6", "--batch-size", "8"]


def run(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["finetune", *map(str, words)])


def rows_of(write_jsonl: Files, n: int = 40, name: str = "rows.jsonl", **more: Any) -> Path:
    return write_jsonl(
        [
            {"id": f"{name}{i}", "text": f"{('cat', 'hammer')[i % 2]} {i}", "label": i % 2, **more}
            for i in range(n)
        ],
        name,
    )


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("bert"))


def test_from_rows_and_labels_to_predictions(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows, test = rows_of(write_jsonl), rows_of(write_jsonl, 20, "test.jsonl")
    folder = tmp_path / "student"
    words = [rows, "-m", model, "--labels", rows, "-o", folder, "--predict", test, *FAST]
    told = run(*words, "--truth", test, "--json")
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert result["metrics"]["test"]["accuracy"] > 0.9
    assert set(result["metrics"]["test"]) >= {
        "accuracy",
        "auroc",
        "log_loss",
        "brier",
        "ece",
        "recall_at_1pct_fpr",
    }
    found = load_labels(result["predictions"]["test"])
    assert found.ids == [f"test.jsonl{i}" for i in range(20)]
    assert found.hashes is not None
    assert (folder / "model" / "config.json").is_file()
    again = run(*words)
    assert again.exit_code == 0
    later = str(tmp_path / "later.parquet")
    words = ["predict", test, "-m", folder / "model", "-o", later, "--truth", test, "--json"]
    told = CliRunner().invoke(cli, [str(word) for word in words])
    assert told.exit_code == 0, told.output
    accuracy = json.loads(told.stdout)["metrics"]["accuracy"]
    assert accuracy == result["metrics"]["test"]["accuracy"]
    assert load_labels(later).ids == found.ids
    assert "predictions:" in again.stdout


def test_verdicts_are_honoured(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    rows = rows_of(write_jsonl)
    verdicts, acts = tmp_path / "verdicts.parquet", tmp_path / "acts.h5"
    for words in (
        ["extract", rows, "-m", model, "-o", acts],
        ["filter", acts, "--labels", rows, "--k", "5", "-o", verdicts],
    ):
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == 0, done.output
    told = run(rows, "-m", model, "--labels", verdicts, "-o", tmp_path / "s", *FAST, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["rows"] == 32  # a fifth of each class is dropped


def test_early_stopping_holds_rows_out(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    rows = rows_of(write_jsonl)
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", *FAST]
    told = run(*words, "--early-stop", "auroc", "--validation-share", "0.25", "--curves", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["rows"] == 30
    assert list((tmp_path / "s" / "curves" / "validation").iterdir())


def test_another_training_is_replaced_only_if_asked(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 16)
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", "--max-steps", "1"]
    assert run(*words).exit_code == 0
    told = run(*words, "--lr", "1e-4")
    assert told.exit_code == 1
    assert "lr differ" in told.stderr
    assert run(*words, "--lr", "1e-4", "--overwrite").exit_code == 0
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.tex").write_text("x")
    told = run(*words[:-3], keep, "--max-steps", "1", "--overwrite")
    assert told.exit_code == 1
    assert (keep / "thesis.tex").is_file()


def test_texts_become_a_base_model(
    write_jsonl: Files, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 50)
    told = run(
        rows,
        "-m",
        tiny_model("llama"),
        "--objective",
        "lm",
        "-o",
        tmp_path / "lm",
        "--max-steps",
        2,
    )
    assert told.exit_code == 0, told.output
    assert "perplexity on held-out rows" in told.stdout
    acts = str(tmp_path / "acts.h5")
    done = CliRunner().invoke(
        cli, ["extract", str(rows), "-m", str(tmp_path / "lm" / "model"), "-o", acts]
    )
    assert done.exit_code == 0, done.output


def test_completions_are_graded(
    write_jsonl: Files, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows = write_jsonl([{"text": f"say {w} ", "completion": w} for w in ("cat", "hammer")] * 1)
    words = [rows, "-m", tiny_model("llama"), "--objective", "completion", "-o", tmp_path / "c"]
    told = run(*words, "--predict", f"same={rows}", "--lr", "2e-2", "--max-steps", "60", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["exact_match"]["same"] == 1.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--loss", "logcnf"], "did you mean logconf"),
        (["--set", "lora_rnk=2"], "lora_rnk is no setting (did you mean lora_rank"),
        (["--loss-option", "a_max"], "KEY=VALUE"),
        (["--lora", "--set", "lora_modules=[nowhere]"], "LoRA finds no module"),
        (["--lr", "-1"], "lr is a number in (0, "),
        (["--validation-share", "2"], "lies in (0, 1)"),
        (["--objective", "reward"], "columns text and text_pair"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str], sentence: str, write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 16)
    told = run(rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", *words)
    assert told.exit_code in (1, 2)
    assert sentence in told.stderr
    assert "Traceback" not in told.output


def test_labels_are_needed(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    told = run(rows_of(write_jsonl), "-m", model, "-o", tmp_path / "s")
    assert told.exit_code == 2
    assert "needs --labels" in told.stderr
