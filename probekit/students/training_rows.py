"""What a student is given: texts and the labels to train on, and no other column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data import Content, Rows
from probekit.errors import DataError, LabelsError, UsageError
from probekit.groups import duplicate_groups
from probekit.labels import WeakLabels, load_labels
from probekit.sources import read_table
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrainingRows", "hold_out", "load_training_labels", "training_rows"]


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """n rows of text with labels over C classes.

    There is no field for ground truth: whoever trains on this cannot see it.
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

    def select(self, places: NDArray[np.int64]) -> TrainingRows:
        """The rows at ``places``; weights are brought to mean 1 again."""
        weight = self.weight[places]
        return TrainingRows(
            [self.contents[i] for i in places],
            self.kind,
            [self.ids[i] for i in places],
            [self.hashes[i] for i in places],
            self.Y[places],
            weight / weight.mean(),
            self.classes,
            None if self.groups is None else [self.groups[i] for i in places],
        )


def training_rows(
    rows: Rows, labels: WeakLabels | Verdicts, *, only_labelled: bool = False
) -> TrainingRows:
    """Join rows and labels by id, and leave out what is not kept.

    Parameters
    ----------
    rows
        Only ids and texts are read; a column with the truth stays behind.
    labels
        Weak labels, or verdicts, whose ``keep``, ``label`` and ``weight`` are honoured.
    only_labelled
        Leave rows without weak label out, instead of refusing them.

    Raises
    ------
    LabelsError
        Where ids have no label, or labels belong to other texts.
    DataError
        Where verdicts are of other rows, or nothing is left to train on.
    """
    if isinstance(labels, Verdicts):
        place = labels.join(rows)
        chosen = [i for i, v in enumerate(place) if v is not None and labels.keep[v]]
        found = [v for i in chosen if (v := place[i]) is not None]
        Y, weight = labels.label[found].astype(np.float64), labels.weight[found].astype(np.float64)
        Y /= Y.sum(axis=1, keepdims=True)  # float32 on disk
    else:
        aligned = labels.align(
            rows.keys,
            only_labelled=only_labelled,
        )
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
    """Read a file of weak labels, or of verdicts, which has a column ``keep``.

    ``reading`` are the arguments of :func:`probekit.labels.load_labels`.
    """
    table = read_table(path)
    if {"keep", "weak", "label", "disagreement"} <= set(table.columns):
        return Verdicts.load(table)
    return load_labels(table, **reading)


def hold_out(
    rows: TrainingRows, share: float, *, seed: int = 0
) -> tuple[TrainingRows, TrainingRows]:
    """Take a share of the rows out of training, copies of a text and rows of a group on one side.

    Raises
    ------
    UsageError
        Where the share leaves one side empty.
    """
    if not 0 < share < 1:
        raise UsageError(f"The validation share lies in (0, 1), got {share}.")
    groups = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    order = np.random.default_rng([seed, 3]).permutation(int(groups.max()) + 1)
    held = np.isin(groups, order[: round(share * len(order))])
    if held.all() or not held.any():
        raise UsageError(
            f"A validation share of {share} of {len(rows)} rows leaves one side empty; give more "
            "rows or another share."
        )
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))
