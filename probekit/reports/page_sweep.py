"""The page of a sweep: what was chosen, strength curves per layer, and the table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import DataError
from probekit.files import read_columns
from probekit.reports.figures import FAINT, GRID, INK, blank
from probekit.reports.page import Page, PageTable
from probekit.reports.page_run import embedded, flat
from probekit.reports.tables import MISSING, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Sweep", "draw_strengths", "is_sweep", "read_sweep", "sweep_page"]

KEYS = ("layer", "probe", "strength")
# Drawn, as far as there are columns of these names, those that need no truth first.
CURVES = ("log_loss", "auroc", "accuracy")
CURVES_SHOWN = 4
ROWS_SHOWN = 1000
COLUMN_INCHES, ROW_INCHES = 4.2, 2.7


@dataclass(frozen=True)
class Sweep:
    """One row per layer, probe and strength."""

    columns: Mapping[str, Sequence[Any]]
    metadata: Mapping[str, Any]
    """What the file says of itself: the choice, and what made it."""

    def __len__(self) -> int:
        return len(self.columns["layer"])

    @property
    def measures(self) -> list[str]:
        """Columns of numbers that are no key, in the order of the file."""
        return [
            name
            for name, values in self.columns.items()
            if name not in KEYS
            and any(v is not None for v in values)
            and all(v is None or _is_number(v) for v in values)
        ]

    @property
    def drawn(self) -> list[str]:
        """Measures worth a curve."""
        found = [m for wanted in CURVES for m in self.measures if wanted in m]
        return list(dict.fromkeys([*found, *self.measures]))[:CURVES_SHOWN]

    def curve(self, probe: str, layer: Any, measure: str) -> list[tuple[float, float]]:
        """Strength and measure of one probe on one layer, by strength."""
        rows = zip(*(self.columns[name] for name in (*KEYS, measure)), strict=True)
        return sorted(
            (float(strength), float(value))
            for of_layer, of_probe, strength, value in rows
            if of_layer == layer and of_probe == probe and _is_number(strength) and _finite(value)
        )


def is_sweep(path: Path) -> bool:
    """Whether a file has the columns of a sweep."""
    return path.is_file() and set(KEYS) <= set(read_columns(path))


def read_sweep(path: Path) -> Sweep:
    """Read what `probekit sweep` wrote.

    Raises
    ------
    DataError
        A key is missing, or there is no row or no measure.
    """
    import pyarrow.parquet as pq

    columns = {name: list(values[:]) for name, values in read_columns(path).items()}
    missing = [name for name in KEYS if name not in columns]
    if missing:
        raise DataError(f"{path} is no sweep: the column {missing[0]!r} is missing.")
    text = b"{}"
    if path.suffix.lower() == ".parquet":
        text = (pq.read_schema(path).metadata or {}).get(b"probekit", text)
    try:
        metadata = json.loads(text)
    except ValueError:
        raise DataError(f"{path} is damaged: its metadata is no JSON; make it again.") from None
    found = Sweep(columns, metadata if isinstance(metadata, dict) else {})
    if not len(found) or not found.measures:
        raise DataError(f"{path} holds no results; make it with `probekit sweep`.")
    return found


def sweep_page(sweep: Sweep, *, title: str) -> Page:
    """Describe a sweep as a page; ``title`` is how its file is called."""
    choice = sweep.metadata.get("choice")
    facts = [
        ("Rows", f"{len(sweep):,}"),
        ("Layers", ", ".join(map(str, _distinct(sweep.columns["layer"])))),
        ("Probes", ", ".join(map(str, _distinct(sweep.columns["probe"])))),
    ]
    if isinstance(choice, Mapping):
        facts += [(f"Chosen {name}", str(choice[name])) for name in KEYS if name in choice]
    caption = "By strength of regularisation, a line per layer"
    command = sweep.metadata.get("command")
    return Page(
        title=title,
        kind="sweep",
        facts=tuple(facts),
        tables=(PageTable("Every layer, probe and strength", _table(sweep)),),
        figures=(embedded(draw_strengths(sweep), caption),),
        commands=(("This makes it again:", command),) if isinstance(command, str) else (),
        provenance=tuple(flat(sweep.metadata)),
    )


def draw_strengths(sweep: Sweep) -> Figure:
    """Draw a panel per measure and probe, and in it a line per layer, from pale to dark."""
    import matplotlib as mpl

    probes, layers = (_distinct(sweep.columns[name]) for name in ("probe", "layer"))
    many = len(sweep.drawn), len(probes)
    figure = blank(COLUMN_INCHES * many[1], ROW_INCHES * many[0] + 0.6)
    panels = figure.subplots(*many, squeeze=False, sharex="col", sharey="row")
    colors = mpl.colormaps["viridis_r"]
    for row, measure in enumerate(sweep.drawn):
        for column, probe in enumerate(probes):
            axes = panels[row][column]
            _plain(axes)
            for number, layer in enumerate(layers):
                points = sweep.curve(probe, layer, measure)
                if points:
                    color = colors(0.15 + 0.85 * (number + 1) / len(layers))
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, ".-", color=color, linewidth=1.4, label=f"layer {layer}")
                    if min(x) > 0 and max(x) > 9 * min(x):
                        axes.set_xscale("log")
            if row == 0:
                axes.set_title(str(probe), fontsize=11, color=INK)
            if column == 0:
                axes.set_ylabel(measure.replace("_", " "), fontsize=10, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("strength", fontsize=10, color=INK)
    lines, names = panels[0][0].get_legend_handles_labels()
    if lines:
        figure.legend(
            lines, names, loc="lower center", ncols=min(len(names), 8), frameon=False, fontsize=9
        )
    figure.subplots_adjust(bottom=0.16 if many[0] > 1 else 0.3, hspace=0.12, wspace=0.08)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", colors=FAINT, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def _table(sweep: Sweep) -> Table:
    names = [*("probe", "layer", "strength"), *sweep.measures]
    rows = tuple(_rows(sweep, names))
    left = len(sweep) - len(rows)
    notes = (f"{left:,} more rows are in the file.",) if left else ()
    return Table(tuple(name.replace("_", " ") for name in names), rows, notes)


def _rows(sweep: Sweep, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    columns = [sweep.columns[name][:ROWS_SHOWN] for name in names]
    for values in zip(*columns, strict=True):
        yield tuple(map(_shown, values))


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)
