"""Tables of results: aligned text for a terminal, Markdown for a page, from the same cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Table", "demo_table", "percent", "points", "recovered"]

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column is text, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __post_init__(self) -> None:
        """Refuse a row that would be shown under another column's name."""
        uneven = [row for row in self.rows if len(row) != len(self.header)]
        if uneven:
            raise ValueError(f"{len(self.header)} columns cannot hold the row {uneven[0]!r}.")

    def text(self) -> str:
        """Aligned columns, two spaces apart."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(cells: tuple[str, ...]) -> str:
            padded = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        lines = [line(self.header), rule, *map(line, self.rows)]
        return "\n".join(lines + (["", *self.notes] if self.notes else []))

    def markdown(self) -> str:
        """A pipe table, notes as a paragraph below."""

        def line(cells: tuple[str, ...]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = "| --- |" + " ---: |" * (len(self.header) - 1)
        lines = [line(self.header), rule, *map(line, self.rows)]
        return "\n".join(lines + (["", " ".join(self.notes)] if self.notes else []))


def percent(value: float | None) -> str:
    """A share as percent with one digit behind the point."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def recovered(result: Mapping[str, Any] | None) -> str:
    """PGR with its interval; student − weak in points where PGR's interval has no bounds."""
    if result is None:
        return MISSING
    if result["pgr"] is None or result["unbounded"]:
        return "pt " + points(result)
    return f"{result['pgr']:.2f} [{result['pgr_low']:.2f} {result['pgr_high']:.2f}]"


def points(result: Mapping[str, Any] | None) -> str:
    """A difference of two accuracies in percentage points, with its interval."""
    if result is None:
        return MISSING
    gain, low, high = (100 * result[key] for key in ("gain", "gain_low", "gain_high"))
    return f"{gain:+.1f} [{low:+.1f} {high:+.1f}]"


def demo_table(results: Mapping[str, Any]) -> Table:
    """The table of `probekit demo`: one row per training set, floor first, ceiling last.

    ``results`` is what :func:`probekit.experiments.students.judge_students` returned, or its file.
    """
    header = ("training set", "rows", "labels", "acc", "PGR", "gain", "acc*", "PGR*", "AUROC")
    rows = tuple(_demo_row(arm) for arm in results["arms"])
    return Table(header, rows, _notes(results))


def _demo_row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    matched = arm["pgr_prior_matched"]
    bounded = matched is not None and matched["pgr"] is not None and not matched["unbounded"]
    return (
        arm["name"],
        MISSING if arm["rows"] is None else f"{arm['rows']:,}",
        percent(arm["label_accuracy"]),
        percent(arm["accuracy"]),
        recovered(arm["pgr"]),
        points(arm["gain"]),
        percent(arm["accuracy_prior_matched"]),
        f"{matched['pgr']:.2f}" if bounded else MISSING,
        percent(arm["auroc"]),
    )


def _notes(results: Mapping[str, Any]) -> tuple[str, ...]:
    shares = " / ".join(percent(share) for share in results["weak_prior"])
    notes = [
        "labels: training labels that are right, %. acc: test rows right at 0.5, %, of "
        f"{results['test_rows']:,}; acc*, PGR*:",
        f"with the class shares of the weak labels ({shares} %). PGR: recovered share of the gap",
        "between weak supervisor and ceiling. gain: points over the student on plain weak labels.",
        "[95 % interval]: paired bootstrap over test rows; another training half moves it too.",
        "Students: logistic on the last layer, L2 chosen out of fold on the labels they train on.",
    ]
    draws = results["random_draws"]
    if draws > 1:
        notes.append(f"random: as many rows of each weak class dropped, mean of {draws} draws.")
    found = [arm[key] for arm in results["arms"] for key in ("pgr", "pgr_prior_matched")]
    if any(pgr is not None and pgr["reason"] for pgr in found):
        notes.append("pt: student − weak supervisor in points; the gap is too small for a PGR.")
    return tuple(notes)
