"""What a disk or a memory refuses, as one sentence: which file, what it needs, how to repair it.

The libraries that write for us have their own ways to say so: safetensors and tokenizers wrap the
system's message, torch loses it, pyarrow and h5py copy it into their text.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from probekit.errors import ProbekitError, WriteError

__all__ = [
    "AGAIN",
    "NO_SPACE",
    "disk_errno",
    "disk_sentence",
    "human_bytes",
    "is_out_of_memory",
    "told",
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


def human_bytes(count: int) -> str:
    """Write a number of bytes for people: ``1.2 GB``."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def disk_errno(error: BaseException) -> int | None:
    """Return the system's number of a write that failed, however a library wraps it; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (*NO_SPACE, *REFUSALS):
            return seen.errno
        if not isinstance(seen, ProbekitError):
            found = _WRAPPED.search(str(seen))
            if found is not None:
                code = int(next(group for group in found.groups() if group))
                if code in (*NO_SPACE, *REFUSALS):
                    return code
            if isinstance(seen, RuntimeError) and any(w in str(seen) for w in _TORCH_WRITE):
                return errno.ENOSPC
        seen = seen.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, the machine's or a card's, was not enough."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)


def disk_sentence(
    path: Path, code: int, needed: int | None = None, *, advice: str = "then " + AGAIN
) -> str:
    """Say what stopped a write to ``path``, what it needs (bytes) and how to repair it."""
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
def told(
    path: Path,
    *,
    needed: int | None = None,
    error: type[ProbekitError] = WriteError,
    advice: str = "then " + AGAIN,
) -> Iterator[None]:
    """Turn a write that the disk refuses into one sentence about ``path``.

    Parameters
    ----------
    needed
        Bytes that are written in all, where that is known.
    error, advice
        Kind of error, and how its sentence ends.

    Raises
    ------
    WriteError
        (or ``error``) With file, size and repair.
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
    """Bytes that are free where ``path`` lies, or will lie."""
    for folder in (path.absolute(), *path.absolute().parents):
        if os.path.isdir(folder):
            return shutil.disk_usage(folder).free
    return 0
