"""Pack a finished store: for disks and transfers; a packed layer is read, not mapped."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from probekit.activations.create import HDF5_OPTIONS
from probekit.activations.disk import full_disk_told, move_into_place, new_file, reserve
from probekit.errors import UsageError

__all__ = ["ALLOWED", "check_compression", "compress_store"]

ALLOWED = ("gzip", "lzf")
CHUNK_BYTES = 1 << 20


def check_compression(compression: str | None) -> None:
    """Refuse a name that is not allowed."""
    if compression is not None and compression not in ALLOWED:
        raise UsageError(f"Compression is one of {', '.join(ALLOWED)}, not {compression!r}.")


def compress_store(path: Path, file: BinaryIO, compression: str) -> BinaryIO:
    """Copy a store whose rows are all done into chunks and move the copy to ``path``.

    Packing as the rows come would unpack and pack a chunk for every row of it, as rows come sorted
    by length; and a kill would leave chunks that are marked done but not written.
    """
    size = path.stat().st_size
    advice = "or finish it as it is, without compression"
    with new_file(path) as (packed, temporary), full_disk_told(path, size, advice=advice):
        try:
            reserve(packed, size)  # random numbers do not shrink
            packed.truncate(0)
            with (
                h5py.File(file, "r") as old,
                h5py.File(packed, "w", **HDF5_OPTIONS) as new,
            ):
                _copy(old, new, compression)
        except BaseException:
            packed.truncate(0)
            raise
        move_into_place(packed, temporary, path)
    file.close()
    return packed


def _copy(old: h5py.File, new: h5py.File, compression: str) -> None:
    for name, value in old.attrs.items():
        new.attrs[name] = np.bool_(True) if name == "complete" else value
    old.copy(old["rows"], new, "rows")
    for name, data in old["layers"].items():
        n, width = data.shape
        rows = max(1, min(n, CHUNK_BYTES // (width * data.dtype.itemsize)))
        # Shuffled bytes pack better: the exponents of a row's numbers are alike.
        target = new.create_dataset(
            f"layers/{name}",
            data.shape,
            data.dtype,
            chunks=(rows, width),
            compression=compression,
            shuffle=True,
        )
        for start in range(0, n, rows):
            target[start : start + rows] = data[start : start + rows]
        for key, value in data.attrs.items():
            target.attrs[key] = value
