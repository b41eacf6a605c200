"""Create a store: every name and attribute, and room for every row, before the first is known.

Also the compressed copy of a complete store, and what both ask of the file system: one writer,
space set aside, whole files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import h5py
import numpy as np

from probekit.activations.layout import (
    FORMAT,
    STORE_DTYPES,
    STRINGS_AT_ONCE,
    VERSION,
    spec_json,
)
from probekit.data import rows_fingerprint
from probekit.errors import DataError, StoreError, UsageError, disk_errors, first_few
from probekit.files import UNSUPPORTED, sync_folder, try_lock
from probekit.joins import Keys

# Version 1.8 of the file format has checksums over all metadata, which 1.6 has not, and no mark
# "open for writing", which 1.10 has: damage is detected and a killed writer's file opens again.
# Data sets begin at multiples of 64 bytes (a cache line), so that a map is aligned for any reader.
HDF5_OPTIONS = {
    "libver": ("v108", "v108"),
    "alignment_threshold": 1,
    "alignment_interval": 64,
}
CHUNK_BYTES = 1 << 20
# What helps on a full disk.
LESS = "or store fewer layers or a smaller dtype"
# StoreError, with bytes needed and free, if disk, quota or size limit are full.
store_disk_errors = partial(disk_errors, error=StoreError, advice=LESS)


@dataclass(frozen=True)
class Plan:
    """What a store will hold."""

    spec: dict[str, Any]
    """How the states were computed, as JSON types; a store with another spec is stale."""
    ids: Sequence[str]
    """n ids, unique."""
    hashes: Sequence[str]
    """n text hashes."""
    widths: dict[int, int]
    """Layer number to width of its states."""
    store_dtype: str
    """One of ``STORE_DTYPES``."""
    source: str | None = None
    """Where the rows came from; paths are made relative to the store or cut to the name."""
    keys: Keys | None = None
    """What else the rows can be joined by (:attr:`probekit.data.Rows.keys`); None: only the ids."""
    groups: Sequence[str] | None = None
    """n names of what the rows belong to, "" for none; None if not requested."""

    def __post_init__(self) -> None:
        """Raise UsageError or DataError if the plan cannot be stored."""
        if not len(self.ids):
            raise DataError("There are no rows to store.")
        if len(self.ids) != len(self.hashes):
            raise UsageError(f"{len(self.ids)} ids and {len(self.hashes)} text hashes were given.")
        if self.groups is not None and len(self.groups) != len(self.ids):
            raise UsageError(f"{len(self.ids)} ids and {len(self.groups)} groups were given.")
        if not self.widths:
            raise UsageError("No layer was given; name at least one.")
        nul_ids = [i for i in self.ids if i.endswith("\0")]
        if nul_ids:
            raise DataError(
                f"{len(nul_ids)} ids end with a NUL character (ids {first_few(nul_ids)}), which "
                "HDF5 cannot store; rename them."
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the states on disk."""
        return STORE_DTYPES[self.store_dtype]

    @cached_property
    def further_keys(self) -> dict[str, list[str]]:
        """Further columns that identify the rows, for labels without ids of these rows."""
        candidates = {} if self.keys is None else self.keys.candidates()
        return {
            name: values
            for name, values in candidates.items()
            if not any(value.endswith("\0") for value in values)
        }

    @cached_property
    def rows_fingerprint(self) -> str:
        """Fingerprint of ids and text hashes."""
        return rows_fingerprint(self.ids, self.hashes)

    @cached_property
    def groups_fingerprint(self) -> str | None:
        """Fingerprint of ids and groups."""
        return None if self.groups is None else rows_fingerprint(self.ids, self.groups)

    @cached_property
    def nbytes(self) -> int:
        """Bytes on disk, a few kB too many."""
        texts = (self.ids, *self.further_keys.values(), *filter(None, [self.groups]))
        per_row = sum(map(_longest, texts)) + sum(self.widths.values()) * self.dtype.itemsize
        names = 4 * len(spec_json(self.spec)) + 4096 * (
            len(self.widths) + 8 + len(self.further_keys)
        )
        return len(self.ids) * (per_row + 16 + 4 + 1 + 1) + names


def create_store(path: Path, plan: Plan) -> BinaryIO:
    """Create the whole file beside ``path``, move it there and return it open and locked.

    Raises StoreError if the disk has no room or another process writes the store; nothing is left
    behind.
    """
    with _new_file(path, plan.nbytes) as file:
        _write_contents(file, plan, path.parent)
        reserve(file, os.fstat(file.fileno()).st_size)
    return file


def _write_contents(file: BinaryIO, plan: Plan, folder: Path) -> None:
    n = len(plan.ids)
    with h5py.File(file, "w", **HDF5_OPTIONS) as store:
        _write_attributes(store, plan, folder)
        _write_strings(store, "rows/id", plan.ids)
        _write_strings(store, "rows/text_hash", plan.hashes, np.dtype("S16"))
        if plan.groups is not None:
            _write_strings(store, "rows/group", plan.groups)
        # A column's name may contain a slash; names in HDF5 may not.
        for i, (column, values) in enumerate(plan.further_keys.items()):
            data = _write_strings(store, f"rows/key{i}", values)
            data.attrs["column"] = _printable(column)
        for name, number in (("n_tokens", "<i4"), ("truncated", "u1"), ("done", "u1")):
            _in_one_piece(store, f"rows/{name}", (n,), np.dtype(number))[...] = 0
        for layer, width in sorted(plan.widths.items()):
            data = _in_one_piece(store, f"layers/{layer}", (n, width), plan.dtype)
            if plan.store_dtype == "bfloat16":
                data.attrs["dtype"] = "bfloat16"


def _write_strings(
    store: h5py.File, name: str, texts: Sequence[str], kind: np.dtype[Any] | None = None
) -> h5py.Dataset:
    kind = kind or h5py.string_dtype("utf-8", max(1, _longest(texts)))
    data = _in_one_piece(store, name, (len(texts),), kind)
    for start in range(0, len(texts), STRINGS_AT_ONCE):
        part = texts[start : start + STRINGS_AT_ONCE]
        data[start : start + len(part)] = np.array([_encode(text) for text in part], kind)
    return data


def _write_attributes(store: h5py.File, plan: Plan, folder: Path) -> None:
    """Write the root attributes of an incomplete store."""
    # First, so that it lies in the file's first page: setting it is one atomic write.
    store.attrs["complete"] = np.bool_(False)
    store.attrs["format"] = FORMAT
    store.attrs["version"] = np.int32(VERSION)
    # Variable-length strings lie outside the header, which holds 64 kB; templates may be long.
    store.attrs["spec"] = spec_json(plan.spec)
    store.attrs["rows_fingerprint"] = plan.rows_fingerprint
    if plan.groups_fingerprint is not None:
        store.attrs["groups_fingerprint"] = plan.groups_fingerprint
    if plan.keys is not None:
        store.attrs["id_column"] = _printable(plan.keys.id_column or "")
        store.attrs["text_column"] = _printable(plan.keys.text_column or "")
    if plan.source is not None:
        store.attrs["source"] = portable_source(plan.source, folder)


def _in_one_piece(
    store: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> h5py.Dataset:
    """Create a contiguous data set at a fixed place; not filled: zeros would cost a second pass."""
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_layout(h5py.h5d.CONTIGUOUS)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return store.create_dataset(name, shape, dtype, dcpl=options)


def portable_source(source: str, folder: Path) -> str:
    """Return the source without this machine's paths: relative to ``folder``, else the file's name.

    A source that is not a path here (a task, ``hf:…``) stays as it is.
    """
    path = Path(source)
    if path.exists():
        real, home = path.resolve(), folder.resolve()
        source = real.relative_to(home).as_posix() if real.is_relative_to(home) else real.name
    return _printable(source)


def _printable(name: str) -> str:
    """Return a name as an attribute, which must be UTF-8; that of a file need not be."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _longest(texts: Sequence[str]) -> int:
    return max(len(_encode(text)) for text in texts)


def compress_store(path: Path, file: BinaryIO, compression: str) -> BinaryIO:
    """Copy a store whose rows are all done into compressed chunks and move the copy to ``path``.

    Rows come sorted by length: compressing as they come would decompress and compress a chunk for
    each of its rows, and a kill would leave chunks that are marked done but not written.
    """
    advice = "or finish it as it is, without compression"
    # Random numbers do not compress.
    with (
        _new_file(path, path.stat().st_size, advice=advice) as packed,
        h5py.File(file, "r") as old,
        h5py.File(packed, "w", **HDF5_OPTIONS) as new,
    ):
        _copy_compressed(old, new, compression)
    file.close()
    return packed


def _copy_compressed(old: h5py.File, new: h5py.File, compression: str) -> None:
    for name, value in old.attrs.items():
        new.attrs[name] = np.bool_(True) if name == "complete" else value
    old.copy(old["rows"], new, "rows")
    for name, data in old["layers"].items():
        n, width = data.shape
        rows = max(1, min(n, CHUNK_BYTES // (width * data.dtype.itemsize)))
        # Shuffled bytes compress better: the exponents of a row's numbers are alike.
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


def open_to_write(path: Path, *, create: bool = False) -> BinaryIO:
    """Open a file for reading and writing, unbuffered."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened for writing: {error.strerror}.") from None
    return cast(BinaryIO, os.fdopen(handle, "r+b", buffering=0))


def lock(file: BinaryIO, path: Path, *, shown: Path) -> None:
    """Lock the file for its one writer; the system releases the lock when the process ends."""
    if not try_lock(file, shown):
        raise StoreError(
            f"{shown} is being written by another process (or held open by a program that locks "
            "it); wait until it has ended, or name another output."
        )
    # Between opening and locking, the process that held the lock may have moved the file away.
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        raise StoreError(f"{shown} was replaced by another process just now; run this again.")


def temporary_name(path: Path) -> Path:
    """Name the unfinished file; always the same name, so that the next run removes it."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def _new_file(path: Path, size: int, *, advice: str = LESS) -> Iterator[BinaryIO]:
    """Yield an empty, locked file, when the disk has room for ``size`` bytes; then move it there.

    It stays open and locked after the block, and is removed if the block fails. A power cut leaves
    the old file or the new one.
    """
    temporary = temporary_name(path)
    with ExitStack() as undone:
        file = undone.enter_context(open_to_write(temporary, create=True))
        lock(file, temporary, shown=path)
        undone.callback(temporary.unlink, missing_ok=True)
        with store_disk_errors(path, needed=size, advice=advice):
            try:
                file.truncate(0)  # a killed run may have left a large file
                reserve(file, size)  # if HDF5 itself meets a full disk, it stays half open
                file.truncate(0)
                yield file
            except BaseException:
                file.truncate(0)  # give the room back: the message reports what is free
                raise
        os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        undone.pop_all()


def reserve(file: BinaryIO, size: int) -> None:
    """Reserve ``size`` bytes on disk; raises OSError if it is full or a limit is reached."""
    # Checked first: a file system may fill up to the last block before it fails.
    status, disk = os.fstat(file.fileno()), os.fstatvfs(file.fileno())
    missing = size - status.st_blocks * 512
    if disk.f_blocks and missing > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    # Not supported (macOS, some network file systems): set the size; room is only likely.
    if size > status.st_size:
        file.truncate(size)


def write_at(file: BinaryIO, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; unlike a memory map, a write can fail on a full disk."""
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def sync(file: BinaryIO) -> None:
    """Wait until the written data are on the disk."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())
