"""Labels from any source: read, checked, joined to rows by id."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.data import Kind, holds_messages, normal, text_hash
from probekit.errors import LabelsError, first_few, repeated
from probekit.files import check_format, save_table
from probekit.joins import Keys, Match, find_ids, match, other_texts, unknown_ids
from probekit.label_columns import LabelColumn, class_values, parse_labels
from probekit.safe import misfit
from probekit.sources import read_table
from probekit.tables import Table
from probekit.tasks.reward import are_preferences, preference_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Aligned", "WeakLabels", "load_labels"]

FORMAT = "probekit-labels"
VERSION = 1


METADATA = {"classes": [str], "id_column?": (str, type(None)), "provenance?": dict}


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
    key: Keys | None = None
    """What they are joined by; None: the ids, whatever their column was called."""
    column: str = ""
    """What was read, for people."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Id to word (``nan``, ``-1``, empty) of rows of the file that have no label."""
    notes: tuple[str, ...] = ()
    """What else somebody should know, a sentence each."""

    def __post_init__(self) -> None:
        """Refuse what would hand a row another row's label."""
        shape = (len(self.ids), len(self.classes))
        if self.probs.shape != shape or len(self.hashes or self.ids) != len(self.ids):
            raise LabelsError(
                f"{self.source}: {shape[0]} ids and {shape[1]} classes do not fit probabilities of "
                f"shape {self.probs.shape} and {len(self.hashes or self.ids)} text hashes."
            )
        if len(set(self.ids)) < len(self.ids):
            twice = repeated(self.ids)
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

    @property
    def keys(self) -> Keys:
        """What they are joined by."""
        if self.key is not None:
            return self.key
        return Keys(self.ids, self.hashes, chosen=True, name=self.source)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any]],
        *,
        id_column: str | None = None,
        label_column: str | None = None,
        confidence_column: str | None = None,
        text_column: str | None = None,
        classes: Sequence[str] | None = None,
        by_position: bool = False,
        class_names: Mapping[str, Sequence[str]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        note: str = "",
        source: str = "labels",
    ) -> WeakLabels:
        """Take columns: ``id`` in any case (else row numbers), a label, and the text or its hash.

        See :func:`probekit.label_columns.parse_labels` for what a label may be, and
        :func:`probekit.joins.match` for how they are joined.
        """
        known = metadata or {}
        found = find_ids(columns, id_column=id_column, source=source, error=LabelsError)
        labels = parse_labels(
            columns,
            found.ids,
            label_column=label_column,
            confidence_column=confidence_column,
            classes=classes,
            known_classes=known.get("classes"),
            class_names=class_names,
            source=source,
        )
        hashes = _taken(_hashes(columns, text_column), labels.rows)
        return cls(
            ids=[found.ids[i] for i in labels.rows],
            hashes=hashes,
            probs=labels.probs,
            classes=labels.classes,
            source=source,
            provenance=known.get("provenance", {}),
            key=_keys(
                columns,
                found,
                labels,
                known,
                hashes=hashes,
                by_position=by_position,
                text=text_column,
            ),
            column=labels.column,
            missing=labels.missing,
            notes=(*((note,) if note else ()), *labels.notes),
        )

    def align(
        self,
        rows: Keys | Sequence[str],
        hashes: Sequence[str] | None = None,
        *,
        only_labelled: bool = False,
        rows_name: str | None = None,
        found: Match | None = None,
    ) -> Aligned:
        """Put the labels into the order of ``rows``, whose ids they then have.

        Labels of other rows are left out, and noted.

        Parameters
        ----------
        rows, hashes
            What the n rows are joined by (``store.keys``, ``rows.keys``); or their ids, and their
            text hashes. Hashes are compared where both sides know them.
        only_labelled
            Leave rows without a label out, instead of refusing them.
        rows_name
            What the rows are called in messages, by default what their keys say.
        found
            What :func:`probekit.joins.match` said of the two, where that is known already.

        Raises
        ------
        LabelsError
            With the number of rows concerned and the first three.
        """
        keys = rows if isinstance(rows, Keys) else Keys(rows, hashes, chosen=True)
        name = rows_name or keys.name
        keys, own = replace(keys, name=name), self.keys
        found = match(keys, own, error=LabelsError) if found is None else found
        self._check_missing(keys, found.place, only_labelled=only_labelled)
        notes = [*self.notes]
        if unknown := unknown_ids(found, own):
            notes.append(
                f"{self.source} has {len(unknown)} labels for ids that are not in {name} (ids "
                f"{first_few(unknown)}); they are left out."
            )
        if other := other_texts(keys, self._hashed_like(keys), found.place):
            raise LabelsError(
                f"{self.source} has another text than {name} in {len(other)} of {len(self)} rows "
                f"(ids {first_few(other)}); use labels of the rows that were extracted."
            )
        numbers = np.array([r for r, i in enumerate(found.place) if i >= 0], dtype=np.int64)
        order = np.array([i for i in found.place if i >= 0], dtype=np.int64)
        labels = replace(
            self._take(order),
            ids=[keys.ids[r] for r in numbers],
            key=keys.take(numbers.tolist()),
            notes=tuple(notes),
        )
        return Aligned(numbers, labels)

    def joined(self, rows: Keys) -> Match:
        """Where each row stands among the labels, and how they are joined."""
        return match(rows, self.keys, error=LabelsError)

    def _check_missing(self, rows: Keys, place: Sequence[int], *, only_labelled: bool) -> None:
        """Refuse rows without a label, and say what stands where it should."""
        missing = [name for name, i in zip(rows.ids, place, strict=True) if i < 0]
        if len(missing) == len(rows):
            raise LabelsError(
                f"{self.source} has no label for any row of {rows.name}: its ids are "
                f"{first_few(self.ids)}, the rows' {first_few(rows.ids)}; join both by the same "
                "ids (--id-column names the column)."
            )
        if not missing or only_labelled:
            return
        words = Counter(word.strip() or "nothing" for word in self.missing.values())
        said = f", where {' or '.join(map(repr, words))} stands for no label" if words else ""
        named = [word for word in words if word != "nothing"]
        repair = f" (if {named[0]!r} is a class, name all with --classes)" if named else ""
        raise LabelsError(
            f"{self.source} has no label for {len(missing)} of {len(rows)} rows of {rows.name} "
            f"(ids {first_few(missing)}){said}; add them, or pass --only-labelled to leave these "
            f"rows out{repair}."
        )

    def _hashed_like(self, rows: Keys) -> Keys:
        """The keys, hashed from the column that the rows' text has where nothing else is known."""
        own = self.keys
        if own.hashes is not None or rows.text_column is None:
            return own
        if rows.text_column not in own.columns:
            return own
        return replace(own, hashes=_hashes(own.columns, rows.text_column))

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
        save_table(
            columns,
            path,
            FORMAT,
            VERSION,
            classes=list(self.classes),
            id_column=self.keys.id_column,
            provenance=dict(self.provenance if provenance is None else provenance),
        )

    def _take(self, order: NDArray[np.int64]) -> WeakLabels:
        return replace(
            self,
            ids=[self.ids[i] for i in order],
            hashes=_taken(self.hashes, order),
            probs=self.probs[order],
        )


class Aligned(NamedTuple):
    """Numbers (m,) of the rows that have a label, and their labels in that order."""

    rows: NDArray[np.int64]
    labels: WeakLabels


def load_labels(
    source: str | Path | Table,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    confidence_column: str | None = None,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    by_position: bool = False,
    one_class: bool = False,
) -> WeakLabels:
    """Read labels from a file (CSV, JSONL, Parquet, …), or from a task's own column.

    Parameters
    ----------
    source
        A path, a task such as ``docstrings@student``, ``hf:org/name@split``, or a table that is
        read already.
    id_column, label_column, text_column
        Other names than ``id``, than ``probs``, ``prob`` or ``label``, and than ``text``.
    confidence_column
        Column of the probability of the class in ``label``, which becomes a soft label.
    classes
        Class names in their order, where the file does not say them, or where a class is called
        like what elsewhere means no label (``none``, ``-1``).
    by_position
        Join by position: the rows are the same, in the same order.
    one_class
        Accept labels that are all of one class (a truth may be).

    Raises
    ------
    DataError
        Where the file cannot be read.
    LabelsError
        Where it holds no proper labels.
    """
    table = source if isinstance(source, Table) else read_table(source)
    source = table.source if isinstance(source, Table) else source
    columns: Mapping[str, Sequence[Any]] = table.columns
    if label_column is None and text_column is None and are_preferences(columns):
        columns = preference_columns(columns, source=str(source), id_column=id_column)
        id_column = None
    metadata = table.metadata if "classes" in table.metadata else {}
    if metadata.get("format") == FORMAT:
        check_format(metadata, str(source), FORMAT, VERSION, repair="`probekit weak-labels`")
    if wrong := metadata and misfit(metadata, METADATA, "metadata"):
        raise LabelsError(f"{source} is damaged: {wrong}; make it again, or name --classes.")
    labels = WeakLabels.from_columns(
        columns,
        id_column=id_column,
        label_column=label_column,
        confidence_column=confidence_column,
        text_column=text_column,
        classes=classes,
        by_position=by_position,
        class_names=table.class_names,
        # Verdicts say their classes in the same way, so a relabelled set can be labels again.
        metadata=metadata,
        note=table.note,
        source=str(source),
    )
    if not one_class and np.count_nonzero(labels.probs.max(axis=0) > 0) < 2:
        left_out = f"; {len(labels.missing)} rows have no label" if labels.missing else ""
        raise LabelsError(
            f"{source} holds one class only ({labels.classes[labels.hard[0]]!r} in all "
            f"{len(labels)} rows{left_out}); a probe needs labels of at least two classes."
        )
    return labels


def _keys(
    columns: Mapping[str, Sequence[Any]],
    found: Keys,
    labels: LabelColumn,
    metadata: Mapping[str, Any],
    *,
    hashes: Sequence[str] | None,
    by_position: bool,
    text: str | None,
) -> Keys:
    """What the labelled rows are joined by; a file of probekit's says what its ids are."""
    rows = labels.rows.tolist()
    whole = len(rows) == len(found)
    others = {
        name: values if whole else _at(values[:], rows)
        for name, values in columns.items()
        if name != found.id_column
    }
    keys = replace(
        found,
        ids=[found.ids[i] for i in rows],
        hashes=hashes,
        columns=others,
        text_column=text,
        by_position=by_position,
        positions=None if whole else rows,
        total=len(found),
    )
    if "id_column" in metadata and not found.chosen and not found.counted:
        column = metadata["id_column"]
        keys = replace(keys, id_column=None if column is None else str(column))
    return keys


def _at(values: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [values[i] for i in places]


def _taken(values: Sequence[str] | None, rows: NDArray[np.int64]) -> list[str] | None:
    return None if values is None else [values[i] for i in rows]


def _hashes(columns: Mapping[str, Sequence[Any]], text_column: str | None) -> list[str] | None:
    """Text hashes given, else computed where the text itself is there."""
    if "text_hash" in columns:
        return [value or "" for value in columns["text_hash"][:]]
    wanted = (text_column, "text", "messages")
    name = next((n for n in wanted if n is not None and n in columns), None)
    if name is None:
        return None
    contents: list[Any] = list(columns[name][:])
    kind: Kind = "messages" if holds_messages(contents[0]) and name != "text" else "text"
    if "text_pair" in columns and name != "text_pair":
        kind = "pair"
        contents = list(zip(contents, columns["text_pair"][:], strict=True))
    return [_hash(content, kind) for content in contents]


def _hash(content: Any, kind: Kind) -> str:
    """Hash of a text; "" where it is missing here, and the row is joined by its id alone."""
    found = normal(content, kind)
    return text_hash(found) if found else ""
