"""``probekit finetune`` as it is typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from probekit.cli.finetune import predict_sets
from probekit.cli.main import cli
from probekit.errors import UsageError
from probekit.labels import load_labels
from probekit.students import finetune as training
from probekit.students.folder import check_names
from probekit.students.trainer import FiniteTrainer

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
    outcome = run(*words, "--truth", test, "--json")
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result["metrics"]["test"]["accuracy"] > 0.9
    assert set(result["metrics"]["test"]) >= {
        "accuracy",
        "auroc",
        "log_loss",
        "brier",
        "ece",
        "recall_at_1pct_fpr",
    }
    output = load_labels(result["predictions"]["test"])
    assert output.ids == [f"test.jsonl{i}" for i in range(20)]
    assert output.hashes is not None
    assert (folder / "model" / "config.json").is_file()
    again = run(*words)
    assert again.exit_code == 0
    later = str(tmp_path / "later.parquet")
    words = ["predict", test, "-m", folder / "model", "-o", later, "--truth", test, "--json"]
    outcome = CliRunner().invoke(cli, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    accuracy = json.loads(outcome.stdout)["metrics"]["accuracy"]
    assert accuracy == result["metrics"]["test"]["accuracy"]
    assert load_labels(later).ids == output.ids
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
    result = run(rows, "-m", model, "--labels", verdicts, "-o", tmp_path / "s", *FAST, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 32  # a fifth of each class is dropped


def test_early_stopping_holds_rows_out(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    rows = rows_of(write_jsonl)
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", *FAST]
    result = run(
        *words, "--early-stop", "auroc", "--validation-share", "0.25", "--curves", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 30
    assert list((tmp_path / "s" / "curves" / "validation").iterdir())


def test_rows_of_a_group_are_held_out_together(
    write_jsonl: Files, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_jsonl(
        [
            {"id": f"r{i}", "text": f"cat {i}", "label": i % 2, "user": f"u{i // 4}"}
            for i in range(40)
        ],
        "rows.jsonl",
    )
    held: list[list[int]] = []
    divide = training.hold_out

    def watched(*args: Any, **how: Any) -> Any:
        train, validation = divide(*args, **how)
        held.append([int(row_id.removeprefix("r")) // 4 for row_id in validation.ids])
        return train, validation

    monkeypatch.setattr(training, "hold_out", watched)
    words = [rows, "-m", model, "--labels", rows, "--max-steps", "1", "--validation-share", "0.25"]
    for name, more in (("grouped", ["--group-column", "user"]), ("plain", [])):
        result = run(*words, *more, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
    grouped, plain = held
    assert len(grouped) == 8
    assert len(set(grouped)) == 2  # 2 of 10 users, all four rows of each
    assert len(set(plain)) > 3  # the control: ten rows of any users
    result = run(*words[:-2], "--group-column", "user", "-o", tmp_path / "idle")
    assert "--group-column does nothing without --validation-share" in result.stderr
    result = run(*words, "--group-column", "users", "-o", tmp_path / "wrong")
    assert "has no column 'users'" in result.stderr


def test_another_training_is_replaced_only_if_asked(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 16)
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", "--max-steps", "1"]
    assert run(*words).exit_code == 0
    result = run(*words, "--lr", "1e-4")
    assert result.exit_code == 1
    assert "lr differ" in result.stderr
    assert run(*words, "--lr", "1e-4", "--overwrite").exit_code == 0
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.tex").write_text("x")
    result = run(*words[:-3], keep, "--max-steps", "1", "--overwrite")
    assert result.exit_code == 1
    assert (keep / "thesis.tex").is_file()


def test_ctrl_c_says_what_is_kept(
    write_jsonl: Files, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = rows_of(write_jsonl, 32), tmp_path / "s"
    words = [rows, "-m", model, "--labels", rows, "-o", folder, *FAST]
    true, steps = FiniteTrainer.training_step, []

    def stop(self: Any, *args: Any, **more: Any) -> Any:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return true(self, *args, **more)

    monkeypatch.setattr(FiniteTrainer, "training_step", stop)
    result = run(*words, "--set", "save_seconds=1000")
    assert result.exit_code == 130
    assert "has no checkpoint of this run yet" in result.stderr
    steps.clear()
    result = run(*words, "--set", "save_seconds=0")
    assert result.exit_code == 130
    assert "Interrupted. The checkpoint of step 3 is kept in" in result.stderr
    monkeypatch.undo()
    assert run(*words).exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_texts_become_a_base_model(
    write_jsonl: Files, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 50)
    result = run(
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
    assert result.exit_code == 0, result.output
    assert "perplexity on held-out rows" in result.stdout
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
    result = run(*words, "--predict", f"same={rows}", "--lr", "2e-2", "--max-steps", "60", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["exact_match"]["same"] == 1.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--loss", "logcnf"], "did you mean logconf"),
        (["--set", "lora_rnk=2"], "lora_rnk is not a setting (did you mean lora_rank"),
        (["--loss-option", "a_max"], "KEY=VALUE"),
        (["--lora", "--set", "lora_modules=[nowhere]"], "LoRA finds no module"),
        (["--lr", "-1"], "'--lr': it is a number in (0, "),
        (["--validation-share", "2"], "'--validation-share': it is a number in [0, 1)"),
        (["--objective", "reward"], "columns text and text_pair"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str], sentence: str, write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 16)
    result = run(rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", *words)
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_labels_are_needed(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    result = run(rows_of(write_jsonl), "-m", model, "-o", tmp_path / "s")
    assert result.exit_code == 2
    assert "needs --labels" in result.stderr


# --- names of what is predicted ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/test.jsonl"], ["test"]),
        (["a/test.jsonl", "b/test.jsonl"], ["a-test", "b-test"]),
        (["x/a/test.jsonl", "y/a/test.csv", "z.csv"], ["x-a-test", "y-a-test", "z"]),
        (["test.jsonl", "b/test.jsonl"], ["test", "b-test"]),
        (["../test.jsonl", "/b/test.jsonl"], ["test", "b-test"]),
        (["first=a/test.jsonl", "b/test.jsonl"], ["first", "test"]),
        (["test=a/test.jsonl", "b/test.jsonl"], ["test", "b-test"]),
        (["hf:org/imdb@test", "hf:org/yelp@test"], ["imdb-test", "yelp-test"]),
        (["docstrings@test", "hf:org/set:config@test"], ["docstrings-test", "config-test"]),
        (["a/b=c.jsonl"], ["b=c"]),
    ],
)
def test_sets_of_one_name_are_told_apart(given: list[str], names: list[str]) -> None:
    sets = predict_sets(given)
    assert list(sets) == names
    sources = [each.partition("=")[2] if "=" in each[:6] else each for each in given]
    assert [s.endswith(f) for s, f in zip(sets.values(), sources, strict=True)] == [True] * len(
        given
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["x=a.csv", "x=b.csv"], "Two sets to predict are called 'x'"),
        (["a.csv", "a.csv"], "a.csv is given twice"),
        (
            ["a.csv", "./a.jsonl"],
            "would be called 'a'; give each its own name as in --predict",
        ),
    ],
)
def test_sets_that_cannot_be_told_apart_are_refused(given: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        predict_sets(given)


@pytest.mark.parametrize("name", ["..", ".", "", ".x", "a\\b", "a\nb", "x" * 201, "\x1b[31m"])
def test_names_that_cannot_be_files_are_told_before_the_training(
    name: str, write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 8)
    result = run(
        rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", "--predict", f"{name}={rows}"
    )
    assert result.exit_code == 2
    assert "names a set to predict and must be a file name" in result.stderr
    assert "\x1b" not in result.output
    assert not (tmp_path / "s").exists()
    with pytest.raises(UsageError, match="must be a file name"):
        check_names(["test", name])
    check_names(["test", "été 1", "a.b", "x" * 200])  # control


def test_two_files_of_one_name_are_both_predicted_and_judged(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = rows_of(write_jsonl, 16)
    one, two = rows_of(write_jsonl, 10, "a/test.jsonl"), rows_of(write_jsonl, 20, "b/test.jsonl")
    words = [rows, "-m", model, "--labels", rows, "--predict", one, "--predict", two, "--json"]
    both = tmp_path / "both.jsonl"
    both.write_text(one.read_text() + two.read_text())
    outcome = run(*words, "-o", tmp_path / "s", "--truth", both, "--max-steps", 1)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert {n: load_labels(p).ids[-1] for n, p in result["predictions"].items()} == {
        "a-test": "a/test.jsonl9",
        "b-test": "b/test.jsonl19",
    }
    assert [m["rows"] for m in result["metrics"].values()] == [10, 20]
    # A truth of one set evaluates that set; the other is reported.
    half = run(*words, "-o", tmp_path / "s", "--truth", two, "--max-steps", 1)
    assert half.exit_code == 0, half.output
    assert list(json.loads(half.stdout)["metrics"]) == ["b-test"]
    assert "a-test is not evaluated" in half.stderr
    assert "One --truth holds the labels of all --predict sets." in half.stderr


def test_one_truth_cannot_judge_two_sets_of_the_same_ids(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    rows = rows_of(write_jsonl, 16)
    (tmp_path / "b").mkdir()
    one = write_jsonl([{"text": f"one {i}"} for i in range(4)], "test.jsonl")
    two = write_jsonl([{"text": f"two {i}"} for i in range(6)], "b/test.jsonl")
    words = [rows, "-m", model, "--labels", rows, "--predict", one, "--predict", two]
    result = run(*words, "-o", tmp_path / "s", "--truth", rows)
    assert result.exit_code == 2
    assert "--truth is joined by id, and 4 ids of test" in result.stderr
    assert "give all rows ids of their own and one file with the truth" in result.stderr
    assert not (tmp_path / "s").exists()


def test_truncation_is_told_by_finetune_and_predict(
    write_jsonl: Files, model: str, tmp_path: Path
) -> None:
    long = " one two three four five six"
    rows = write_jsonl(
        [
            {"id": f"r{i}", "text": f"cat {i}{long * (i % 4 == 0)}", "label": i % 2}
            for i in range(16)
        ]
    )
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", "--predict", f"t={rows}"]
    result = run(*words, "--max-length", 10, "--max-steps", 1)
    assert result.exit_code == 0, result.output
    assert "truncated at 10 tokens: 4 training rows, 4 t\n" in result.stdout
    said = CliRunner().invoke(
        cli, ["predict", str(rows), "-m", f"{tmp_path}/s/model", "-o", f"{tmp_path}/p.parquet"]
    )
    assert "p.parquet: 16 rows, 4 rows truncated at 10 tokens, classes 0, 1." in said.stdout
    whole = run(*words[:-4], "-o", tmp_path / "w", "--max-steps", 1)  # control
    assert "truncated" not in whole.stdout


def test_an_adapter_alone_is_called_one(write_jsonl: Files, model: str, tmp_path: Path) -> None:
    rows, folder = rows_of(write_jsonl, 8), tmp_path / "s"
    words = [rows, "-m", model, "--labels", rows, "--lora", "--max-steps", 1]
    result = run(*words, "-o", folder, "--save", "adapter")
    assert result.exit_code == 0, result.output
    assert f"need --save model): {folder}/model" in result.stdout
    assert "(for extract" not in result.stdout
    merged = run(*words, "-o", tmp_path / "m")
    assert f"model (for extract, finetune and predict): {tmp_path}/m/model" in merged.stdout


@pytest.mark.parametrize(
    "change",
    [{"truncated": 5}, {"truncated": {"train": "x"}}, {"notes": "x"}, {"max_length": "x"}],
)
def test_damaged_metrics_of_a_finished_training_are_one_sentence(
    write_jsonl: Files, model: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = rows_of(write_jsonl, 16)
    words = [rows, "-m", model, "--labels", rows, "-o", tmp_path / "s", "--max-steps", "1"]
    assert run(*words).exit_code == 0
    path = tmp_path / "s" / "metrics.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, **change}))
    result = run(*words)
    assert result.exit_code == 1
    assert "metrics.json is damaged" in result.stderr
    path.write_text(json.dumps({**known, "max_length": None, "truncated": {"train": 1}}))
    assert run(*words).exit_code == 0  # nothing that stops a reader
