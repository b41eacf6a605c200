"""Writing small files: whole or not at all, and never over what is not asked for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, OutputExistsError
from probekit.tables import suffix_of

__all__ = [
    "atomic_write",
    "check_output",
    "json_line",
    "write_table",
]


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return ``path`` ready to be written, or refuse before any work is done."""
    path = Path(path)
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder, not a file; name a file to write.")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists already; pass --overwrite to replace it or name another file."
        )
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"The folder {path.parent} of the output {path.name} cannot be written to.")
    return path


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a file beside ``path`` and move it there at the end, so that a reader never sees half.

    A failure (a full disk, Ctrl-C) leaves whatever stood at ``path`` as it was.
    """
    path = Path(os.path.realpath(path))  # a link stays one; what it leads to is replaced
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSONL; what is no JSON (a date) becomes its text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8, but JSON can escape it
        line = json.dumps(record, default=str)
    return line + "\n"


def write_table(columns: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write columns as Parquet (with ``metadata`` in its schema) or JSONL, by the path's ending."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.table(dict(columns)).replace_schema_metadata(dict(metadata))
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot hold text that is no Unicode: {error.object!r}.") from None
    suffix = suffix_of(path)
    if suffix == ".parquet":
        with atomic_write(path) as file:
            pq.write_table(table, file)
    elif suffix == ".jsonl":
        with atomic_write(path, "w") as file:
            for start in range(0, table.num_rows, 8192):
                file.writelines(map(json_line, table.slice(start, 8192).to_pylist()))
    else:
        raise DataError(f"{path} has the ending {suffix!r}; allowed are .parquet and .jsonl.")
