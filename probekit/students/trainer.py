"""What our Trainers share: settings, order of rows, checkpoints, progress, checks."""

# ruff: noqa: ARG002 (callbacks have the Trainer's signature)

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices

from probekit.activations.batching import Buckets
from probekit.activations.loading import kind_of, resolve_device
from probekit.activations.precision import Precision, training_precision
from probekit.activations.progress import MovingBar, duration
from probekit.activations.quiet import quiet
from probekit.errors import ModelError, disk_errors
from probekit.students.config import FinetuneConfig
from probekit.students.folder import mark

__all__ = [
    "FiniteTrainer",
    "LengthGroups",
    "TrainingLine",
    "buckets_of",
    "check_finite_weights",
    "precision_of",
    "total_steps",
    "wait_for_all",
]


class LossSum(TrainerCallback, ExportableState):
    """Sum of the losses of all steps; kept in checkpoints, so that a resumed training has it."""

    def __init__(self) -> None:
        self.total = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"args": {}, "attributes": {"total": self.total}}


class FiniteTrainer(Trainer):
    """A Trainer that stops at a loss that is not finite, on rows that know their ``lengths``.

    Parameters
    ----------
    config, folder
        Settings, and the folder for its ``checkpoints``.
    every
        Optimizer steps between evaluations.
    model, rows, collator
        The model, its training rows, and the function from rows to a batch.
    callbacks
        Callbacks in addition to that for checkpoints.
    settings
        Further TrainingArguments.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        folder: Path,
        every: int,
        *,
        model: torch.nn.Module,
        rows: Any,
        collator: Callable[[Any], dict[str, torch.Tensor]],
        callbacks: Sequence[TrainerCallback] = (),
        **settings: Any,
    ) -> None:
        # Checkpoints by the clock, if a single process trains.
        timed = [TimedCheckpoints(config.save_seconds)] if processes() == 1 else []
        with quiet():
            super().__init__(
                model=model,
                args=_arguments(config, folder, every, **settings),
                train_dataset=rows,
                # Required for evaluations; ours choose their rows themselves.
                eval_dataset=rows,
                data_collator=collator,
                callbacks=[*timed, *callbacks],
            )
        self.remove_callback(PrinterCallback)
        self.add_callback(LossSum())

    @property
    def mean_loss(self) -> float:
        """Mean loss over all steps, those before the training was resumed included.

        The Trainer's own mean is over the steps since.
        """
        total = torch.tensor(self._losses.total, dtype=torch.float64, device=self.args.device)
        mean = self.accelerator.reduce(total, reduction="mean")
        return float(mean) / max(self.state.global_step, 1)

    @property
    def _losses(self) -> LossSum:
        # The Trainer replaces the callback when it reads a checkpoint.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, LossSum))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with a progress bar on a terminal."""
        line = TrainingLine()
        self.add_callback(line)
        try:
            return super().train(*args, **kwargs)
        finally:
            line.clear()
            self.remove_callback(line)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one forward and backward pass.

        Raises
        ------
        ModelError
            If the loss is not finite; the weights are those before the step.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            raise ModelError(
                f"The loss of step {self.state.global_step + 1} is {loss.mean().item()}, so "
                "training stopped before that step; lower the learning rate, or train in float32."
            )
        self._losses.total += float(loss.mean())
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, and mark it when it is complete.

        Raises
        ------
        WriteError
            If the disk is full; the incomplete checkpoint is removed.
        """
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        try:
            # Weights and the two moments of AdamW, in float32.
            with disk_errors(folder, needed=12 * trained):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return LengthGroups(rows.lengths, self.args.train_batch_size, seed=self.args.seed)


class LengthGroups(torch.utils.data.Sampler[int]):
    """Random order of rows with neighbours of similar length, determined by seed and epoch.

    The Trainer's own draws from the global generator, so a training resumed in the middle of an
    epoch would see some rows twice and others never.
    """

    def __init__(self, lengths: Any, batch_size: int, *, seed: int) -> None:
        self._lengths = np.asarray(lengths).tolist()
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is used; the Trainer calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self._epoch)
        group: Any = get_length_grouped_indices  # untyped
        order = group(self._lengths, self._batch_size, generator=generator)
        return iter(order)


class TimedCheckpoints(TrainerCallback):
    """Requests a checkpoint when the last one is old: short trainings write none."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Request a checkpoint, except at the end, where the model itself is saved."""
        if time.monotonic() - self._saved >= self._seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self._saved = time.monotonic()


def wait_for_all() -> None:
    """Wait until every training process has reached this call."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def processes() -> int:
    """Return the number of processes that torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def total_steps(config: FinetuneConfig, rows: int) -> int:
    """Return the optimizer steps of a training on ``rows`` rows, by all processes together."""
    if config.max_steps is not None:
        return config.max_steps
    per_epoch = math.ceil(rows / (config.batch_size * processes() * config.grad_accum))
    return max(1, math.ceil(per_epoch * config.epochs))


def precision_of(config: FinetuneConfig) -> Precision:
    """Return how a training computes, and why."""
    return training_precision(config.dtype, resolve_device(config.device))


def buckets_of(config: FinetuneConfig, longest: int | None) -> Buckets | None:
    """Return the lengths to which batches of at most ``longest`` tokens are padded, if to few."""
    dtype = getattr(torch, precision_of(config).dtype)
    return Buckets.of(torch.device(resolve_device(config.device)), dtype, longest)


def _arguments(config: FinetuneConfig, folder: Path, every: int, **more: Any) -> TrainingArguments:
    """Return a configuration as the Trainer's arguments; ``every``: steps between evaluations."""
    kind = kind_of(resolve_device(config.device))
    settings: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.grad_accum,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "bf16": precision_of(config).dtype == "bfloat16",
        # Without it the Trainer takes mixed precision for that of a GPU, and refuses it.
        "use_cpu": kind == "cpu",
        "seed": config.seed,
        "report_to": config.report_to or "none",
        # Several processes must save at the same step, and their clocks differ.
        "save_strategy": "no" if processes() == 1 else "steps",
        "save_steps": every,
        "save_total_limit": 2,
        # The sum of losses, and the state of early stopping.
        "restore_callback_states_from_checkpoint": True,
        "logging_steps": max(1, every // 4),
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": kind == "cuda",
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    return TrainingArguments(**{**settings, **more})


def check_finite_weights(model: torch.nn.Module, label: str) -> None:
    """Check that the weights are finite after training.

    Raises
    ------
    ModelError
        If a tensor is not finite; the message names the first one.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"The weights {name} of {label} are not finite after training; lower the learning "
                "rate, or train in float32."
            )


class TrainingLine(TrainerCallback):
    """A bar on a terminal, with loss, rate and time left; only in the first process."""

    def __init__(self, *, show: bool | None = None) -> None:
        self._show = show
        self._bar: MovingBar | None = None
        self._loss: float | None = None
        self._rate: float | None = None
        self._began, self._from = time.monotonic(), 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start timing, of a resumed training from its first new step."""
        self._began, self._from = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self._bar = MovingBar(state.max_steps, done=state.global_step, show=self._show)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the mean loss since the last log, and the learning rate."""
        self._loss = (logs or {}).get("loss", self._loss)
        self._rate = (logs or {}).get("learning_rate", self._rate)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Draw the bar."""
        if self._bar is not None:
            self._bar.move(state.global_step, self.text(state, time.monotonic() - self._began))

    def text(self, state: TrainerState, elapsed: float) -> str:
        """Return the text to show after ``elapsed`` seconds."""
        done = max(state.global_step - self._from, 1)
        left = duration((state.max_steps - state.global_step) * elapsed / done)
        loss = "" if self._loss is None else f" · loss {self._loss:.4f}"
        rate = "" if self._rate is None else f" · rate {self._rate:.1e}"
        return (
            f"step {state.global_step:,}/{state.max_steps:,} · epoch {state.epoch or 0:.2f}{loss}"
            f"{rate} · {done / max(elapsed, 1e-9):.1f} steps/s · {left} left"
        )

    def clear(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.clear()
