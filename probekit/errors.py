"""Every error that probekit raises on purpose, as one tree.

ProbekitError                exit code 1
├── UsageError               exit code 2: the arguments are wrong
├── DataError                rows, files and what is in them
│   ├── LabelsError          weak labels or ground truth
│   └── OutputExistsError    nothing is overwritten unless asked
├── StoreError               an activation store
│   ├── NotAStoreError       another or a damaged file
│   ├── StaleStoreError      made from other rows, another model or another spec
│   └── IncompleteStoreError its extraction has not finished
├── ModelError               a model or tokenizer cannot be loaded or used
├── ProbeError               a probe cannot be fitted or applied
├── RunError                 parts of an experiment failed, all others are done
├── WriteError               an output cannot be written: full disk, no right, another writer
└── StoppedError             exit code 130: stopped by Ctrl-C or SIGTERM

A message is one sentence: what is wrong, where, what is allowed, what was found, how to repair it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

__all__ = [
    "DataError",
    "IncompleteStoreError",
    "LabelsError",
    "ModelError",
    "NotAStoreError",
    "OutputExistsError",
    "ProbeError",
    "ProbekitError",
    "RunError",
    "StaleStoreError",
    "StatesError",
    "StoppedError",
    "StoreError",
    "UsageError",
    "WriteError",
    "did_you_mean",
    "first_few",
    "repeated",
]


class ProbekitError(Exception):
    """Anything probekit refuses to do; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(ProbekitError, ValueError):
    """Wrong arguments."""

    exit_code = 2


class DataError(ProbekitError, ValueError):
    """Rows, or a file that holds them, are not what they must be."""


class LabelsError(DataError):
    """Weak labels or ground truth do not fit their rows or are not labels."""


class OutputExistsError(DataError):
    """The output is already there and overwriting was not asked for."""


class StoreError(ProbekitError):
    """An activation store cannot be read or written."""


class NotAStoreError(StoreError):
    """The file is damaged or not an activation store."""


class StaleStoreError(StoreError):
    """The store was made from other rows, another model or another spec."""


class IncompleteStoreError(StoreError):
    """The extraction that makes this store has not finished."""


class ModelError(ProbekitError):
    """A model or its tokenizer cannot be loaded or used."""


class RunError(ProbekitError):
    """Parts of an experiment failed; all others are done and written."""


class ProbeError(ProbekitError, ValueError):
    """A probe cannot be fitted or applied; a ValueError, as scikit-learn's contract asks."""


class WriteError(ProbekitError):
    """A file or folder cannot be written: the disk, the rights on it, or another writer."""


class StoppedError(ProbekitError):
    """The user or the system stopped the work; the message says what is kept."""

    exit_code = 130


class StatesError(ProbeError, DataError, TypeError):
    """States are no rectangular array of finite real numbers.

    A TypeError too, because scikit-learn's contract asks for one where objects are no numbers.
    """


def first_few(items: Iterable[object], limit: int = 3) -> str:
    """Write the first ``limit`` items as ``'a', 'b', 'c', …`` for a message."""
    listed = list(items)
    text = ", ".join(repr(str(item)) for item in listed[:limit])
    return text + (", …" if len(listed) > limit else "")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that stand more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Write the nearest names as `` (did you mean a or b?)``; nothing where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
