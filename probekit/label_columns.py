"""Columns of a labels file, in any common form, as class probabilities."""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import DataError, LabelsError, first_few
from probekit.safe import load_json
from probekit.strings import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    _Probs = tuple[NDArray[np.float64], tuple[str, ...]]
    _Reader = Callable[[list[Any], "_Origin", tuple[str, ...] | None], _Probs]

__all__ = [
    "OPTION",
    "READ",
    "LabelColumn",
    "class_values",
    "is_soft",
    "parse_labels",
    "repair_column",
]

OPTION = "--label-column"
"""Option that names the weak labels' column; other files with labels have options of their own."""

SUM_TOLERANCE = 1e-3  # float16 probabilities of a dozen classes sum to 1 within this
END_TOLERANCE = 1e-4  # and one of them may be as far below 0 or above 1
WHOLE = re.compile(r"-?\d{1,18}(\.0+)?")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?")
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
PRINTED_NUMBER = re.compile(r"\b(?:np|numpy)\.float\d+\(([^()]*)\)")
PRINTED_ARRAY = re.compile(r"^(?:np\.)?(?:array|tensor)\((.*?)(?:,\s*dtype=[\w.]+)?\)$", re.DOTALL)
LARGEST_CLASS = 10**18
# Values that spreadsheets, pandas, R, databases and annotation tools write for a missing label.
NO_LABEL = frozenset(
    {
        *("", "nan", "-nan", "na", "n/a", "#na", "#n/a", "#n/a n/a", "<na>", "none", "null", "nat"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "\\n"),
    }
)
ABSTAIN = "-1"
SIGNS = {"-1", "1"}
# Columns of labels, the first that exists is read; and columns that may come with `label`.
READ = ("probs", "prob", "label")
CONFIDENCES = ("score", "scores", "confidence")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")


class LabelColumn(NamedTuple):
    """Labels of the m rows that have one, and what was read."""

    probs: NDArray[np.float64]
    """Class probabilities (m, C)."""
    classes: tuple[str, ...]
    """C class names."""
    rows: NDArray[np.int64]
    """Places of these rows in the table (m,)."""
    column: str
    """What was read, for messages: ``column 'label'``."""
    missing: dict[str, str]
    """Id to word (``nan``, ``-1``, empty) of the rows that have no label."""
    notes: tuple[str, ...]
    """Other sentences for the user."""


def class_order(names: set[str]) -> tuple[str, ...]:
    """Sort class names: by number if all are whole numbers, else as text."""
    if all(_is_whole(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def class_values(classes: Sequence[str]) -> list[Any]:
    """Class names as they are written into data: whole numbers if all of them are."""
    if all(_is_whole(name) for name in classes):
        return [int(name) for name in classes]
    return list(classes)


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"0|-?[1-9]\d{0,17}", name) is not None


def parse_labels(
    columns: Mapping[str, Sequence[Any]],
    ids: Sequence[str],
    *,
    label_column: str | None = None,
    confidence_column: str | None = None,
    classes: Sequence[str] | None = None,
    known_classes: Sequence[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    source: str,
    column_option: str | None = OPTION,
) -> LabelColumn:
    """Read ``probs``, else ``prob``, else ``label``, or the column that ``label_column`` names.

    Null, NaN, an empty field and the words of ``NO_LABEL`` in any case mean that a row has no
    label; so does -1 of a ClassLabel, and -1 beside other whole numbers than 1 alone (a labelling
    function that abstains). Booleans are the classes 0 and 1. A column named by the user is read
    by its values: lists are ``probs``, fractions are ``prob``, the rest are classes.

    Parameters
    ----------
    columns, ids
        The table, and its rows' ids for messages.
    label_column
        Column to read.
    confidence_column
        Column of the probability of the class in ``label``: the label becomes soft, and the other
        classes share the rest equally.
    classes
        Class names in their order, from the user: all of these are classes, and no others.
    known_classes
        Names of the probabilities' columns, if the file has them.
    class_names
        Column to names of a ClassLabel, whose labels are numbers.
    source
        Name of the table in messages.
    column_option
        Option that names the column of this file, for messages; None if it has none. Only
        ``--label-column`` stands beside ``--confidence-column``.

    Raises
    ------
    LabelsError
        If a value is not a class or probability, or ``label`` and ``prob`` (or ``probs``)
        contradict each other; the message names the first rows.
    """
    names = None if classes is None else _checked_classes(classes, source)
    name = _column(columns, label_column, confidence_column, source, column_option)
    column_values = list(columns[name][:])
    label_names = class_names.get(name) if class_names else None
    hard = name not in ("prob", "probs")
    words = _missing(
        column_values, named=names or (), class_label=label_names is not None, hard=hard
    )
    labelled = np.ones(len(column_values), bool)
    labelled[list(words)] = False
    rows = np.flatnonzero(labelled)
    if not column_values:
        raise LabelsError(f"{source} has columns and no row; give one label a row.")
    if not len(rows):
        raise LabelsError(
            f"{source} has no label in any of its {len(column_values)} rows ({name!r} has only "
            f"{first_few(sorted({word.strip() or 'nothing' for word in words.values()}))})."
        )
    origin = _Origin(source, name, taken(ids, rows))
    values = list(taken(column_values, rows))
    kind = name if name in READ and (label_column is None or name != "label") else None
    reader = _reader(values, kind, explicit=label_column is not None)
    if label_names is not None and reader is _read_hard:
        values = [_class_of_number(value, label_names, origin) for value in values]
        names = names or tuple(map(str, label_names))
    if confidence_column is not None:
        confidences = list(taken(columns[confidence_column][:], rows))
        probs, classes_read = _read_confident(values, confidences, origin, names, confidence_column)
        description = f"column {name!r}, its confidence from column {confidence_column!r}"
    else:
        known = names or (None if known_classes is None else tuple(map(str, known_classes)))
        probs, classes_read = reader(values, origin, known if reader is not _read_hard else names)
        description = f"column {name!r}"
        if label_column is None and name != "label" and "label" in columns:
            labels = list(taken(columns["label"][:], rows))
            classes_read = _agreeing(
                probs, classes_read, labels, origin, known is not None, column_option
            )
    notes = _similar_names(classes_read, source)
    unread = [c for c in CONFIDENCES if c in columns and column_option == OPTION]
    if label_column is None and confidence_column is None and name == "label" and unread:
        notes += (
            f"{source}: {unread[0]!r} beside the label is not read; with "
            f"--confidence-column {unread[0]} it makes the labels soft.",
        )
    missing = {ids[i]: word for i, word in words.items()}
    return LabelColumn(probs, classes_read, rows, description, missing, notes)


def _checked_classes(classes: Sequence[str], source: str) -> tuple[str, ...]:
    names = tuple(str(name).strip() for name in classes)
    if len(set(names)) < len(names) or len(names) < 2 or "" in names:
        raise LabelsError(
            f"{source}: classes are at least two different names, got {', '.join(names)!r}."
        )
    return names


def _column(
    columns: Mapping[str, Any],
    asked: str | None,
    confidence: str | None,
    source: str,
    option: str | None,
) -> str:
    """Name of the column to read."""
    if confidence is not None and confidence not in columns:
        raise LabelsError(
            f"{source} has no column {confidence!r}; it has {', '.join(columns)}: name the one "
            "with --confidence-column."
        )
    usual = ("label",) if confidence is not None else READ
    name = asked or next((n for n in usual if n in columns), None)
    if name is None:  # Label, LABEL
        low = {n.strip().casefold(): n for n in columns}
        name = next((low[n] for n in usual if n in low), None)
    if name is None or name not in columns:
        wanted = repr(asked) if asked else ", ".join(map(repr, usual[:-1])) + f" or {usual[-1]!r}"
        wanted = wanted.removeprefix(" or ")
        raise LabelsError(
            f"{source} has no column {wanted}; it has {', '.join(columns)}: "
            f"{repair_column(option)}."
        )
    return name


def repair_column(option: str | None) -> str:
    """How to name the column of the labels, for messages."""
    if option is None:
        return "rename the one to read to 'label'"
    return f"name the one to read with {option}"


# Rows without a label


def _missing(
    values: list[Any], *, named: Sequence[str], class_label: bool, hard: bool
) -> dict[int, str]:
    """Place of each row without a label, and the word in its field."""
    words = {
        i: word
        for i, word in enumerate(_each(values, _word_for_none))
        if word is not None and word.strip() not in named
    }
    rest = [v for i, v in enumerate(values) if i not in words]
    whole = {None if name is None else _whole(name) for name in set(_each(rest, _class_name))}
    # Beside 1 alone, -1 is the other class; beside more whole numbers it is an abstention.
    abstains = class_label or (
        hard
        and ABSTAIN in whole
        and whole != SIGNS
        and len(whole) > 1
        and None not in whole
        and all(name == ABSTAIN or not str(name).startswith("-") for name in whole)
    )
    if abstains and ABSTAIN not in named:
        for i, name in enumerate(_each(values, _class_name)):
            if i not in words and name is not None and _whole(name) == ABSTAIN:
                words[i] = ABSTAIN
    return words


def _word_for_none(value: Any) -> str | None:
    """The word of a value that is not a label; None if it is one."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value if value.strip().casefold() in NO_LABEL else None
    if isinstance(value, float | np.floating | Decimal):
        return "nan" if math.isnan(value) else None
    return "" if str(value) in ("<NA>", "NaT") else None


def _whole(name: str) -> str | None:
    """A whole number in canonical form; None for other names."""
    name = name.strip()
    return str(int(name.partition(".")[0])) if WHOLE.fullmatch(name) else None


def _class_of_number(value: Any, names: Sequence[str], origin: _Origin) -> str:
    """Name of a ClassLabel's number; names are kept."""
    name = _class_name(value)
    number = None if name is None else _whole(name)
    if number is None or not 0 <= int(number) < len(names):
        if name in names:
            return str(name)
        raise LabelsError(
            f"{origin.source} has {value!r} in {origin.column!r}, whose classes are "
            f"{first_few(names, 10)}; their numbers are 0 to {len(names) - 1}."
        )
    return str(names[int(number)])


# Forms


class _Origin(NamedTuple):
    """Where values come from, for messages."""

    source: str
    column: str
    ids: Sequence[str]

    def error(self, wrong: Sequence[int], reason: str, repair: str) -> LabelsError:
        named = first_few(self.ids[i] for i in wrong)
        return LabelsError(
            f"{self.source} has {len(wrong)} rows whose {self.column!r} {reason} (ids {named}); "
            f"{repair}."
        )


def _reader(values: list[Any], kind: str | None, *, explicit: bool) -> _Reader:
    first = values[0]
    if kind == "probs" or isinstance(first, list | tuple | np.ndarray):
        return _read_probs
    if explicit and isinstance(first, str) and _list(first) is not None:
        return _read_probs
    if kind == "prob" or (explicit and _is_fractional(values)):
        return _read_prob
    return _read_hard


def _is_fractional(values: list[Any]) -> bool:
    """Whether all values are numbers, or text of numbers, and one is not whole."""
    numbers = [None if isinstance(v, bool) else _number(v) for v in values]
    if any(n is None or not math.isfinite(n) for n in numbers):
        return False
    return any(n != math.floor(n) for n in numbers if n is not None)


def _read_prob(values: list[Any], origin: _Origin, names: tuple[str, ...] | None) -> _Probs:
    second = _probabilities(values, origin, "allowed is the probability of the second class")
    if names is not None and len(names) != 2:
        raise LabelsError(
            f"{origin.source} names {len(names)} classes but {origin.column!r} is the probability "
            "of the second of two; give probs, one for each class."
        )
    return np.column_stack([1 - second, second]), names or ("0", "1")


def _probabilities(values: list[Any], origin: _Origin, allowed: str) -> NDArray[np.float64]:
    numbers = _each(values, _number)
    wrong = [
        i
        for i, p in enumerate(numbers)
        if p is None or not -END_TOLERANCE <= p <= 1 + END_TOLERANCE
    ]
    if wrong:
        raise origin.error(
            wrong,
            f"is not a probability, the first {values[wrong[0]]!r}",
            f"{allowed}, from 0 to 1",
        )
    return np.clip(np.array(numbers, dtype=np.float64), 0.0, 1.0)


def _read_probs(values: list[Any], origin: _Origin, names: tuple[str, ...] | None) -> _Probs:
    lists = [_list(value) for value in values]
    wrong = [i for i, p in enumerate(lists) if p is None]
    if wrong:
        raise origin.error(
            wrong,
            f"is not a list of numbers, the first {repr(values[wrong[0]])[:80]}",
            "give one probability for each class",
        )
    rows = [p for p in lists if p is not None]
    width = len(rows[0])
    wrong = [i for i, p in enumerate(rows) if len(p) != width]
    if wrong or width < 2:
        raise origin.error(
            wrong or range(len(rows)),
            f"has {len(rows[wrong[0]]) if wrong else width} numbers"
            + (f" where the first row has {width}" if wrong else ""),
            "give one probability for each of at least two classes",
        )
    if names is not None and len(names) != width:
        raise LabelsError(
            f"{origin.source} names {len(names)} classes but {origin.column!r} has {width}."
        )
    P = np.array(rows, dtype=np.float64)
    inside = ((P >= -END_TOLERANCE) & (P <= 1 + END_TOLERANCE)).all(axis=1)  # NaN is not inside
    total = P.sum(axis=1)
    bad = np.flatnonzero(~inside | ~(np.abs(total - 1) <= SUM_TOLERANCE)).tolist()
    if bad:
        raise origin.error(
            bad,
            f"are not class probabilities, the first {P[bad[0]].tolist()}",
            "each must lie in [0, 1] and all of a row must sum to 1",
        )
    P = np.clip(P, 0.0, 1.0)
    return P / P.sum(axis=1, keepdims=True), names or tuple(map(str, range(width)))


def _read_hard(values: list[Any], origin: _Origin, names: tuple[str, ...] | None) -> _Probs:
    labels = _hard_names(values, origin)
    if names is not None:
        foreign = [i for i, name in enumerate(labels) if name not in names]
        if foreign:
            raise origin.error(
                foreign,
                f"is none of the classes, the first {labels[foreign[0]]!r}",
                f"the classes are {first_few(names, 10)}",
            )
    classes = names or class_order(set(labels))
    place = {name: i for i, name in enumerate(classes)}
    Y = np.zeros((len(labels), len(classes)))
    Y[np.arange(len(labels)), [place[name] for name in labels]] = 1
    return Y, classes


def _hard_names(values: list[Any], origin: _Origin) -> list[str]:
    """Class names; in canonical form if all are whole numbers."""
    read = _each(values, _class_name)
    wrong = [i for i, name in enumerate(read) if name is None]
    if wrong:
        raise origin.error(
            wrong,
            f"is not a class, the first {repr(values[wrong[0]])[:80]}",
            "a class is a whole number, a word or a boolean; call probabilities of the second "
            "class 'prob'",
        )
    names = [name for name in read if name is not None]
    whole = _each(names, _whole)
    numbers = [number for number in whole if number is not None]
    return numbers if len(numbers) == len(names) else names


def _read_confident(
    values: list[Any],
    confidences: list[Any],
    origin: _Origin,
    names: tuple[str, ...] | None,
    column: str,
) -> _Probs:
    """Soft labels from a class and its probability; the other classes share the rest equally."""
    Y, classes = _read_hard(values, origin, names)
    if len(classes) < 2:
        raise LabelsError(
            f"{origin.source} has the class {classes[0]!r} in all labelled rows; the rest of a "
            "confidence goes to other classes, so name them with --classes."
        )
    of_column = origin._replace(column=column)
    c = _probabilities(confidences, of_column, "allowed is the probability of the label's class")
    # P(k) = c for the label's class k, (1 − c) / (C − 1) for each other.
    rest = (1 - c) / (len(classes) - 1)
    return np.where(Y == 1, c[:, None], rest[:, None]), classes


def _agreeing(
    probs: NDArray[np.float64],
    classes: tuple[str, ...],
    labels: list[Any],
    origin: _Origin,
    fixed: bool,
    option: str | None,
) -> tuple[str, ...]:
    """Class names of probabilities, checked against the column ``label``.

    A row whose two largest probabilities are equal agrees with either class.
    """
    places = [i for i, word in enumerate(_each(labels, _word_for_none)) if word is None]
    if not places:
        return classes
    names = _hard_names([labels[i] for i in places], origin._replace(column="label"))
    ordered = class_order(set(names))
    if not fixed and not set(ordered) <= set(classes) and len(ordered) == len(classes):
        classes = ordered  # words that name the probabilities' columns in their order
    place = {name: i for i, name in enumerate(classes)}
    top = np.partition(probs, -2, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > END_TOLERANCE
    most = probs.argmax(axis=1)
    wrong = [
        i
        for i, name in zip(places, names, strict=True)
        if clear[i] and place.get(name, -1) != most[i]
    ]
    if wrong:
        i = wrong[0]
        name = names[places.index(i)]
        shown = f"{probs[i, -1]:.3g}" if probs.shape[1] == 2 else str(probs[i].round(3).tolist())
        other = (
            "if 'prob' is the probability of the label itself, pass --confidence-column prob"
            if origin.column == "prob" and option == OPTION
            else f"read the probabilities alone with {option} {origin.column}"
        )
        raise origin._replace(column="label").error(
            wrong,
            f"contradicts their {origin.column!r}, the first {name!r} beside {shown}",
            "remove the column that is not to be read"
            if option is None
            else f"read the label alone with {option} label, or, {other}",
        )
    return classes


def _similar_names(classes: tuple[str, ...], source: str) -> tuple[str, ...]:
    """A warning if names of classes look the same."""
    by_look: dict[str, list[str]] = {}
    for name in classes:
        visible = INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).strip().casefold()
        number = _whole(visible)
        by_look.setdefault(" ".join((number or visible).split()), []).append(name)
    similar = [names for names in by_look.values() if len(names) > 1]
    if not similar:
        return ()
    shown = "; ".join(" and ".join(map(ascii, names)) for names in similar[:3])
    return (
        f"{source} has classes that look alike ({shown}): they are read as different ones; write "
        "them alike if they are one.",
    )


# Values


def _each(values: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
    """``read(value)`` of every value; labels are few words, so each is read once."""
    known: dict[Any, Any] = {}
    results = []
    for value in values:
        kind = type(value)
        if kind not in (str, int, float, bytes):  # a boolean equals a number and is not one
            results.append(read(value))
            continue
        key = kind, value
        if key not in known:
            known[key] = read(value)
        results.append(known[key])
    return results


def _number(value: Any) -> float | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        value = value.strip()
        if DECIMAL_COMMA.fullmatch(value):  # as spreadsheets write it in half of the world
            value = value.replace(",", ".")
        if not NUMBER.fullmatch(value):
            return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def is_soft(value: Any) -> bool:
    """Whether a value is a fraction, or a list of numbers or text of one: no name of a class."""
    number = None if isinstance(value, bool) else _number(value)
    if number is not None:
        return math.isfinite(number) and number != math.floor(number)
    return _list(value) is not None


def _list(value: Any) -> list[float] | None:
    """Numbers of a list, or of the text that JSON, NumPy, torch or Python print of one."""
    if isinstance(value, str):
        value = _printed_list(value)
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    numbers = [_number(item) for item in value]
    return None if None in numbers else [n for n in numbers if n is not None]


def _printed_list(text: str) -> list[Any] | None:
    """``[0.3, 0.7]``, ``[0.3 0.7]``, ``[np.float64(0.3), …]``, ``tensor([…])``, ``(0.3, 0.7)``."""
    inner = PRINTED_NUMBER.sub(r"\1", text.strip())
    inner = PRINTED_ARRAY.sub(r"\1", inner)
    if len(inner) < 2 or (inner[0], inner[-1]) not in (("[", "]"), ("(", ")")):
        return None
    parts = re.split(r"\s*[,\s]\s*", inner[1:-1].strip().strip(","))
    if all(NUMBER.fullmatch(part) for part in parts):
        return parts
    try:
        values = load_json(text, "probabilities")
    except DataError:
        return None
    return values if isinstance(values, list) else None


def _class_name(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | np.integer):
        return str(int(value)) if abs(int(value)) < LARGEST_CLASS else None
    if isinstance(value, float | np.floating | Decimal):
        finite = math.isfinite(value) and abs(float(value)) < LARGEST_CLASS
        return str(int(value)) if finite and value == int(value) else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
