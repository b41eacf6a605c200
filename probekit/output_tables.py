"""Tables that are written: Parquet, JSONL, or a folder of Parquet files for many rows.

The files of a folder are one table in the order of their names; each has the metadata. A folder is
made beside its place and moved there whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.errors import DataError, OutputExistsError, disk_errors
from probekit.files import (
    atomic_write,
    clear_leftovers,
    is_table_folder,
    json_line,
    locked_part,
    record_written,
    sync_folder,
    user_mask,
)
from probekit.sidecars import check_sidecar, drop_sidecar, sidecar, with_before

__all__ = ["check_format", "save_table", "write_table"]

ROWS_OF_A_FILE = 1 << 20


def write_table(
    columns: Mapping[str, Any], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write columns and their metadata as Parquet or JSONL, by the path's ending.

    Without an ending it is a folder of Parquet files. ``about`` (JSON types) is stored in Parquet's
    schema under ``probekit``, and beside JSONL in ``<path>.meta.json``: both files are one commit.

    Raises
    ------
    DataError
        If the path has another ending, or a text is not Unicode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    described = {"probekit": json.dumps(about, ensure_ascii=False)} if about is not None else {}
    try:
        table = pa.table(dict(columns)).replace_schema_metadata(described)
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot hold text that is not Unicode: {error.object!r}.") from None
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        with atomic_write(path, needed=table.nbytes) as file:
            pq.write_table(table, file)
    elif suffix == ".jsonl":
        _write_jsonl(table, Path(path), about)
    elif not suffix:
        _write_folder(table, Path(path))
    else:
        raise DataError(
            f"{path} has the ending {suffix!r}; allowed are .parquet, .jsonl, and none for a "
            "folder of Parquet files."
        )


def save_table(
    columns: Mapping[str, Any], path: str | Path, format_name: str, version: int, **metadata: Any
) -> None:
    """Write columns as :func:`write_table` does, described by format name, version and metadata."""
    write_table(columns, path, {"format": format_name, "version": version, **metadata})


def check_format(
    metadata: Mapping[str, Any], path: str | Path, format_name: str, version: int, *, repair: str
) -> None:
    """Check format name and version of metadata that :func:`save_table` wrote.

    Parameters
    ----------
    path
        Their file, for the message.
    format_name, version
        Such as ``probekit-verdicts`` and 1.
    repair
        Command that makes such a file.

    Raises
    ------
    DataError
        If format or version is another one.
    """
    kind = format_name.removeprefix("probekit-")
    if metadata.get("format") != format_name:
        raise DataError(f"{path} has no {kind} metadata; make it with {repair}.")
    if metadata.get("version") != version:
        raise DataError(
            f"{path} has version {metadata.get('version')!r} of the {kind} format and this "
            f"probekit reads version {version}; install a newer probekit."
        )


def _write_jsonl(table: Any, path: Path, about: Mapping[str, Any] | None) -> None:
    """Write an Arrow table as JSONL, and its metadata beside it."""
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
        # First the metadata of both, the old and the new; the data decide which apply.
        described = with_before(path, {**(about or {}), "data": data})
        if about is not None or "before" in described:
            _write_sidecar(path, described)
    if about is None:
        drop_sidecar(path)
    elif described.pop("before", None) is not None:
        _write_sidecar(path, described)


def _write_sidecar(path: Path, about: Mapping[str, Any]) -> None:
    with atomic_write(sidecar(path), "w") as file:
        file.write(json.dumps(about, ensure_ascii=False) + "\n")


def _write_folder(table: Any, folder: Path) -> None:
    """Write a table as part-00000.parquet, … in a folder, in place of an older table's."""
    import pyarrow.parquet as pq

    folder = Path(os.path.realpath(folder))
    if folder.is_dir() and not is_table_folder(folder):
        raise OutputExistsError(
            f"{folder} holds other files than those of a table; name another folder."
        )
    with disk_errors(folder, needed=table.nbytes):
        clear_leftovers(folder)
        handle, name = locked_part(folder, folder=True)
        fresh = Path(name)
        try:
            for number, start in enumerate(range(0, max(1, len(table)), ROWS_OF_A_FILE)):
                part = table.slice(start, ROWS_OF_A_FILE)
                with (fresh / f"part-{number:05d}.parquet").open("wb") as file:
                    pq.write_table(part, file)
                    os.fsync(file.fileno())
            fresh.chmod(0o777 & ~user_mask())
            sync_folder(fresh)
            record_written(folder, fresh.stat())
            if folder.is_dir():  # no folder can be renamed onto one that holds files
                place, old = locked_part(folder, folder=True)
                os.replace(folder, old)
                os.close(place)
                os.replace(fresh, folder)
                shutil.rmtree(old, ignore_errors=True)  # the next writer may remove it, too
            else:
                os.replace(fresh, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        finally:
            os.close(handle)
