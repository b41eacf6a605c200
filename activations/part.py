"""One HDF5 file of a store, open for reading: columns of its rows, and states by memory map."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from probekit.activations.layout import (
    Array,
    StoreFile,
    damaged,
    open_hdf5,
    read_header,
    read_keys,
    read_strings,
    widen,
)
from probekit.strings import Strings

BLOCK_BYTES = 1 << 23
# Whether the system can read ahead on request, and the number of rows probed before the request.
CAN_PREFETCH = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")
PROBES = 4


class Part:
    """One HDF5 file; opening reads only the ``header``: all but states and columns of the rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = StoreFile(path)
        try:
            self._file = open_hdf5(path, self._stream)
            self.header = read_header(self._file, path)
        except BaseException:
            self._stream.close()
            raise
        self._map: Array | None = None
        # Kept, as looking a data set up takes longer than reading a batch of rows.
        self._raw: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.header.n_rows

    def strings(self, name: str) -> Strings:
        """Return the column ``name`` of the rows as n strings."""
        return read_strings(self._file, name, self.path)

    def keys(self) -> dict[str, list[str]]:
        """Return further columns that identify the rows."""
        return read_keys(self._file, self.path)

    def column(self, name: str) -> Array:
        """Return the column ``name`` of the rows as numbers (n,)."""
        with damaged(self.path):
            values: Array = self._file["rows"][name][...]
            return values

    def raw(self, layer: int) -> Any:
        """Return the stored numbers: a read-only memory map if possible, else the HDF5 data set."""
        if layer not in self._raw:
            data, offset = self._file["layers"][str(layer)], self.header.layers[layer].offset
            if offset is not None and data.size:
                stored = self._mapped()[offset : offset + data.nbytes]
                data = stored.view(data.dtype).reshape(data.shape)
            self._raw[layer] = data
        return self._raw[layer]

    def _mapped(self) -> Array:
        """Return the bytes of the file, mapped at the first call."""
        if self._map is None:
            # Through the open file: its name may belong to another file by now.
            with open(self._stream.fileno(), "rb", closefd=False) as file, damaged(self.path):
                self._map = np.asarray(np.memmap(file, np.uint8, "r"))
        return self._map

    def slice(self, layer: int, start: int, stop: int) -> Array:
        """Return the stored numbers of the rows ``start`` to ``stop``."""
        with damaged(self.path):
            block: Array = self.raw(layer)[start:stop]
            return block

    def block_rows(self, layer: int) -> int:
        """Return a number of rows that take some megabytes; of a layer in chunks, whole chunks."""
        rows = max(1, BLOCK_BYTES // max(1, self.header.layers[layer].width * 4))
        chunks = getattr(self.raw(layer), "chunks", None)
        return rows if chunks is None else -(-rows // int(chunks[0])) * int(chunks[0])

    def prefetch(self, layer: int, rows: Array) -> None:
        """Ask the disk for ``rows``, all at once, unless they are in memory.

        Reading through the map alone waits for one page after the other (docs/format.md has times).
        """
        info, raw = self.header.layers[layer], self.raw(layer)
        if not (CAN_PREFETCH and len(rows) and isinstance(raw, np.ndarray)):
            return
        handle, stride = self._stream.fileno(), info.width * raw.itemsize
        starts = rows * stride + (info.offset or 0)
        probes = starts[:: -(-len(rows) // PROBES)]
        if all(_is_cached(handle, start) for start in probes.tolist()):
            return
        for start in starts.tolist():
            os.posix_fadvise(handle, start, stride, os.POSIX_FADV_WILLNEED)

    def gather(self, layer: int, rows: Array) -> Array:
        """Return states of ``rows`` in their order, float32."""
        raw, size = self.raw(layer), self.block_rows(layer)
        out = np.empty((len(rows), self.header.layers[layer].width), np.float32)
        if isinstance(raw, np.ndarray):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                self.prefetch(layer, part)
                if raw.dtype == np.float32:
                    # Row numbers are in range, and with "clip" NumPy needs no copy in between.
                    np.take(raw, part, axis=0, out=out[start : start + size], mode="clip")
                else:
                    widen(raw[part], out[start : start + size])
            return out
        # In the order of the file, so that each chunk is decompressed once.
        order = np.argsort(rows, kind="stable")
        block_of = rows[order] // size
        for block in np.unique(block_of).tolist():
            members = order[block_of == block]
            first, last = int(rows[members].min()), int(rows[members].max())
            out[members] = single(self.slice(layer, first, last + 1)[rows[members] - first])
        return out

    def close(self) -> None:
        """Close the file; arrays read before, memory maps too, stay usable."""
        self._raw.clear()
        self._file.close()
        self._stream.close()


def single(raw: Array) -> Array:
    """Return stored numbers as float32; float32 is not copied."""
    if raw.dtype == np.float32:
        return raw
    out = np.empty(raw.shape, np.float32)
    widen(raw, out)
    return out


def _is_cached(handle: int, offset: int) -> bool:
    try:
        os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not supported by this file system; the map reads by itself
    return True
