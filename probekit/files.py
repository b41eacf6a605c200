"""Reading and writing small files: rows of a table in any common format, whole or not at all."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, OutputExistsError

__all__ = [
    "ArrowColumn",
    "atomic_write",
    "check_output",
    "dataset_columns",
    "frame_columns",
    "json_line",
    "no_progress_bars",
    "read_columns",
    "suffix_of",
    "write_table",
]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def suffix_of(path: str | Path) -> str:
    """Return the suffix that names the format: ``x.csv.gz`` gives ``.csv``."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    while suffixes and suffixes[-1] in (".gz", ".bz2"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


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


def read_columns(path: str | Path) -> dict[str, Sequence[Any]]:
    """Read a JSONL, JSON, CSV, TSV, Parquet or Arrow file, or a saved data set, as named columns.

    CSV follows RFC 4180, TSV has no quoting (as GLUE's files); both give strings. Parquet and Arrow
    columns stay in Arrow and are turned into Python values slice by slice.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    try:
        if path.is_dir():
            return _read_saved_dataset(path)
        suffix = suffix_of(path)
        if suffix not in SUFFIXES:
            raise DataError(
                f"{path} has the ending {suffix or 'none'!r}; allowed are {', '.join(SUFFIXES)} "
                "(also .gz or .bz2 behind the text formats)."
            )
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty.")
        if suffix in (".parquet", ".arrow"):
            return _read_arrow(path, suffix)
        with _open_text(path) as file:
            if suffix in (".csv", ".tsv"):
                return _read_delimited(path, file, suffix)
            return _read_json(path, file, suffix)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it first."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is cut off or damaged: {error}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _open_text(path: Path) -> IO[str]:
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    # utf-8-sig: spreadsheets write a byte order mark, which must not become part of a column name.
    file: IO[str] = opener(path, "rt", encoding="utf-8-sig", newline="")
    return file


def _read_delimited(path: Path, file: IO[str], suffix: str) -> dict[str, Sequence[Any]]:
    csv.field_size_limit(1 << 30)
    reader = (
        csv.reader(file, strict=True)
        if suffix == ".csv"
        else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise DataError(f"{path} names a column twice in its header: {', '.join(header)}.")
        columns: dict[str, list[str]] = {name: [] for name in header}
        lists = list(columns.values())
        for record in reader:
            if not record:
                continue
            if len(record) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(record)} fields where the header has "
                    f"{len(header)}; quote fields that hold separators."
                )
            for values, value in zip(lists, record, strict=True):
                values.append(value)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    return dict(columns)


def _read_json(path: Path, file: IO[str], suffix: str) -> dict[str, Sequence[Any]]:
    records: list[Mapping[str, Any]] = []
    if suffix == ".json":
        text = file.read()
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError as error:
            if "\n" not in text.strip() or error.msg != "Extra data":
                raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg}).") from None
            loaded = [
                _json_line(path, i, line)
                for i, line in enumerate(text.splitlines(), 1)
                if line.strip()
            ]
        if isinstance(loaded, dict):
            loaded = [loaded]
        records = loaded
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise DataError(f"{path} must hold a list of JSON objects, one per row.")
    else:
        records = [_json_line(path, i, line) for i, line in enumerate(file, 1) if line.strip()]
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _json_line(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        reason = getattr(error, "msg", error)
        raise DataError(f"{path}, line {number}: no JSON ({reason}).") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: one JSON object per line is expected.")
    return record


def _read_arrow(path: Path, suffix: str) -> dict[str, Sequence[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if suffix == ".parquet":
            table = pq.read_table(path, memory_map=True)
        else:
            source = pa.memory_map(str(path))
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is damaged or no {suffix[1:]} file: {reason}.") from None
    return {name: ArrowColumn(table.column(name)) for name in table.column_names}


def _read_saved_dataset(path: Path) -> dict[str, Sequence[Any]]:
    if not ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        raise DataError(
            f"{path} is a folder but no saved data set (dataset_info.json is missing); "
            "name one of the files in it."
        )
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(
            f"{path} holds the splits {', '.join(loaded)}; name one of these folders in it."
        )
    return dataset_columns(loaded)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the datasets library from drawing on the terminal."""
    from datasets.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    was_enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            enable_progress_bar()


def dataset_columns(dataset: Any) -> dict[str, Sequence[Any]]:
    """Columns of a ``datasets.Dataset``, in its order, without copying it into memory."""
    if getattr(dataset, "_indices", None) is not None:
        with no_progress_bars():
            dataset = dataset.flatten_indices()
    table = dataset.data.table
    return {name: ArrowColumn(table.column(name)) for name in table.column_names}


def frame_columns(frame: Any) -> dict[str, Sequence[Any]]:
    """Columns of a pandas DataFrame as Python values; arrays in cells (as from Parquet) as lists.

    Raises
    ------
    DataError
        Where a column's name stands twice.
    """
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise DataError(f"The DataFrame names a column twice: {', '.join(names)}.")
    columns = {name: frame.iloc[:, i].tolist() for i, name in enumerate(names)}
    return {
        name: [v.tolist() if hasattr(v, "tolist") else v for v in values]
        for name, values in columns.items()
    }


class ArrowColumn(Sequence[Any]):
    """An Arrow column that gives Python values, slice by slice."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.column.to_pylist()[index]
            return self.column.slice(start, max(stop - start, 0)).to_pylist()
        return self.column[index].as_py()


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
