"""The README's commands and its Python run as they stand, with names of models filled in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from probekit.cli.main import cli
from probekit.labels import load_labels
from probekit.verdicts import Verdicts

ROOT = Path(__file__).parents[1]


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


def test_the_two_commands(workplace: dict[str, str]) -> None:
    assert run_commands(blocks("sh")[0], workplace) == 2
    assert len(Verdicts.load("verdicts.parquet")) == 120
    # A fifth, rounded down, of the 48 and the 72 rows of the weak classes.
    assert len(Path("clean.jsonl").read_text().splitlines()) == 120 - 23


def block_with(words: str) -> str:
    (result,) = [block for block in blocks("sh") if words in block]
    return result


def test_the_experiment_is_planned(workplace: dict[str, str]) -> None:
    """Its command takes a quarter of an hour; its parts are run whole in tests/experiments."""
    models = {"MODEL@layers=1": f"{workplace['MODEL']}@layers=1", **workplace}
    command = block_with("probekit run").rstrip("\n") + " --dry-run\n"
    assert run_commands(command, models) == 1
    assert not Path("runs").exists()


def test_finetuning(workplace: dict[str, str]) -> None:
    run_commands(blocks("sh")[0], workplace)
    Path("test.jsonl").write_text('{"text": "a loud engine"}\n{"text": "a red apple"}\n')
    Path("more.jsonl").write_text('{"text": "a green pear"}\n')
    assert run_commands(block_with("probekit finetune"), workplace) == 2
    assert len(load_labels("student/predictions/test.parquet")) == 2
    assert len(load_labels("predictions.parquet")) == 1


def test_the_four_commands(workplace: dict[str, str]) -> None:
    assert run_commands(block_with("weak-labels"), workplace) == 4
    verdicts = Verdicts.load("verdicts.parquet")
    assert len(verdicts) == 60, "the rows that were trained on get no weak label"
    assert len(Path("clean.jsonl").read_text().splitlines()) == int(verdicts.keep.sum()) > 40


def test_the_python(workplace: dict[str, str]) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 11, "ten lines and an empty one"
    names: dict[str, object] = {}
    exec(code.replace('"MODEL"', repr(workplace["MODEL"])), names)
    assert len(names["train"]) == 120
    assert len(names["direction"]) == 32
    assert 90 <= names["kept"].keep.sum() < 120


def test_the_csv_guide(workplace: dict[str, str]) -> None:
    shell = blocks("sh", "docs/from-your-csv.md")
    assert sum(run_commands(block, workplace) for block in shell) == 3
    lines = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    (example,) = blocks("json", "docs/from-your-csv.md")
    assert set(lines[0]) == set(json.loads(example))
    assert {line["label"] for line in lines} == {"negative", "positive"}
