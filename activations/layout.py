"""The activation store's layout on disk, version 1: names, dtypes, header (docs/format.md).

A store is self-contained. HDF5 lets a data set lie in other files (external storage), consist of
other data sets (virtual), be reached through links to other files, and be decompressed by code from
outside (plug-in filters). A store needs none of these, and a file from a stranger could read any
other file through them, so they are rejected before anything is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, BinaryIO, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from probekit.errors import DataError, NotAStoreError, StoreError
from probekit.safe import expand, load_json, one_line, regular_file
from probekit.strings import Strings

Array: TypeAlias = npt.NDArray[Any]

FORMAT = "probekit-activations"
VERSION = 1

# Strings take some hundred bytes each while they are encoded or decoded.
STRINGS_AT_ONCE = 1 << 14
# Name of a layer's dtype -> dtype on disk; HDF5 has no bfloat16, so its bits are stored.
STORE_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}

# What each row belongs to; only if groups were requested.
GROUP = "group"
# /rows/<name> -> dtype kind and item size; the size of an id is that of the longest one.
ROW_COLUMNS = {
    "done": ("u", 1),
    "id": ("S", None),
    "n_tokens": ("i", 4),
    "text_hash": ("S", 16),
    "truncated": ("u", 1),
}
# /rows/key0, …: further columns that identify the rows.
KEY = re.compile(r"key\d+")
# /layers/<number>.
LAYER = re.compile(r"0|[1-9][0-9]{0,8}")

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# The strings of attributes lie within the first bytes of the file.
HEAD_BYTES = 1 << 20
HEAP = b"GCOL\x01\0\0\0"

# Filters of HDF5 itself and of h5py: gzip, shuffle, checksum, lzf.
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000)
ATTRIBUTES = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.ENUM, h5py.h5t.FLOAT)
# gzip compresses at most 1,032 bytes into one, so a larger claim is false.
MAX_COMPRESSION = 1100


@dataclass(frozen=True)
class LayerInfo:
    """Dtype, width and offset in the file of one layer's states; None: they cannot be mapped."""

    dtype: str
    width: int
    offset: int | None


@dataclass(frozen=True)
class Header:
    """A store's header: all but the states and the row columns."""

    spec: dict[str, Any]
    rows_fingerprint: str
    source: str | None
    id_column: str | None
    """Column of the ids; "" if these are row numbers; None if the store does not record it."""
    text_column: str | None
    complete: bool
    n_rows: int
    layers: dict[int, LayerInfo]
    groups_fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over spec, rows, groups and completeness: equal for equal extractions."""
        parts = [spec_json(self.spec), self.rows_fingerprint, str(int(self.complete))]
        text = "\x1f".join([*parts, *filter(None, [self.groups_fingerprint])])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def spec_json(spec: Mapping[str, Any]) -> str:
    """Return a spec as JSON text, the same for equal specs."""
    return json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def widen(raw: Array, out: Array) -> None:
    """Copy stored numbers into ``out``, of a float dtype or their own.

    uint16 holds the bits of bfloat16, the upper half of a float32; ``out`` of uint16 takes them.
    """
    if raw.dtype != np.uint16 or out.dtype == np.uint16:
        with np.errstate(invalid="ignore"):  # NaN is reported where states are checked
            out[...] = raw
    elif out.dtype == np.float32:
        bits = out.view(np.uint32)
        bits[...] = raw
        bits <<= 16
    else:
        single = np.empty(raw.shape, np.float32)
        widen(raw, single)
        widen(single, out)


# h5py maps every failure of HDF5 to one of these; NumPy raises them on sizes that are not possible.
LIBRARY_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)


class UnsafeError(Exception):
    """What in the file is not allowed, as the middle of a sentence."""


class DamagedError(Exception):
    """What is wrong with the file, as the middle of a sentence."""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Raise NotAStoreError if a damaged file makes HDF5, h5py or NumPy fail.

    Any other exception, apart from the two above and the system's OSError, is a bug of ours: it
    keeps its type and gets a note that names the file.
    """
    try:
        yield
    except (StoreError, MemoryError):
        raise
    except UnsafeError as error:
        raise NotAStoreError(
            f"{path} is not a store that can be trusted: {error}; extract it again, or ask for a "
            "copy that holds its own numbers."
        ) from None
    except Exception as error:
        if not (isinstance(error, DamagedError | OSError) or _raised_by_library(error)):
            error.add_note(f"Raised while {path} was read.")
            raise
        # The first line of HDF5's text helps in a bug report.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotAStoreError(
            f"{path} is damaged or cut off and cannot be read ({reason.rstrip('.')}); "
            "restore it from a copy or extract it again with --overwrite."
        ) from error


def _raised_by_library(error: Exception) -> bool:
    """Whether h5py or NumPy raised the exception, of a type that a damaged file leads to."""
    if not isinstance(error, LIBRARY_ERRORS):
        return False
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("h5py", "numpy")


class StoreFile(io.RawIOBase):
    """A file that HDF5 reads through, without a lock and without a shared position.

    HDF5 itself cannot open a file that is being written, or that this process has opened in another
    way. A shared position would mix up the reads of forked workers.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        path = expand(path, error=NotAStoreError)
        if path.is_dir():
            raise NotAStoreError(f"{path} is a folder, not an activation store; name a file.")
        if path.exists():
            regular_file(path, error=NotAStoreError)  # opening a pipe would block
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotAStoreError(
                f"{path} does not exist; create it with `probekit extract`."
            ) from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
        self._at = 0

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._handle

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move this object's own position."""
        start = (0, self._at, os.fstat(self._handle).st_size)[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read at this object's own position."""
        count = os.preadv(self._handle, [buffer], self._at)
        self._at += count
        return count

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self.closed and hasattr(self, "_at"):
            os.close(self._handle)
        super().close()


def open_hdf5(path: Path, stream: BinaryIO | StoreFile) -> h5py.File:
    """Open the HDF5 file in ``stream`` for reading; ``path`` is for messages."""
    try:
        head = os.pread(stream.fileno(), HEAD_BYTES, 0)
    except OSError as error:
        raise NotAStoreError(f"{path} cannot be read: {error.strerror}.") from None
    if not head:
        raise NotAStoreError(f"{path} is empty; create it with `probekit extract`.")
    if not head.startswith(SIGNATURE):
        raise NotAStoreError(
            f"{path} is not an HDF5 file, so not an activation store; create one with `probekit "
            "extract`."
        )
    with damaged(path):
        _check_heaps(head)
        return h5py.File(stream, "r")


def _check_heaps(head: bytes) -> None:
    """Raise DamagedError if a heap of strings is broken: HDF5 would loop for ever in it.

    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, "Global Heap".
    """
    start = head.find(HEAP)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", head.ljust(start + 16, b"\0"), start + 8)
        position, end = start + 16, start + size
        while position + 16 <= min(end, len(head)):
            index, n_bytes = struct.unpack_from("<H6xQ", head, position)
            if index == 0 and n_bytes != end - position:
                raise DamagedError(f"the heap of strings is broken at byte {position}")
            position += n_bytes if index == 0 else 16 + -(-n_bytes // 8) * 8
        start = head.find(HEAP, start + 16)


def read_header(file: h5py.File, path: Path) -> Header:
    """Read and check everything but the states; ``path`` is for messages.

    Raises NotAStoreError if the file is another HDF5 file, a newer version, or damaged.
    """
    with damaged(path):
        _check_attributes(file["/"].id, "/")
        attrs = file.attrs
        kind = _plain(attrs.get("format"))
        if not isinstance(kind, str) or kind != FORMAT:
            raise NotAStoreError(
                f"{path} is an HDF5 file but not an activation store: its root attribute 'format' "
                f"is {one_line(repr(kind))}, not {FORMAT!r}; create one with `probekit extract`."
            )
        version = _plain(attrs["version"])
        if not isinstance(version, int):
            raise DamagedError("its version is not a whole number")
        if version != VERSION:
            raise NotAStoreError(
                f"{path} has version {version} of the store format and this probekit reads "
                f"version {VERSION}; install a newer probekit."
            )
        _check_inside(file)
        size = file.id.get_filesize()
        n_rows = _check_rows(file["rows"], size)
        complete = _plain(attrs["complete"])
        if not isinstance(complete, int):
            raise DamagedError("'complete' is not true or false")
        texts = {
            name: None if (value := attrs.get(name)) is None else str(value)
            for name in ("source", "id_column", "text_column", "groups_fingerprint")
        }
        if (texts["groups_fingerprint"] is None) == (GROUP in file["rows"]):
            raise DamagedError(
                "it has groups without a fingerprint, or a fingerprint without groups"
            )
        return Header(
            spec=_read_spec(attrs),
            rows_fingerprint=str(attrs["rows_fingerprint"]),
            **texts,
            complete=bool(complete),
            n_rows=n_rows,
            layers=_read_layers(file["layers"], n_rows, size),
        )


def _plain(value: Any) -> Any:
    """Return an attribute as a plain Python value; an array of one value as that value."""
    plain = isinstance(value, np.generic | np.ndarray) and value.size == 1
    return value.item() if plain else value


def _read_spec(attrs: h5py.AttributeManager) -> dict[str, Any]:
    text = _plain(attrs["spec"])
    if not isinstance(text, str | bytes):
        raise DamagedError("its spec is not text")
    try:
        spec = load_json(text, "its spec")
    except DataError as error:
        raise DamagedError(str(error)) from None
    if not isinstance(spec, dict):
        raise DamagedError("its spec is not a JSON object")
    return spec


def read_strings(file: h5py.File, name: str, path: Path) -> Strings:
    """Read ``/rows/<name>`` as n strings."""
    with damaged(path):
        encoded = file["rows"][name][:]
        try:
            for start in range(0, len(encoded), STRINGS_AT_ONCE):
                some = encoded[start : start + STRINGS_AT_ONCE].tolist()
                b"\n".join(some).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise DamagedError(f"/rows/{name} is not UTF-8: {error.reason}") from None
        return Strings(encoded)


def read_keys(file: h5py.File, path: Path) -> dict[str, list[str]]:
    """Read ``/rows/key0``, …: column to n strings."""
    with damaged(path):
        group = file["rows"]
        n_rows = len(group["id"])
        keys = {}
        for name in sorted(name for name in group if KEY.fullmatch(name)):
            data = group[name]
            if data.shape != (n_rows,) or data.dtype.kind != "S":
                raise DamagedError(f"/rows/{name} has the shape {data.shape}")
            keys[str(data.attrs["column"])] = list(read_strings(file, name, path))
        return keys


def _check_rows(group: h5py.Group, size: int) -> int:
    n_rows = len(group["id"])
    columns = {**ROW_COLUMNS, GROUP: ("S", None)} if GROUP in group else ROW_COLUMNS
    for name, (kind, itemsize) in columns.items():
        data = group[name]
        if data.shape != (n_rows,) or n_rows == 0:
            raise DamagedError(f"/rows/{name} has the shape {data.shape}, /rows/id ({n_rows},)")
        if data.dtype.kind != kind or (itemsize and data.dtype.itemsize != itemsize):
            raise DamagedError(f"/rows/{name} has the dtype {data.dtype}")
        _check_extent(data, size)
    return n_rows


def _read_layers(group: h5py.Group, n_rows: int, size: int) -> dict[int, LayerInfo]:
    layers = {}
    if wrong := [name for name in group if not LAYER.fullmatch(name)]:
        raise DamagedError(f"/layers/{wrong[0]} is not named by the number of a layer")
    for name in sorted(group, key=int):
        data = group[name]
        if data.ndim != 2 or data.shape[0] != n_rows or data.shape[1] == 0:
            raise DamagedError(f"/layers/{name} has the shape {data.shape} for {n_rows} rows")
        stored, width = data.dtype, data.shape[1]
        dtype = str(data.attrs.get("dtype") if stored == np.uint16 else stored)
        # NumPy reads None as float64, so a missing name must not be compared.
        if dtype not in STORE_DTYPES or STORE_DTYPES[dtype] != stored:
            raise DamagedError(f"/layers/{name} has the dtype {stored.str} and the mark {dtype}")
        offset = _check_extent(data, size)
        layers[int(name)] = LayerInfo(dtype=dtype, width=width, offset=offset)
    if not layers:
        raise DamagedError("it holds no layers")
    return layers


def _check_extent(data: h5py.Dataset, size: int) -> int | None:
    """Return the offset of a contiguous data set, checked against the file's size, else None."""
    offset = data.id.get_offset()  # None if stored in chunks
    if offset is None:
        return None
    itemsize = data.dtype.itemsize
    end = offset + math.prod(data.shape) * itemsize
    if end > size:
        raise DamagedError(f"{data.name} ends at byte {end}, the file at {size}")
    # In files of other programs data may start anywhere; unaligned data are read, not mapped.
    return int(offset) if offset % itemsize == 0 else None


def _check_inside(file: h5py.File) -> None:
    """Check the links of the root, /rows and /layers, and every data set in these.

    By h5py's low-level ids, which take half the time of its objects: every command opens a store.

    Raises UnsafeError if a link is not hard, a data set is external or virtual, has a plug-in
    filter or a named type, or an attribute is neither text nor number.
    """
    root = file["/"].id
    _check_links(root, "/")
    for place in ("/rows", "/layers"):
        group = h5py.h5o.open(root, place.encode())
        if not isinstance(group, h5py.h5g.GroupID):
            raise UnsafeError(f"{place} is not a group")
        for name in _check_links(group, f"{place}/"):
            inner, item = f"{place}/{os.fsdecode(name)}", h5py.h5o.open(group, name)
            if not isinstance(item, h5py.h5d.DatasetID):
                raise UnsafeError(f"{inner} is not a data set")
            _check_data(item, inner)
            _check_attributes(item, inner)


def _check_attributes(item: Any, place: str) -> None:
    """Raise UnsafeError if an attribute is a reference to an object, or of a named type."""
    for number in range(h5py.h5a.get_num_attrs(item)):
        attribute = h5py.h5a.open(item, index=number)
        kind = attribute.get_type()
        if kind.get_class() not in ATTRIBUTES or kind.committed():
            name = os.fsdecode(attribute.name)
            raise UnsafeError(f"the attribute {name!r} of {place} is neither text nor number")


def _check_links(group: Any, place: str) -> list[bytes]:
    """Return the names in a group; raise UnsafeError if one of them leads out of it."""
    names = list(group)
    for name in names:
        # Looking up a name in the group itself follows no link.
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise UnsafeError(f"{place}{os.fsdecode(name)} is a link to somewhere else")
    return names


def _check_data(data: Any, place: str) -> None:
    options = data.get_create_plist()
    layout = options.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        raise UnsafeError(f"{place} consists of other data sets (virtual)")
    if options.get_external_count():
        raise UnsafeError(f"the numbers of {place} lie in another file (external storage)")
    filters = [options.get_filter(i)[0] for i in range(options.get_nfilters())]
    if foreign := [number for number in filters if number not in FILTERS]:
        raise UnsafeError(f"{place} is compressed with the plug-in filter {foreign[0]}")
    if data.get_type().committed():
        raise UnsafeError(f"{place} has a named type")
    if layout == h5py.h5d.CHUNKED:
        claimed = max(math.prod(data.shape), math.prod(options.get_chunk())) * data.dtype.itemsize
        if claimed > MAX_COMPRESSION * data.get_storage_size() + (1 << 16):
            raise UnsafeError(f"{place} claims {claimed:,} bytes, more than the file can hold")
