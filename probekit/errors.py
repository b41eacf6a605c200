"""Every error that probekit raises on purpose, as one tree, and errors of the disk as one of them.

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

A message is one sentence: what is wrong, where, what is allowed, what was given, how to repair it.

Libraries report a full disk in their own ways: safetensors and tokenizers wrap the system's
message, torch drops it, pyarrow and h5py copy it into their text. :func:`disk_errors` makes one
sentence of it: which file, the bytes it needs, how to repair it.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "NO_SPACE",
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
    "disk_errno",
    "disk_errors",
    "disk_sentence",
    "first_few",
    "human_bytes",
    "is_out_of_memory",
    "repeated",
]

AGAIN = "run the same command again"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSALS = {
    errno.EROFS: "its file system is read-only; name an output on another one",
    errno.EACCES: "you may not write there; change the rights or name another output",
    errno.EPERM: "you may not write there; change the rights or name another output",
    errno.EIO: "its disk fails; name an output on another one",
    errno.ENAMETOOLONG: "its name is too long for this file system; give it a shorter one",
}
# "(os error 28)" is Rust's, "[Errno 28]" Python's and pyarrow's, "errno = 28" that of HDF5.
_WRAPPED = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|errno = (\d+)")
# torch's writer knows only that less was written than it asked for.
_TORCH_WRITE = ("PytorchStreamWriter failed", "file write failed", "unexpected pos")
_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "Cannot allocate memory")


class ProbekitError(Exception):
    """Base of all errors; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(ProbekitError, ValueError):
    """Wrong arguments."""

    exit_code = 2


class DataError(ProbekitError, ValueError):
    """Rows, or a file of rows or labels, are wrong."""


class LabelsError(DataError):
    """Weak labels or ground truth are wrong, or do not fit their rows."""


class OutputExistsError(DataError):
    """The output exists and overwriting was not asked for."""


class StoreError(ProbekitError):
    """An activation store cannot be read or written."""


class NotAStoreError(StoreError):
    """The file is damaged or not an activation store."""


class StaleStoreError(StoreError):
    """The store was made from other rows, another model or another spec."""


class IncompleteStoreError(StoreError):
    """The extraction of this store has not finished."""


class ModelError(ProbekitError):
    """A model or its tokenizer cannot be loaded or used."""


class RunError(ProbekitError):
    """Parts of an experiment failed; all others are done and written."""


class ProbeError(ProbekitError, ValueError):
    """A probe cannot be fitted or applied; a ValueError, as scikit-learn's contract asks."""


class WriteError(ProbekitError):
    """A file or folder cannot be written: full disk, missing rights, or another writer."""


class StoppedError(ProbekitError):
    """The user or the system stopped the work; the message says what is kept."""

    exit_code = 130


class StatesError(ProbeError, DataError, TypeError):
    """States are not a rectangular array of finite real numbers.

    A TypeError too, because scikit-learn's contract asks for one if objects are not numbers.
    """


def first_few(items: Iterable[object], limit: int = 3) -> str:
    """Write the first ``limit`` items as ``'a', 'b', 'c', …`` for a message."""
    listed = list(items)
    text = ", ".join(repr(str(item)) for item in listed[:limit])
    return text + (", …" if len(listed) > limit else "")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Write the nearest names as `` (did you mean a or b?)``; nothing if none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def human_bytes(count: int) -> str:
    """Write a number of bytes for people: ``1.2 GB``."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def disk_errno(error: BaseException) -> int | None:
    """Return the errno of a failed write, however a library wraps it; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (*NO_SPACE, *REFUSALS):
            return cause.errno
        if not isinstance(cause, ProbekitError):
            wrapped = _WRAPPED.search(str(cause))
            if wrapped is not None:
                code = int(next(group for group in wrapped.groups() if group))
                if code in (*NO_SPACE, *REFUSALS):
                    return code
            if isinstance(cause, RuntimeError) and any(w in str(cause) for w in _TORCH_WRITE):
                return errno.ENOSPC
        cause = cause.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the GPU ran out of memory."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)


def disk_sentence(
    path: Path, code: int, needed: int | None = None, *, advice: str = "then " + AGAIN
) -> str:
    """Describe why a write of ``needed`` bytes to ``path`` failed, and how to repair it."""
    import resource  # late, as shutil: every module imports this one

    if code in REFUSALS:
        return f"{path} cannot be written: {REFUSALS[code]}."
    size = "more room" if needed is None else human_bytes(needed)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if code == errno.EDQUOT:
        have = "your quota on its disk is less; free some space"
    elif code == errno.ENOSPC:
        have = f"{human_bytes(_free_bytes(path))} are free on its disk; free some space"
    elif limit != resource.RLIM_INFINITY:
        have = f"a file may have {human_bytes(limit)} here (ulimit -f); raise that limit"
    else:
        have = "its file system takes no file of that size; choose another one"
    return f"{path} needs {size}, but {have}, {advice}."


@contextmanager
def disk_errors(
    path: Path,
    *,
    needed: int | None = None,
    error: type[ProbekitError] = WriteError,
    advice: str = "then " + AGAIN,
) -> Iterator[None]:
    """Raise one sentence about ``path`` if the disk refuses a write within.

    Parameters
    ----------
    needed
        Number of bytes to write, if known.
    error, advice
        Class of the error, and how its sentence ends.

    Raises
    ------
    WriteError
        (or ``error``) If the disk is full, read-only, damaged or not yours to write to.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ProbekitError):
        raise
    except BaseException as failure:
        code = disk_errno(failure)
        if code is None:
            raise
        raise error(disk_sentence(path, code, needed, advice=advice)) from failure


def _free_bytes(path: Path) -> int:
    """Free bytes on the disk of ``path``, which need not exist."""
    import shutil

    for folder in (path.absolute(), *path.absolute().parents):
        if os.path.isdir(folder):
            return shutil.disk_usage(folder).free
    return 0
