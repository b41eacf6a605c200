"""Students of the weak-to-strong grid: linear ones on frozen states, and finetuned ones."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from weak_to_strong_arms import Cell
from weak_to_strong_rows import MODELS

from probekit.data import Rows
from probekit.experiments.scores import score_curve
from probekit.labels import WeakLabels
from probekit.metrics import auroc, log_loss
from probekit.probes import LogisticProbe
from probekit.verdicts import Verdicts

__all__ = [
    "BRIEF",
    "FINETUNED",
    "LINEAR",
    "LOSSES",
    "TRAININGS",
    "answers",
    "finetuned_student",
    "fit_linear",
    "linear_student",
    "tested",
]

Array = np.ndarray[Any, Any]

# One chosen out of fold on the labels that it trains on, as a careful user does; one that memorises
# wrong labels, as a network does: its penalty.
LINEAR = {"regularised": "auto", "memorising": 1e-5}
FINETUNED, BRIEF = "finetuned", "brief"
# Losses of further arms, on plain weak labels.
LOSSES = {"log-confidence": "logconf", "entropy": "entropy", "window": "window_midweak"}


class Training(NamedTuple):
    """How long all weights are trained, and what becomes of the learning rate."""

    epochs: int
    schedule: str


# Nearly 200 steps in all on 500 rows, at a constant rate: enough to learn single wrong labels. Or
# half as many with a rate that falls to 0, as most people finetune.
TRAININGS = {FINETUNED: Training(6, "constant_with_warmup"), BRIEF: Training(3, "linear")}
# At 5e-5 and without a warm-up MPNet fell to chance for an epoch in three of five trainings.
RATE, BATCH, WARMUP = 3e-5, 16, 0.1
# Of models that need another; those with adapters (LoRA), which fit where all weights do not.
RATES = {"minilm": 1e-4, "smollm2": 2e-4, "qwen": 2e-4}
ADAPTED = ("smollm2", "qwen")
LONGEST = 96  # tokens


def linear_student(cell: Cell, labels: WeakLabels | Verdicts, l2: Any) -> dict[str, Any]:
    """Fit logistic regression to the labels; its answers on the test rows."""
    return tested(cell, fit_linear(cell, labels, l2))


def fit_linear(cell: Cell, labels: WeakLabels | Verdicts, l2: Any) -> LogisticProbe:
    """Fit logistic regression to the labels of the student's rows."""
    X = cell.pool.read(cell.layer, cell.rows)
    kept = np.flatnonzero(getattr(labels, "keep", np.ones(len(X), dtype=bool)))
    if isinstance(labels, Verdicts):
        Y, weight = labels.label[kept].astype(np.float64), labels.weight[kept]
        Y /= Y.sum(axis=1, keepdims=True)  # they are float32
    else:
        Y, weight = labels.probs, None
    return LogisticProbe(l2=l2, random_state=cell.place.seed).fit(X[kept], Y, weight)


def tested(cell: Cell, probe: LogisticProbe) -> dict[str, Any]:
    """Layer and penalty of a linear student, and its answers on the test rows."""
    P = probe.predict_proba(cell.test.layer(cell.layer))
    return {"layer": cell.layer, "l2": float(probe.l2_), **answers(P, cell.parts["test"].truth)}


def answers(P: Array, truth: Array) -> dict[str, Any]:
    """Figures of predictions P (m, 2), and which are right, as hexadecimal bits."""
    right = P.argmax(axis=1) == truth
    return {
        "acc": round(float(right.mean()), 5),
        "auroc": round(float(auroc(truth, P)), 5),
        "log_loss": round(float(log_loss(truth, P)), 5),
        "right": np.packbits(right).tobytes().hex(),
    }


def finetuned_student(
    cell: Cell,
    labels: WeakLabels | Verdicts,
    loss: str,
    training: Training,
    models: Path | None,
    folder: Path,
) -> dict[str, Any]:
    """Finetune all weights, or adapters; the answers on the test rows after every epoch.

    A killed training resumes in ``folder``, which is removed at the end.
    """
    from probekit.students.config import FinetuneConfig
    from probekit.students.finetune import finetune, training_rows
    from probekit.students.predict import read_curve

    pool, test = cell.parts["pool"], cell.parts["test"]
    name, _, blocks = cell.place.strong.partition("@")
    model = MODELS[name][0] if models is None else str(models / name)
    config = FinetuneConfig(
        model=f"{model}@layers={blocks}" if blocks else model,
        loss=loss,
        epochs=training.epochs,
        evals=training.epochs,
        batch_size=BATCH,
        lr=RATES.get(name, RATE),
        lr_schedule=training.schedule,
        warmup=WARMUP,
        lora=name in ADAPTED,
        max_length=LONGEST,
        save="none",
        seed=cell.place.seed,
    )

    def shown(rows: Array) -> Rows:
        return Rows({"id": [pool.ids[i] for i in rows], "text": [pool.texts[i] for i in rows]})

    weak = cell.labels(cell.proba[cell.held_out], cell.held_out)
    with contextlib.redirect_stderr(io.StringIO()):
        done = finetune(
            config,
            training_rows(shown(cell.rows), labels),
            folder,
            validation=training_rows(shown(cell.held_out), weak),
            predict={"test": Rows({"id": test.ids, "text": test.texts})},
            curves=True,
        )
    steps, tested = read_curve(folder, "test")
    held_out = read_curve(folder, "validation")[1]
    curve = score_curve(
        steps, tested, test.truth, held_out, weak.probs, floor=float("nan"), ceiling=float("nan")
    )
    losses = [entry for entry in done.metrics["history"] if "loss" in entry]
    epochs = [
        {
            "weak_agreement": round(curve["weak_agreement"][i], 5),
            "weak_log_loss": round(curve["weak_log_loss"][i], 5),
            "train_loss": round(
                float(np.mean([e["loss"] for e in losses if i < e["epoch"] <= i + 1 + 1e-6])), 5
            ),
            **answers(P, test.truth),
        }
        for i, P in enumerate(tested)
    ]
    stop = steps.index(curve["stops"]["weak_early_stop"]["step"]) + 1
    shutil.rmtree(folder)
    return {"epochs": epochs, "stop": stop}
