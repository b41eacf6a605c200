"""Write a store row by row, in any order; a kill at any moment loses little and damages nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, cast

import h5py
import numpy as np

from probekit.activations.create import (
    Plan,
    compress_store,
    create_store,
    lock,
    open_to_write,
    reserve,
    store_disk_errors,
    sync,
    temporary_name,
    write_at,
)
from probekit.activations.layout import (
    HEAD_BYTES,
    Array,
    Header,
    damaged,
    open_hdf5,
    read_header,
    read_strings,
    spec_json,
)
from probekit.activations.spec import differences
from probekit.errors import (
    DataError,
    NotAStoreError,
    OutputExistsError,
    StaleStoreError,
    StoreError,
    UsageError,
    first_few,
)
from probekit.safe import load_json

# Row columns are written in pieces of this number of rows, and only the pieces that changed.
PIECE = 4096


class StoreWriter:
    """Writes one store; use :meth:`open`.

    Rows are written as they come. :meth:`flush` waits until they are on the disk and only then
    marks them done, so rows marked done are right even after ``kill -9`` or a power cut.

    ``complete``: whether the store is finished; ``changed``: number of rows not done whose text has
    changed since the store was created.
    """

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        plan: Plan,
        compression: str | None,
        changed: int = 0,
    ) -> None:
        self.path, self.changed = path, changed
        self._file = file
        self._plan = plan
        self._compression = compression
        self._pending: list[Array] = []
        with open_hdf5(path, file) as store:
            header = read_header(store, path)
            columns = {name: store["rows"][name] for name in ("n_tokens", "truncated", "done")}
            with damaged(path):
                self._columns: dict[str, Array] = {k: data[...] for k, data in columns.items()}
                self._places = {k: data.id.get_offset() for k, data in columns.items()}
        self.complete = header.complete
        self._layers = header.layers

    @classmethod
    def open(
        cls,
        path: str | Path,
        plan: Plan,
        *,
        overwrite: bool = False,
        compression: str | None = None,
    ) -> StoreWriter:
        """Create a store with room for all rows, or resume an incomplete one of the same plan.

        Parameters
        ----------
        overwrite
            Replace another store or file at ``path``. An incomplete store of the same spec and rows
            is resumed nevertheless: its rows would be the same.
        compression
            ``gzip`` or ``lzf``: :meth:`finish` compresses the file, which then cannot be mapped.

        Raises
        ------
        StoreError
            If the disk has no room, or another process writes this store.
        StaleStoreError
            If the file was created from other rows or another spec.
        OutputExistsError
            If ``path`` is a file of another kind.
        """
        # A link to a bigger disk stays a link: its target is written and replaced.
        path = Path(os.path.realpath(path))
        if not path.parent.is_dir():
            raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
        if path.exists() and not path.is_file():
            raise OutputExistsError(f"{path} is not a plain file; name a file to write.")
        old = open_to_write(path) if path.exists() else None
        try:
            if old is not None:
                lock(old, path, shown=path)
                if _is_resumed(old, path, plan, overwrite=overwrite):
                    changed = _update_texts(old, path, plan)
                    # Nobody else writes this store: a killed run left this file unfinished.
                    temporary_name(path).unlink(missing_ok=True)
                    writer = cls(old, path, plan, compression, changed)
                    old = None
                    return writer
            return cls(create_store(path, plan), path, plan, compression)
        finally:
            if old is not None:
                old.close()

    @property
    def done(self) -> Array:
        """(n,) bool: rows that are stored safely."""
        return self._columns["done"].astype(bool)

    def write(
        self, rows: Array, states: Mapping[int, Array], n_tokens: Array, truncated: Array
    ) -> None:
        """Store the states of ``rows``; they count as done after the next :meth:`flush`.

        Parameters
        ----------
        rows
            (b,) row numbers; rows that are done are not written again.
        states
            Layer number to (b, width) states of the store's dtype; uint16 bits for bfloat16.
        n_tokens, truncated
            (b,) number of tokens read, and whether the text had more.

        Raises
        ------
        StoreError
            If the disk is full; rows marked done stay right.
        """
        rows = np.asarray(rows, np.int64)
        self._check(rows, states)
        # A row marked done is never written again: a kill halfway would leave it wrong.
        chosen = np.flatnonzero(self._columns["done"][rows] == 0)
        if not len(chosen):
            return
        chosen = chosen[np.argsort(rows[chosen], kind="stable")]
        rows = rows[chosen]
        runs = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        with store_disk_errors(self.path, needed=self._plan.nbytes):
            for layer, info in self._layers.items():
                block = np.ascontiguousarray(states[layer][chosen])
                stride = info.width * block.itemsize
                view = block.view(np.uint8).reshape(-1).data
                for start, stop in zip(runs, [*runs[1:], len(rows)], strict=True):
                    offset = cast(int, info.offset) + int(rows[start]) * stride
                    write_at(self._file, view[start * stride : stop * stride], offset)
        self._columns["n_tokens"][rows] = np.asarray(n_tokens)[chosen]
        self._columns["truncated"][rows] = np.asarray(truncated)[chosen]
        self._pending.append(rows)

    def flush(self) -> None:
        """Wait until all rows written so far are on the disk, then mark them done."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        with store_disk_errors(self.path, needed=self._plan.nbytes):
            self._write_column("n_tokens", rows)
            self._write_column("truncated", rows)
            sync(self._file)
            self._columns["done"][rows] = 1
            self._write_column("done", rows)
        self._pending.clear()

    def finish(self) -> None:
        """Flush, compress if requested, and mark the store complete.

        Raises
        ------
        StoreError
            If rows are missing.
        """
        self.flush()
        if self.complete:
            return
        missing = int((self._columns["done"] == 0).sum())
        if missing:
            raise StoreError(
                f"{self.path} lacks {missing} of {len(self._plan.ids)} rows; extract them first."
            )
        sync(self._file)
        if self._compression is not None:
            self._file = compress_store(self.path, self._file, self._compression)
        else:
            with damaged(self.path), h5py.File(self._file, "r+") as store:
                store.attrs.modify("complete", np.bool_(True))
            sync(self._file)
        self.complete = True

    def close(self) -> None:
        """Flush and close the store."""
        try:
            if not self._file.closed:
                self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The first error is the one to report; on a full disk closing fails again.
        with nullcontext() if kind is None else suppress(StoreError, OSError):
            self.close()

    def _write_column(self, name: str, rows: Array) -> None:
        values = self._columns[name]
        for piece in np.unique(rows // PIECE).tolist():
            part = np.ascontiguousarray(values[piece * PIECE : (piece + 1) * PIECE])
            offset = self._places[name] + piece * PIECE * values.itemsize
            write_at(self._file, part.view(np.uint8).data, offset)

    def _check(self, rows: Array, states: Mapping[int, Array]) -> None:
        n = len(self._plan.ids)
        if len(rows) and not (rows.min() >= 0 and rows.max() < n):
            raise UsageError(f"Row numbers are 0 to {n - 1}, not {rows.min()} to {rows.max()}.")
        if sorted(states) != list(self._layers):
            raise UsageError(
                f"States of the layers {sorted(states)} were given for {list(self._layers)}."
            )
        for layer, info in self._layers.items():
            shape, got = (len(rows), info.width), states[layer]
            if got.shape != shape or got.dtype != self._plan.dtype:
                raise UsageError(
                    f"Layer {layer} takes states of shape {shape} and dtype {self._plan.dtype}, "
                    f"not {got.shape} and {got.dtype}."
                )


def _is_resumed(file: BinaryIO, path: Path, plan: Plan, *, overwrite: bool) -> bool:
    """Whether to resume the file at ``path``; False: replace it."""
    try:
        with open_hdf5(path, file) as store:
            header = read_header(store, path)
            different = _difference(store, file, path, header, plan)
    except NotAStoreError as error:
        if overwrite:
            return False
        # It may be somebody's own file, so it is not replaced without being asked.
        raise OutputExistsError(
            f"{path} exists and cannot be resumed: {str(error).rstrip('.')} "
            "(or name another output, or pass --overwrite to replace it)."
        ) from None
    if different:
        if overwrite:
            return False
        raise StaleStoreError(
            f"{path} {different}; name another output, or pass --overwrite to replace it."
        )
    if not header.complete:
        with store_disk_errors(path, needed=plan.nbytes):
            reserve(file, path.stat().st_size)  # a copy of a store may have holes
    return not (overwrite and header.complete)


def _update_texts(file: BinaryIO, path: Path, plan: Plan) -> int:
    """Store the present text hashes of rows not done; return the number that changed.

    Hashes and fingerprint are overwritten in place, without a checksum to keep in step: after a
    kill between the two, the next run does both again.
    """
    with open_hdf5(path, file) as store:
        header = read_header(store, path)
        if header.rows_fingerprint == plan.rows_fingerprint:
            return 0
        hashes = read_strings(store, "text_hash", path)
        hash_offset = store["rows/text_hash"].id.get_offset()
    fingerprint_offset = _fingerprint_place(file, header.rows_fingerprint)
    assert hash_offset is not None, "_difference has checked it"
    assert fingerprint_offset is not None, "_difference has checked it"
    new_hashes = np.array([h.encode() for h in plan.hashes], "S16")
    write_at(file, new_hashes.view(np.uint8).data, hash_offset)
    sync(file)
    write_at(file, np.frombuffer(plan.rows_fingerprint.encode(), np.uint8).data, fingerprint_offset)
    sync(file)
    return sum(old != new for old, new in zip(hashes, plan.hashes, strict=True))


def _fingerprint_place(file: BinaryIO, fingerprint: str) -> int | None:
    """Return the offset of the rows' fingerprint in the file; None if it is not certain."""
    head, text = os.pread(file.fileno(), HEAD_BYTES, 0), fingerprint.encode()
    return head.index(text) if head.count(text) == 1 else None


def _difference(store: h5py.File, file: BinaryIO, path: Path, header: Header, plan: Plan) -> str:
    """Return why a store does not fit ``plan``; empty if it does."""
    if different := _spec_difference(header, plan):
        return f"was made with another spec: {different}"
    if different := _groups_difference(header, plan):
        return f"was made from {different}"
    if header.rows_fingerprint != plan.rows_fingerprint:
        ids, hashes = (read_strings(store, name, path) for name in ("id", "text_hash"))
        certain = (
            not header.complete
            and store["rows/text_hash"].id.get_offset() is not None
            and _fingerprint_place(file, header.rows_fingerprint) is not None
        )
        # Rows not done may have changed (one stopped the run and was repaired); done rows may not.
        done = compress(zip(hashes, plan.hashes, strict=True), store["rows/done"][...].tolist())
        if not certain or ids != list(plan.ids) or any(old != new for old, new in done):
            return f"was made from other rows: {_rows_difference(ids, hashes, plan)}"
    if not header.complete and any(layer.offset is None for layer in header.layers.values()):
        return "is incomplete and its layers are stored in chunks, so that no row can be added"
    return ""


def _spec_difference(header: Header, plan: Plan) -> str:
    """Return every key of the spec that differs, with both values; empty if none does."""
    old: dict[str, Any] = dict(header.spec)
    new: dict[str, Any] = load_json(spec_json(plan.spec), "The spec")
    if not (different := differences(old, new, "in the file")):
        # The spec should have these; in any case they decide what fits into the file.
        old = {"layers": {i: layer.width for i, layer in header.layers.items()}}
        old["store_dtype"] = sorted({layer.dtype for layer in header.layers.values()})
        new = {"layers": plan.widths, "store_dtype": [plan.store_dtype]}
        different = differences(old, new, "in the file")
    return different


def _groups_difference(header: Header, plan: Plan) -> str:
    """Return how the groups of rows differ; empty if they do not."""
    old, new = header.groups_fingerprint, plan.groups_fingerprint
    if old == new:
        return ""
    if old is None:
        return "rows without groups, and now they have some"
    return "rows in groups, and now they have none" if new is None else "rows in other groups"


def _rows_difference(ids: Sequence[str], hashes: Sequence[str], plan: Plan) -> str:
    """Return which rows of a store (``ids``, ``hashes``) are not those of ``plan``."""
    if len(ids) != len(plan.ids):
        return f"it has {len(ids)} rows and there are {len(plan.ids)} now"
    if other := [new for old, new in zip(ids, plan.ids, strict=True) if old != new]:
        if sorted(ids) == sorted(plan.ids):
            return f"{len(other)} of {len(ids)} rows are in another order (ids {first_few(other)})"
        return f"{len(other)} of {len(ids)} rows have another id (now {first_few(other)})"
    changed = [i for i, old, new in zip(ids, hashes, plan.hashes, strict=True) if old != new]
    return f"{len(changed)} of {len(ids)} rows have another text (ids {first_few(changed)})"
