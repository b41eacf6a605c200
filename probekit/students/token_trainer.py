"""Train on tokens with Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PrinterCallback

from probekit.activations.quiet import quiet
from probekit.students.config import FinetuneConfig
from probekit.students.folder import Folder
from probekit.students.language_model import Tokens
from probekit.students.trainer import (
    FiniteTrainer,
    checkpoint_callbacks,
    total_steps,
    training_arguments,
)

__all__ = ["token_trainer"]


def token_trainer(
    config: FinetuneConfig,
    model: Any,
    rows: Sequence[Tokens],
    folder: Folder,
    collator: Callable[[Sequence[Tokens]], dict[str, torch.Tensor]],
) -> FiniteTrainer:
    """Make the Trainer of ``config`` for these rows; checkpoints go to the folder."""
    every = config.every(total_steps(config, len(rows)))
    with quiet():
        trainer = FiniteTrainer(
            model=model,
            args=training_arguments(config, folder.work, every),
            train_dataset=_Dataset(rows),
            data_collator=lambda items: collator([item["row"] for item in items]),
            callbacks=checkpoint_callbacks(config),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Dataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as mappings."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        self.rows = rows
        self.lengths = [len(row.ids) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": self.rows[index]}
