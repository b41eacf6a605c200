"""Labels from any source: read, checked, joined to rows by id."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.data import text_hash
from probekit.errors import LabelsError, first_few
from probekit.files import write_table
from probekit.label_columns import class_values, parse_labels
from probekit.sources import read_table
from probekit.tasks.reward import are_preferences, preference_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Aligned", "WeakLabels", "load_labels"]

FORMAT = "probekit-labels"
VERSION = 1


@dataclass(frozen=True, eq=False)
class WeakLabels:
    """One label per row: n rows, C classes.

    Weak labels and ground truth have this one form; what may see the truth is decided by who is
    handed it.
    """

    ids: Sequence[str]
    """n row ids, each once."""
    hashes: Sequence[str] | None
    """n text hashes (docs/format.md), "" where unknown; None where none is known."""
    probs: NDArray[np.float64]
    """Class probabilities (n, C), rows summing to 1; hard labels are 0 and 1."""
    classes: tuple[str, ...]
    """C class names."""
    source: str = "labels"
    """Where they came from, for messages and provenance."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made them, where the file says so."""

    def __post_init__(self) -> None:
        """Refuse what would hand a row another row's label."""
        shape = (len(self.ids), len(self.classes))
        if self.probs.shape != shape or len(self.hashes or self.ids) != len(self.ids):
            raise LabelsError(
                f"{self.source}: {shape[0]} ids and {shape[1]} classes do not fit probabilities of "
                f"shape {self.probs.shape} and {len(self.hashes or self.ids)} text hashes."
            )
        if len(set(self.ids)) < len(self.ids):
            twice = [name for name, many in Counter(self.ids).items() if many > 1]
            raise LabelsError(
                f"{self.source} has {len(twice)} ids more than once (ids {first_few(twice)}); "
                "give each row one label."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hard(self) -> NDArray[np.int64]:
        """Column of each row's class (n,); ties go to the first, so 0.5 is class 0."""
        return np.asarray(self.probs.argmax(axis=1), dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, classes and probabilities."""
        digest = hashlib.sha256(json.dumps([list(self.ids), list(self.classes)]).encode())
        digest.update(np.ascontiguousarray(self.probs, dtype="<f8").tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any]],
        *,
        id_column: str | None = None,
        label_column: str | None = None,
        text_column: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        source: str = "labels",
    ) -> WeakLabels:
        """Take columns: ``id`` (else row numbers), ``text_hash`` or the text, and a label.

        See :func:`probekit.label_columns.parse_labels` for what a label may be.
        """
        known = metadata or {}
        ids = _ids(columns, id_column, source)
        labels = parse_labels(
            columns, ids, label_column=label_column, classes=known.get("classes"), source=source
        )
        hashes = _hashes(columns, text_column)
        return cls(
            ids=[ids[i] for i in labels.rows],
            hashes=None if hashes is None else [hashes[i] for i in labels.rows],
            probs=labels.probs,
            classes=labels.classes,
            source=source,
            provenance=known.get("provenance", {}),
        )

    def align(
        self,
        ids: Sequence[str],
        hashes: Sequence[str] | None = None,
        *,
        only_labelled: bool = False,
        allow_unknown: bool = False,
        rows_name: str = "the store",
    ) -> Aligned:
        """Put the labels into the order of ``ids``.

        Parameters
        ----------
        ids, hashes
            The n rows' ids and text hashes; hashes are compared where both sides know them.
        only_labelled
            Leave rows without a label out, instead of refusing them.
        allow_unknown
            Leave labels of other rows out, instead of refusing them.

        Raises
        ------
        LabelsError
            With the number of rows concerned and the first three.
        """
        place = {name: i for i, name in enumerate(self.ids)}
        found = [place.get(name, -1) for name in ids]
        missing = [name for name, i in zip(ids, found, strict=True) if i < 0]
        if len(missing) == len(found):
            raise LabelsError(
                f"{self.source} has no label for any row of {rows_name}: its ids are "
                f"{first_few(self.ids)}, the rows' {first_few(ids)}; join both by the same ids "
                "(--id-column names the column)."
            )
        if missing and not only_labelled:
            raise LabelsError(
                f"{self.source} has no label for {len(missing)} of {len(found)} rows of "
                f"{rows_name} (ids {first_few(missing)}); add them, or pass --only-labelled to "
                "leave these rows out."
            )
        if not allow_unknown and len(found) - len(missing) < len(self):
            known = set(ids)
            unknown = [name for name in self.ids if name not in known]
            raise LabelsError(
                f"{self.source} has {len(unknown)} labels for ids that are not in {rows_name} (ids "
                f"{first_few(unknown)}); remove them, or name the labels of these rows."
            )
        rows = np.array([r for r, i in enumerate(found) if i >= 0], dtype=np.int64)
        order = np.array([i for i in found if i >= 0], dtype=np.int64)
        labels = self._take(order)
        if hashes is not None:
            labels._check_hashes([hashes[r] for r in rows], rows_name)
        return Aligned(rows, labels)

    def codes(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Each row's class as its number in ``classes`` (n,)."""
        place = {name: i for i, name in enumerate(classes)}
        used = [self.classes[c] for c in np.unique(self.hard)]
        strange = [name for name in used if name not in place]
        if strange:
            raise LabelsError(
                f"{self.source} has the classes {first_few(strange)}, the labels have "
                f"{first_few(classes, 10)}; name classes alike in both."
            )
        numbers: NDArray[np.int64] = np.array([place.get(name, -1) for name in self.classes])
        return numbers[self.hard]

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write Parquet, or JSONL with the metadata beside it in ``<path>.meta.json``.

        Columns: id, text_hash where known, ``prob`` (two classes) or ``probs``, and ``label``, the
        most probable class.
        """
        values = class_values(self.classes)
        columns: dict[str, Any] = {"id": list(self.ids)}
        if self.hashes is not None:
            columns["text_hash"] = list(self.hashes)
        if len(self.classes) == 2:
            columns["prob"] = self.probs[:, 1]
        else:
            columns["probs"] = self.probs.tolist()
        columns["label"] = [values[c] for c in self.hard]
        text = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "classes": list(self.classes),
                "provenance": dict(self.provenance if provenance is None else provenance),
            },
            ensure_ascii=False,
        )
        write_table(columns, path, {"probekit": text})

    def _take(self, order: NDArray[np.int64]) -> WeakLabels:
        return WeakLabels(
            ids=[self.ids[i] for i in order],
            hashes=None if self.hashes is None else [self.hashes[i] for i in order],
            probs=self.probs[order],
            classes=self.classes,
            source=self.source,
            provenance=self.provenance,
        )

    def _check_hashes(self, hashes: Sequence[str], rows_name: str) -> None:
        mine = self.hashes or [""] * len(self)
        other = [
            name for name, a, b in zip(self.ids, mine, hashes, strict=True) if a and b and a != b
        ]
        if other:
            raise LabelsError(
                f"{self.source} has another text than {rows_name} in {len(other)} of {len(self)} "
                f"rows (ids {first_few(other)}); use labels of the rows that were extracted."
            )


class Aligned(NamedTuple):
    """Numbers (m,) of the rows that have a label, and their labels in that order."""

    rows: NDArray[np.int64]
    labels: WeakLabels


def load_labels(
    source: str | Path,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    one_class: bool = False,
) -> WeakLabels:
    """Read labels from JSONL, JSON, CSV, TSV, Parquet or Arrow, or from a task's own column.

    Parameters
    ----------
    source
        A path, or a task such as ``docstrings@student``.
    id_column, label_column, text_column
        Other names than ``id``, than ``probs``, ``prob`` or ``label``, and than ``text``.
    one_class
        Accept labels that are all of one class (a truth may be).

    Raises
    ------
    DataError
        Where the file cannot be read.
    LabelsError
        Where it holds no proper labels.
    """
    table = read_table(source)
    columns: Mapping[str, Sequence[Any]] = table.columns
    if label_column is None and text_column is None and are_preferences(columns):
        columns = preference_columns(columns, source=str(source), id_column=id_column)
        id_column = None
    # Verdicts say their classes in the same way, so a relabelled set can be labels again.
    metadata = table.metadata if "classes" in table.metadata else {}
    labels = WeakLabels.from_columns(
        columns,
        id_column=id_column,
        label_column=label_column,
        text_column=text_column,
        metadata=metadata,
        source=str(source),
    )
    if not one_class and np.count_nonzero(labels.probs.max(axis=0) > 0) < 2:
        raise LabelsError(
            f"{source} holds one class only ({labels.classes[labels.hard[0]]!r} in all "
            f"{len(labels)} rows); a probe needs labels of at least two classes."
        )
    return labels


def _ids(columns: Mapping[str, Sequence[Any]], id_column: str | None, source: str) -> list[str]:
    name = id_column or "id"
    if name not in columns:
        if id_column is not None:
            raise LabelsError(
                f"{source} has no column {id_column!r}; it has {', '.join(columns)}: name the one "
                "to read with --id-column."
            )
        return [str(i) for i in range(len(next(iter(columns.values()), ())))]
    values = columns[name][:]
    missing = [i for i, value in enumerate(values) if value is None or value == ""]
    if missing:
        raise LabelsError(
            f"{source} has {len(missing)} rows without an id (rows {first_few(missing)}); fill the "
            f"column {name!r} or remove it to use row numbers."
        )
    return [str(value) for value in values]


def _hashes(columns: Mapping[str, Sequence[Any]], text_column: str | None) -> list[str] | None:
    """Text hashes given, else computed where the text itself is there."""
    if "text_hash" in columns:
        return [value or "" for value in columns["text_hash"][:]]
    wanted = (text_column, "text", "messages")
    name = next((n for n in wanted if n is not None and n in columns), None)
    if name is None:
        return None
    contents: list[Any] = list(columns[name][:])
    if "text_pair" in columns and name != "text_pair":
        contents = list(zip(contents, columns["text_pair"][:], strict=True))
    return [text_hash(content) if _is_content(content) else "" for content in contents]


def _is_content(content: Any) -> bool:
    """Whether a text can be hashed; a row whose text is missing here is joined by id alone."""
    if isinstance(content, tuple):
        return all(isinstance(part, str) for part in content)
    if isinstance(content, list):
        return bool(content) and all(isinstance(message, dict) for message in content)
    return isinstance(content, str) and content != ""
