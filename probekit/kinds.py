"""Kinds of values that a setting may have: type, range, and what is allowed in words.

A kind reads a command line (``parse``), Python and YAML (``read``), and a pydantic field. The table
``KINDS`` has the kind of each setting that has one name in several places: the command line
(``probekit.cli.options``), run files (``probekit.experiments.config``) and public functions
(``check``) read it, so that a seed is the same thing in all three.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probekit.errors import UsageError, did_you_mean
from probekit.safe import one_line

__all__ = [
    "ACTION_KINDS",
    "COUNT",
    "FLAG",
    "FOLDS",
    "KINDS",
    "MAX_COUNT",
    "RANDOM_STATE",
    "SEED",
    "Choice",
    "Flag",
    "Kind",
    "Layers",
    "Like",
    "Listed",
    "Maybe",
    "Name",
    "Number",
    "SettingError",
    "Settings",
    "Text",
    "Whole",
    "Words",
    "check",
    "check_names",
    "checked",
    "shown",
]

MAX_COUNT = 10**9  # rows, tokens, steps, neighbours: more than any machine can store
MAX_TEXT, MAX_PART = 4096, 255  # length of a path, and of each of its parts
MAX_VALUES = 10_000  # values of a list
MAX_SHOWN = 60  # characters of a value in a message

# Plain digits: int() and float() also accept 1_000, Arabic digits, and nan.
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
# C0 and C1 controls, and lone surrogates that cannot be part of a file name.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udbff\udc00-\udc7f\udd00-\udfff]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


class SettingError(UsageError):
    """A wrong setting; the message begins with its name.

    ``place`` is its path in a file: ``("finetune", "lr")``; ``where`` names that file and line.
    """

    def __init__(self, reason: str, place: Sequence[str], where: str = "") -> None:
        super().__init__(f"{where}{'.'.join(map(one_line, place))}{reason}")
        self.reason, self.place = reason, tuple(place)


class Kind:
    """One kind of value: ``read`` takes a Python or YAML value, ``parse`` a command line's text.

    Both raise ValueError for any other value; ``words`` describes what is allowed.
    """

    words: str

    def read(self, value: Any) -> Any:
        """Return the checked value."""
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """Read the text of a command line."""
        return self.read(text)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Let a field ``Annotated[int, Whole(1, 9)]`` be checked by ``read``."""
        from pydantic_core import core_schema

        del source, handler
        return core_schema.no_info_plain_validator_function(self.read)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number in [low, high]; not a boolean, not 5.0."""

    low: int
    high: int = MAX_COUNT

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        return f"a whole number from {self.low:,} to {self.high:,}"

    def read(self, value: Any) -> int:
        """Take an int, or one of numpy's."""
        if _is_flag(value) or not hasattr(value, "__index__") or getattr(value, "shape", False):
            raise ValueError(self.words)
        number = value.__index__()
        if not self.low <= number <= self.high:
            raise ValueError(self.words)
        return int(number)

    def parse(self, text: str) -> int:
        """Take ASCII digits with a sign."""
        if not _WHOLE.fullmatch(text.strip()):
            raise ValueError(self.words)
        return self.read(int(text))


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in [low, high]; ``above`` excludes low, ``below`` excludes high."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        if math.isinf(self.high):
            return f"a finite number {'above' if self.above else 'of at least'} {_plain(self.low)}"
        ends = ("(" if self.above else "[") + f"{_plain(self.low)}, {_plain(self.high)}"
        return f"a number in {ends}{')' if self.below else ']'}"

    def read(self, value: Any) -> float:
        """Take an int or a float; an int stays one, because hashes of steps depend on it."""
        if _is_flag(value) or getattr(value, "shape", False):
            raise ValueError(self.words)
        if hasattr(value, "__index__"):
            value = value.__index__()
        elif hasattr(value, "dtype") and hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, int | float):
            raise ValueError(self.words)
        inside = self.low <= value <= self.high and abs(value) <= 1e308
        if not inside or (self.above and value <= self.low) or (self.below and value >= self.high):
            percent = self.high == 1 and 2 <= value < 100
            raise ValueError(self.words + (f" ({value:g} % is {value / 100:g})" if percent else ""))
        return value

    def parse(self, text: str) -> float:
        """Take decimal digits, also 1e-2."""
        if len(text) > MAX_SHOWN or not _NUMBER.fullmatch(text.strip()):
            raise ValueError(self.words)
        return self.read(float(text))


@dataclass(frozen=True)
class Flag(Kind):
    """True or false; texts and numbers are refused, because their truth value surprises."""

    words = "true or false"

    def read(self, value: Any) -> bool:
        """Take a bool, or numpy's."""
        if not _is_flag(value):
            raise ValueError(self.words)
        return bool(value)


@dataclass(frozen=True)
class Text(Kind):
    """Text of at least ``least`` characters that a terminal can show; ``free``: any characters."""

    what: str = "text"
    least: int = 1
    free: bool = False

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        return f"{self.what} of {self.least} to {MAX_TEXT:,} characters"

    def read(self, value: Any) -> str:
        """Take a str."""
        if not isinstance(value, str) or len(value) > MAX_TEXT or len(value.strip()) < self.least:
            raise ValueError(self.words)
        if _UNSHOWN.search(value) and not (self.free and "\0" not in value):
            raise ValueError(f"{self.words}, without control characters or line breaks")
        return value


@dataclass(frozen=True)
class Name(Text):
    """A name, a file or a folder, whose parts are no longer than a file system allows."""

    what: str = "a name or path"

    def read(self, value: Any) -> str:
        """Take a str."""
        text = super().read(value)
        if any(len(part.encode("utf-8", "surrogateescape")) > MAX_PART for part in text.split("/")):
            raise ValueError(f"{self.what} whose parts have at most {MAX_PART} bytes")
        return text


class Choice(Kind):
    """One of some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        return f"one of {', '.join(self.names)}"

    def read(self, value: Any) -> str:
        """Take one of the names; the error names the nearest one."""
        if not isinstance(value, str) or value not in self.names:
            raise ValueError(self.words + did_you_mean(value, self.names))
        return value


class Words(Kind):
    """One of some words, or another kind."""

    def __init__(self, *names: str, other: Kind) -> None:
        self.names, self.other = names, other

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        return f"{', '.join(self.names)} or {self.other.words}"

    def read(self, value: Any) -> Any:
        """Take one or the other."""
        return self._word_or(value, self.other.read)

    def parse(self, text: str) -> Any:
        """Take one or the other."""
        return self._word_or(text, self.other.parse)

    def _word_or(self, value: Any, other: Any) -> Any:
        if isinstance(value, str) and value in self.names:
            return value
        try:
            return other(value)
        except ValueError as reason:
            raise ValueError(f"{', '.join(self.names)} or {reason}") from None


@dataclass(frozen=True)
class Maybe(Kind):
    """Another kind, or None."""

    other: Kind

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed; None stands for leaving it out."""
        return self.other.words

    def read(self, value: Any) -> Any:
        """Take None as it is."""
        return None if value is None else self.other.read(value)

    def parse(self, text: str) -> Any:
        """Read the other kind: a command line cannot express None."""
        return self.other.parse(text)


@dataclass(frozen=True)
class Listed(Kind):
    """Several values of one kind; ``alone``: a single one stands for a list of one."""

    each: Kind
    least: int = 0
    alone: bool = False
    each_once: bool = True

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        length = f" of at least {self.least}" if self.least else ""
        return f"a list{length}, each {self.each.words}"

    def read(self, value: Any) -> tuple[Any, ...]:
        """Take a list, a tuple or an array."""
        if self.alone and isinstance(value, str | int | float):
            value = [value]
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, list | tuple | range) or len(value) > MAX_VALUES:
            raise ValueError(self.words)
        values: list[Any] = []
        for item in value:
            try:
                values.append(self.each.read(item))
            except ValueError as error:
                raise ValueError(f"a list, each {error}, and it contains {shown(item)}") from None
        if len(values) < self.least:
            raise ValueError(self.words)
        if self.each_once and len(set(values)) < len(values):
            twice = next(item for item in values if values.count(item) > 1)
            raise ValueError(f"a list without repetition, and {shown(twice)} occurs twice")
        return tuple(values)


@dataclass(frozen=True)
class Layers(Kind):
    """Layers of a model: a number, or a comma list of numbers, ranges and words."""

    words = "numbers, ranges such as 3-6, mid, last or all, commas between"

    def read(self, value: Any) -> Any:
        """Take text, a whole number, or a list of these numbers."""
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",")]
            if not all(_LAYERS.fullmatch(part) for part in parts):
                raise ValueError(self.words + did_you_mean(value, ("mid", "last", "all")))
            return value
        try:
            if isinstance(value, list | tuple | range) or getattr(value, "shape", False):
                return list(Listed(_LAYER, least=1, each_once=False).read(value))
            return _LAYER.read(value)
        except ValueError:
            raise ValueError(self.words) from None


_LAYER = Whole(-9999, 9999)
_LAYERS = re.compile(r"mid|last|all|-?[0-9]{1,4}(\s*[-:]\s*-?[0-9]{1,4})?")


@dataclass(frozen=True)
class Settings(Kind):
    """A mapping of settings by name, whose values are checked where they are used."""

    words = "a mapping of settings (name: value)"

    def read(self, value: Any) -> dict[str, Any]:
        """Take a mapping whose keys are text."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(self.words)
        return dict(value)


class Like(Kind):
    """An object of any class that has the attributes required."""

    def __init__(self, words: str, *attributes: str) -> None:
        self.words, self.attributes = words, attributes

    def read(self, value: Any) -> Any:
        """Take the object."""
        if isinstance(value, type) or not all(hasattr(value, name) for name in self.attributes):
            raise ValueError(self.words)
        return value


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def shown(value: Any) -> str:
    """Write a value for a message, as Python does, on one line and shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**MAX_SHOWN:
        return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    try:
        text = one_line(repr(value))
    except (ValueError, RecursionError):  # it contains a long number
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def checked(place: Sequence[str], kind: Kind, value: Any) -> Any:
    """Read one value, or raise the SettingError about it."""
    try:
        return kind.read(value)
    except ValueError as reason:
        raise SettingError(f" is {reason}, got {shown(value)}.", place) from None


def check_names(
    given: Mapping[str, Any], kinds: Mapping[str, Kind], *, place: Sequence[str] = ()
) -> None:
    """Check settings by name.

    Parameters
    ----------
    place
        Where they are, for messages: ``("probe_options", "knn")``.

    Raises
    ------
    SettingError
        For the first unknown name, with the nearest known one, or the first wrong value.
    """
    for name, value in given.items():
        if name not in kinds:
            listed = f"there are {', '.join(kinds)}" if kinds else "there are none"
            raise SettingError(
                f" is not a setting{did_you_mean(name, kinds)}; {listed}.", (*place, name)
            )
        checked((*place, name), kinds[name], value)


SEED = Whole(0, 2**32 - 1)  # numpy's, and so scikit-learn's and the Trainer's
COUNT, FLAG, FOLDS = Whole(1), Flag(), Whole(2, 1000)
SHARE = Number(0, 1, above=True, below=True)
PENALTY = Number(0, 1e12)
METRIC, BACKEND = Choice("cosine", "euclidean"), Choice("auto", "faiss", "torch")


class Randomness(Kind):
    """What scikit-learn accepts as ``random_state``."""

    words = f"None, {SEED.words}, or numpy's RandomState or Generator"

    def read(self, value: Any) -> Any:
        """Take one of these."""
        if value is None or hasattr(value, "standard_normal"):
            return value
        try:
            return SEED.read(value)
        except ValueError:
            raise ValueError(self.words) from None


RANDOM_STATE = Randomness()

# Kind of each argument of this name, wherever it occurs.
KINDS: dict[str, Kind] = {
    "seed": SEED,
    "layer": Maybe(Whole(-9999, 9999)),
    "n_folds": FOLDS,
    "permutations": Whole(1, 10**6),
    "train_share": Maybe(Number(0, 1, above=True)),
    "train_rows": Maybe(Whole(2)),
    "l2": Words("auto", other=PENALTY),
    "fit_intercept": Maybe(FLAG),
    "contamination": Maybe(Words("auto", "confident", other=SHARE)),
    "blend": Maybe(Number(0, 1, above=True)),
    "only_above": Maybe(Number(0, 1, below=True)),
    "trusted_accuracy": Maybe(Number(0, 1, above=True)),
    "confidence": Number(0.5, 1),
    "max_error": Number(0, 1, above=True, below=True),
    "max_length": Maybe(COUNT),
    "batch_tokens": Maybe(COUNT),
    "limit": Maybe(COUNT),
    "many": COUNT,
    "store": Like("an ActivationStore", "ids", "hashes", "layers", "layer", "read"),
    "labels": Like("WeakLabels, as load_labels reads them", "align", "probs", "classes"),
    "truth": Like("WeakLabels, as load_labels reads them", "align", "probs", "classes"),
    "verdicts": Like("Verdicts, as filter_labels makes them", "keep", "label", "provenance"),
    "layers": Maybe(Listed(Whole(-9999, 9999), least=1, each_once=False)),
    "rows": Whole(2),
    "total_steps": COUNT,
    **dict.fromkeys(
        ("per_class", "in_sample", "hard", "only_labelled", "cautious", "curves", "resume"), FLAG
    ),
}

DISAGREEMENT, TIES = Choice("label", "distance"), Choice("hash", "index")

# For each action the arguments of its function that a run file may set.
ACTION_KINDS: dict[str, dict[str, Kind]] = {
    "filter": {
        "contamination": KINDS["contamination"],
        "per_class": FLAG,
        "threshold": Maybe(Number(0, 1)),
        "in_sample": FLAG,
        "n_folds": FOLDS,
        "disagreement": Maybe(DISAGREEMENT),
        "ties": TIES,
    },
    "relabel": {
        "blend": KINDS["blend"],
        "hard": FLAG,
        "threshold": Maybe(Number(0, 1, above=True, below=True)),
        "only_above": KINDS["only_above"],
        "prior": Maybe(Listed(Number(0, 1, above=True, below=True), each_once=False)),
        "flip": Maybe(Number(0, 1, above=True, below=True)),
        "in_sample": FLAG,
        "n_folds": FOLDS,
        "disagreement": DISAGREEMENT,
        "ties": TIES,
    },
}
ACTION_KINDS["relabel-hard"] = ACTION_KINDS["relabel"]


def check(**arguments: Any) -> None:
    """Check a function's arguments, each by the entry of ``KINDS`` of its name.

    Raises
    ------
    UsageError
        For the first argument of another type or outside its range.
    """
    for name, value in arguments.items():
        checked((name,), KINDS[name], value)
