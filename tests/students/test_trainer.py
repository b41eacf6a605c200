"""The line that moves while a model trains: what it says, and where it is silent."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from probekit.activations.progress import no_moving_bars
from probekit.data import Rows
from probekit.labels import WeakLabels
from probekit.students.config import FinetuneConfig
from probekit.students.finetune import finetune, training_rows
from probekit.students.trainer import TrainingLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loss_rate_and_time_left(tmp_path: Path) -> None:
    line = TrainingLine(show=False)
    args, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(global_step=100, max_steps=1000, epoch=0.2)
    line.on_train_begin(args, state, control)  # resumed at step 100
    state.global_step, state.epoch = 300, 0.6
    assert line.text(state, 50.0) == "step 300/1,000 · epoch 0.60 · 4.0 steps/s · 2:55 left"
    line.on_log(args, state, control, logs={"loss": 0.51234, "learning_rate": 3e-5})
    line.on_log(args, state, control, logs={"eval_auroc": 0.9})
    assert "epoch 0.60 · loss 0.5123 · rate 3.0e-05 · 4.0 steps/s" in line.text(state, 50.0)


@pytest.fixture
def train(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[[], None]:
    def run(**settings: Any) -> None:
        texts = [f"{('cat', 'hammer')[i % 2]} {i}" for i in range(40)]
        rows = Rows({"text": texts})
        columns = {"id": list(rows.ids), "label": [i % 2 for i in range(40)]}
        labels = WeakLabels.from_columns(columns)
        fixed = {"model": str(tiny_model("bert")), "device": "cpu", "batch_size": 8}
        config = FinetuneConfig.from_mapping({**fixed, "save": "none", **settings})
        finetune(config, training_rows(rows, labels), tmp_path / "out")

    return run


def test_drawn_on_a_terminal_and_wiped(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.activations.progress.EVERY_SECONDS", 0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train()
    drawn = terminal.getvalue().split("\r")
    assert any("step 10/10" in each and "loss" in each for each in drawn)
    assert drawn[-2].strip() == ""
    assert drawn[-1] == ""


@pytest.mark.parametrize("hidden", [True, False])
def test_nothing_where_it_is_hidden_or_no_terminal(
    hidden: bool, train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.activations.progress.EVERY_SECONDS", 0)
    stream = Terminal() if hidden else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    if hidden:
        with no_moving_bars():
            train()
    else:
        train()
    assert stream.getvalue() == ""
