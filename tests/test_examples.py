"""The examples run as they are typed, on small files, and train on what the verdicts say."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.data import Rows
from probekit.verdicts import Verdicts

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
NEEDS = {"skorch_net.py": "skorch", "trl_reward.py": "trl"}  # not among probekit's dependencies
CLASSES = ("kitchen", "workshop")
WORDS = (
    ["flour", "butter", "oven", "plate", "soup", "spoon", "garlic", "bread"],
    ["hammer", "lathe", "drill", "bolt", "timber", "chisel", "vice", "glue"],
)
BOTH = ["the", "old", "table", "near", "window", "was", "left", "open", "again", "today"]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of the libraries, not of the examples: torch's loader on a machine without an accelerator,
    # and TRL, which sets an option of transformers by its old name.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

Run = Callable[..., dict[str, tuple[int, float]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example with these arguments; its figures by the name it prints before them."""

    def typed(name: str, *arguments: object) -> dict[str, tuple[int, float]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return figures(capsys.readouterr().out)

    return typed


def figures(printed: str) -> dict[str, tuple[int, float]]:
    pattern = r"^([\w ]+): (\d+) rows, ([\d.]+)% of 60 test rows right$"
    result = re.findall(pattern, printed, flags=re.MULTILINE)
    return {name: (int(rows), float(right)) for name, rows, right in result}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def verdicts_on(rows: list[dict[str, Any]], classes: tuple[str, ...], **matrices: Any) -> Verdicts:
    known = Rows.from_any(rows)
    n = len(rows)
    return Verdicts(
        ids=known.ids,
        hashes=known.hashes,
        classes=classes,
        weak=matrices["weak"].astype(np.float32),
        probe=matrices["label"].astype(np.float32),
        label=matrices["label"].astype(np.float32),
        keep=matrices["keep"],
        weight=matrices.get("weight", np.ones(n)).astype(np.float32),
        disagreement=np.zeros(n, np.float32),
        fold=np.full(n, -1, np.int16),
    )


def sentences(n: int, seed: int) -> list[dict[str, Any]]:
    """Six words, two of which tell the class."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, c in enumerate(rng.integers(2, size=n).tolist()):
        words = rng.permutation([*rng.choice(WORDS[c], 2, replace=False), *rng.choice(BOTH, 4)])
        rows.append({"id": f"r{i}", "text": " ".join([*words, str(i)]), "label": CLASSES[c]})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Rows, verdicts and test rows.

    Four of five weak labels of "workshop" say "kitchen". The verdicts drop a half of those and
    relabel the others, softly; rows of which they know nothing have weight 0 and a wrong label.
    """
    folder = tmp_path_factory.mktemp("files")
    rows = sentences(96, 0)
    truth = np.array([CLASSES.index(row.pop("label")) for row in rows])
    workshop = np.flatnonzero(truth)
    wrong = np.setdiff1d(workshop, workshop[::5])
    weak = truth.copy()
    weak[wrong] = 0
    keep = np.ones(96, bool)
    keep[wrong[::2]] = False
    label = 0.1 + 0.8 * np.eye(2)[truth]
    label[:8] = label[:8, ::-1]
    weight = (np.arange(96) >= 8).astype(float)
    created = verdicts_on(
        rows, CLASSES, weak=np.eye(2)[weak], label=label, keep=keep, weight=weight
    )
    paths = [folder / name for name in ("rows.jsonl", "verdicts.parquet", "test.jsonl")]
    write(paths[0], rows)
    created.save(paths[1])
    write(paths[2], sentences(60, 1))
    return paths


@pytest.fixture(scope="module")
def n_kept(files: list[Path]) -> int:
    return int(Verdicts.load(files[1]).keep.sum())


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_is_short_and_says_what_to_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"]({name})" in page
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    assert f"    python examples/{name} " in docstring
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert f"python examples/{name} " in str(stopped.value.code)


def test_scikit_learn_as_typed(files: list[Path], n_kept: int) -> None:
    """In a process of its own, every warning an error."""
    command = [sys.executable, "-W", "error", str(FOLDER / "scikit_learn.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    result = figures(done.stdout)
    assert list(result) == ["weak labels", "verdicts"]
    assert result["weak labels"][0] == 96
    assert result["weak labels"][1] < 70, "the control: these labels teach the wrong thing"
    assert result["verdicts"][0] == n_kept
    assert result["verdicts"][1] > 90


@pytest.mark.parametrize("arguments", [[], ["logconf"]])
def test_pytorch(run: Run, files: list[Path], n_kept: int, arguments: list[str]) -> None:
    ((name, (rows, right)),) = run("pytorch.py", *files, *arguments).items()
    assert (name, rows) == (arguments[0] if arguments else "xent", n_kept)
    assert right > 90


def test_skorch(run: Run, files: list[Path], n_kept: int) -> None:
    pytest.importorskip("skorch")
    rows, right = run("skorch_net.py", *files)["skorch"]
    assert rows == n_kept
    assert right > 80


def test_what_is_learned_is_what_the_verdicts_say(
    run: Run, files: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("skorch")
    verdicts = Verdicts.load(files[1])
    reversed_labels = replace(verdicts, label=np.ascontiguousarray(verdicts.label[:, ::-1]))
    reversed_labels.save(tmp_path / "reversed.parquet")
    for name in ("scikit_learn.py", "pytorch.py", "skorch_net.py"):
        result = run(name, files[0], tmp_path / "reversed.parquet", files[2])
        assert list(result.values())[-1][1] < 30


@pytest.mark.slow
def test_hf_trainer(run: Run, files: list[Path], minilm: str, tmp_path: Path, n_kept: int) -> None:
    rows, right = run("hf_trainer.py", *files, minilm, tmp_path / "out", "logconf")["logconf"]
    assert rows == n_kept
    assert right > 75
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "kitchen", "1": "workshop"}


def test_hf_trainer_with_a_decoder(
    run: Run, files: list[Path], tiny_model: Callable[..., Path], tmp_path: Path, n_kept: int
) -> None:
    """One that has no padding token."""
    result = run("hf_trainer.py", *files, tiny_model("llama"), tmp_path / "out")
    assert result["xent"][0] == n_kept


@pytest.mark.slow
def test_trl(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The better answer is the polite one; weak labels of 16 of 128 pairs are wrong."""
    pytest.importorskip("trl")
    rng = np.random.default_rng(3)
    created = {"rows": 128, "test": 24}
    pairs = {name: [pair(f"{name}{i}", rng) for i in range(n)] for name, n in created.items()}
    label = np.eye(2)[[row.pop("label") for row in pairs["rows"]]]
    weak = label.copy()
    weak[:16] = weak[:16, ::-1]  # 8 of them are dropped, 8 turned round
    keep = np.arange(128) >= 8
    for name, rows in pairs.items():
        write(tmp_path / f"{name}.jsonl", rows)
    after = {}
    for name, learned in (("right", label), ("wrong", label[:, ::-1])):
        path = tmp_path / f"{name}.parquet"
        verdicts_on(pairs["rows"], ("0", "1"), weak=weak, label=learned, keep=keep).save(path)
        paths = [tmp_path / "rows.jsonl", path, tmp_path / "test.jsonl", tiny_model("llama")]
        command = ["trl_reward.py", *map(str, paths), str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(FOLDER / "trl_reward.py"), run_name="__main__")
        printed = capsys.readouterr().out
        result = re.search(
            r"^120 pairs; of 24 test pairs right: [\d.]+% -> ([\d.]+)%$", printed, re.M
        )
        assert result, printed
        after[name] = float(result[1])
        assert (tmp_path / name / "model.safetensors").exists()
    assert after["right"] > 75
    # The control, from the same random head: the labels decide which answer is the better one.
    assert after["wrong"] < after["right"] - 20


def pair(row_id: str, rng: np.random.Generator) -> dict[str, Any]:
    question = " ".join(rng.choice(BOTH, 3))
    better, worse = (f"Q: {question}?\nA: {answer}" for answer in ("with pleasure", "no"))
    second = int(rng.integers(2))
    first, last = (worse, better) if second else (better, worse)
    return {"id": row_id, "text": first, "text_pair": last, "label": second}
