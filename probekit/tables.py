"""Tables in any common format as named columns; all table files are opened here."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from probekit.arrow_columns import ArrowColumn, GroupColumn, RowGroups, arrow_reason, damaged
from probekit.errors import DataError
from probekit.excel import is_workbook, read_sheet
from probekit.json_lines import LineColumn, Lines, json_records
from probekit.safe import load_json, misfit, one_line, read_json, regular_file
from probekit.separated import SEPARATORS, columns_of, read_delimited, read_tabbed
from probekit.sidecars import read_sidecar

__all__ = [
    "SUFFIXES",
    "Table",
    "dataset_table",
    "frame_columns",
    "no_progress_bars",
    "read_file",
    "read_metadata",
    "record_columns",
    "suffix_of",
]

# Ending -> format. The first bytes of a file decide if they are known.
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xlsx": "excel",
    ".xlsm": "excel",
}
SUFFIXES = tuple(FORMATS)
COMPRESSIONS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd", ".snappy")
PACKED = GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
PARQUET, ARROW, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
ZIP = b"PK\x03\x04"
# First bytes -> kind of a file that is not a table.
OTHERS = {
    ZIP: "a zip archive or a spreadsheet that is not .xlsx (.ods); save the table as .xlsx or CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls) or one with a password; save the table "
    "as .xlsx or CSV, without a password",
    b"\x89HDF": "an HDF5 file; activation stores are read by other arguments",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"%PDF": "a PDF document; export the table as CSV",
    b"\x93NUMPY": "a NumPy array; write a table with an id and a label for each row",
    b"\x80\x04\x95": "a pickle, which is never opened; write CSV, JSONL or Parquet",
    b"\x80\x05\x95": "a pickle, which is never opened; write CSV, JSONL or Parquet",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"<!DOCTYPE": "a web page (HTML); download the file itself",
    b"<!doctype": "a web page (HTML); download the file itself",
    b"<html": "a web page (HTML); download the file itself",
    b"<?xml": "an XML document; export the table as CSV",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
}
BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
NONE = type(None)
# Bytes from which on rows stay on the disk: of Parquet, decoded, and of JSON Lines, which are then
# parsed several times.
LARGE, LARGE_JSON = 1 << 28, 1 << 30


@dataclass(frozen=True)
class Table:
    """Named columns of one length, with the metadata of their file."""

    columns: Mapping[str, Sequence[Any]]
    """Name to values; Parquet and Arrow columns give Python values slice by slice."""
    source: str = "the table"
    """Its origin, for messages."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Metadata that probekit wrote (docs/format.md); empty for files of other programs."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column to class names, if the file's features have a ClassLabel."""
    note: str = ""
    """A sentence for the user about an unusual file; empty for others."""
    separator: str = ","
    """What stands between the fields of a CSV file."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def suffix_of(path: str | Path) -> str:
    """Return the suffix that names the format: ``x.csv.gz`` gives ``.csv``."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_file(path: str | Path) -> Table:
    """Read a JSONL, JSON, CSV, TSV, Parquet, Arrow or Excel file, or a folder, as a table.

    Text may be compressed (gzip, bzip2, xz, zstd). CSV follows RFC 4180; fields may also be
    separated by semicolons, tabs or bars. TSV is read without quoting (as GLUE's files) unless its
    fields are quoted. CSV and TSV give strings, Excel (.xlsx) the values of the first sheet. A
    folder is a saved data set, or parts of one table in Parquet or JSONL. Large Parquet and JSONL
    files stay on the disk, and are read slice by slice.

    Raises
    ------
    DataError
        If it cannot be read; the message names the kind of file if that is known.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            raise DataError(f"{path} is not a plain file (a device, pipe or socket); name a file.")
        return _read_plain(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text{_encoding_hint(error)}.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{path} is cut off or damaged: {reason}.") from None
    except OSError as error:
        reason = one_line(error.strerror or str(error)).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.") from None
    except RuntimeError as error:  # a loop of links, or an unknown user's home
        raise DataError(f"{path} cannot be read: {error}.") from None


def read_metadata(path: str | Path) -> Mapping[str, Any]:
    """Metadata that probekit wrote about a table, without reading it; empty if there are none."""
    path = Path(path)
    if suffix_of(path) not in (".parquet", ".pq"):
        return read_sidecar(path) or {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        described = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return _metadata(described.get(b"probekit", b"{}"))


def _encoding_hint(error: UnicodeDecodeError) -> str:
    """The byte where decoding failed, and which program usually writes it."""
    if error.encoding != "utf-8":
        return f" but {error.encoding}, and cut off or damaged; restore it, or save it as UTF-8"
    return (
        f" (byte {error.start} is {error.object[error.start]:#04x}; Excel's plain CSV is "
        "Windows-1252): save it as CSV UTF-8, or convert it first"
    )


def _read_plain(path: Path) -> Table:
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise DataError(f"{path} is empty.")
    if head.startswith(PARQUET):
        return _read_parquet(path)
    if head.startswith((ARROW, STREAM)):
        return _read_arrow(path)
    if head.startswith(ZIP) and is_workbook(path):
        records, note = read_sheet(path)
        return Table(columns_of(path, iter(records)), str(path), note=note)
    for start, kind in OTHERS.items():
        if head.lstrip().startswith(start):
            raise DataError(f"{path} is {kind}.")
    form = FORMATS.get(suffix_of(path))
    if form is None:
        raise DataError(
            f"{path} has the ending {suffix_of(path) or 'none'!r}; allowed are "
            f"{', '.join(SUFFIXES)} (text also as .gz, .bz2, .xz or .zst), and folders of Parquet."
        )
    if form in ("parquet", "arrow", "excel"):
        kind = {"parquet": "a Parquet", "arrow": "an Arrow", "excel": "an Excel"}[form]
        raise DataError(f"{path} is damaged or not {kind} file: it does not begin as one.")
    if form == "jsonl" and (columns := _large_json_lines([path])) is not None:
        return Table(columns, str(path), metadata=read_sidecar(path) or {})
    with _open_text(path, head) as text:
        readers: dict[str, Callable[[Path, IO[str]], Table]] = {
            "csv": _read_delimited,
            "tsv": _read_tabbed,
            "json": _read_json,
            "jsonl": _read_json_lines,
        }
        return readers[form](path, text)


def _open_text(path: Path, head: bytes) -> IO[str]:
    """Open text, decompressed by its first bytes, in the encoding of its byte order mark.

    The caller closes it.
    """
    raw: Any
    compressed = head.startswith(PACKED)
    if path.suffix.lower() in COMPRESSIONS and not compressed:
        raise DataError(
            f"{path} is cut off or damaged: it is not compressed, but its ending is {path.suffix}."
        )
    if head.startswith(GZIP):
        raw = gzip.open(path, "rb")  # noqa: SIM115
    elif head.startswith(BZIP2):
        raw = bz2.open(path, "rb")  # noqa: SIM115
    elif head.startswith(XZ):
        raw = lzma.open(path, "rb")  # noqa: SIM115
    elif head.startswith(ZSTD):
        raw = _decompressed_zstd(path)
    else:
        raw = open(path, "rb")  # noqa: SIM115
    buffered = io.BufferedReader(raw) if not isinstance(raw, io.BufferedReader) else raw
    start = buffered.peek(4)[:4]
    # utf-8-sig: spreadsheets write a byte order mark, which must not become part of a column name.
    encoding = BYTE_ORDER_MARKS.get(start[:2], "utf-8-sig")
    return io.TextIOWrapper(buffered, encoding=encoding, newline="")


def _decompressed_zstd(path: Path) -> io.BytesIO:
    import pyarrow as pa

    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
        return io.BytesIO(stream.read())


def _read_delimited(path: Path, file: IO[str]) -> Table:
    columns, mark = read_delimited(path, file)
    unusual = f"{path}: fields are separated by {SEPARATORS.get(mark, repr(mark))}."
    return Table(columns, str(path), note="" if mark == "," else unusual, separator=mark)


def _read_tabbed(path: Path, file: IO[str]) -> Table:
    return Table(read_tabbed(path, file), str(path))


# JSON


def _read_json(path: Path, file: IO[str]) -> Table:
    """A list of objects; JSON Lines with this ending are read too."""
    text = file.read()
    try:
        loaded = load_json(text, str(path))
    except DataError as error:
        if "Extra data" not in str(error) or "\n" not in text.strip():
            raise
        return _records(path, json_records(path, text.split("\n")))
    if isinstance(loaded, dict):
        if (shape := _other_shape(loaded)) is not None:
            raise DataError(
                f"{path} is {shape}; a list of JSON objects, one per row, is expected (in pandas: "
                "to_json(path, orient='records'))."
            )
        loaded = [loaded]
    if not isinstance(loaded, list) or not all(isinstance(r, dict) for r in loaded):
        raise DataError(f"{path} must be a list of JSON objects, one per row.")
    return _records(path, loaded)


def _other_shape(loaded: Mapping[str, Any]) -> str | None:
    """Description of an object that is a table in another shape; None for a row."""
    values = list(loaded.values())
    if values and all(isinstance(v, dict) for v in values):
        return "a table by columns (as DataFrame.to_json() writes it)"
    if values and all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
        return "a table by columns, each a list"
    for name in ("data", "rows", "records", "items"):
        if isinstance(loaded.get(name), list):
            return f"one object with the rows in its field {name!r}"
    return None


def _read_json_lines(path: Path, file: IO[str]) -> Table:
    # A line ends with \n alone: U+2028, U+0085 and the like may occur inside a JSON string.
    return _records(path, json_records(path, file))


def _large_json_lines(paths: Sequence[Path]) -> Mapping[str, Sequence[Any]] | None:
    """Columns that are parsed when they are asked for; None if they are small, or not UTF-8."""
    if sum(path.stat().st_size for path in paths) < LARGE_JSON:
        return None
    for path in paths:
        with path.open("rb") as file:
            if file.read(4).startswith((*PACKED, *BYTE_ORDER_MARKS)):
                return None
    lines = Lines(paths)
    return {name: LineColumn(lines, name) for name in lines.names}


def _records(path: Path, records: Sequence[Mapping[str, Any]]) -> Table:
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table(columns, str(path), metadata=read_sidecar(path) or {})


def _metadata(text: str | bytes) -> Mapping[str, Any]:
    try:
        metadata = load_json(text, "the metadata")
    except DataError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


# Arrow


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa

    try:
        # Without folders: a path like label=1/part.parquet adds no column.
        return _parquet_table(path, {path: {}})
    except pa.ArrowException as error:
        raise damaged(path, error) from None


def _parquet_table(path: Path, parts: Mapping[Path, Mapping[str, str]]) -> Table:
    """Read files, each with columns of one value; large ones are decoded when rows are needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = RowGroups(parts)
    if groups.nbytes >= LARGE:
        return _arrow_table(path, groups.schema, lambda name: GroupColumn(groups, name))
    tables = []
    for part, more in parts.items():
        table = pq.read_table(part, memory_map=True, partitioning=None)
        table.validate(full=True)
        for name, value in more.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * table.num_rows))
        tables.append(table)
    whole = pa.concat_tables(tables, promote_options="default")
    return _arrow_table(path, whole.schema, lambda name: ArrowColumn(whole.column(name)))


def _read_arrow(path: Path) -> Table:
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            table = pa.ipc.open_stream(source).read_all()
        # A memory map is not checked on reading: a wrong offset would be followed anywhere.
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged or not an Arrow file: {arrow_reason(error)}.") from None
    return _arrow_table(path, table.schema, lambda name: ArrowColumn(table.column(name)))


def _arrow_table(path: Path, schema: Any, column: Callable[[str], Sequence[Any]]) -> Table:
    names = schema.names
    if len(set(names)) != len(names):
        raise DataError(f"{path} names a column twice: {', '.join(names)}.")
    described = schema.metadata or {}
    return Table(
        {name: column(name) for name in names},
        str(path),
        metadata=_metadata(described.get(b"probekit", b"{}")),
        class_names=_class_names(described.get(b"huggingface", b"{}")),
    )


def _class_names(text: bytes) -> dict[str, tuple[str, ...]]:
    """Names of ClassLabel features, as ``datasets`` writes them into a schema."""
    features: Any = _metadata(text)
    for name in ("info", "features"):
        features = features.get(name) if isinstance(features, dict) else None
    if not isinstance(features, dict):
        return {}
    return {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }


# Folders


def _read_folder(path: Path) -> Table:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _read_saved_dataset(path)
    files = sorted(part for part in path.rglob("*") if _is_shown(part.relative_to(path)))
    forms = {part: FORMATS.get(suffix_of(part)) for part in files}
    if "parquet" in forms.values():
        return _read_parquet_folder(path, [p for p, form in forms.items() if form == "parquet"])
    if set(forms.values()) - {None} == {"jsonl"}:
        return _read_json_folder(path, [p for p, form in forms.items() if form == "jsonl"])
    raise DataError(
        f"{path} is a folder but not a saved data set (dataset_info.json is missing) and has "
        "no Parquet files, nor JSONL files alone; name one of the files in it."
    )


def _read_parquet_folder(path: Path, files: Sequence[Path]) -> Table:
    import pyarrow as pa

    parts: dict[Path, dict[str, str]] = {}
    try:
        for part in map(regular_file, files):
            # Folders like label=1 name a column, as Spark and DuckDB write partitions.
            folders = [name.partition("=") for name in part.relative_to(path).parts[:-1]]
            parts[part] = {name: value for name, equals, value in folders if equals}
        table = _parquet_table(path, parts)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is a folder whose {len(files)} Parquet files are damaged or not parts of one "
            f"table: {arrow_reason(error)}."
        ) from None
    return replace(table, note=_folder_note(path, len(files), "Parquet"))


def _read_json_folder(path: Path, files: Sequence[Path]) -> Table:
    """JSONL files as one table, each in the order of its lines."""
    files = list(map(regular_file, files))
    columns = _large_json_lines(files)
    if columns is None:
        tables = [_read_plain(each) for each in files]
        names = dict.fromkeys(name for table in tables for name in table.columns)
        columns = {
            name: [v for t in tables for v in t.columns.get(name, [None] * len(t))]
            for name in names
        }
    return Table(columns, str(path), note=_folder_note(path, len(files), "JSONL"))


def _folder_note(path: Path, count: int, kind: str) -> str:
    return f"{path}: {count} {kind} files are read as one table, in the order of their names."


def _is_shown(path: Path) -> bool:
    """Whether no part of a path is hidden; Spark hides files that are not data."""
    return not any(part.startswith((".", "_")) for part in path.parts)


def _read_saved_dataset(path: Path) -> Table:
    if (path / "dataset_dict.json").exists():
        content = read_json(path / "dataset_dict.json")
        splits = content.get("splits") if isinstance(content, dict) else None
        named = ", ".join(map(str, splits)) if isinstance(splits, list) else "of a data set"
        raise DataError(f"{path} has the splits {named}; name one of these folders in it.")
    _check_saved(path)
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
        loaded.data.table.validate(full=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is a damaged saved data set: {arrow_reason(error)}.") from None
    return dataset_table(loaded, source=str(path))


def _check_saved(path: Path) -> None:
    """Raise DataError if the state of a saved data set names files outside of its folder."""
    shape = {"_data_files": [{"filename": str}], "_indices_files?": ([{"filename": str}], NONE)}
    state = read_json(path / "state.json")
    if wrong := misfit(state, shape, "its state"):
        raise DataError(f"{path} is a damaged saved data set: {wrong}.")
    for part in [*state["_data_files"], *(state.get("_indices_files") or [])]:
        name = part["filename"]
        if Path(name).name != name:
            raise DataError(
                f"{path} is a saved data set that names {name!r}, which is not in its folder; save "
                "the data set again."
            )
        regular_file(path / name)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the datasets library from drawing progress bars."""
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


def dataset_table(dataset: Any, *, source: str = "the data set") -> Table:
    """Table of a ``datasets.Dataset``, in its order, without a copy in memory."""
    if getattr(dataset, "_indices", None) is not None:
        with no_progress_bars():
            dataset = dataset.flatten_indices()
    table = dataset.data.table
    names = {
        name: tuple(map(str, feature.names))
        for name, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    columns = {name: ArrowColumn(table.column(name)) for name in table.column_names}
    return Table(columns, source, class_names=names)


def frame_columns(frame: Any) -> dict[str, Sequence[Any]]:
    """Columns of a DataFrame as Python values; arrays in cells (as from Parquet) as lists.

    Raises
    ------
    DataError
        If two columns have one name.
    """
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise DataError(f"The DataFrame names a column twice: {', '.join(names)}.")
    columns = {name: frame.iloc[:, i].tolist() for i, name in enumerate(names)}
    return {
        name: [v.tolist() if hasattr(v, "tolist") else v for v in values]
        for name, values in columns.items()
    }


def record_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of a list of mappings, in the order of their first appearance; None where absent."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}
