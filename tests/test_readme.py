"""The README's commands and its Python run as they stand, with names of models filled in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from probekit.cli.main import cli
from probekit.labels import load_labels
from probekit.verdicts import Verdicts

ROOT = Path(__file__).parents[1]
TWO_COMMANDS = """
probekit extract rows.jsonl -m MODEL -o acts.h5
probekit filter acts.h5 --labels weak.csv -o verdicts.parquet --write-data clean.jsonl
"""


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A folder with the files that the README speaks of, and the models by their names there."""
    monkeypatch.chdir(tmp_path)
    words = {0: ["red", "apple", "sweet"], 1: ["fast", "engine", "loud"]}
    rows = [
        {"id": f"r{i}", "text": f"{words[i % 2][i % 3]} {words[i % 2][(i // 3) % 3]} number {i}"}
        for i in range(120)
    ]
    label = {row["id"]: (i % 2 if i % 10 else 1 - i % 2) for i, row in enumerate(rows)}
    files = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "weak.csv": "id,label\n" + "".join(f"{i},{y}\n" for i, y in label.items()),
        "truth.jsonl": "".join(
            json.dumps({"id": row["id"], "label": i % 2}) + "\n" for i, row in enumerate(rows[:60])
        ),
        "reviews.csv": "review_id,review_body,stars_class\n"
        + "".join(
            f"{row['id']},{row['text']},{('negative', 'positive')[label[row['id']]]}\n"
            for row in rows
        ),
    }
    files["new.csv"] = "\n".join(files["reviews.csv"].splitlines()[:21]) + "\n"
    np.save(tmp_path / "states.npy", np.random.default_rng(0).normal(size=(len(rows), 8)))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return {"SMALL_MODEL": str(tiny_model("bert")), "MODEL": str(tiny_model("llama"))}


def run_commands(text: str, models: dict[str, str]) -> int:
    """Run the block's probekit commands in this process; return their number."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("probekit ")]
    for command in commands:
        result = CliRunner().invoke(cli, [models.get(word, word) for word in command])
        assert result.exit_code == 0, f"{command}: {result.stderr}"
    return len(commands)


def test_it_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1300


def test_one_command(workplace: dict[str, str]) -> None:
    assert run_commands(blocks("sh")[0], workplace) == 1
    summary = json.loads(Path("cleaned/summary.json").read_text())
    assert (summary["rows"], summary["label_column"]) == (120, "stars_class")
    assert len(Path("cleaned/train.jsonl").read_text().splitlines()) == summary["kept"]


def block_with(words: str, page: str = "README.md") -> str:
    (result,) = [block for block in blocks("sh", page) if words in block]
    return result


def test_the_experiment_is_planned(workplace: dict[str, str]) -> None:
    """Its command takes a quarter of an hour; its parts are run whole in tests/experiments."""
    models = {"MODEL@layers=1": f"{workplace['MODEL']}@layers=1", **workplace}
    command = block_with("probekit run", "docs/students.md").rstrip("\n") + " --dry-run\n"
    assert run_commands(command, models) == 1
    assert not Path("runs").exists()


def test_finetuning(workplace: dict[str, str]) -> None:
    run_commands(TWO_COMMANDS, workplace)
    # A fifth, rounded down, of the 48 and the 72 rows of the weak classes.
    assert len(Path("clean.jsonl").read_text().splitlines()) == 120 - 23
    Path("test.jsonl").write_text('{"text": "a loud engine"}\n{"text": "a red apple"}\n')
    Path("more.jsonl").write_text('{"text": "a green pear"}\n')
    assert run_commands(block_with("probekit finetune", "docs/students.md"), workplace) == 2
    assert len(load_labels("student/predictions/test.parquet")) == 2
    assert len(load_labels("predictions.parquet")) == 1


def test_the_four_commands(workplace: dict[str, str]) -> None:
    assert run_commands(block_with("weak-labels"), workplace) == 4
    verdicts = Verdicts.load("verdicts.parquet")
    assert len(verdicts) == 60, "the rows that were trained on get no weak label"
    assert len(Path("clean.jsonl").read_text().splitlines()) == int(verdicts.keep.sum()) > 40


def test_the_python(workplace: dict[str, str]) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 12, "ten lines and two empty ones"
    names: dict[str, Any] = {}
    exec(code.replace('"MODEL"', repr(workplace["MODEL"])), names)
    assert len(names["suspects"]) == 20
    assert len(names["train"]) == int(names["result"].verdicts.keep.sum())
    assert names["kept"].keep.sum() == 120 - 23
    assert names["soft"].keep.all()


def test_the_csv_guide(workplace: dict[str, str]) -> None:
    shell = blocks("sh", "docs/how-to/from-your-csv.md")
    assert sum(run_commands(block, workplace) for block in shell) == 7
    assert len(load_labels("new-labels.parquet")) == 20
    lines = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    (example,) = blocks("json", "docs/how-to/from-your-csv.md")
    assert set(lines[0]) == set(json.loads(example))
    assert {line["label"] for line in lines} == {"negative", "positive"}
