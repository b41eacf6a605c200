"""Rows of text in a fixed order, each with an id and a hash of its own content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from probekit.contents import (
    Content,
    Kind,
    holds_messages,
    normal,
    other_parts,
    repaired,
    text_hash,
)
from probekit.errors import DataError, first_few
from probekit.tables import dataset_table, frame_columns, read_file

__all__ = [
    "Content",
    "Keys",
    "Match",
    "Rows",
    "find_ids",
    "match",
    "other_texts",
    "rows_fingerprint",
    "same_column",
    "text_hash",
    "unknown_ids",
]

CHUNK = 8192


def rows_fingerprint(ids: Sequence[str], hashes: Sequence[str]) -> str:
    """Fingerprint ids and text hashes in their order: 16 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), CHUNK):
        pairs = zip(ids[start : start + CHUNK], hashes[start : start + CHUNK], strict=True)
        digest.update("".join(f"{i}\x1f{h}\x1e" for i, h in pairs).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


class Rows:
    """Rows of text in a fixed order.

    Parameters
    ----------
    columns
        Name to sequence; all of one length n. The text stands in ``text``, in ``text`` and
        ``text_pair``, or in ``messages`` (chat messages); ``id``, in any case, is optional (else
        the row number).
    text_column, id_column
        Other names for these columns; a text column that holds lists is read as messages.
    source
        Where the rows came from, for messages and provenance.
    note
        What reading left out, as a sentence for people.

    Attributes
    ----------
    ids, hashes
        n strings each.
    kind
        ``text``, ``pair`` or ``messages``.
    groups
        n names of what each row belongs to (:meth:`grouped`), or None.

    Raises
    ------
    DataError
        Where a column is missing, an id stands twice, or a text is empty or no text.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        *,
        text_column: str | None = None,
        id_column: str | None = None,
        source: str = "rows",
        note: str = "",
    ) -> None:
        self.columns = dict(columns)
        self.source, self.note = source, note
        lengths = {name: len(values) for name, values in self.columns.items()}
        self._length = next(iter(lengths.values()), 0)
        if len(set(lengths.values())) > 1:
            raise DataError(f"{source} has columns of different lengths: {lengths}.")
        if self._length == 0:
            raise DataError(f"{source} holds no rows.")
        self.kind, self._text_column = self._find_text(text_column)
        self._as_read = self.kind != "messages"  # until a text is found that is repaired
        found = find_ids(self.columns, id_column=id_column, source=source)
        self.ids: list[str] = list(found.ids)
        self._id_column = found.id_column
        if len(set(self.ids)) != len(self.ids):
            twice = [name for name, many in Counter(self.ids).items() if many > 1]
            raise DataError(
                f"{source} has {len(twice)} ids more than once ({first_few(twice)}); make ids "
                "unique."
            )
        self.hashes = self._check_and_hash()
        self.groups: list[str] | None = None

    @classmethod
    def from_any(cls, data: Any, **options: Any) -> Rows:
        """Take a path, Rows, data set, DataFrame, mapping of columns, list of dicts or of texts."""
        if isinstance(data, Rows):
            return data
        if isinstance(data, str | Path):
            table = read_file(data)
            return cls(table.columns, **{"source": str(data), "note": table.note, **options})
        if isinstance(data, Mapping):
            return cls(data, **options)
        if hasattr(data, "iloc"):
            return cls(frame_columns(data), **options)
        if hasattr(data, "data") and hasattr(data, "features"):
            return cls(dataset_table(data).columns, **options)
        try:
            listed = list(data)
        except TypeError:
            raise DataError(
                "Rows are a path, a data set, a DataFrame or a list of texts or of mappings, got a "
                f"{type(data).__name__}."
            ) from None
        if all(isinstance(row, str) for row in listed):
            return cls({"text": listed}, **options)
        if not all(isinstance(row, Mapping) for row in listed):
            raise DataError("Rows must be strings or mappings with a column 'text' or 'messages'.")
        names = dict.fromkeys(name for row in listed for name in row)
        return cls({name: [row.get(name) for row in listed] for name in names}, **options)

    def __len__(self) -> int:
        return self._length

    @property
    def fingerprint(self) -> str:
        """Fingerprint of ids and text hashes in order."""
        return rows_fingerprint(self.ids, self.hashes)

    @property
    def keys(self) -> Keys:
        """What the rows can be joined by."""
        numbers = self._id_column is None
        return Keys(
            ids=self.ids,
            hashes=self.hashes,
            id_column=self._id_column,
            counted=numbers and "id" not in self.columns,
            columns={k: v for k, v in self.columns.items() if not (numbers and k == "id")},
            text_column=self._text_column,
            name=self.source,
        )

    def contents(self, start: int = 0, stop: int | None = None) -> list[Content]:
        """Contents of rows ``start`` to ``stop``: strings, pairs of strings or messages."""
        found = self._raw(start, stop)
        if self._as_read:
            return found
        return [each for raw in found if (each := normal(raw, self.kind)) is not None]

    def _raw(self, start: int, stop: int | None) -> list[Any]:
        part = slice(start, self._length if stop is None else min(stop, self._length))
        texts = self.columns[self._text_column][part]
        if self.kind == "pair":
            return list(zip(texts, self.columns["text_pair"][part], strict=True))
        return list(texts)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row as a dict of its own columns, in order."""
        for start in range(0, self._length, CHUNK):
            part = {name: values[start : start + CHUNK] for name, values in self.columns.items()}
            for i in range(min(CHUNK, self._length - start)):
                yield {name: values[i] for name, values in part.items()}

    def grouped(self, column: str) -> Rows:
        """The rows, grouped by a column: rows of one question, dialogue or user belong together.

        Its values are told apart as text; a row without one is a group of its own ("").

        Raises
        ------
        DataError
            Where there is no such column, or it holds lists.
        """
        if column not in self.columns:
            raise DataError(
                f"{self.source} has no column {column!r}; it has {', '.join(self.columns)}: "
                "name one of them with --group-column."
            )
        values = self.columns[column][:]
        wrong = [i for i, v in zip(self.ids, values, strict=True) if isinstance(v, list | dict)]
        if wrong:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose {column!r} is a list (ids "
                f"{first_few(wrong)}); a group's name is a text or a number."
            )
        rows = copy(self)
        rows.groups = [_group_name(value) for value in values]
        return rows

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at ``indices``, ids kept."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        if self._id_column is None:
            columns = {"id": [self.ids[i] for i in indices], **columns}
        chosen = Rows(
            columns,
            text_column=self._text_column,
            id_column=self._id_column,
            source=self.source,
            note=self.note,
        )
        chosen.groups = None if self.groups is None else [self.groups[i] for i in indices]
        chosen._id_column = self._id_column  # row numbers stay row numbers, in a column as they are
        return chosen

    def _find_text(self, text_column: str | None) -> tuple[Kind, str]:
        names = list(self.columns)
        wanted = text_column or next((n for n in ("text", "messages") if n in names), None)
        if wanted is None or wanted not in names:
            asked = repr(text_column) if text_column else "'text' or 'messages'"
            raise DataError(
                f"{self.source} has no column {asked}; it has {', '.join(names)}: "
                "name the one to read with --text-column."
            )
        first = next((v for v in self.columns[wanted][:CHUNK] if v is not None and v != ""), None)
        # A list that is written out as text is one, but a column called text holds texts.
        if holds_messages(first) and not (wanted == "text" and isinstance(first, str)):
            return "messages", wanted
        if wanted == "messages" and text_column is None:
            raise DataError(
                f"{self.source} has a column 'messages' that holds no lists of messages with role "
                "and content; repair it, or read it as plain text with --text-column messages."
            )
        return ("pair" if "text_pair" in names and wanted != "text_pair" else "text"), wanted

    def _check_and_hash(self) -> list[str]:
        hashes: list[str] = []
        empty: list[str] = []
        wrong: list[str] = []
        other: list[str] = []
        for start in range(0, self._length, CHUNK):
            for offset, content in enumerate(self._raw(start, start + CHUNK)):
                found = normal(content, self.kind)
                if found is None:
                    parts = other_parts(content) if self.kind == "messages" else []
                    other += parts
                    wrong.append(self.ids[start + offset])
                elif _is_empty(found):
                    empty.append(self.ids[start + offset])
                else:
                    self._as_read = self._as_read and found == content
                    hashes.append(text_hash(found))
        if other:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose messages hold more than text "
                f"({', '.join(sorted(set(other)))}; ids {first_few(wrong)}); only text is read: "
                "remove these parts or rows."
            )
        if wrong:
            raise DataError(
                f"{self.source} has {len(wrong)} rows whose {self._text_column!r} is not "
                f"{'a list of messages' if self.kind == 'messages' else 'text'} "
                f"(ids {first_few(wrong)}); remove or repair them."
            )
        if empty:
            raise DataError(
                f"{self.source} has {len(empty)} rows with an empty text (ids {first_few(empty)}); "
                "remove them."
            )
        return hashes


def _group_name(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value  # NumPy's
    is_nan = isinstance(value, float) and value != value
    if value is None or is_nan or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    # A column of whole numbers with gaps comes as floats.
    number = isinstance(value, float) and value.is_integer()
    return repaired(str(int(value) if number else value)).replace("\0", "\ufffd").strip()


def _is_empty(content: Content) -> bool:
    if isinstance(content, str):
        return not content.strip()
    if isinstance(content, tuple):
        return not "".join(content).strip()
    return not content


# Joins

# Columns that tell no row from another, whatever they hold: texts, labels and what programs count.
NO_KEYS = frozenset(
    [
        "text",
        "text_pair",
        "text_hash",
        "messages",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "sentence",
        "review",
        "label",
        "labels",
        "label_text",
        "prob",
        "probs",
        "score",
        "scores",
        "confidence",
        "weight",
        "weights",
        "class",
        "target",
        "truth",
        "gold",
        "weak",
        "probe",
        "keep",
        "fold",
        "disagreement",
        "split",
        "group",
        "index",
        "level_0",
        "__index_level_0__",
    ]
)
# A key is short; what is longer is text. A store keeps no more than these.
LONGEST_KEY = 128
MOST_KEYS = 8
LEAST_SHARED = 0.5


@dataclass(frozen=True, eq=False)
class Keys:
    """What n rows of one table can be joined by with those of another.

    Raises
    ------
    DataError
        By :func:`match`, where two tables cannot be joined without a guess.
    """

    ids: Sequence[str]
    """n ids."""
    hashes: Sequence[str] | None = None
    """n text hashes, "" where unknown; None where none is known."""
    id_column: str | None = "id"
    """Column that the ids are from; None: they are row numbers."""
    counted: bool = False
    """Whether these row numbers were counted on reading, so that they mean the order alone."""
    chosen: bool = False
    """Whether somebody named the ids, by an option or in Python: then the column's name is free."""
    by_position: bool = False
    """Whether somebody asked to join by position."""
    positions: Sequence[int] | None = None
    """Where the rows stand in their table; None: one behind the other, from its first."""
    total: int | None = None
    """How many rows that table has; None: n."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns, in which a shared key may stand."""
    text_column: str | None = None
    """Column of the text, which is no key."""
    name: str = "the rows"
    """What the table is called in messages."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows_in_all(self) -> int:
        """Rows of the whole table."""
        return len(self) if self.total is None else self.total

    def candidates(self) -> dict[str, list[str]]:
        """Columns that have a short value of its own in each row, as strings."""
        found: dict[str, list[str]] = {}
        for name, values in self.columns.items():
            if len(found) < MOST_KEYS and self.may_be_key(name):
                strings = _key_values(values)
                if strings is not None:
                    found[name] = strings
        return found

    def may_be_key(self, name: str) -> bool:
        """Whether a column's name speaks for a key: no text, no label, nothing that is counted."""
        low = name.strip().casefold()
        own = {str(n).casefold() for n in (self.id_column, self.text_column) if n is not None}
        return bool(low) and low not in NO_KEYS | own and not low.startswith("unnamed:")

    def take(self, places: Sequence[int]) -> Keys:
        """The keys of the rows at ``places``; other columns are left behind."""
        hashes = self.hashes
        positions = range(len(self)) if self.positions is None else self.positions
        return replace(
            self,
            positions=[positions[i] for i in places],
            total=self.rows_in_all,
            ids=[self.ids[i] for i in places],
            hashes=None if hashes is None else [hashes[i] for i in places],
            columns={},
        )


class Match(NamedTuple):
    """Where each of n rows stands in the other table (-1: nowhere), and what joined them."""

    place: list[int]
    how: str


def find_ids(
    columns: Mapping[str, Sequence[Any]],
    *,
    id_column: str | None = None,
    source: str,
    error: type[DataError] = DataError,
) -> Keys:
    """Ids of a table: the column named, else ``id`` in any case, else row numbers.

    Raises
    ------
    DataError
        (or ``error``) Where the column named is missing, two are called id, or a row has no id.
    """
    name = _id_column(columns, id_column, source, error)
    if name is None:
        many = len(next(iter(columns.values()), ()))
        return Keys([str(i) for i in range(many)], id_column=None, counted=True, name=source)
    values = [_key(value) for value in columns[name][:]]
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise error(
            f"{source} has {len(missing)} rows without an id (rows {first_few(missing)}); "
            f"fill the column {name!r} or remove it to use row numbers."
        )
    ids = [value for value in values if value is not None]
    return Keys(ids, id_column=name, chosen=id_column is not None, name=source)


def same_column(columns: Iterable[str], wanted: str) -> list[str]:
    """Columns of that name in any case."""
    return [name for name in columns if name.strip().casefold() == wanted.strip().casefold()]


def _id_column(
    columns: Mapping[str, Any], asked: str | None, source: str, error: type[DataError]
) -> str | None:
    wanted = "id" if asked is None else asked
    if wanted in columns:
        return wanted
    same = same_column(columns, wanted)
    if len(same) == 1:
        return same[0]
    if same:
        raise error(
            f"{source} has the columns {' and '.join(same)}; name the one to read with --id-column."
        )
    if asked is not None:
        raise error(
            f"{source} has no column {asked!r}; it has {', '.join(columns)}: "
            "name the one to read with --id-column."
        )
    return None


def _key(value: Any) -> str | None:
    """An id or key as text: 7.0, as spreadsheets and pandas make of 7, is 7; None where missing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float):
        if value != value:
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return repaired(str(value))


def _key_values(values: Sequence[Any]) -> list[str] | None:
    """Values as keys; None where they are no keys: missing, repeated, long, fractions or lists."""
    found: dict[str, None] = {}
    for start in range(0, len(values), CHUNK):
        for value in values[start : start + CHUNK]:
            key = _key(value) if isinstance(value, str | int | float) else None
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                return None
            if key is None or len(key) > LONGEST_KEY or key in found:
                return None
            found[key] = None
    return list(found)


def match(rows: Keys, others: Keys, *, error: type[DataError] = DataError) -> Match:
    """Join two tables: by id, else by the one key that both have, else by position.

    By position only if neither has ids and both have as many rows (or all their texts are equal),
    or if somebody asked for it. What cannot be joined without a guess is refused.

    Raises
    ------
    DataError
        (or ``error``) Naming the columns that could join them, and the repair.
    """
    if others.by_position or rows.by_position:
        return _by_position(rows, others, "by position, as asked", error)
    if others.chosen and others.id_column is not None:
        return _by_chosen(rows, others) or _by_number(rows, others, error)
    same = rows.id_column is not None and others.id_column is not None
    if same and str(rows.id_column).casefold() == str(others.id_column).casefold():
        return _by_values(rows.ids, others.ids, f"by {rows.id_column}")
    shared = _shared(rows, others)
    if len(shared) > 1:
        raise error(
            f"{others.name} and {rows.name} have {len(shared)} columns that could join them "
            f"({', '.join(shared)}); name one with --id-column."
        )
    if shared:
        name, (left, right) = next(iter(shared.items()))
        return _by_values(left, right, f"by the column {name!r}, which both have")
    if same or (rows.chosen and not others.counted):
        return _by_values(rows.ids, others.ids, f"by {others.id_column or 'row number'}")
    return _by_number(rows, others, error)


def _by_chosen(rows: Keys, others: Keys) -> Match | None:
    """By the ids that somebody named; where the rows have a column of that name, by it.

    None where the rows have no ids at all.
    """
    name = str(others.id_column)
    for own, values in rows.columns.items():
        same = own.casefold() == name.casefold() and own != rows.id_column
        if same and (keys := _key_values(values)) is not None:
            return _by_values(keys, others.ids, f"by the column {own!r}")
    return None if rows.counted else _by_values(rows.ids, others.ids, f"by {name}")


def _by_values(left: Sequence[str], right: Sequence[str], how: str) -> Match:
    place = {name: i for i, name in enumerate(right)}
    return Match([place.get(name, -1) for name in left], how)


def _by_position(rows: Keys, others: Keys, how: str, error: type[DataError]) -> Match:
    if rows.rows_in_all != others.rows_in_all:
        raise error(
            f"{others.name} has {others.rows_in_all} rows and {rows.name} {rows.rows_in_all}, so "
            "they cannot be joined by position; give both a column id."
        )
    numbers = range(len(rows)) if rows.positions is None else rows.positions
    theirs = range(len(others)) if others.positions is None else others.positions
    place = {number: i for i, number in enumerate(theirs)}
    return Match([place.get(number, -1) for number in numbers], how)


def _by_number(rows: Keys, others: Keys, error: type[DataError]) -> Match:
    """Where a side has no ids: by row number or position, if that is what both mean."""
    if rows.counted and others.counted and rows.rows_in_all == others.rows_in_all:
        return _in_order(rows, others, error)
    if _same_texts(rows, others):
        return _by_position(rows, others, "by position: their texts are the same", error)
    if rows.id_column is None and not others.counted:
        numbers = set(rows.ids)
        if others.id_column is None or numbers >= set(others.ids) or numbers <= set(others.ids):
            return _by_values(rows.ids, others.ids, "by row number")
    if rows.id_column is None and others.id_column is None:
        return _in_order(rows, others, error)
    without, with_ids = (others, rows) if others.id_column is None else (rows, others)
    more = [name for name in without.columns if without.may_be_key(name)]
    columns = f" (its columns are {', '.join(more[:6])})" if more else ""
    raise error(
        f"{without.name} has no column {with_ids.id_column!r}{columns} and {with_ids.name} has "
        f"ids (the first {first_few(with_ids.ids)}); name the column that joins them with "
        "--id-column, or pass --by-position where both have the same rows in the same order."
    )


def _in_order(rows: Keys, others: Keys, error: type[DataError]) -> Match:
    """By position, unless a column that both have says that the rows stand in another order."""
    found = _by_position(rows, others, "by position: neither has ids", error)
    named = {name.strip().casefold(): name for name in others.columns}
    for name, values in rows.columns.items():
        theirs = named.get(name.strip().casefold()) if rows.may_be_key(name) else None
        if theirs is None:
            continue
        mine, other = values[:], others.columns[theirs][:]
        if any(
            i >= 0 and _key(a) != _key(other[i]) for a, i in zip(mine, found.place, strict=True)
        ):
            raise error(
                f"{others.name} and {rows.name} have a column {name!r} whose values differ by "
                "position and do not tell the rows apart; give both a column id, or pass "
                "--by-position."
            )
    return found


def _same_texts(rows: Keys, others: Keys) -> bool:
    """Whether both have the same texts in the same order, as far as both sides know them."""
    if not rows.hashes or not others.hashes or len(rows) != len(others):
        return False
    known = [(a, b) for a, b in zip(rows.hashes, others.hashes, strict=True) if a and b]
    return len(known) >= LEAST_SHARED * len(rows) and all(a == b for a, b in known)


def _shared(rows: Keys, others: Keys) -> dict[str, tuple[list[str], list[str]]]:
    """Columns of both, by name in any case, whose values are unique on both sides and match."""
    left, right = _all_keys(rows), _all_keys(others)
    found = {}
    for low, (name, values) in left.items():
        if low not in right:
            continue
        theirs = right[low][1]
        common = len(set(values) & set(theirs))
        if common and common >= LEAST_SHARED * min(len(values), len(theirs)):
            found[name] = (values, theirs)
    return found


def _all_keys(keys: Keys) -> dict[str, tuple[str, list[str]]]:
    """Candidates by lower-case name, the ids' own column among them."""
    named = keys.candidates()
    if keys.id_column is not None and not keys.chosen:
        named[keys.id_column] = list(keys.ids)
    return {name.strip().casefold(): (name, values) for name, values in named.items()}


def unknown_ids(found: Match, others: Keys) -> list[str]:
    """Ids of the other table that none of the rows has."""
    used = set(found.place)
    return [name for i, name in enumerate(others.ids) if i not in used]


def other_texts(rows: Keys, others: Keys, place: Iterable[int]) -> list[str]:
    """Ids of the rows whose text is another one there, as far as both sides know it."""
    if rows.hashes is None or others.hashes is None:
        return []
    return [
        name
        for name, mine, i in zip(rows.ids, rows.hashes, place, strict=True)
        if i >= 0 and mine and (theirs := others.hashes[i]) and mine != theirs
    ]
