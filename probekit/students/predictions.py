"""What a student predicts: files of probabilities, curves over the training, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from probekit.data import Rows
from probekit.errors import DataError, ModelError
from probekit.labels import WeakLabels
from probekit.metrics import (
    accuracy,
    auroc,
    brier,
    calibration_error,
    log_loss,
    recall_at_fpr,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["as_labels", "evaluate_predictions", "proba_of", "read_curve"]


def proba_of(logits: ArrayLike) -> NDArray[np.float64]:
    """Class probabilities (n, C) of logits (n, C).

    Raises
    ------
    ModelError
        Where a logit is not finite: the model has diverged, or overflows in half precision.
    """
    z = np.asarray(logits, np.float64)
    broken = int((~np.isfinite(z)).any(axis=1).sum())
    if broken:
        raise ModelError(
            f"The model's outputs for {broken} of {len(z)} rows are not finite; lower the learning "
            "rate, or use float32."
        )
    shifted = np.exp(z - z.max(axis=1, keepdims=True))
    proba: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return proba


def as_labels(
    rows: Rows, proba: NDArray[np.float64], classes: tuple[str, ...], provenance: Mapping[str, Any]
) -> WeakLabels:
    """Put predictions (n, C) into the form of labels, to be saved and joined by id."""
    return WeakLabels(
        ids=list(rows.ids),
        hashes=list(rows.hashes),
        probs=proba,
        classes=classes,
        source="predictions",
        key=rows.keys,
        provenance=dict(provenance),
    )


def read_curve(folder: Path, name: str) -> tuple[list[int], NDArray[np.float64]]:
    """Predictions of rows ``name`` at every evaluation: steps (s,) and probabilities (s, n, C).

    Raises
    ------
    DataError
        Where the training kept none.
    """
    files = sorted((folder / "curves" / name).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} has no curve of {name!r}; train with curves.")
    probs = [load_file(file)["probs"].astype(np.float64) for file in files]
    return [int(file.stem) for file in files], np.stack(probs)


def evaluate_predictions(predicted: WeakLabels, truth: WeakLabels) -> dict[str, float | None]:
    """Judge predictions by the truth of their rows; both are joined by id.

    Accuracy, AUROC, log-loss (nats), Brier score, expected calibration error (15 bins), and recall
    at 1 % false positives (two classes); None where a figure is not defined.
    """
    found = truth.align(predicted.keys, rows_name="the predictions")
    codes, proba = found.labels.codes(predicted.classes), predicted.probs
    figures: dict[str, float | None] = {
        "rows": len(codes),
        "accuracy": accuracy(codes, predicted.hard),
        "auroc": auroc(codes, proba),
        "log_loss": log_loss(codes, proba),
        "brier": brier(codes, proba),
        "ece": calibration_error(codes, proba),
    }
    if proba.shape[1] == 2:
        figures["recall_at_1pct_fpr"] = recall_at_fpr(codes, proba[:, 1])
    return {k: None if v is None or np.isnan(v) else v for k, v in figures.items()}
