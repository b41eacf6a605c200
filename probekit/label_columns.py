"""Columns of a labels file as class probabilities, whatever their form."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.errors import DataError, LabelsError, first_few
from probekit.safe import load_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    _Reader = Callable[[list[Any], "_Told"], tuple[NDArray[np.float64], tuple[str, ...]]]

__all__ = ["LabelColumn", "class_order", "class_values", "parse_labels"]

SUM_TOLERANCE = 1e-3  # float16 probabilities of a dozen classes sum to 1 within this
WHOLE = re.compile(r"-?\d{1,308}(\.0+)?")  # longer ones are names: Python makes no number of them
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class LabelColumn(NamedTuple):
    """Probabilities (m, C) of the labelled rows, class names, and where these rows stand (m,)."""

    probs: NDArray[np.float64]
    classes: tuple[str, ...]
    rows: NDArray[np.int64]


def class_order(names: set[str]) -> tuple[str, ...]:
    """Sort class names: by number where all are whole numbers, else as text."""
    if all(_is_whole(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def class_values(classes: Sequence[str]) -> list[Any]:
    """Class names as they are written into data: whole numbers where all of them are."""
    if all(_is_whole(name) for name in classes):
        return [int(name) for name in classes]
    return list(classes)


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"0|-?[1-9]\d{0,307}", name) is not None


def parse_labels(
    columns: Mapping[str, Sequence[Any]],
    ids: Sequence[str],
    *,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    source: str,
) -> LabelColumn:
    """Read ``probs``, else ``prob``, else ``label``, or the column that ``label_column`` names.

    Null (in CSV and TSV an empty field) is a row without a label, and nothing else is: -1 is a
    class. Booleans are the classes 0 and 1. A column named by the user is read by what it holds:
    lists are ``probs``, numbers that are not whole are ``prob``, the rest are classes.

    Parameters
    ----------
    classes
        Names of the probabilities' columns, where the file knows them.

    Raises
    ------
    LabelsError
        Naming the first rows that are wrong.
    """
    name = label_column or next((n for n in ("probs", "prob", "label") if n in columns), None)
    if name is None or name not in columns:
        asked = repr(label_column) if label_column else "'probs', 'prob' or 'label'"
        raise LabelsError(
            f"{source} has no column {asked}; it has {', '.join(columns)}: name the one to read "
            "with --label-column."
        )
    values = list(columns[name][:])
    rows = [i for i, value in enumerate(values) if value is not None and value != ""]
    if not rows:
        raise LabelsError(f"{source} has no label in any of its {len(values)} rows ({name!r}).")
    labelled = [values[i] for i in rows]
    told = _Told(source, name, [ids[i] for i in rows])
    kind = name if name in ("probs", "prob", "label") else None
    reader = _reader(labelled, kind, explicit=label_column is not None)
    probs, names = reader(labelled, told)
    if classes is not None and reader is not _read_hard:
        if len(classes) != probs.shape[1]:
            raise LabelsError(
                f"{source} names {len(classes)} classes but {name!r} has {probs.shape[1]}."
            )
        names = tuple(classes)
    return LabelColumn(probs, names, np.array(rows, dtype=np.int64))


class _Told(NamedTuple):
    """Where values come from, for messages."""

    source: str
    column: str
    ids: list[str]

    def refuse(self, wrong: Sequence[int], what: str, repair: str) -> LabelsError:
        named = first_few(self.ids[i] for i in wrong)
        return LabelsError(
            f"{self.source} has {len(wrong)} rows whose {self.column!r} {what} (ids {named}); "
            f"{repair}."
        )


def _reader(values: list[Any], kind: str | None, *, explicit: bool) -> _Reader:
    first = values[0]
    if kind == "probs" or isinstance(first, list | tuple | np.ndarray):
        return _read_probs
    if explicit and isinstance(first, str) and first.startswith("["):
        return _read_probs
    if kind == "prob" or (explicit and _is_fractional(values)):
        return _read_prob
    return _read_hard


def _is_fractional(values: list[Any]) -> bool:
    """Whether all values are numbers, or texts of numbers, and one is not whole."""
    texts = [str(v) for v in values if not isinstance(v, bool)]
    if len(texts) < len(values) or not all(NUMBER.fullmatch(t) for t in texts):
        return False
    return any(float(t) != math.floor(float(t)) for t in texts)


def _read_prob(values: list[Any], told: _Told) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    numbers = _each(values, _number)
    wrong = [i for i, p in enumerate(numbers) if p is None or not 0 <= p <= 1]
    if wrong:
        raise told.refuse(
            wrong,
            f"is no probability, the first {values[wrong[0]]!r}",
            "allowed is the probability of the second class, from 0 to 1",
        )
    second = np.array(numbers, dtype=np.float64)
    return np.column_stack([1 - second, second]), ("0", "1")


def _read_probs(values: list[Any], told: _Told) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    lists = _each(values, _list)
    wrong = [i for i, p in enumerate(lists) if p is None]
    if wrong:
        raise told.refuse(
            wrong,
            f"is no list of numbers, the first {values[wrong[0]]!r}",
            "give one probability for each class",
        )
    width = len(lists[0])
    wrong = [i for i, p in enumerate(lists) if len(p) != width]
    if wrong or width < 2:
        raise told.refuse(
            wrong or range(len(lists)),
            f"has {len(lists[wrong[0]]) if wrong else width} numbers"
            + (f" where the first row has {width}" if wrong else ""),
            "give one probability for each of at least two classes",
        )
    P = np.array(lists, dtype=np.float64)
    inside = ((P >= 0) & (P <= 1)).all(axis=1)  # NaN is not inside
    total = P.sum(axis=1)
    bad = np.flatnonzero(~inside | ~(np.abs(total - 1) <= SUM_TOLERANCE)).tolist()
    if bad:
        raise told.refuse(
            bad,
            f"are no class probabilities, the first {P[bad[0]].tolist()}",
            "each must lie in [0, 1] and all of a row must sum to 1",
        )
    return P / total[:, None], tuple(map(str, range(width)))


def _read_hard(values: list[Any], told: _Told) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    names = _each(values, _class_name)
    wrong = [i for i, name in enumerate(names) if name is None]
    if wrong:
        raise told.refuse(
            wrong,
            f"is no class, the first {values[wrong[0]]!r}",
            "a class is a whole number, a word or a truth value; call probabilities of the second "
            "class 'prob'",
        )
    if all(WHOLE.fullmatch(name) for name in names):
        names = [str(int(float(name))) if "." in name else str(int(name)) for name in names]
    classes = class_order(set(names))
    place = {name: i for i, name in enumerate(classes)}
    Y = np.zeros((len(names), len(classes)))
    Y[np.arange(len(names)), [place[name] for name in names]] = 1
    return Y, classes


def _each(values: list[Any], read: Callable[[Any], Any]) -> list[Any]:
    return [read(value) for value in values]


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _list(value: Any) -> list[float] | None:
    if isinstance(value, str):  # a list in CSV
        try:
            value = load_json(value, "a list")
        except DataError:
            return None
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    numbers = [_number(item) for item in value]
    return None if None in numbers else [n for n in numbers if n is not None]


def _class_name(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return str(int(value)) if math.isfinite(value) and value == int(value) else None
    return value if isinstance(value, str) else None
