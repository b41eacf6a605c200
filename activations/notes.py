"""Notes of several processes beside one store: which rows each has done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from probekit.activations.create import open_to_write, reserve, write_at
from probekit.activations.layout import Array
from probekit.errors import StoreError
from probekit.files import beside
from probekit.safe import read_bytes

__all__ = ["COLUMNS", "all_notes", "new_notes", "read_notes"]

COLUMNS = ("n_tokens", "truncated", "done")


def all_notes(path: Path) -> list[Path]:
    """Return every file of notes beside a store; other files with similar names are not."""
    start = notes_name(path, "").name
    return sorted(
        each
        for each in path.parent.iterdir()
        if each.name.startswith(start) and each.name.removeprefix(start).isdecimal()
    )


def notes_name(path: Path, rank: int | str) -> Path:
    """Return the path of a process's notes, a hidden file beside the store."""
    return beside(path, f".probekit-rank{rank}")


def new_notes(path: Path, rank: int, columns: Mapping[str, Array]) -> BinaryIO:
    """Create the notes of a process, all 0, one column after the other."""
    target = notes_name(path, rank)
    target.unlink(missing_ok=True)
    file = open_to_write(target, create=True)
    reserve(file, sum(columns[name].nbytes for name in COLUMNS))
    offset = 0
    for name in COLUMNS:
        blank = np.zeros_like(columns[name])
        write_at(file, blank.view(np.uint8).data, offset)
        offset += blank.nbytes
    return file


def read_notes(notes: Path, columns: Mapping[str, Array]) -> dict[str, Array] | None:
    """Return columns (n,) as a process noted them; None if it was stopped while creating them."""
    data = read_bytes(notes, limit=None, error=StoreError)
    if len(data) != sum(columns[name].nbytes for name in COLUMNS):
        return None
    values: dict[str, Array] = {}
    start = 0
    for name in COLUMNS:
        like = columns[name]
        values[name] = np.frombuffer(data, like.dtype, count=len(like), offset=start)
        start += like.nbytes
    return values
