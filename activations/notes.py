"""What each of several processes has done of one store, noted in files beside it."""

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

__all__ = ["COLUMNS", "all_notes", "new_notes", "notes_name", "read_notes"]

COLUMNS = ("n_tokens", "truncated", "done")


def all_notes(path: Path) -> list[Path]:
    """Every file of notes beside a store; files of others, whatever their names, are none."""
    start = notes_name(path, "").name
    return sorted(
        each
        for each in path.parent.iterdir()
        if each.name.startswith(start) and each.name.removeprefix(start).isdecimal()
    )


def notes_name(path: Path, rank: int | str) -> Path:
    """Name the notes of a process, hidden beside the store."""
    return beside(path, f".probekit-rank{rank}")


def new_notes(path: Path, rank: int, columns: Mapping[str, Array]) -> BinaryIO:
    """Make the notes of a process, blank, one column behind the other."""
    place = notes_name(path, rank)
    place.unlink(missing_ok=True)
    file = open_to_write(place, create=True)
    reserve(file, sum(columns[name].nbytes for name in COLUMNS))
    start = 0
    for name in COLUMNS:
        blank = np.zeros_like(columns[name])
        write_at(file, blank.view(np.uint8).data, start)
        start += blank.nbytes
    return file


def read_notes(notes: Path, columns: Mapping[str, Array]) -> dict[str, Array] | None:
    """Columns (n,) as a process has noted them; None where it was stopped while making the file."""
    data = read_bytes(notes, limit=None, error=StoreError)
    if len(data) != sum(columns[name].nbytes for name in COLUMNS):
        return None
    found: dict[str, Array] = {}
    start = 0
    for name in COLUMNS:
        like = columns[name]
        found[name] = np.frombuffer(data, like.dtype, count=len(like), offset=start)
        start += like.nbytes
    return found
