"""How far a training is: a bar on a terminal, with loss, rate and the time left."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from probekit.activations.progress import MovingBar, duration

__all__ = ["TrainingLine"]


class TrainingLine(TrainerCallback):
    """Moves a bar after each step, of several processes in the first."""

    def __init__(self, *, show: bool | None = None) -> None:
        self._show = show
        self._bar: MovingBar | None = None
        self._loss: float | None = None
        self._rate: float | None = None
        self._began, self._from = time.monotonic(), 0

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the Trainer's signature)
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Look at the clock; a training that is resumed is timed from there."""
        self._began, self._from = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            self._bar = MovingBar(state.max_steps, done=state.global_step, show=self._show)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Learn the mean loss since the last time, and the learning rate."""
        self._loss = (logs or {}).get("loss", self._loss)
        self._rate = (logs or {}).get("learning_rate", self._rate)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Draw, where it is time to."""
        if self._bar is not None:
            self._bar.move(state.global_step, self.text(state, time.monotonic() - self._began))

    def text(self, state: TrainerState, elapsed: float) -> str:
        """Write what is shown after ``elapsed`` seconds."""
        done = max(state.global_step - self._from, 1)
        left = duration((state.max_steps - state.global_step) * elapsed / done)
        loss = "" if self._loss is None else f" · loss {self._loss:.4f}"
        rate = "" if self._rate is None else f" · rate {self._rate:.1e}"
        return (
            f"step {state.global_step:,}/{state.max_steps:,} · epoch {state.epoch or 0:.2f}{loss}"
            f"{rate} · {done / max(elapsed, 1e-9):.1f} steps/s · {left} left"
        )

    def clear(self) -> None:
        """Wipe the bar."""
        if self._bar is not None:
            self._bar.clear()
