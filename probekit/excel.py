"""Excel workbooks: the values of the first sheet are read, and rows are written as values."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probekit.errors import DataError, first_few
from probekit.extras import need
from probekit.safe import one_line, open_regular

__all__ = ["is_workbook", "read_sheet", "write_sheet"]

# Raised by openpyxl about damaged workbooks, and by the archive and XML below it.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, IndexError, ValueError, TypeError),
    *(AttributeError, OverflowError, RuntimeError, SyntaxError, AssertionError),
)
# What XML cannot hold; workbooks write it, and the escape itself, as _x000B_.
ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


def is_workbook(path: Path) -> bool:
    """Whether a file is an Excel workbook (.xlsx, .xlsm), or a zip archive named like one."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except DAMAGED:
        return path.suffix.lower() in (".xlsx", ".xlsm")


def read_sheet(path: Path) -> tuple[list[list[Any]], str]:
    """Rows of the first sheet as values, empty for an empty row, and a note on other sheets.

    Formulas and macros are never run: a formula has the value that Excel stored.

    Raises
    ------
    DataError
        If the workbook is damaged or its first sheet is empty.
    ProbekitError
        If openpyxl is not installed.
    """
    need("openpyxl")
    import openpyxl

    with open_regular(path) as file, _as_damage(path):
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        names = [sheet.title for sheet in workbook.worksheets]
        sheet = workbook.worksheets[0]
        sheet.reset_dimensions()  # some programs store wrong ones
        rows = [list(map(_value, row)) for row in sheet.iter_rows(values_only=True)]
    listed = f"{len(names)} sheets ({first_few(names, 6)})" if len(names) > 1 else "one sheet"
    if all(value is None for row in rows for value in row):
        raise DataError(
            f"{path} has {listed}, and the first, {names[0]!r}, is empty; put the table there."
        )
    width = max(map(len, rows))
    filled = [row + [None] * (width - len(row)) for row in rows]
    note = f"{path} has {listed}; the first, {names[0]!r}, is read." if len(names) > 1 else ""
    return [row if any(v is not None for v in row) else [] for row in filled], note


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """Raise DataError for what openpyxl raises about a damaged file; its warnings are dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which hold no values
            yield
    except DAMAGED as error:
        reason = one_line(str(error)).rstrip(".")[:200] or type(error).__name__
        raise DataError(f"{path} is damaged or not an Excel workbook: {reason}.") from None


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
    return value


def write_sheet(header: Sequence[str], rows: Iterable[Sequence[Any]], file: IO[bytes]) -> None:
    """Write a workbook of one sheet; a text that begins with ``=`` stays a text."""
    need("openpyxl")
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet("Sheet1")

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = WriteOnlyCell(sheet, UNWRITABLE.sub(lambda m: f"_x{ord(m[0]):04X}_", value))
        text.data_type = "s"  # not f, a formula
        return text

    for row in (header, *rows):
        sheet.append([cell(value) for value in row])
    workbook.save(file)
