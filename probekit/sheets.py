"""CSV for people: what a spreadsheet shows, changes and saves, and what is undone on reading.

Every field is quoted, a byte order mark says UTF-8, no cell is taken for a formula or a number, and
what was done to a cell for that is taken back (CWE-1236, https://owasp.org/www-community/attacks/
CSV_Injection).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from probekit.files import atomic_write
from probekit.sources import read_table

__all__ = ["read_hash", "read_sheet", "write_sheet", "written_hash"]

# What begins so, blanks aside, a spreadsheet takes for a formula; an apostrophe before it says that
# it is text, and so must one that is the text's own.
FORMULA = re.compile("[\\s\u200b\ufeff]*['=+\\-@＝＋－＠|%]")
BREAKS = ("\t", "\r", "\n")
# A row of 16 digits, or of digits and one e, is a number to a spreadsheet; with this it is not.
HASH = "hash:"
WHOLE_HASH = re.compile("[0-9a-f]{16}")


def write_sheet(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows (of ``len(header)`` cells) as CSV that a spreadsheet leaves as it is."""
    with atomic_write(path, "w") as file:
        file.write("\ufeff")  # else Excel reads é as Ã©
        writer = csv.writer(file, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows([_harmless(cell) for cell in row] for row in rows)


def read_sheet(path: str | Path) -> dict[str, list[str]]:
    """Columns of a CSV that :func:`write_sheet` wrote, whatever saved it since.

    Raises
    ------
    DataError
        Where it cannot be read.
    """
    columns = read_table(path).columns
    return {name: [_restored(cell) for cell in values[:]] for name, values in columns.items()}


def written_hash(text_hash: str) -> str:
    """A text hash as a cell."""
    return f"{HASH}{text_hash}" if text_hash else ""


def read_hash(cell: Any) -> str:
    """The text hash of a cell; "" of none, and of one that a spreadsheet has made a number."""
    found = str(cell or "").strip().removeprefix(HASH).strip().lower()
    return found if WHOLE_HASH.fullmatch(found) else ""


def _harmless(cell: Any) -> Any:
    """Text that a spreadsheet takes for text, whatever it begins with; a number as it is."""
    if not isinstance(cell, str):
        return cell
    return f"'{cell}" if cell.startswith(BREAKS) or FORMULA.match(cell) else cell


def _restored(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    rest = text[1:]
    undone = text[:1] == "'" and (rest.startswith(BREAKS) or FORMULA.match(rest))
    return rest if undone else text
