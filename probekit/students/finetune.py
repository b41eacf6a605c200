"""Finetune a classifier on weak labels, in a folder from which training resumes.

A student receives :class:`TrainingRows`: texts and the labels to train on, and no other column.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback

from probekit.activations.batching import by_length, mixes_padding
from probekit.activations.checkpoint import Checkpoint, open_checkpoint, tokenizer_fingerprint
from probekit.activations.quiet import quiet
from probekit.data import Content, Rows
from probekit.errors import DataError, LabelsError, UsageError
from probekit.groups import duplicate_groups
from probekit.labels import WeakLabels, load_labels
from probekit.metrics import accuracy, auroc, cross_entropy
from probekit.sources import read_table
from probekit.students.classifier import (
    HeadInfo,
    TokenRows,
    collate,
    encode_rows,
    make_classifier,
    save_classifier,
)
from probekit.students.config import FinetuneConfig
from probekit.students.folder import Folder, check_names, plain_settings
from probekit.students.losses import Loss, make_loss
from probekit.students.predict import as_labels, proba_of
from probekit.students.trainer import (
    FiniteTrainer,
    buckets_of,
    check_finite_weights,
    precision_of,
    total_steps,
    wait_for_all,
)
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ClassTrainer",
    "Finetuned",
    "TrainingRows",
    "finetune",
    "hold_out",
    "load_training_labels",
    "training_rows",
]

# Names of the training and held-out rows in the metrics.
TRAIN = "training rows"
VALIDATION = "validation"
# Files of a checkpoint.
WEIGHTS, LOSS_STATE = "model.safetensors", "loss_state.safetensors"
_LABELS = ("targets", "weight")


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """n rows of text with labels over C classes.

    There is no field for ground truth, so training cannot see it.
    """

    contents: Sequence[Content]
    """n texts, pairs or lists of messages."""
    kind: str
    """``text``, ``pair`` or ``messages``."""
    ids: Sequence[str]
    hashes: Sequence[str]
    Y: NDArray[np.float64]
    """Labels (n, C), rows summing to 1."""
    weight: NDArray[np.float64]
    """Weights (n,), of mean 1."""
    classes: tuple[str, ...]
    groups: Sequence[str] | None = None
    """n names of what the rows belong to, or None."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, texts, labels, weights and classes."""
        digest = hashlib.sha256(repr((list(self.ids), list(self.hashes), self.classes)).encode())
        digest.update(np.ascontiguousarray(self.Y, "<f8").tobytes())
        digest.update(np.ascontiguousarray(self.weight, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def select(self, positions: NDArray[np.int64]) -> TrainingRows:
        """Return the rows at ``positions``, their weights rescaled to mean 1."""
        weight = self.weight[positions]
        return TrainingRows(
            [self.contents[i] for i in positions],
            self.kind,
            [self.ids[i] for i in positions],
            [self.hashes[i] for i in positions],
            self.Y[positions],
            weight / weight.mean(),
            self.classes,
            None if self.groups is None else [self.groups[i] for i in positions],
        )


def training_rows(
    rows: Rows, labels: WeakLabels | Verdicts, *, only_labelled: bool = False
) -> TrainingRows:
    """Join rows and labels by id, and drop rows that are not kept.

    Parameters
    ----------
    rows
        Only ids and texts are read; a column with the truth is not.
    labels
        Weak labels, or verdicts, of which ``keep``, ``label`` and ``weight`` are used.
    only_labelled
        Leave out rows without a weak label, instead of raising LabelsError.

    Raises
    ------
    LabelsError
        If ids have no label, or labels belong to other texts.
    DataError
        If verdicts are of other rows, or nothing is left to train on.
    """
    if isinstance(labels, Verdicts):
        matches = labels.join(rows)
        chosen = [i for i, v in enumerate(matches) if v is not None and labels.keep[v]]
        indices = [v for i in chosen if (v := matches[i]) is not None]
        Y, weight = (
            labels.label[indices].astype(np.float64),
            labels.weight[indices].astype(np.float64),
        )
        Y /= Y.sum(axis=1, keepdims=True)  # float32 on disk
    else:
        aligned = labels.align(rows.keys, only_labelled=only_labelled)
        chosen, Y = aligned.rows.tolist(), aligned.labels.probs
        weight = np.ones(len(chosen))
    if not chosen:
        raise DataError(
            f"No row of {rows.source} is left to train on: all were dropped; filter less."
        )
    if (weight < 0).any() or not weight.any():
        raise LabelsError(
            f"The weights of the {len(chosen)} rows to train on must not be negative, nor all 0."
        )
    contents = rows.contents()
    return TrainingRows(
        [contents[i] for i in chosen],
        rows.kind,
        [rows.ids[i] for i in chosen],
        [rows.hashes[i] for i in chosen],
        Y,
        weight / weight.mean(),
        labels.classes,
        None if rows.groups is None else [rows.groups[i] for i in chosen],
    )


def load_training_labels(path: str, **reading: Any) -> WeakLabels | Verdicts:
    """Read a file of weak labels, or of verdicts, which have a column ``keep``.

    ``reading`` are the arguments of :func:`probekit.labels.load_labels`.
    """
    table = read_table(path)
    if {"keep", "weak", "label", "disagreement"} <= set(table.columns):
        return Verdicts.load(table)
    return load_labels(table, **reading)


def hold_out(
    rows: TrainingRows, share: float, *, seed: int = 0
) -> tuple[TrainingRows, TrainingRows]:
    """Split off a share of the rows; copies of a text and rows of a group stay together.

    Raises
    ------
    UsageError
        If the share leaves one side empty.
    """
    if not 0 < share < 1:
        raise UsageError(f"The validation share is between 0 and 1, got {share}.")
    groups = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    order = np.random.default_rng([seed, 3]).permutation(int(groups.max()) + 1)
    held_out = np.isin(groups, order[: round(share * len(order))])
    if held_out.all() or not held_out.any():
        raise UsageError(
            f"A validation share of {share} of {len(rows)} rows leaves one side empty; give more "
            "rows or another share."
        )
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A finished training."""

    folder: Path
    model: Path | None
    """Folder that extract, finetune and predict_rows read; None if it was not saved."""
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
    """Train a classifier (or a reward model) on soft labels and predict with it.

    Parameters
    ----------
    config
        Settings; the objective is ``classify``, or ``reward`` for pairs of completions, each of
        which is scored alone (class 1: the second is preferred).
    train
        Rows and labels, from :func:`training_rows`, without the truth.
    output
        Folder. The same run in it is resumed, or reused if it is finished.
    validation
        Held-out rows with weak labels, evaluated on during training, for early stopping.
    predict
        Rows by name; only their texts are read.
    curves
        Save every evaluation's predictions of ``predict`` and of the validation rows.
    resume
        False: start again.
    overwrite
        Replace a finished or another training in the folder once the new one is complete.

    Raises
    ------
    LabelsError
        If the labels have one class only, or those of train and validation differ.
    ModelError
        If the model cannot be loaded or adapted, or the loss is not finite.
    OutputExistsError
        If the folder holds another run or other files.
    WriteError
        If the disk is full, or another process trains in the folder.
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
        paths = {name: folder.path / "predictions" / f"{name}.parquet" for name in predict}
        model = folder.path / "model"
        return Finetuned(
            folder=Path(output),
            model=Path(output) / "model" if model.is_dir() else None,
            predictions={n: load_labels(path, one_class=True) for n, path in paths.items()},
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
            f"The labels have one class only ({', '.join(train.classes)}); a classifier needs two."
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
            raise UsageError(f"The name {VALIDATION!r} is reserved for the held-out rows.")
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
    encode = partial(
        encode_rows,
        checkpoint,
        max_length=config.max_length,
        reward=config.objective == "reward",
    )
    with quiet():
        model, info = make_classifier(checkpoint, config, train.classes)
        rows = encode(train.contents, train.ids, kind=train.kind, Y=train.Y, weight=train.weight)
        targets = {
            name: encode(each.contents(), each.ids, kind=each.kind)
            for name, each in predict.items()
        }
        watched = dict(targets) if curves else {}
        if validation is not None:
            held_out = encode(validation.contents, validation.ids, kind=validation.kind)
            watched[VALIDATION] = held_out
    steps = total_steps(config, len(train))
    loss = make_loss(config.loss, total_steps=steps, weak=train.Y, **config.loss_options)
    mixes = mixes_padding(checkpoint.config.model_type)
    buckets = None if mixes else buckets_of(config, checkpoint.position_limit)
    trainer = ClassTrainer(
        config,
        folder.work,
        config.every(steps),
        model=model,
        rows=rows,
        collator=lambda items: collate(items, checkpoint.pad_id, buckets),
        **_evaluation(config, config.every(steps), watched=bool(watched)),
    )
    trainer.loss, trainer.watched = loss, watched
    trainer.validation_labels = None if validation is None else validation.Y
    trainer.curves = folder.work / "curves" if curves else None
    trainer.mixes_padding = mixes
    folder.begin()
    with quiet(python_warnings=False):
        trainer.train(resume_from_checkpoint=folder.last_checkpoint())
    check_finite_weights(model, checkpoint.label)
    _write_predictions(trainer, info, targets, predict, folder)
    metrics = {
        "dtype": precision_of(config).dtype,
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


def _evaluation(config: FinetuneConfig, every: int, *, watched: bool) -> dict[str, Any]:
    """Return the Trainer's arguments for evaluations and for keeping the best of them."""
    settings: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * config.batch_size,
        "eval_strategy": "steps" if watched else "no",
        "eval_steps": every,
        "label_names": [],
    }
    if config.early_stop is not None:
        settings |= {
            "save_strategy": "best",
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{config.early_stop}",
            "greater_is_better": config.early_stop != "log_loss",
        }
        if config.patience is not None:
            settings["callbacks"] = [EarlyStoppingCallback(config.patience)]
    return settings


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
            labels = as_labels(rows, proba, info.classes, {"run": folder.key})
            labels.save(folder.work / "predictions" / f"{name}.parquet")


def _best_step(trainer: ClassTrainer, config: FinetuneConfig) -> int:
    """Return the step whose weights the model has."""
    best = trainer.state.best_model_checkpoint
    if config.early_stop is None or best is None:
        return int(trainer.state.global_step)
    return int(Path(best).name.rpartition("-")[2])


class ClassTrainer(FiniteTrainer):
    """A Trainer whose labels are probabilities.

    Every evaluation predicts the rows ``watched``; ``curves`` is the folder for these predictions.
    Only ``validation`` has labels (weak ones) and affects training.
    """

    loss: Loss
    watched: Mapping[str, TokenRows]
    validation_labels: NDArray[np.float64] | None
    curves: Path | None
    mixes_padding = False
    """Whether only rows of one length are predicted together, as the model reads padding."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """Return the loss of a batch; the Trainer's signature."""
        targets, weight = inputs.pop("targets", None), inputs.pop("weight", None)
        logits = model(**inputs)
        if targets is None:
            return (None, {"logits": logits}) if return_outputs else None
        loss = self.loss(
            logits,
            targets,
            step=self.state.global_step,
            weight=weight,
            training=model.training,
        )
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002 (the Trainer's signature)
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, torch.Tensor, None]:
        """Return the logits of a batch."""
        moved = self._prepare_inputs({k: v for k, v in inputs.items() if k not in _LABELS})
        with torch.inference_mode(), self.compute_loss_context_manager():
            return None, model(**moved).detach(), None

    def probabilities(self, rows: TokenRows) -> NDArray[np.float64]:
        """Return class probabilities (n, C) of rows; the longest rows are predicted first."""
        groups = by_length(rows.lengths)
        if not self.mixes_padding:
            groups = [np.concatenate(groups)]
        # A loader draws from the global generator, also dropout's: keep its state.
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        with quiet(), torch.random.fork_rng(devices=cuda):
            parts = [self._logits(rows, group) for group in groups]
        ordered = proba_of(np.concatenate(parts))
        proba = np.empty_like(ordered)
        proba[np.concatenate(groups)] = ordered
        return proba

    def _logits(self, rows: TokenRows, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        dataset: Any = torch.utils.data.Subset(rows, positions.tolist())
        predictions: Any = self.predict(dataset).predictions
        return np.asarray(predictions, np.float64)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # The Trainer would group by length here too, and return predictions in that order.
        return torch.utils.data.SequentialSampler(eval_dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002
        """Predict the watched rows; compare with the held-out weak labels, if any."""
        training = self.model.training  # type: ignore[union-attr]
        metrics: dict[str, float] = {}
        step = self.state.global_step
        for name, rows in self.watched.items():
            proba = self.probabilities(rows)
            if self.curves is not None and self.is_world_process_zero():
                folder = self.curves / name
                folder.mkdir(parents=True, exist_ok=True)
                save_file(
                    {"probs": torch.from_numpy(proba.astype(np.float32))},
                    folder / f"{step:08d}.safetensors",
                )
            if name == VALIDATION and self.validation_labels is not None:
                metrics = _against(self.validation_labels, proba)
        self.model.train(training)  # type: ignore[union-attr]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the trained weights only: of adapters a few megabytes, not the frozen base."""
        model: Any = self.accelerator.unwrap_model(self.model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if state_dict is not None:
            trained = {name: state_dict[name] for name in trained if name in state_dict}
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in trained.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        state = {name: value.cpu().contiguous() for name, value in self.loss.state_dict().items()}
        if state:
            save_file(state, folder / LOSS_STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_trained(folder, model)
        if (folder / LOSS_STATE).is_file():
            self.loss.load_state_dict(load_file(folder / LOSS_STATE))

    def _load_best_model(self) -> None:
        self._load_trained(Path(str(self.state.best_model_checkpoint)), None)

    def _load_trained(self, folder: Path, model: Any) -> None:
        """Load what :meth:`_save` wrote; other weights never change."""
        unwrapped: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        device = next(unwrapped.parameters()).device
        unwrapped.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), strict=False)


def _against(weak: NDArray[np.float64], proba: NDArray[np.float64]) -> dict[str, float]:
    """Return log-loss, accuracy and AUROC of predictions (n, C) against weak labels (n, C)."""
    hard = weak.argmax(axis=1)
    metrics = {
        "eval_log_loss": float(cross_entropy(weak, proba).mean()),
        "eval_accuracy": accuracy(hard, proba.argmax(axis=1)),
    }
    area = auroc(hard, proba)
    return metrics if math.isnan(area) else {**metrics, "eval_auroc": area}
