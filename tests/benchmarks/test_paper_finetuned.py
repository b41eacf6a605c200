"""The paper's experiments that finetune: their commands, and tables of what these print."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import paper_finetuned
import pytest
from paper_finetuned import COMMANDS, chess_rows, command, language_rows, measured, saliency_rows


def test_models_are_taken_from_the_hub_or_from_a_folder(tmp_path: Path) -> None:
    words = command("saliency", None)
    assert words[:3] == ["saliency", "--task", "sst2"]
    assert "sentence-transformers/all-MiniLM-L6-v2@layers=1" in words
    words = command("chess-chain", tmp_path)
    chain = words[words.index("--chain") + 1]
    assert chain.split(",") == [f"{tmp_path}/smollm2@layers={blocks}" for blocks in (4, 8, 12)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one_that_probekit_takes(name: str) -> None:
    from probekit.cli.main import cli

    words = command(name, None)
    # Below `probekit`, since a command keeps the names of the help option that it is first shown.
    parent = click.Context(cli, info_name="probekit", **cli.context_settings)
    sub = cli.get_command(parent, words[0])
    assert sub is not None
    options = sub.make_context(words[0], [*words[1:], "-o", "runs/x", "--dry-run"], parent).params
    assert options["dry_run"]
    assert options["task"] in ("sst2", "chess-move")


def bar(name: str, mean: float, chosen: float | None) -> dict[str, Any]:
    best = None if chosen is None else {"mean": chosen}
    return {"name": name, "mean": mean, "low": mean - 0.03, "high": mean + 0.03, "chosen": best}


def test_what_a_command_prints_becomes_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = {"value": 0.5, "low": 0.1, "high": 0.9}
    task = {
        "weak_accuracy": 0.7,
        "label_accuracy": 0.72,
        "bars": [bar("linear probe, weak labels", 0.8, 0.82), bar("finetune", 0.85, None)],
        "gap_closed": closed,
        "gap_closed_chosen": closed | {"value": None},
    }
    printed = {
        "pairs": [{"tasks": [task]}],
        "results": [{"seconds": {"a": 1.0, "b": 2.0}}, {"seconds": {"b": 2.0, "c": 4.0}}],
        "failures": ["seed 1: collapsed"],
    }
    ran: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> SimpleNamespace:
        ran.append(argv)
        return SimpleNamespace(returncode=1, stdout=json.dumps(printed))

    monkeypatch.setattr(paper_finetuned.subprocess, "run", run)
    line = measured("saliency", ["saliency"], tmp_path)
    assert ran[0][-3:] == ["-o", str(tmp_path / "saliency"), "--json"]
    assert line["seconds"] == 7.0  # a step that seeds share is counted once
    assert line["alarms"] == ["seed 1: collapsed"]
    header, rows = saliency_rows([line])
    assert rows[0] == ["linear probe, weak labels", "80.0 [77.0, 83.0]", "82.0"]
    assert rows[1] == ["finetune", "85.0 [82.0, 88.0]", "85.0"]
    assert rows[2] == ["gap closed", "0.50 [0.10, 0.90]", "-"]
    assert header == ["bar", "mpnet: last layer", "chosen layer"]
    decoder = line | {"experiment": "saliency-decoder", "command": "--strong smollm2"}
    header, rows = saliency_rows([line, decoder])
    assert header[3] == "smollm2: last layer"
    assert rows[0][1:3] == rows[0][3:]
    assert language_rows([line])[1] == chess_rows([line])[1] == []

    failed = SimpleNamespace(returncode=2, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="ended with exit code 2"):
        measured("saliency", ["saliency"], tmp_path)


def test_a_language_model_start_is_judged_under_both_ceilings() -> None:
    pgr = {"pretrained": {"pgr": 0.4}, "language model": {"pgr": None}}
    start = {"start": "language model", "student": 0.8, "ceiling": 0.9, "pgr": pgr}
    seed = {"supervisor": 0.7, "starts": [start]}
    header, rows = language_rows([{"experiment": "lm-first", "seeds": [seed]}])
    assert dict(zip(header, rows[0], strict=True)) == {
        "seed": "0",
        "start": "language model",
        "supervisor": "70.0",
        "student": "80.0",
        "ceiling": "90.0",
        "PGR: ceiling without": "0.40",
        "ceiling with": "-",
    }


def test_a_chain_shows_labels_and_moves() -> None:
    arms = [
        {"name": "a, ground truth", "label_accuracy": None, "accuracy": 0.1},
        {"name": "a → b", "label_accuracy": 0.12, "accuracy": 0.2},
    ]
    printed = {"results": [{"arms": [arm | FIGURES for arm in arms]}]}
    kept = paper_finetuned._chess(printed)
    _, rows = chess_rows([{"experiment": "chess-chain", **kept}])
    assert rows == [["a, ground truth", "-", "10.0"], ["a → b", "12.0", "20.0"]]


FIGURES: dict[str, Any] = {"kind": "chain", "rows": 10, "pgr": None, "gain": None}
