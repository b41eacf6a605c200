"""Predict with a classifier that was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probekit.activations.batching import (
    by_length,
    cut_batches,
    default_batch_tokens,
    mixes_padding,
)
from probekit.activations.checkpoint import open_checkpoint, why
from probekit.activations.loading import resolve_device
from probekit.activations.pooling import pooler
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import ModelError, UsageError
from probekit.labels import WeakLabels
from probekit.students.batches import collate, encode_rows
from probekit.students.classifier import Classifier, load_backbone, read_head
from probekit.students.config import FinetuneConfig
from probekit.students.predictions import as_labels, proba_of

__all__ = ["predict_rows"]


def predict_rows(
    model: str | Path,
    rows: Rows,
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> WeakLabels:
    """Class probabilities (n, C) of rows, by a classifier that ``finetune`` saved.

    ``provenance`` says how many rows were ``truncated`` at ``max_length`` tokens.

    Parameters
    ----------
    model
        The folder ``model`` of a training.
    rows
        Only texts are read; of a reward model pairs.
    max_length
        Tokens per row; None: as many as in the training.
    batch_tokens
        Padded tokens per batch; None: by the kind of device.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    on_rows
        Is told after every batch how many rows it had.

    Raises
    ------
    UsageError
        Where the folder holds no classifier, or an adapter without its base.
    """
    folder = Path(model)
    info, weights = read_head(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds an adapter alone; train with save model to predict with it later."
        )
    place = torch.device(resolve_device(device))
    checkpoint = open_checkpoint(str(folder))
    reward = info.objective == "reward"
    length = checkpoint.length(max_length or info.max_length)
    classifier = Classifier(
        load_backbone(checkpoint, FinetuneConfig(model=str(folder))),
        pooler(info.pool),
        width=checkpoint.widths[checkpoint.depth],
        n_classes=len(info.classes),
        reward=reward,
    )
    try:
        classifier.head.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"The classifier in {folder} is damaged: {why(error)}") from None
    classifier.to(place).eval()
    with quiet():
        encoded = encode_rows(
            checkpoint,
            rows.contents(),
            rows.ids,
            kind=rows.kind,
            max_length=length,
            reward=reward,
        )
    budget = batch_tokens or default_batch_tokens(place.type)
    proba = np.empty((len(rows), len(info.classes)))
    even = mixes_padding(checkpoint.config.model_type)
    groups = by_length(encoded.lengths) if even else [np.arange(len(rows))]
    for places in (
        group[part]
        for group in groups
        for part in cut_batches(encoded.lengths[group], budget // len(encoded.parts))
    ):
        batch = collate([encoded[int(i)] for i in places], checkpoint.pad_id)
        with torch.inference_mode():
            logits: Any = classifier(**{name: part.to(place) for name, part in batch.items()})
        proba[places] = proba_of(logits.double().cpu().numpy())
        if on_rows is not None:
            on_rows(len(places))
    about = {"model": checkpoint.weights, "max_length": length, "truncated": encoded.truncated}
    return as_labels(rows, proba, info.classes, about)
