"""One table for a terminal, Markdown and a page, and the format of numbers in its cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from probekit.safe import printable

__all__ = ["Table", "difference", "finite", "interval", "number", "percent", "share", "share_of"]

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __post_init__(self) -> None:
        """Raise ValueError if a row has another number of cells than the header."""
        uneven = [row for row in self.rows if len(row) != len(self.header)]
        if uneven:
            raise ValueError(f"{len(self.header)} columns cannot hold the row {uneven[0]!r}.")

    def text(self, *, rule: bool = True) -> str:
        """Aligned columns, two spaces apart, one line per row.

        With ``rule=False`` there is no line below the header, and no empty line before the notes.
        """
        lines = [tuple(map(_cell, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if rule:
            lines.insert(1, tuple("-" * width for width in widths))
        text = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *([""] if rule and self.notes else []), *self.notes])

    def markdown(self) -> str:
        """A pipe table with the notes as a paragraph below."""

        def line(cells: tuple[str, ...]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = "| --- |" + " ---: |" * (len(self.header) - 1)
        lines = [line(self.header), rule, *map(line, self.rows)]
        return "\n".join(lines + (["", " ".join(self.notes)] if self.notes else []))


def _cell(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def percent(value: float | None) -> str:
    """A share in percent with one decimal, or a dash if there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def share(value: float | None) -> str:
    """:func:`percent` with the percent sign: ``12.3 %``."""
    text = percent(value)
    return text if text == MISSING else f"{text} %"


def share_of(part: int, whole: int) -> str:
    """A part as :func:`share` of the whole, or a dash if the whole is 0."""
    return share(part / whole) if whole else MISSING


def number(value: float | None) -> str:
    """Four decimals, or a dash if there is no number."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def difference(value: float, low: float, high: float) -> str:
    """A difference of two shares in percentage points, with its interval."""
    return f"{100 * value:+.1f} [{100 * low:+.1f} {100 * high:+.1f}]"


def interval(value: float, low: float, high: float) -> str:
    """A ratio with its interval."""
    return f"{value:.2f} [{low:.2f} {high:.2f}]"


def finite(value: Any) -> Any:
    """The same nested value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
