"""Writing small files: whole or not at all, and never over what is not asked for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, OutputExistsError
from probekit.locks import beside, note_made, try_lock
from probekit.safe import load_json
from probekit.sidecars import check_sidecar, drop_sidecar, sidecar, with_before
from probekit.trouble import told

__all__ = [
    "atomic_write",
    "check_output",
    "exchange",
    "json_line",
    "sync_folder",
    "write_table",
]

# Ending of a file that is being written; what a kill leaves is known by it.
TEMPORARY = ".probekit-part"


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return ``path`` ready to be written, or refuse before any work is done."""
    path = Path(path)
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder, not a file; name a file to write.")
    if path.exists() and not path.is_file():
        raise OutputExistsError(f"{path} is a pipe, socket or device; name a file to write.")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists already; pass --overwrite to replace it or name another file."
        )
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise DataError(
            f"The folder {path.parent} of the output {path.name} cannot be written to; change its "
            "rights, or name another output."
        )
    if path.suffix.lower() == ".jsonl":
        check_sidecar(path)
    return path


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "wb", *, needed: int | None = None
) -> Iterator[IO[Any]]:
    """Write a file beside ``path`` and move it there at the end, so that a reader never sees half.

    A failure (a full disk, Ctrl-C) leaves whatever stood at ``path`` as it was, and what a kill
    leaves beside it is cleared by the next write.

    Parameters
    ----------
    needed
        Bytes of the file, where that is known, for the sentence about a full disk.

    Raises
    ------
    WriteError
        Where the disk is full or may not be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one; what it leads to is replaced
    encoding = None if "b" in mode else "utf-8"
    with told(path, needed=needed):
        _clear_leftovers(path)
        handle, temporary = _part(path)
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)
                note_made(path, os.fstat(file.fileno()))
                os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _part(path: Path) -> tuple[int, str]:
    """Make the locked file that becomes ``path``; its lock says that its writer is alive."""
    while True:
        start = beside(path, ".").name
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=TEMPORARY)
        if try_lock(handle, path) and os.path.exists(name):
            return handle, name
        os.close(handle)  # another writer of this path took it for a leftover


def _clear_leftovers(path: Path) -> None:
    """Remove what a killed write of ``path`` has left beside it, and nothing else."""
    pattern = re.escape(beside(path, ".").name) + r"[a-z0-9_]{8}" + re.escape(TEMPORARY)
    try:
        names = [name for name in os.listdir(path.parent) if re.fullmatch(pattern, name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError), (path.parent / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (path.parent / name).unlink()


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where its file system can say so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def exchange(one: Path, other: Path) -> None:
    """Give two files or folders each other's name, at once (Linux).

    Raises
    ------
    OSError
        Where system or file system cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), both):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSONL; what is no JSON (a date) becomes its text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8, but JSON can escape it
        line = json.dumps(record, default=str)
    return line + "\n"


def write_table(columns: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write columns as Parquet (with ``metadata`` in its schema) or JSONL, by the path's ending.

    Of JSONL the metadata's text under ``probekit``, a JSON object, stands in ``<path>.meta.json``:
    both files are one commit, see :mod:`probekit.sidecars`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.table(dict(columns)).replace_schema_metadata(dict(metadata))
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot hold text that is no Unicode: {error.object!r}.") from None
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        with atomic_write(path, needed=table.nbytes) as file:
            pq.write_table(table, file)
    elif suffix == ".jsonl":
        _write_jsonl(table, Path(path), metadata.get("probekit"))
    else:
        raise DataError(f"{path} has the ending {suffix!r}; allowed are .parquet and .jsonl.")


def _write_jsonl(table: Any, path: Path, about: str | None) -> None:
    if about is not None:
        check_sidecar(path)
    digest = hashlib.sha256()
    with atomic_write(path, needed=table.nbytes) as file:
        for start in range(0, table.num_rows, 8192):
            for record in table.slice(start, 8192).to_pylist():
                line = json_line(record).encode("utf-8")
                digest.update(line)
                file.write(line)
        data = {"bytes": file.tell(), "sha256": digest.hexdigest()}
        # First the description of both, the old and the new; the data decide which holds.
        described = with_before(path, {**load_json(about or "{}", str(path)), "data": data})
        if about is not None or "before" in described:
            _write_sidecar(path, described)
    if about is None:
        drop_sidecar(path)
    elif described.pop("before", None) is not None:
        _write_sidecar(path, described)


def _write_sidecar(path: Path, about: Mapping[str, Any]) -> None:
    with atomic_write(sidecar(path), "w") as file:
        file.write(json.dumps(about, ensure_ascii=False) + "\n")
