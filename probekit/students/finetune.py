"""Finetune a classifier on weak labels, in a folder from which training resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.batching import mixes_padding
from probekit.activations.checkpoint import Checkpoint, open_checkpoint, tokenizer_fingerprint
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import LabelsError, UsageError
from probekit.labels import WeakLabels, load_labels
from probekit.students.batches import TokenRows, encode_rows
from probekit.students.class_trainer import VALIDATION, ClassTrainer, class_trainer
from probekit.students.classifier import (
    HeadInfo,
    make_classifier,
    save_classifier,
)
from probekit.students.config import FinetuneConfig
from probekit.students.folder import Folder, check_names, plain_settings
from probekit.students.losses import make_loss
from probekit.students.predictions import as_labels
from probekit.students.trainer import check_finite_weights, total_steps, wait_for_all
from probekit.students.training_rows import TrainingRows, training_rows

# What the training rows are called where rows are counted by name.
TRAIN = "training rows"

__all__ = ["Finetuned", "finetune", "training_rows"]


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A finished training."""

    folder: Path
    model: Path | None
    """Folder that extract, finetune and predict_rows read; None where it was not kept."""
    predictions: dict[str, WeakLabels] = field(default_factory=dict)
    """Class probabilities of each of ``predict``; also ``predictions/<name>.parquet``."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Rows, steps, seconds, history of losses and evaluations, best step."""


def finetune(
    config: FinetuneConfig,
    train: TrainingRows,
    output: str | Path,
    *,
    validation: TrainingRows | None = None,
    predict: Mapping[str, Rows] | None = None,
    curves: bool = False,
    resume: bool = True,
    overwrite: bool = False,
) -> Finetuned:
    """Train a classifier (or a reward model) on soft labels and let it predict.

    Parameters
    ----------
    config
        Settings; the objective is ``classify``, or ``reward`` for pairs of completions, each of
        which is scored alone (class 1: the second is preferred).
    train
        Rows and labels, from :func:`training_rows`; there is no truth in them.
    output
        Folder. The same run in it is resumed, or used as it is where it is finished.
    validation
        Held-out rows with weak labels, evaluated on during training, for early stopping.
    predict
        Rows by name; only their texts are read.
    curves
        Keep what every evaluation predicts of ``predict`` and of the validation rows.
    resume
        False: begin again.
    overwrite
        Replace a finished or another training in the folder, once the new one is whole.

    Raises
    ------
    LabelsError
        Where the labels hold one class only, or those of train and validation differ.
    ModelError
        Where the model cannot be loaded or adapted, or the loss is not finite.
    OutputExistsError
        Where the folder holds another run.
    WriteError
        Where the disk is full, or another process trains there.
    """
    predict = dict(predict or {})
    check_names(predict)
    _check(config, train, validation, predict)
    checkpoint = open_checkpoint(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    settings = {
        "objective": config.objective,
        "config": plain_settings(config),
        "weights": checkpoint.weights,
        "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
        "train": train.fingerprint,
        "validation": None if validation is None else validation.fingerprint,
        "predict": {name: rows.fingerprint for name, rows in predict.items()},
        "curves": curves,
    }
    with Folder.claim(Path(output), settings, resume=resume, overwrite=overwrite) as folder:
        if folder.metrics is None:
            metrics = _train(config, checkpoint, train, folder, validation, predict, curves=curves)
            folder.finish(metrics)
            wait_for_all()
        places = {name: folder.path / "predictions" / f"{name}.parquet" for name in predict}
        model = folder.path / "model"
        return Finetuned(
            folder=Path(output),
            model=Path(output) / "model" if model.is_dir() else None,
            predictions={n: load_labels(path, one_class=True) for n, path in places.items()},
            metrics=folder.metrics or {},
        )


def _check(
    config: FinetuneConfig,
    train: TrainingRows,
    validation: TrainingRows | None,
    predict: Mapping[str, Rows],
) -> None:
    if config.objective not in ("classify", "reward"):
        raise UsageError(
            f"The objective {config.objective} is trained by probekit.students.generative."
        )
    if len(train.classes) < 2:
        raise LabelsError(
            f"The labels name one class only ({', '.join(train.classes)}); a classifier needs two."
        )
    if np.count_nonzero(train.Y.max(axis=0) > 0) < 2:
        raise LabelsError(
            f"All {len(train)} rows to train on are of the class "
            f"{train.classes[int(train.Y[0].argmax())]!r}; a classifier needs two."
        )
    if config.objective == "reward" and len(train.classes) != 2:
        raise LabelsError(
            f"A preference is for the first or the second completion; these labels have "
            f"{len(train.classes)} classes."
        )
    if validation is not None and validation.classes != train.classes:
        raise LabelsError(
            f"Training labels have the classes {', '.join(train.classes)}, validation labels "
            f"{', '.join(validation.classes)}; name classes alike."
        )
    if config.early_stop is not None:
        _check_held_out(config.early_stop, validation)
    if VALIDATION in predict and validation is not None:
        same = list(predict[VALIDATION].ids) == list(validation.ids)
        if not same:
            raise UsageError(f"The name {VALIDATION!r} stands for the held-out rows.")
    for rows in predict.values():
        if rows.kind != train.kind:
            raise UsageError(
                f"{rows.source} has rows of kind {rows.kind}, the training rows are of kind "
                f"{train.kind}."
            )


def _check_held_out(early_stop: str, validation: TrainingRows | None) -> None:
    if validation is None:
        raise UsageError("Early stopping needs held-out rows with weak labels; give some.")
    if early_stop == "auroc" and len(np.unique(validation.Y.argmax(axis=1))) < 2:
        raise LabelsError(
            f"All {len(validation)} held-out labels are of one class, where AUROC is not defined; "
            "stop early by log_loss or accuracy, or hold out more rows."
        )


def _train(
    config: FinetuneConfig,
    checkpoint: Checkpoint,
    train: TrainingRows,
    folder: Folder,
    validation: TrainingRows | None,
    predict: Mapping[str, Rows],
    *,
    curves: bool,
) -> dict[str, Any]:
    started = time.perf_counter()
    with quiet():
        model, info = make_classifier(checkpoint, config, train.classes)
        rows = _encode(config, checkpoint, train.contents, train.ids, train.kind)
        rows = TokenRows(rows.parts, train.Y, train.weight)
        targets = {
            name: _encode(config, checkpoint, each.contents(), each.ids, each.kind)
            for name, each in predict.items()
        }
        watched = dict(targets) if curves else {}
        if validation is not None:
            held_out = _encode(
                config, checkpoint, validation.contents, validation.ids, validation.kind
            )
            watched[VALIDATION] = held_out
    loss = make_loss(
        config.loss,
        total_steps=total_steps(config, len(train)),
        weak=train.Y,
        **config.loss_options,
    )
    trainer = class_trainer(
        config,
        model,
        rows,
        loss,
        folder.work,
        pad_id=checkpoint.pad_id,
        watched=watched,
        validation_labels=None if validation is None else validation.Y,
        curves=folder.work / "curves" if curves else None,
    )
    trainer.even = mixes_padding(checkpoint.config.model_type)
    folder.begin()
    with quiet(python_warnings=False):
        trainer.train(resume_from_checkpoint=folder.last_checkpoint())
    check_finite_weights(model, checkpoint.label)
    _write_predictions(trainer, info, targets, predict, folder)
    metrics = {
        "rows": len(train),
        "steps": trainer.state.global_step,
        "train_loss": trainer.mean_loss,
        "best_step": _best_step(trainer, config),
        "history": trainer.state.log_history,
        "notes": loss.notes,
        "classes": list(info.classes),
        "max_length": info.max_length,
        "truncated": {
            TRAIN: rows.truncated,
            **{name: each.truncated for name, each in {**targets, **watched}.items()},
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if config.save != "none" and trainer.is_world_process_zero():
        save_classifier(model, info, checkpoint, folder.model, adapter=config.save == "adapter")
    return {**metrics, "seconds": time.perf_counter() - started}


def _encode(
    config: FinetuneConfig, checkpoint: Checkpoint, contents: Any, ids: Any, kind: str
) -> TokenRows:
    return encode_rows(
        checkpoint,
        contents,
        ids,
        kind=kind,
        max_length=config.max_length,
        reward=config.objective == "reward",
    )


def _write_predictions(
    trainer: ClassTrainer,
    info: HeadInfo,
    targets: Mapping[str, TokenRows],
    predict: Mapping[str, Rows],
    folder: Folder,
) -> None:
    for name, rows in predict.items():
        proba = trainer.probabilities(targets[name])
        if trainer.is_world_process_zero():
            (folder.work / "predictions").mkdir(exist_ok=True)
            found = as_labels(rows, proba, info.classes, {"run": folder.key})
            found.save(folder.work / "predictions" / f"{name}.parquet")


def _best_step(trainer: ClassTrainer, config: FinetuneConfig) -> int:
    """Step whose weights the model has."""
    best = trainer.state.best_model_checkpoint
    if config.early_stop is None or best is None:
        return int(trainer.state.global_step)
    return int(Path(best).name.rpartition("-")[2])
