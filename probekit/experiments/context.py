"""What all steps of one task and seed share: rows, models, and where labels come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from probekit.experiments.config import RunConfig
    from probekit.experiments.engine import Step
    from probekit.experiments.splits import Splits
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = ["VERDICTS", "Context", "Labels", "Model", "look_at_model", "predictions_file"]

VERDICTS = "verdicts.parquet"


class Model(NamedTuple):
    """What is known of a model before its weights are loaded."""

    label: str
    """Name without a place."""
    weights: str
    """Fingerprint, wherever the model lies."""
    parameters: int
    """Number of parameters, without a head."""
    depth: int
    width: int
    longest: int | None = None
    """Tokens that it can read of a row; None: any number."""


@cache
def look_at_model(name: str, revision: str | None = None) -> Model:
    """Open configuration and tokenizer of a model, once per process."""
    from probekit.activations.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(name, revision=revision)
    many = sum(parameter.numel() for parameter in checkpoint.skeleton.parameters())
    width = max(checkpoint.widths.values())
    longest = checkpoint.position_limit
    return Model(checkpoint.label, checkpoint.weights, many, checkpoint.depth, width, longest)


def predictions_file(part: str) -> str:
    """Where a student's predictions on a part lie in its step's folder."""
    return f"model/predictions/{part}.parquet"


@dataclass(frozen=True, eq=False)
class Labels:
    """Where labels come from: a file of another step, or the ground truth."""

    step: Step | None = None
    """None: ground truth."""
    file: str = ""
    """Path in the step's folder."""

    @property
    def name(self) -> str:
        """What stands in a step's parameters."""
        return self.file if self.step is not None else "ground truth"


@dataclass(frozen=True, eq=False)
class Context:
    """One task, one seed."""

    config: RunConfig
    splits: Splits
    seed: int
    look: Callable[..., Model] = look_at_model
    """From a model's name (and revision) to what is known of it."""

    def title(self, text: str) -> str:
        """Name of a step, with task and seed."""
        return f"{self.splits.task}, seed {self.seed}: {text}"

    def read(self, labels: Labels, part: str, folder: Path | None) -> WeakLabels | Verdicts:
        """Labels for the rows of a part, in their order; verdicts as they are."""
        from probekit.verdicts import Verdicts

        if labels.step is None:
            return self.splits.truth[part]
        assert folder is not None
        if labels.file == VERDICTS:
            return Verdicts.load(folder / labels.file)
        return self.read_weak(labels, part, folder)

    def read_weak(self, labels: Labels, part: str, folder: Path) -> WeakLabels:
        """Weak labels for the rows of a part, in their order."""
        from probekit.labels import load_labels

        rows = self.splits.rows[part]
        found = load_labels(folder / labels.file, one_class=True)
        return found.align(rows.keys, rows_name=part).labels
