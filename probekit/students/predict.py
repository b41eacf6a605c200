"""A student's predictions: of a saved classifier, during training, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy.special import softmax

from probekit.activations.batching import (
    by_length,
    cut_batches,
    default_batch_tokens,
    mixes_padding,
)
from probekit.activations.checkpoint import open_checkpoint, why
from probekit.activations.hooks import POOLERS
from probekit.activations.loading import resolve_device
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import DataError, ModelError, UsageError
from probekit.labels import WeakLabels
from probekit.metrics import (
    accuracy,
    auroc,
    brier,
    calibration_error,
    log_loss,
    recall_at_fpr,
)
from probekit.students.classifier import Classifier, collate, encode_rows, load_backbone, read_head
from probekit.students.config import FinetuneConfig

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["as_labels", "evaluate_predictions", "predict_rows", "proba_of", "read_curve"]


def predict_rows(
    model: str | Path,
    rows: Rows,
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> WeakLabels:
    """Predict class probabilities (n, C) of rows with a classifier that ``finetune`` saved.

    ``provenance`` has the number of rows ``truncated`` at ``max_length`` tokens.

    Parameters
    ----------
    model
        The folder ``model`` of a training.
    rows
        Only texts are read; pairs for a reward model.
    max_length
        Tokens per row; None: as in training.
    batch_tokens
        Padded tokens per batch; None: depends on the kind of device.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    on_rows
        Called after every batch with its number of rows.

    Raises
    ------
    UsageError
        If the folder does not hold a classifier, or only an adapter without its base.
    """
    folder = Path(model)
    info, weights = read_head(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds an adapter alone; train with save model to predict later."
        )
    torch_device = torch.device(resolve_device(device))
    checkpoint = open_checkpoint(str(folder))
    reward = info.objective == "reward"
    length = checkpoint.length(max_length or info.max_length)
    classifier = Classifier(
        load_backbone(checkpoint, FinetuneConfig(model=str(folder))),
        POOLERS[info.pool],
        width=checkpoint.widths[checkpoint.depth],
        n_classes=len(info.classes),
        reward=reward,
    )
    try:
        classifier.head.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"The classifier in {folder} is damaged: {why(error)}") from None
    classifier.to(torch_device).eval()
    with quiet():
        encoded = encode_rows(
            checkpoint,
            rows.contents(),
            rows.ids,
            kind=rows.kind,
            max_length=length,
            reward=reward,
        )
    budget = batch_tokens or default_batch_tokens(torch_device.type)
    proba = np.empty((len(rows), len(info.classes)))
    mixes = mixes_padding(checkpoint.config.model_type)
    groups = by_length(encoded.lengths) if mixes else [np.arange(len(rows))]
    for positions in (
        group[part]
        for group in groups
        for part in cut_batches(encoded.lengths[group], budget // len(encoded.parts))
    ):
        batch = collate([encoded[int(i)] for i in positions], checkpoint.pad_id)
        with torch.inference_mode():
            logits: Any = classifier(
                **{name: part.to(torch_device) for name, part in batch.items()}
            )
        proba[positions] = proba_of(logits.double().cpu().numpy())
        if on_rows is not None:
            on_rows(len(positions))
    provenance = {"model": checkpoint.weights, "max_length": length, "truncated": encoded.truncated}
    return as_labels(rows, proba, info.classes, provenance)


def proba_of(logits: ArrayLike) -> NDArray[np.float64]:
    """Return class probabilities (n, C) of logits (n, C).

    Raises
    ------
    ModelError
        If a logit is not finite: training diverged, or half precision overflows.
    """
    z = np.asarray(logits, np.float64)
    broken = int((~np.isfinite(z)).any(axis=1).sum())
    if broken:
        raise ModelError(
            f"The model's outputs for {broken} of {len(z)} rows are not finite; lower the learning "
            "rate, or use float32."
        )
    return np.asarray(softmax(z, axis=1))


def as_labels(
    rows: Rows, proba: NDArray[np.float64], classes: tuple[str, ...], provenance: Mapping[str, Any]
) -> WeakLabels:
    """Return predictions (n, C) as labels, which can be saved and joined by id."""
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
    """Read the predictions of ``name`` at every evaluation: steps (s,), probabilities (s, n, C).

    Raises
    ------
    DataError
        If the training stored none.
    """
    files = sorted((folder / "curves" / name).glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} has no curve of {name!r}; train with curves.")
    probs = [load_file(file)["probs"].astype(np.float64) for file in files]
    return [int(file.stem) for file in files], np.stack(probs)


def evaluate_predictions(predicted: WeakLabels, truth: WeakLabels) -> dict[str, float | None]:
    """Compare predictions with the truth of their rows, joined by id.

    Returns accuracy, AUROC, log-loss (nats), Brier score, expected calibration error (15 bins), and
    recall at 1 % false positives (two classes); None for a figure that is not defined.
    """
    aligned = truth.align(predicted.keys, rows_name="the predictions")
    codes, proba = aligned.labels.codes(predicted.classes), predicted.probs
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
