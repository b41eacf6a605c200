"""Guesses which columns of a table are the text and the label, if the user names none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from probekit.errors import UsageError, did_you_mean, first_few

__all__ = ["AmbiguousColumnError", "Columns", "guess_columns"]

Role = Literal["text", "label"]
# Names that probekit writes and reads; such a column is chosen before all others.
OWN: Mapping[Role, tuple[str, ...]] = {
    "text": ("text", "messages"),
    "label": ("probs", "prob", "label"),
}
# Words in the names of columns, as people and data sets use them.
WORDS: Mapping[Role, frozenset[str]] = {
    "text": frozenset(
        {
            *("text", "texts", "sentence", "review", "content", "body", "message", "comment"),
            *("tweet", "document", "utterance", "question", "query", "prompt", "abstract", "post"),
            *("passage", "headline", "description", "feedback", "answer", "snippet"),
        }
    ),
    "label": frozenset(
        {
            *("label", "labels", "class", "target", "category", "sentiment", "stars", "rating"),
            *("intent", "topic", "tag", "annotation", "gold", "y", "polarity"),
        }
    ),
}
# Words of names that lose against other matches: review_body before review_title.
NOT_TEXT = frozenset({"id", "title", "date", "time", "url", "lang", "language", "name", "length"})
SAMPLE_ROWS = 1000
MIN_WORDS = 3
SHOWN_VALUES = 3
MAX_CLASSES = 100


class Columns(NamedTuple):
    """Names of the columns of text and label."""

    text: str
    label: str


class AmbiguousColumnError(UsageError):
    """No column, or several, may be the text or label; ``candidates`` are those to choose from.

    Parameters
    ----------
    role : {"text", "label"}
    candidates : list of str
    message : str
    """

    def __init__(self, role: Role, candidates: list[str], message: str) -> None:
        super().__init__(message)
        self.role, self.candidates = role, candidates


def guess_columns(
    columns: Mapping[str, Sequence[Any]],
    *,
    text: str | None = None,
    label: str | None = None,
    source: str = "the table",
) -> Columns:
    """Names of the columns of text and label: those given, else the only candidates.

    A candidate has a usual name (``text``, ``review_body``, ``label``, ``stars_class``, …) and
    fitting values: texts are strings of several words, labels repeat.

    Parameters
    ----------
    columns : mapping of str to sequence
        The table.
    text, label : str, default=None
        Names that are known already.
    source : str, default="the table"
        Name of the table in messages.

    Raises
    ------
    AmbiguousColumnError
        If there is no candidate, or several.
    UsageError
        If a named column does not exist, or both are the same.

    Examples
    --------
    >>> guess_columns({"review_id": [1, 2, 3], "review_body": ["It broke at once."] * 3,
    ...                "stars": ["one", "two", "one"]})
    Columns(text='review_body', label='stars')
    """
    for role, name in (("text", text), ("label", label)):
        if name is not None and name not in columns:
            raise UsageError(
                f"{source} has no column {name!r}{did_you_mean(name, columns)}; it has "
                f"{', '.join(columns)}: name one with --{role}."
            )
    heads = {name: list(values[:SAMPLE_ROWS]) for name, values in columns.items()}
    text = text or _guess("text", {n: v for n, v in heads.items() if n != label}, source)
    label = label or _guess("label", {n: v for n, v in heads.items() if n != text}, source)
    if text == label:
        raise UsageError(f"The text and the label are both {text!r}; name two columns.")
    return Columns(text, label)


def _guess(role: Role, heads: Mapping[str, list[Any]], source: str) -> str:
    """The only candidate: a name of probekit's own, else a usual name with fitting values."""
    for name in OWN[role]:
        if name in heads:
            return name
    holds = _holds_texts if role == "text" else _holds_labels
    fitting = [name for name, values in heads.items() if holds(values)]
    named = [name for name in fitting if _words(name) & WORDS[role]]
    exact = [name for name in named if _words(name) <= WORDS[role]]
    better = [name for name in named if not _words(name) & NOT_TEXT] if role == "text" else []
    for chosen in (named, exact, better, fitting if role == "text" and not named else []):
        if len(chosen) == 1:
            return chosen[0]
    candidates = named or fitting or list(heads)
    shown = "; ".join(f"{name} ({_shown(heads[name])})" for name in candidates)
    if len(candidates) > 1 and (named or fitting):
        what = f"several columns that could be the {role}; name one with"
    elif fitting:  # its values repeat, but so do those of a column of countries
        what = f"no column whose name suggests a {role}; if this is it, name it with"
    else:
        what = f"no column that could be the {role}; name one with"
    message = f"{source} has {what} --{role}: {shown}."
    raise AmbiguousColumnError(role, candidates, message)


def _words(name: str) -> frozenset[str]:
    """The words of a column's name: ``stars_class`` and ``starsClass`` have two."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return frozenset(re.findall(r"[^\W\d_]+", spaced.casefold()))


def _holds_texts(values: list[Any]) -> bool:
    """Whether most values are strings of several words."""
    given = [value for value in values if value is not None and value != ""]
    long = [v for v in given if isinstance(v, str) and len(v.split()) >= MIN_WORDS]
    return 2 * len(long) > len(given) > 0


def _holds_labels(values: list[Any]) -> bool:
    """Whether the values are at least two and repeat, as names of classes do, or are lists."""
    given = [value for value in values if value is not None and value != ""]
    if given and isinstance(given[0], list | tuple):
        return all(isinstance(value, list | tuple) for value in given)
    if any(isinstance(value, dict | list) for value in given):
        return False
    different = len(set(map(str, given)))
    return 2 <= different <= min(MAX_CLASSES, max(2, len(given) // 2)) and not _holds_texts(values)


def _shown(values: list[Any]) -> str:
    different = dict.fromkeys(str(value)[:30] for value in values if value is not None)
    return first_few(list(different)[:SHOWN_VALUES]) if different else "empty"
