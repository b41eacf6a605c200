"""Where a command may write: never onto what it reads, nor twice to one place.

Names say little about that: links, hard links, relative paths, ``x.jsonl.meta.json`` beside
``x.jsonl`` and folders all lead to the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from probekit.errors import UsageError
from probekit.sidecars import sidecar

__all__ = ["existing", "refuse_inside", "refuse_reads"]


def refuse_reads(
    outputs: Sequence[Path], reads: Iterable[object], *, overwrite: bool = False
) -> None:
    """Refuse outputs that are inputs, or of which two are one file, before any work.

    Parameters
    ----------
    outputs
        Files to write; what stands there may be replaced.
    reads
        Whatever is read: what names no file or folder here is passed over.
    overwrite
        Whether what stands there may be replaced; then it must not lie in a folder that is read
        (a model, a saved data set) either.

    Raises
    ------
    UsageError
        With the output concerned.
    """
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if any(_same(a, b) for a in _files(output) for b in _files(other)):
                raise UsageError(
                    f"{output} is named twice: each output needs a file of its own, with room for "
                    f"{sidecar(output).name} beside JSONL."
                )
    for read in existing(reads):
        for output in outputs:
            if any(_same(a, b) for a in _files(output) for b in _files(read)):
                raise UsageError(f"{output} is read here; write to another file.")
            if overwrite and read.is_dir() and output.exists() and _inside(output, read):
                raise UsageError(
                    f"{output} lies in {read}, which is read here; write to another folder."
                )


def refuse_inside(folder: Path, reads: Iterable[object]) -> None:
    """Refuse to replace a folder that holds an input.

    Raises
    ------
    UsageError
        With the input concerned.
    """
    for read in existing(reads):
        if _inside(read, folder):
            raise UsageError(
                f"{read} lies in {folder}, which would be replaced; copy it elsewhere first, or "
                "name another folder."
            )


def existing(names: Iterable[object]) -> Iterator[Path]:
    """Paths among what a user named: a file, ``NAME=FILE``, ``MODEL@layers=K``, ``A,B``."""
    for name in names:
        if isinstance(name, list | tuple):
            yield from existing(name)
        elif isinstance(name, str | Path) and str(name):
            text = str(name)
            parts = {text, text.partition("=")[2], text.partition("@")[0], *text.split(",")}
            for part in parts:
                try:
                    if part and Path(part).exists():
                        yield Path(part)
                except (OSError, ValueError):  # too long or no path at all
                    continue


def _files(path: Path) -> tuple[Path, ...]:
    """A file, and the one that describes it."""
    return (path, sidecar(path)) if path.suffix.lower() == ".jsonl" else (path,)


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _inside(path: Path, folder: Path) -> bool:
    real, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real != outer and real.is_relative_to(outer)
