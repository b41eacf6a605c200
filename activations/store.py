"""Read a store: one layer as an array, some rows of it, or batches larger than memory."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from probekit.activations.layout import (
    GROUP,
    Array,
    LayerInfo,
    StoreFile,
    damaged,
    open_hdf5,
    read_header,
    read_keys,
    read_strings,
    widen,
)
from probekit.activations.spec import DIFFERENCE
from probekit.data import rows_fingerprint
from probekit.errors import IncompleteStoreError, StoreError, UsageError
from probekit.groups import joined, row_digests, row_keys, shared
from probekit.joins import Keys

__all__ = ["ActivationStore", "LayerSummary", "summarize_layer"]

Selection: TypeAlias = "slice | Array | list[int]"

BLOCK_BYTES = 1 << 23
READ_DTYPES = ("float16", "float32", "float64")
# Whether the system can read ahead on request, and the number of rows probed before the request.
CAN_PREFETCH = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")
PROBES = 4


class ActivationStore:
    """A frozen model's hidden states of n rows, read layer by layer (docs/format.md).

    Opening reads only the header; a layer is read on demand, by memory map if possible.

    Parameters
    ----------
    path
        The file that ``probekit extract`` wrote.
    allow_incomplete
        Also open a store whose extraction has not finished; see ``done``.

    Attributes
    ----------
    layers
        Numbers of the stored layers, as in ``hidden_states``: 0 is the embeddings.
    spec
        How the states were computed: model, layers, pooling, …
    complete
        Whether every row is done.
    fingerprint
        16 hex digits that identify this extraction.
    rows_fingerprint
        16 hex digits over ids and text hashes.
    source
        Where the rows came from, if recorded.

    Raises
    ------
    NotAStoreError
        If the file is missing, damaged, of a newer version or of another kind.
    IncompleteStoreError
        If the extraction has not finished, unless ``allow_incomplete``.
    """

    def __init__(self, path: str | Path, *, allow_incomplete: bool = False) -> None:
        self.path = Path(path)
        self._stream = StoreFile(self.path)
        try:
            self._file = open_hdf5(self.path, self._stream)
            header = read_header(self._file, self.path)
            self.spec = header.spec
            self.complete = header.complete
            self.source = header.source
            self._named = header.id_column, header.text_column
            self.rows_fingerprint = header.rows_fingerprint
            self.fingerprint = header.fingerprint
            self._groups_fingerprint = header.groups_fingerprint
            self.layers = list(header.layers)
            self._n_rows = header.n_rows
            self._layers = header.layers
            self._maps: dict[int, Array] = {}
            if not (header.complete or allow_incomplete):
                raise IncompleteStoreError(
                    f"{self.path} is incomplete: {int(self.done.sum())} of {len(self)} rows are "
                    "done; run the same extract command again to finish it."
                )
        except BaseException:
            self._stream.close()
            raise

    def __len__(self) -> int:
        return self._n_rows

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, rows={len(self)}, layers={self.layers})"

    @cached_property
    def ids(self) -> list[str]:
        """N row ids."""
        return read_strings(self._open(), "id", self.path)

    @cached_property
    def keys(self) -> Keys:
        """What the rows can be joined by: ids, text hashes, further columns of their table."""
        id_column, text_column = self._named
        if id_column is None:  # a store of an older version: ids 0, 1, … are row numbers
            id_column = "" if self.ids == [str(i) for i in range(len(self))] else "id"
        return Keys(
            ids=self.ids,
            hashes=self.hashes,
            id_column=id_column or None,
            columns=read_keys(self._open(), self.path),
            text_column=text_column or None,
            name=str(self.path),
        )

    @cached_property
    def hashes(self) -> list[str]:
        """N text hashes, 16 hex digits each."""
        return read_strings(self._open(), "text_hash", self.path)

    @cached_property
    def groups(self) -> list[str] | None:
        """N names of what the rows belong to (question, user), "" for none; None: not stored."""
        if self._groups_fingerprint is None:
            return None
        return read_strings(self._open(), GROUP, self.path)

    @cached_property
    def n_tokens(self) -> Array:
        """(n,) int32, number of tokens that the model read of each row."""
        return self._column("n_tokens")

    @cached_property
    def truncated(self) -> Array:
        """(n,) bool, rows whose text was longer than the model read."""
        return self._column("truncated").astype(bool)

    @cached_property
    def done(self) -> Array:
        """(n,) bool, rows whose states are stored; the states of other rows are undefined."""
        return self._column("done").astype(bool)

    def copies(self, rows: Array | None = None) -> Array:
        """Return group numbers (n,) of all rows or ``rows``, equal for rows that belong together.

        Rows belong together if they have the same text, the same states in the deepest stored layer
        (a model may not see all of a text) or the same group, or share such a row. States that are
        the same in every row are ignored. In a store of differences, a pair and its reverse belong
        together.
        """
        numbers = np.arange(len(self)) if rows is None else self._numbers(rows)
        hashes = [self.hashes[i] for i in numbers]
        states = self._digests(numbers, all_rows=not all(hashes))
        keys: list[list[Any]] = [hashes]
        if self.groups is not None:
            keys.append([self.groups[i] for i in numbers])
        return joined(*keys, states) if len(set(states)) > 1 else joined(*keys)

    def _digests(self, numbers: Array, *, all_rows: bool) -> list[bytes | None]:
        """Return digests of states in the deepest layer; None if no other row can be equal."""
        deepest, size = max(self.layers), self._block_rows(max(self.layers))
        blocks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        chosen = np.ones(len(numbers), dtype=bool)
        if not all_rows and blocks:
            # A pair and its reverse have the same absolute values.
            states = (self._gather(deepest, rows) for rows in blocks)
            keys = [row_keys(np.abs(part) if self.differences else part) for part in states]
            chosen = shared(np.concatenate(keys))
        result: list[bytes | None] = [None] * len(numbers)
        candidates = np.flatnonzero(chosen)
        for start in range(0, len(candidates), size):
            part = candidates[start : start + size]
            block = self._gather(deepest, numbers[part])
            digests = row_digests(block)
            if self.differences:  # a pair and its reverse are the same
                reverse = zip(digests, row_digests(-block), strict=True)
                digests = [min(a, b) if a and b else None for a, b in reverse]
            for row, digest in zip(part.tolist(), digests, strict=True):
                result[row] = digest
        return result

    @property
    def differences(self) -> bool:
        """Whether the states are differences between the two texts of each row."""
        return DIFFERENCE.items() <= self.spec.items()

    def info(self, layer: int | None = None) -> LayerInfo:
        """Return dtype, width and offset of a layer.

        Raises
        ------
        UsageError
            If the layer is not stored, or not given although several are stored.
        """
        return self._layers[self._choose(layer)]

    def layer(self, layer: int | None = None, *, dtype: str | None = "float32") -> Array:
        """Return all states of one layer, (n, width).

        A layer stored in ``dtype`` comes as a read-only memory map; any other is converted block by
        block, so that memory holds no more than the result. ``dtype=None`` returns the stored
        numbers: for bfloat16 its bits, as uint16. ``layer`` is optional if only one is stored.
        """
        layer = self._choose(layer)
        raw = self._raw(layer)
        if dtype is None or dtype == self._layers[layer].dtype:
            return raw if isinstance(raw, np.ndarray) else self._slice(layer, 0, len(self))
        if dtype not in READ_DTYPES:
            raise UsageError(
                f"States can be read as {', '.join(READ_DTYPES)}, or as {self._layers[layer].dtype}"
                f" as they are stored, not as {dtype!r}."
            )
        out = np.empty((len(self), self._layers[layer].width), dtype)
        for start, block in self._blocks(layer):
            widen(block, out[start : start + len(block)])
        return out

    def read(self, layer: int | None, rows: Selection) -> Array:
        """Return states of some rows, float32; ``rows`` is a slice, row numbers or a (n,) mask.

        A slice of a float32 layer is a view of its memory map; anything else is a copy.
        """
        layer = self._choose(layer)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self._gather(layer, np.arange(start, stop, step))
            return _single(self._slice(layer, start, max(start, stop)))
        return self._gather(layer, self._numbers(rows))

    def batches(
        self,
        layer: int | None = None,
        batch_size: int = 1024,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Iterator[tuple[Array, Array]]:
        """Yield row numbers (b,) and their states (b, width) float32, every row that is done once.

        Memory holds one batch, however large the layer.
        """
        layer = self._choose(layer)
        if operator.index(batch_size) < 1:
            raise UsageError(f"A batch has at least one row, not {batch_size}.")
        order = np.flatnonzero(self.done) if not self.complete else np.arange(len(self))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        for rows, following in itertools.zip_longest(parts, parts[1:], fillvalue=order[:0]):
            states = self._gather(layer, rows)
            self._prefetch(layer, following)  # the disk reads while the caller works
            yield rows, states

    def rows_intact(self) -> bool:
        """Whether ids, text hashes and groups still have the fingerprints stored with them."""
        groups = None if self.groups is None else rows_fingerprint(self.ids, self.groups)
        intact = rows_fingerprint(self.ids, self.hashes) == self.rows_fingerprint
        return intact and groups == self._groups_fingerprint

    def close(self) -> None:
        """Close the file; arrays read before, memory maps too, stay usable."""
        self._file.close()
        self._stream.close()

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _choose(self, layer: int | None) -> int:
        stored = ", ".join(map(str, self.layers))
        if layer is None:
            if len(self.layers) > 1:
                raise UsageError(
                    f"{self.path} holds the layers {stored}; choose one with --layer (layer=)."
                )
            return self.layers[0]
        if layer not in self._layers:
            raise UsageError(f"{self.path} has no layer {layer}; it has {stored}.")
        return int(layer)

    def _open(self) -> Any:
        if not self._file:
            raise StoreError(f"{self.path} is closed; open it again to read more of it.")
        return self._file

    def _column(self, name: str) -> Array:
        file = self._open()
        with damaged(self.path):
            values: Array = file["rows"][name][...]
            return values

    def _raw(self, layer: int) -> Any:
        """Return the stored numbers: a read-only memory map if possible, else the HDF5 data set."""
        if layer in self._maps:
            return self._maps[layer]
        data = self._open()["layers"][str(layer)]
        offset = self._layers[layer].offset
        if offset is None or data.size == 0:
            return data
        # Through the open file: its name may belong to another file by now.
        with open(self._stream.fileno(), "rb", closefd=False) as file, damaged(self.path):
            mapped = np.memmap(file, data.dtype, "r", offset=offset, shape=data.shape)
        self._maps[layer] = np.asarray(mapped)
        return self._maps[layer]

    def _slice(self, layer: int, start: int, stop: int) -> Array:
        with damaged(self.path):
            block: Array = self._raw(layer)[start:stop]
            return block

    def _blocks(self, layer: int) -> Iterator[tuple[int, Array]]:
        """Yield the stored numbers with their first row, in blocks of some megabytes."""
        size = self._block_rows(layer)
        for start in range(0, len(self), size):
            yield start, self._slice(layer, start, min(start + size, len(self)))

    def _block_rows(self, layer: int) -> int:
        """Return a number of rows that take some megabytes; of a layer in chunks, whole chunks."""
        rows = max(1, BLOCK_BYTES // max(1, self._layers[layer].width * 4))
        chunks = getattr(self._raw(layer), "chunks", None)
        return rows if chunks is None else -(-rows // int(chunks[0])) * int(chunks[0])

    def _prefetch(self, layer: int, rows: Array) -> None:
        info, raw = self._layers[layer], self._raw(layer)
        if isinstance(raw, np.ndarray):
            stride = info.width * raw.itemsize
            _prefetch(self._stream.fileno(), rows, offset=info.offset or 0, stride=stride)

    def _gather(self, layer: int, rows: Array) -> Array:
        """Return states of ``rows`` in their order."""
        raw, size = self._raw(layer), self._block_rows(layer)
        out = np.empty((len(rows), self._layers[layer].width), np.float32)
        if isinstance(raw, np.ndarray):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                self._prefetch(layer, part)
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
            out[members] = _single(self._slice(layer, first, last + 1)[rows[members] - first])
        return out

    def _numbers(self, rows: Any) -> Array:
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (len(self),):
            return np.flatnonzero(rows)
        if rows.size == 0:
            return np.zeros(0, np.int64)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise UsageError(
                f"Rows are a slice, a list of numbers or a mask of {len(self)} booleans, not an "
                f"array of shape {rows.shape} and dtype {rows.dtype}."
            )
        rows = rows.astype(np.int64)
        outside = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(outside):
            raise UsageError(
                f"{self.path} has {len(self)} rows, numbered from 0, and no row {outside[0]}."
            )
        numbers: Array = np.where(rows < 0, rows + len(self), rows)
        return numbers


def _single(raw: Array) -> Array:
    """Return stored numbers as float32; float32 is not copied."""
    if raw.dtype == np.float32:
        return raw
    out = np.empty(raw.shape, np.float32)
    widen(raw, out)
    return out


def _prefetch(handle: int, rows: Array, *, offset: int, stride: int) -> None:
    """Start reading ``rows`` of ``stride`` bytes from ``offset`` on, unless they are in memory.

    Reading through the map alone waits for one page after the other (docs/format.md has times).
    """
    if not CAN_PREFETCH or not len(rows):
        return
    probes = rows[:: -(-len(rows) // PROBES)] * stride + offset
    if all(_is_cached(handle, start) for start in probes.tolist()):
        return
    for start in (rows * stride + offset).tolist():
        os.posix_fadvise(handle, start, stride, os.POSIX_FADV_WILLNEED)


def _is_cached(handle: int, offset: int) -> bool:
    try:
        os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not supported by this file system; the map reads by itself
    return True


@dataclass(frozen=True)
class LayerSummary:
    """What one layer's states look like, over the rows that are done."""

    layer: int
    shape: tuple[int, int]
    dtype: str
    mapped: bool
    """Whether it can be memory-mapped."""
    mean_norm: float | None
    """Mean L2 norm of the finite rows; None without any."""
    nonfinite_values: int
    nonfinite_rows: int


def summarize_layer(store: ActivationStore, layer: int) -> LayerSummary:
    """Summarize a layer, reading it once, block by block."""
    info = store.info(layer)
    total, finite_rows, rows_seen, values = 0.0, 0, 0, 0
    for _, states in store.batches(layer, max(1, (1 << 21) // max(1, info.width))):
        # In float64: the square of a large float32 may overflow float32.
        squares = np.einsum("ij,ij->i", states, states, dtype=np.float64)
        finite = np.isfinite(squares)
        rows_seen += len(states)
        finite_rows += int(finite.sum())
        total += float(np.sqrt(squares[finite]).sum())
        if not finite.all():
            values += int((~np.isfinite(states[~finite])).sum())
    return LayerSummary(
        layer=layer,
        shape=(len(store), info.width),
        dtype=info.dtype,
        mapped=info.offset is not None,
        mean_norm=total / finite_rows if finite_rows else None,
        nonfinite_values=values,
        nonfinite_rows=rows_seen - finite_rows,
    )
