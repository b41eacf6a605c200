"""Separated values: records of text as columns, whatever stands between their fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError

__all__ = ["SEPARATORS", "columns_of", "read_delimited", "read_tabbed"]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
LONGEST_FIELD = 1 << 30
SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?", re.IGNORECASE)
# A field of one line in quotes with a doubled quote in it.
DOUBLED = re.compile(r'(?:^|\t)"(?:[^"\t\n]|"")*""(?:[^"\t\n]|"")+"(?=\t|\r?$)', re.MULTILINE)

Columns = dict[str, Sequence[Any]]


def read_delimited(path: Path, file: IO[str]) -> tuple[Columns, str]:
    """Columns of CSV, and what separates its fields: a comma, or what separates the header's names.

    Raises
    ------
    DataError
        If a record has more or fewer fields than the header, or quotes do not match.
    """
    text = _peek_line(file)
    separator_line = SEPARATOR_LINE.fullmatch(text.strip("\r\n\ufeff"))
    if separator_line is not None:  # "sep=;", as Excel writes it
        file.readline()
        text = _peek_line(file)
    counts = {mark: _outside_quotes(text, mark) for mark in SEPARATORS}
    mark = max(counts, key=lambda m: (counts[m], m == ","))
    mark = separator_line[1] if separator_line is not None else mark if counts[mark] else ","
    # After a header "id, label" every line has such blanks.
    blanks = re.search(rf"{re.escape(mark)} ", text) is not None and mark != "\t"
    reader = csv.reader(file, delimiter=mark, strict=True, skipinitialspace=blanks)
    return columns_of(path, reader), mark


def read_tabbed(path: Path, file: IO[str]) -> Columns:
    """Columns of TSV: quotes are part of the text, unless the file uses them to quote fields.

    Raises
    ------
    DataError
        If it is CSV, or a record has more or fewer fields than the header.
    """
    csv.field_size_limit(LONGEST_FIELD)
    text = file.read()
    header = text.lstrip("\ufeff\r\n").partition("\n")[0]
    if "\t" not in header and _outside_quotes(header, ","):
        raise DataError(
            f"{path} has no tab in its header ({header.strip()[:60]!r}), so it is not TSV; name a "
            "comma-separated file .csv."
        )
    if '"' in text and (records := _quoted_records(text)) is not None:
        return columns_of(path, iter(records))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    return columns_of(path, reader)


def _quoted_records(text: str) -> list[list[str]] | None:
    """Records if quotes quote fields; None if they are part of the text.

    Writers quote a field that has a tab, a line end or a quote (which they double). Quotes around
    any other text are the author's.
    """
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    if len({len(record) for record in records if record}) != 1:
        return None
    lines = text.splitlines()
    header = next(line for line in lines if line.strip()).lstrip("\ufeff").split("\t")
    if all(name.strip().startswith('"') for name in header):
        return records
    plain = {line.count("\t") for line in lines if line.strip()}
    return records if len(plain) > 1 or DOUBLED.search(text) else None


def _peek_line(file: IO[str]) -> str:
    """First line that is not blank; the position in the file stays."""
    start = file.tell()
    line = next((text for text in iter(file.readline, "") if text.strip()), "")
    file.seek(start)
    return line


def _outside_quotes(line: str, mark: str) -> int:
    return re.sub(r'"[^"]*"', "", line).count(mark)


def columns_of(path: Path, reader: Iterator[list[Any]]) -> Columns:
    """Columns of records, without the empty cells that spreadsheets leave at the ends.

    Raises
    ------
    DataError
        If a record has more or fewer fields than the header, or two columns have one name.
    """
    csv.field_size_limit(LONGEST_FIELD)
    try:
        header = next((r for r in reader if any(map(_filled, r))), [])
        names = [_clean_name(name) for name in header]
        lists: list[list[Any]] = [[] for _ in names]
        for number, record in enumerate(reader, 2):
            if len(record) != len(names):
                if not record and len(names) > 1:
                    continue
                record = _fitted(path, record, names, getattr(reader, "line_num", number))
            for values, value in zip(lists, record, strict=True):
                values.append(value)
    except csv.Error as error:
        line = getattr(reader, "line_num", 0)
        raise DataError(f"{path}, line {line}: {error}.") from None
    return _named(path, names, _without_empty_end(lists))


def _fitted(path: Path, record: list[Any], names: list[str], line: int) -> list[Any]:
    """A record of another length, cut or filled up if only empty cells differ."""
    if not any(map(_filled, record)):
        return [""] * len(names)
    if not any(map(_filled, record[len(names) :])) and len(record) > len(names):
        return record[: len(names)]
    raise DataError(
        f"{path}, line {line}: {len(record)} fields where the header has {len(names)}; quote "
        "fields that contain separators."
    )


def _filled(cell: Any) -> bool:
    """Whether a cell holds anything."""
    return bool(cell.strip()) if isinstance(cell, str) else cell is not None


def _clean_name(name: Any) -> str:
    """A column's name without blanks, byte order marks and quotes around it."""
    text = ("" if name is None else str(name)).replace("\ufeff", "").strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _without_empty_end(lists: list[list[Any]]) -> list[list[Any]]:
    """Columns without empty records at the end."""
    end = len(lists[0]) if lists else 0
    while end and not any(_filled(values[end - 1]) for values in lists):
        end -= 1
    return [values[:end] for values in lists]


def _named(path: Path, names: list[str], lists: list[list[Any]]) -> Columns:
    """Columns by name, without those that have neither a name nor content."""
    pairs = [
        (name, values)
        for name, values in zip(names, lists, strict=True)
        if name or any(map(_filled, values))
    ]
    named = [name for name, _ in pairs]
    if len(set(named)) != len(named):
        raise DataError(f"{path} names a column twice in its header: {', '.join(named)}.")
    return dict(pairs)
