"""Tasks that ask for a class of each text: class probabilities, a linear head, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from probekit.experiments.task_kinds.base import VERDICTS, Codes, Evidence, TaskKind
from probekit.labels import WeakLabels, load_labels
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from probekit.data import Rows
    from probekit.students.config import FinetuneConfig

__all__ = ["ClassTask"]


class ClassTask(TaskKind):
    """Texts with classes; labels are :class:`WeakLabels` or :class:`Verdicts`."""

    name: ClassVar[str] = "classify"
    objective: ClassVar[str] = "classify"

    def truth(self, rows: Rows, classes: tuple[str, ...], source: str) -> WeakLabels:
        """Return the column ``label`` as class probabilities."""
        return WeakLabels(
            ids=list(rows.ids),
            hashes=list(rows.hashes),
            probs=np.eye(len(classes))[list(rows.columns["label"])],
            classes=classes,
            source=source,
        )

    def read(self, path: Path, rows: Rows, name: str) -> WeakLabels | Verdicts:
        """Read verdicts as they are, and class probabilities in the order of the rows."""
        if path.name == VERDICTS:
            return Verdicts.load(path)
        return load_labels(path, one_class=True).align(rows.keys, rows_name=name).labels

    def train(
        self,
        config: FinetuneConfig,
        rows: Rows,
        labels: WeakLabels | Verdicts,
        folder: Path,
        *,
        held_out: tuple[Rows, Any] | None,
        predict: Mapping[str, Rows],
        curves: bool,
    ) -> None:
        """Finetune a model with a linear head."""
        from probekit.students.finetune import finetune, training_rows

        finetune(
            config,
            training_rows(rows, labels),
            folder,
            validation=None if held_out is None else training_rows(*held_out),
            predict=predict,
            curves=curves,
        )

    def extract(self, rows: Rows, labels: Any, model: str, **options: Any) -> None:  # noqa: ARG002
        """Store the states of the texts."""
        from probekit.activations.extraction import extract

        extract(rows, model, **options).close()

    def codes(self, labels: WeakLabels | Verdicts, truth: WeakLabels) -> Codes:
        """Return the classes of the rows that are kept."""
        keep = labels.keep if isinstance(labels, Verdicts) else np.ones(len(truth), dtype=bool)
        return Codes(labels.hard[keep], truth.hard[keep], truth.classes)

    def prior(self, codes: Codes) -> NDArray[np.float64]:
        """Return the share of each class."""
        counts = np.bincount(codes.hard, minlength=len(codes.classes))
        shares: NDArray[np.float64] = counts / counts.sum()
        return shares

    def grade(
        self, predicted: Sequence[Sequence[WeakLabels]], truth: WeakLabels
    ) -> tuple[list[list[NDArray[Any]]], NDArray[np.int64], tuple[str, ...]]:
        """Return class probabilities (t, C)."""
        probs: list[list[NDArray[Any]]] = [[each.probs for each in draws] for draws in predicted]
        return probs, truth.hard, truth.classes

    def evidence(
        self,
        verdicts: Verdicts,
        rows: Rows,
        truth: WeakLabels,
        folder: Path,  # noqa: ARG002
    ) -> Evidence:
        """Return texts and true classes."""
        from probekit.cleaning.source_rows import texts_of

        known = truth.align(verdicts.keys).labels.codes(verdicts.classes)
        return Evidence(list(texts_of(verdicts, rows)), known)
