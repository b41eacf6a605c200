"""Joins of two tables by id, by a key that both have, or by position; never by a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import DataError, first_few
from probekit.safe import repaired
from probekit.strings import Strings, places, taken

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Keys",
    "Match",
    "find_ids",
    "key_text",
    "match",
    "other_texts",
    "same_column",
    "unknown_ids",
]

CHUNK = 8192

# Columns that are never keys, whatever they contain: texts, labels, and what programs count.
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
# Longer values are text, not keys. A store keeps at most MAX_KEYS columns.
LONGEST_KEY = 128
MAX_KEYS = 8
MIN_SHARED = 0.5


@dataclass(frozen=True, eq=False)
class Keys:
    """What n rows of one table can be joined by with those of another (:func:`match`)."""

    ids: Sequence[str]
    """n ids."""
    hashes: Sequence[str] | None = None
    """n text hashes, "" if unknown; None if none is known."""
    id_column: str | None = "id"
    """Column of the ids; None: they are row numbers."""
    counted: bool = False
    """Whether these row numbers were counted on reading, so that they only mean the order."""
    chosen: bool = False
    """Whether the user named the ids, by an option or in Python: their column may have any name."""
    by_position: bool = False
    """Whether the user asked to join by position."""
    positions: NDArray[np.int64] | None = None
    """Positions of the rows in their table; None: 0, 1, …"""
    total: int | None = None
    """Number of rows of that table; None: n."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Other columns, any of which may be a shared key."""
    text_column: str | None = None
    """Column of the text, which is not a key."""
    name: str = "the rows"
    """Name of the table in messages."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows_in_all(self) -> int:
        """Number of rows of the whole table."""
        return len(self) if self.total is None else self.total

    def candidates(self) -> dict[str, list[str]]:
        """Columns with a short value that is unique in each row, as strings."""
        keys: dict[str, list[str]] = {}
        for name, values in self.columns.items():
            if len(keys) < MAX_KEYS and self.may_be_key(name):
                strings = _key_values(values)
                if strings is not None:
                    keys[name] = strings
        return keys

    def may_be_key(self, name: str) -> bool:
        """Whether a column of this name may be a key: not a text, a label or a counter."""
        low = name.strip().casefold()
        own = {str(n).casefold() for n in (self.id_column, self.text_column) if n is not None}
        return bool(low) and low not in NO_KEYS | own and not low.startswith("unnamed:")

    def take(self, rows: NDArray[np.int64]) -> Keys:
        """The keys of some rows, by their places, without other columns."""
        return replace(
            self,
            positions=rows if self.positions is None else np.asarray(self.positions)[rows],
            total=self.rows_in_all,
            ids=taken(self.ids, rows),
            hashes=None if self.hashes is None else taken(self.hashes, rows),
            columns={},
        )


class Match(NamedTuple):
    """For each of n rows its place (n,) in the other table, -1 for none; how they were joined."""

    place: NDArray[np.int64]
    how: str
    values: Sequence[str] | None = None
    """What the other table's rows were joined by; None: their position."""


def find_ids(
    columns: Mapping[str, Sequence[Any]],
    *,
    id_column: str | None = None,
    source: str,
    error: type[DataError] = DataError,
) -> Keys:
    """Ids of a table: the named column, else ``id`` in any letter case, else row numbers.

    Raises
    ------
    DataError
        (or ``error``) If the named column is missing, two are called id, or a row has no id.
    """
    name = _id_column(columns, id_column, source, error)
    if name is None:
        n = len(next(iter(columns.values()), ()))
        return Keys([str(i) for i in range(n)], id_column=None, counted=True, name=source)
    values = columns[name]
    ids = values.strings() if hasattr(values, "strings") else None
    if ids is None or not _plain(ids):
        texts = _key_texts(list(values[:]))
        missing = [i for i, value in enumerate(texts) if value is None]
        if missing:
            raise error(
                f"{source} has {len(missing)} rows without an id (rows {first_few(missing)}); "
                f"fill the column {name!r} or remove it to use row numbers."
            )
        ids = [value for value in texts if value is not None]
    return Keys(ids, id_column=name, chosen=id_column is not None, name=source)


def same_column(columns: Iterable[str], wanted: str) -> list[str]:
    """Columns of that name, in any letter case."""
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


def key_text(value: Any) -> str | None:
    """An id or key as text, None if missing; 7.0, into which spreadsheets turn 7, is 7."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float):
        if value != value:
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return repaired(str(value))


def _key_texts(values: list[Any]) -> list[str | None]:
    """Keys of a whole column; plain texts, as most ids are, are checked at once."""
    if set(map(type, values)) == {str} and _plain(values):
        return values
    return [key_text(value) for value in values]


def _plain(values: Sequence[str]) -> bool:
    """Whether texts are keys as they are: none is blank or holds a lone surrogate."""
    chunks = (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    for chunk in map(list, chunks):
        whole = "".join(chunk)
        if not all(map(str.strip, chunk)) or repaired(whole) != whole:
            return False
    return True


def _key_values(values: Sequence[Any]) -> list[str] | None:
    """Values as keys; None if any is missing, repeated, long, a fraction or a list."""
    keys: dict[str, None] = {}
    for start in range(0, len(values), CHUNK):
        for value in values[start : start + CHUNK]:
            key = key_text(value) if isinstance(value, str | int | float) else None
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                return None
            if key is None or len(key) > LONGEST_KEY or key in keys:
                return None
            keys[key] = None
    return list(keys)


def match(rows: Keys, others: Keys, *, error: type[DataError] = DataError) -> Match:
    """Join two tables: by id, else by the one key that both have, else by position.

    By position only if neither has ids and both have the same number of rows (or all their texts
    are equal), or if the user asked for it. A part of a table joins the whole by row number if the
    texts at these numbers are equal.

    Raises
    ------
    DataError
        (or ``error``) If they cannot be joined without a guess; the message names the columns that
        could join them, and the repair.
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
    """Join by the ids that the user named, or the rows' column of that name.

    None if the rows have no ids at all.
    """
    name = str(others.id_column)
    for own, values in rows.columns.items():
        same = own.casefold() == name.casefold() and own != rows.id_column
        if same and (keys := _key_values(values)) is not None:
            return _by_values(keys, others.ids, f"by the column {own!r}")
    return None if rows.counted else _by_values(rows.ids, others.ids, f"by {name}")


def _by_values(left: Sequence[str], right: Sequence[str], how: str) -> Match:
    return Match(places(left, right), how, right)


def _by_position(rows: Keys, others: Keys, how: str, error: type[DataError]) -> Match:
    if rows.rows_in_all != others.rows_in_all:
        raise error(
            f"{others.name} has {others.rows_in_all} rows and {rows.name} {rows.rows_in_all}, so "
            "they cannot be joined by position; give both a column id."
        )
    numbers = np.arange(len(rows)) if rows.positions is None else rows.positions
    theirs = np.arange(len(others)) if others.positions is None else others.positions
    place = np.full(rows.rows_in_all, -1)
    place[theirs] = np.arange(len(theirs))
    return Match(place[numbers], how)


def _by_number(rows: Keys, others: Keys, error: type[DataError]) -> Match:
    """Join by row number or position, if a side has no ids and both mean the same by them."""
    if rows.counted and others.counted and rows.rows_in_all == others.rows_in_all:
        return _in_order(rows, others, error)
    if (part := _part(rows, others)) is not None:
        return part
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
    """Join by position, unless a column that both have shows another order of the rows."""
    joined = _by_position(rows, others, "by position: neither has ids", error)
    named = {name.strip().casefold(): name for name in others.columns}
    for name, values in rows.columns.items():
        theirs = named.get(name.strip().casefold()) if rows.may_be_key(name) else None
        if theirs is None:
            continue
        mine, other = values[:], others.columns[theirs][:]
        if any(
            i >= 0 and key_text(a) != key_text(other[i])
            for a, i in zip(mine, joined.place, strict=True)
        ):
            raise error(
                f"{others.name} and {rows.name} have a column {name!r} whose values differ by "
                "position and do not identify the rows; give both a column id, or pass "
                "--by-position."
            )
    return joined


def _same_texts(rows: Keys, others: Keys) -> bool:
    """Whether all texts that both sides know are the same, in the same order."""
    if not rows.hashes or not others.hashes or len(rows) != len(others):
        return False
    return _agree(rows.hashes, others.hashes, MIN_SHARED * len(rows))


def _agree(mine: Sequence[str], theirs: Sequence[str], least: float) -> bool:
    """Whether all pairs of which both hashes are known are equal, and there are enough."""
    known = [(a, b) for a, b in zip(mine, theirs, strict=True) if a and b]
    return len(known) >= least and all(a == b for a, b in known)


def _part(rows: Keys, others: Keys) -> Match | None:
    """Join a part of a table to the whole by row number; None unless their texts confirm it.

    Of a file without ids that has gaps, :func:`probekit.clean` calls the row numbers ``id``.
    """
    if rows.rows_in_all == others.rows_in_all or not (rows.counted or others.counted):
        return None
    if not rows.hashes or not others.hashes:
        return None
    joined = _by_values(rows.ids, others.ids, "by row number: their texts are the same")
    there = np.flatnonzero(joined.place >= 0)
    mine, theirs = taken(rows.hashes, there), taken(others.hashes, joined.place[there])
    least = MIN_SHARED * min(len(rows), len(others))
    return joined if _agree(mine, theirs, least) else None


def _shared(rows: Keys, others: Keys) -> dict[str, tuple[list[str], list[str]]]:
    """Columns of both, by name in any letter case, with unique values that match."""
    left, right = _all_keys(rows), _all_keys(others)
    shared = {}
    for low, (name, values) in left.items():
        if low not in right:
            continue
        theirs = right[low][1]
        common = len(set(values) & set(theirs))
        if common and common >= MIN_SHARED * min(len(values), len(theirs)):
            shared[name] = (values, theirs)
    return shared


def _all_keys(keys: Keys) -> dict[str, tuple[str, list[str]]]:
    """Candidates by lower-case name, among them the column of the ids."""
    named = keys.candidates()
    if keys.id_column is not None and not keys.chosen:
        named[keys.id_column] = list(keys.ids)
    return {name.strip().casefold(): (name, values) for name, values in named.items()}


def unknown_ids(joined: Match, others: Keys) -> list[str]:
    """Ids of the other table that none of the rows has, or its values of the joining column."""
    used = np.zeros(len(others), bool)
    used[joined.place[joined.place >= 0]] = True
    values = others.ids if joined.values is None else joined.values
    return list(taken(values, np.flatnonzero(~used)))


def other_texts(rows: Keys, others: Keys, place: NDArray[np.int64]) -> list[str]:
    """Ids of the rows with another text in the other table, as far as both sides know it."""
    if rows.hashes is None or others.hashes is None:
        return []
    if isinstance(rows.hashes, Strings) and isinstance(others.hashes, Strings):
        mine, theirs = rows.hashes, Strings(others.hashes.encoded[place])
        both = (place >= 0) & mine.known() & theirs.known()
        return list(taken(rows.ids, np.flatnonzero(both & (mine.encoded != theirs.encoded))))
    return [
        name
        for name, mine, i in zip(rows.ids, rows.hashes, place, strict=True)
        if i >= 0 and mine and (theirs := others.hashes[i]) and mine != theirs
    ]
