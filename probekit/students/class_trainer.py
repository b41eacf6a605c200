"""Hugging Face Trainer with soft targets, row weights, any loss of ours, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, PrinterCallback

from probekit.activations.batching import by_length
from probekit.activations.quiet import quiet
from probekit.metrics import auroc
from probekit.students.batches import TokenRows, collate
from probekit.students.classifier import Classifier
from probekit.students.config import FinetuneConfig
from probekit.students.losses import Loss
from probekit.students.predictions import proba_of
from probekit.students.trainer import FiniteTrainer, checkpoint_callbacks, training_arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassTrainer", "class_trainer"]

WEIGHTS, LOSS_STATE = "model.safetensors", "loss_state.safetensors"
VALIDATION = "validation"


class ClassTrainer(FiniteTrainer):
    """A Trainer whose labels are probabilities.

    ``watched`` are rows that every evaluation predicts; ``curves`` holds (step, probabilities) of
    each. Only ``validation`` has labels, weak ones, and decides anything.
    """

    loss: Loss
    watched: Mapping[str, TokenRows]
    validation_labels: NDArray[np.float64] | None
    curves: Path | None
    even = False
    """Whether only rows of one length are predicted together: the model reads padded places."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """Loss of a batch, with the Trainer's signature."""
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
        """Logits of a batch."""
        moved = self._prepare_inputs({k: v for k, v in inputs.items() if k not in _LABELS})
        with torch.inference_mode(), self.compute_loss_context_manager():
            return None, model(**moved).detach(), None

    def probabilities(self, rows: TokenRows) -> NDArray[np.float64]:
        """Class probabilities (n, C) of rows, the longest first through the model."""
        groups = by_length(rows.lengths)
        if not self.even:
            groups = [np.concatenate(groups)]
        # A loader draws from the global generator, which is dropout's too: to look is not to touch.
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        with quiet(), torch.random.fork_rng(devices=cuda):
            parts = [self._logits(rows, group) for group in groups]
        ordered = proba_of(np.concatenate(parts))
        proba = np.empty_like(ordered)
        proba[np.concatenate(groups)] = ordered
        return proba

    def _logits(self, rows: TokenRows, places: NDArray[np.int64]) -> NDArray[np.float64]:
        dataset: Any = torch.utils.data.Subset(rows, places.tolist())
        found: Any = self.predict(dataset).predictions
        return np.asarray(found, np.float64)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # The Trainer would group lengths here too, and give predictions in that order.
        return torch.utils.data.SequentialSampler(eval_dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002
        """Predict what is watched; measure against the held-out weak labels, if there are any."""
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
        """Write what is trained: of adapters a few megabytes, not the frozen base."""
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
        self._take(folder, model)
        if (folder / LOSS_STATE).is_file():
            self.loss.load_state_dict(load_file(folder / LOSS_STATE))

    def _load_best_model(self) -> None:
        self._take(Path(str(self.state.best_model_checkpoint)), None)

    def _take(self, folder: Path, model: Any) -> None:
        """Load what :meth:`_save` wrote; what is not in it never changed."""
        taken: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        device = next(taken.parameters()).device
        taken.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), strict=False)


_LABELS = ("targets", "weight")


def _against(weak: NDArray[np.float64], proba: NDArray[np.float64]) -> dict[str, float]:
    """Agreement of predictions (n, C) with weak labels (n, C)."""
    logs = np.log(np.clip(proba, np.finfo(np.float64).eps, 1))
    found = {
        "eval_log_loss": float(-(weak * logs).sum(axis=1).mean()),
        "eval_accuracy": float((weak.argmax(axis=1) == proba.argmax(axis=1)).mean()),
    }
    ordered = auroc(weak.argmax(axis=1), proba)
    return found if math.isnan(ordered) else {**found, "eval_auroc": ordered}


def class_trainer(
    config: FinetuneConfig,
    model: Classifier,
    rows: TokenRows,
    loss: Loss,
    folder: Path,
    *,
    pad_id: int,
    watched: Mapping[str, TokenRows],
    validation_labels: NDArray[np.float64] | None,
    curves: Path | None,
) -> ClassTrainer:
    """Make the Trainer of a configuration; checkpoints go to ``folder/checkpoints``."""
    every = config.every(loss.total_steps)
    keep_best = config.early_stop is not None
    more: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * config.batch_size,
        "eval_strategy": "steps" if watched else "no",
        "eval_steps": every,
        "label_names": [],
    }
    if keep_best:
        more |= {
            "save_strategy": "best",
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{config.early_stop}",
            "greater_is_better": config.early_stop != "log_loss",
        }
    callbacks = checkpoint_callbacks(config)
    if keep_best and config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    with quiet():
        trainer = ClassTrainer(
            model=model,
            args=training_arguments(config, folder, every, **more),
            train_dataset=rows,
            eval_dataset=rows if watched else None,
            data_collator=lambda items: collate(items, pad_id),
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.loss, trainer.watched, trainer.curves = loss, watched, curves
    trainer.validation_labels = validation_labels
    return trainer
