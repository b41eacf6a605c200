"""Labels from any source: read, checked and joined to rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.annotators import Method, combine
from probekit.data import HASH, Kind, holds_messages, normalised, text_hash
from probekit.errors import LabelsError, first_few, repeated
from probekit.joins import Keys, Match, find_ids, match, other_texts, unknown_ids
from probekit.label_columns import OPTION, LabelColumn, class_values, parse_labels
from probekit.output_tables import check_format, save_table
from probekit.safe import misfit
from probekit.sources import read_table
from probekit.strings import any_twice, taken
from probekit.tables import Table
from probekit.tasks.reward import are_preferences, preference_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Aligned", "WeakLabels", "load_labels"]

FORMAT = "probekit-labels"
VERSION = 1
CHUNK = 1 << 14


METADATA = {"classes": [str], "id_column?": (str, type(None)), "provenance?": dict}


@dataclass(frozen=True, eq=False, repr=False)
class WeakLabels:
    """One label per row: n rows, C classes.

    Weak labels and ground truth have the same form; code that must not see the truth is not given
    it.
    """

    ids: Sequence[str]
    """n row ids, each once."""
    hashes: Sequence[str] | None
    """n text hashes (docs/format.md), "" if unknown; None if none is known."""
    probs: NDArray[np.float64]
    """Class probabilities (n, C), rows summing to 1; hard labels are 0 and 1."""
    classes: tuple[str, ...]
    """C class names."""
    source: str = "labels"
    """Their origin, for messages and provenance."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made them, if the file says it."""
    key: Keys | None = None
    """What they are joined by; None: the ids, whatever the name of their column."""
    column: str = ""
    """What was read, for messages."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Id to word (``nan``, ``-1``, empty) of rows of the file that have no label."""
    notes: tuple[str, ...] = ()
    """Other sentences for the user."""

    def __post_init__(self) -> None:
        """Check shapes and ids: a mistake here would give a row another row's label."""
        shape = (len(self.ids), len(self.classes))
        if self.probs.shape != shape or len(self.hashes or self.ids) != len(self.ids):
            raise LabelsError(
                f"{self.source}: {shape[0]} ids and {shape[1]} classes do not fit probabilities of "
                f"shape {self.probs.shape} and {len(self.hashes or self.ids)} text hashes."
            )
        if any_twice(self.ids):
            twice = repeated(self.ids)
            raise LabelsError(
                f"{self.source} has {len(twice)} ids more than once (ids {first_few(twice)}); "
                "give each row one label, or a column annotator that says whose each is."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """Show the counts instead of every row."""
        return f"WeakLabels({len(self):,} rows, classes {first_few(self.classes, 5)})"

    @property
    def hard(self) -> NDArray[np.int64]:
        """Column of each row's class (n,); ties go to the first, so 0.5 is class 0."""
        return np.asarray(self.probs.argmax(axis=1), dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, classes and probabilities."""
        # The JSON of [ids, classes], piece by piece.
        digest = hashlib.sha256(b"[[")
        for start in range(0, len(self.ids), CHUNK):
            some = json.dumps(list(self.ids[start : start + CHUNK]))[1:-1]
            digest.update(f"{', ' if start else ''}{some}".encode())
        digest.update(f"], {json.dumps(list(self.classes))}]".encode())
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
        column_option: str | None = OPTION,
    ) -> WeakLabels:
        """Read columns: ``id`` in any case (else row numbers), a label, and the text or its hash.

        :func:`probekit.label_columns.parse_labels` describes the forms of a label, and
        :func:`probekit.joins.match` how labels are joined to rows.
        """
        known = metadata or {}
        keys = find_ids(columns, id_column=id_column, source=source, error=LabelsError)
        labels = parse_labels(
            columns,
            keys.ids,
            label_column=label_column,
            confidence_column=confidence_column,
            classes=classes,
            known_classes=known.get("classes"),
            class_names=class_names,
            source=source,
            column_option=column_option,
        )
        texts = _hashes(columns, text_column)
        hashes = None if texts is None else taken(texts, labels.rows)
        return cls(
            ids=taken(keys.ids, labels.rows),
            hashes=hashes,
            probs=labels.probs,
            classes=labels.classes,
            source=source,
            provenance=known.get("provenance", {}),
            key=_keys(
                columns,
                keys,
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
        every_row: bool = False,
        rows_name: str | None = None,
        joined: Match | None = None,
    ) -> Aligned:
        """Put the labels into the order of ``rows``, with the ids of these.

        Labels of other rows are left out, with a note.

        Parameters
        ----------
        rows, hashes
            What the n rows are joined by (``store.keys``, ``rows.keys``); or their ids, and their
            text hashes. Hashes are compared if both sides know them.
        only_labelled
            Leave out rows without a label, instead of raising.
        every_row
            No command can leave rows out: the message must not name ``--only-labelled``.
        rows_name
            Name of the rows in messages, by default that of their keys.
        joined
            Result of :meth:`joined` for these rows, if it is known already.

        Raises
        ------
        LabelsError
            If rows have no label or another text, or cannot be joined without a guess; the message
            has the number of these rows and the first three.
        """
        keys = rows if isinstance(rows, Keys) else Keys(rows, hashes, chosen=True)
        name = rows_name or keys.name
        keys = replace(keys, name=name)
        own = self._hashed_like(keys)
        joined = match(keys, own, error=LabelsError) if joined is None else joined
        leave_out = "" if every_row else ", or pass --only-labelled to leave these rows out"
        self._check_missing(keys, joined.place, None if only_labelled else leave_out)
        notes = [*self.notes]
        if unknown := unknown_ids(joined, own):
            one = len(unknown) == 1
            many = "1 label for an id that is" if one else f"{len(unknown)} labels for ids that are"
            notes.append(
                f"{self.source} has {many} not in {name} ({'id' if one else 'ids'} "
                f"{first_few(unknown)}); {'it is' if one else 'they are'} left out."
            )
        if other := other_texts(keys, own, joined.place):
            raise LabelsError(
                f"{self.source} has another text than {name} in {len(other)} of {len(self)} rows "
                f"(ids {first_few(other)}); use labels of the rows that were extracted."
            )
        numbers = np.flatnonzero(joined.place >= 0)
        order = joined.place[numbers]
        same = np.array_equal(order, np.arange(len(self)))  # then nothing is copied
        labels = replace(
            self,
            ids=taken(keys.ids, numbers),
            hashes=None if self.hashes is None else taken(self.hashes, order),
            probs=self.probs if same else self.probs[order],
            key=keys.take(numbers),
            notes=tuple(notes),
        )
        return Aligned(numbers, labels)

    def joined(self, rows: Keys) -> Match:
        """The place of each row among the labels, and how they are joined."""
        return match(rows, self._hashed_like(rows), error=LabelsError)

    def _check_missing(self, rows: Keys, place: NDArray[np.int64], repair: str | None) -> None:
        """Raise LabelsError for rows without a label, with the words in their fields.

        ``repair`` is what else may be done than to add them; None: some may be missing.
        """
        missing = taken(rows.ids, np.flatnonzero(place < 0))
        if len(missing) == len(rows):
            raise LabelsError(
                f"{self.source} has no label for any row of {rows.name}: its ids are "
                f"{first_few(self.ids)}, the rows' {first_few(rows.ids)}; join both by the same "
                "ids (--id-column names the column)."
            )
        if not len(missing) or repair is None:
            return
        words = Counter(word.strip() or "nothing" for word in self.missing.values())
        reason = f", where {' or '.join(map(repr, words))} means no label" if words else ""
        named = [word for word in words if word != "nothing"]
        classes = f" (if {named[0]!r} is a class, name all with --classes)" if named else ""
        raise LabelsError(
            f"{self.source} has no label for {len(missing)} of {len(rows)} rows of {rows.name} "
            f"(ids {first_few(missing)}){reason}; add them{repair}{classes}."
        )

    def _hashed_like(self, rows: Keys) -> Keys:
        """The keys, with hashes of the rows' text column if no other hashes are known."""
        own = self.keys
        if own.hashes is not None or rows.text_column is None:
            return own
        if rows.text_column not in own.columns:
            return own
        if rows.text_column not in self._hashed:
            self._hashed[rows.text_column] = _hashes(own.columns, rows.text_column)
        return replace(own, hashes=self._hashed[rows.text_column])

    @cached_property
    def _hashed(self) -> dict[str, list[str] | None]:
        """Hashes by text column, which are computed once for the join and for the comparison."""
        return {}

    def codes(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Each row's class as its number in ``classes`` (n,).

        Raises
        ------
        LabelsError
            If a label's class is not among them.
        """
        place = {name: i for i, name in enumerate(classes)}
        used = [self.classes[c] for c in np.unique(self.hard)]
        unknown = [name for name in used if name not in place]
        if unknown:
            raise LabelsError(
                f"{self.source} has the classes {first_few(unknown)}, the labels have "
                f"{first_few(classes, 10)}; use the same names in both."
            )
        numbers: NDArray[np.int64] = np.array([place.get(name, -1) for name in self.classes])
        return numbers[self.hard]

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write Parquet, or JSONL with the metadata beside it in ``<path>.meta.json``.

        Columns: id, text_hash if known, ``prob`` (two classes) or ``probs``, and ``label``, the
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


class Aligned(NamedTuple):
    """Numbers (m,) of the rows with a label, and their labels in that order."""

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
    annotators: Method | None = None,
    column_option: str | None = OPTION,
) -> WeakLabels:
    """Read labels from a file (CSV, JSONL, Parquet, …), or from a task's own column.

    Several labels a row (``label_1``, ``label_2``, …, or ids that repeat with a column
    ``annotator``) are combined (:func:`probekit.annotators.combine`), and their agreement stands in
    ``provenance["annotators"]``.

    Parameters
    ----------
    source
        A path, a task such as ``docstrings@student``, ``hf:org/name@split``, or a table that has
        been read.
    id_column, label_column, text_column
        Names of these columns, if they are not ``id``; ``probs``, ``prob`` or ``label``; ``text``.
    confidence_column
        Column of the probability of the class in ``label``, which becomes a soft label.
    classes
        Class names in their order, if the file does not have them, or if a class has a name that
        usually means no label (``none``, ``-1``).
    by_position
        Join by position: the rows are the same, in the same order.
    one_class
        Accept labels that are all of one class (a truth may be).
    annotators
        How several labels a row are combined: ``votes`` or ``dawid-skene``; None: by votes, if
        there are several.
    column_option
        Option of the command line that names the labels' column of this file, for messages; None
        if it has none.

    Raises
    ------
    DataError
        If the file cannot be read.
    LabelsError
        If it has no labels, or wrong ones, or only one class without ``one_class``.
    """
    table = source if isinstance(source, Table) else read_table(source)
    source = table.source if isinstance(source, Table) else source
    combined = combine(
        table,
        annotators,
        id_column=id_column,
        label_column=label_column,
        text_column=text_column,
        classes=classes,
        column_option=column_option,
    )
    if combined is not None:
        table, label_column = combined, None
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
        # Verdicts store classes in the same way, so a relabelled set can be labels again.
        metadata=metadata,
        note=table.note,
        source=str(source),
        column_option=column_option,
    )
    if combined is not None:
        votes = labels.provenance["annotators"]["columns"]
        labels = replace(labels, column=f"the votes in {', '.join(votes)}")
    if not one_class and np.count_nonzero(labels.probs.max(axis=0) > 0) < 2:
        left_out = f"; {len(labels.missing)} rows have no label" if labels.missing else ""
        raise LabelsError(
            f"{source} has one class only ({labels.classes[labels.hard[0]]!r} in all "
            f"{len(labels)} rows{left_out}); a probe needs labels of at least two classes."
        )
    return labels


def _keys(
    columns: Mapping[str, Sequence[Any]],
    whole: Keys,
    labels: LabelColumn,
    metadata: Mapping[str, Any],
    *,
    hashes: Sequence[str] | None,
    by_position: bool,
    text: str | None,
) -> Keys:
    """Keys of the labelled rows of a table with the keys ``whole``."""
    rows = labels.rows
    complete = len(rows) == len(whole)
    others = {
        name: values if complete else _at(values[:], rows.tolist())
        for name, values in columns.items()
        if name != whole.id_column
    }
    keys = replace(
        whole,
        ids=taken(whole.ids, rows),
        hashes=hashes,
        columns=others,
        text_column=text,
        by_position=by_position,
        positions=None if complete else rows,
        total=len(whole),
    )
    if "id_column" in metadata and not whole.chosen and not whole.counted:
        column = metadata["id_column"]
        keys = replace(keys, id_column=None if column is None else str(column))
    return keys


def _at(values: Sequence[Any], rows: Iterable[int]) -> list[Any]:
    return [values[i] for i in rows]


def _hashes(columns: Mapping[str, Sequence[Any]], text_column: str | None) -> list[str] | None:
    """Text hashes of the file, else computed from its text, else None."""
    if "text_hash" in columns:
        return [str(value or "").removeprefix(HASH) for value in columns["text_hash"][:]]
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
    """Hash of a text; "" if it is missing, and the row is joined by its id alone."""
    text = normalised(content, kind)
    return text_hash(text) if text else ""
