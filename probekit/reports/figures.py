"""What all figures share: an empty figure that needs no display, axes, text beside them, PNG."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.extras import need
from probekit.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "above",
    "below",
    "blank",
    "legend_beside",
    "plain_axes",
    "png",
    "soft_axes",
    "write",
    "write_figure",
]

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLORS = {"plain": "#52606d", "random": "#9aa5b1", "filter": "#b4540a", "relabel": "#0b69a3"}
WIDTH_INCHES, DPI = 10.0, 150


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; it needs no display."""
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _import_matplotlib() -> None:
    """Import it even where a notebook's ``MPLBACKEND`` names a package that is not installed here.

    A command that a notebook starts inherits the variable, and matplotlib would refuse to be
    imported; these figures need no backend.
    """
    need("matplotlib")
    named = os.environ.get("MPLBACKEND", "")
    package = named.removeprefix("module://").partition(".")[0]
    foreign = named.startswith("module://") and importlib.util.find_spec(package) is None
    if foreign:
        del os.environ["MPLBACKEND"]
    try:
        importlib.import_module("matplotlib")
    finally:
        if foreign:
            os.environ["MPLBACKEND"] = named


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, cropped to what is drawn."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight", pad_inches=0.2)
    return stream.getvalue()


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write :func:`png` to a file."""
    with atomic_write(path) as file:
        file.write(png(figure))


def plain_axes(axes: Axes, rows: int) -> None:
    """Lay out axes for ``rows`` horizontal lines: a faint vertical grid and no frame."""
    from matplotlib.ticker import MaxNLocator

    soft_axes(axes, grid="x", size=11)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def soft_axes(axes: Axes, *, grid: Any = "both", size: float = 10) -> None:
    """Lay out axes with a faint grid (``"x"``, ``"y"``, ``"both"`` or None) and no frame."""
    if grid is not None:
        axes.grid(axis=grid, color=GRID)
        axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", colors=INK, labelsize=size)
    for side in axes.spines.values():
        side.set_visible(False)


def write(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float] = (0, 0),
    *,
    coords: Any = "data",
    size: float = 10.5,
    color: str = INK,
    **style: Any,
) -> None:
    """Write text beside a point in the axes' coordinates, ``shift`` points away from it."""
    axes.annotate(
        text,
        at,
        shift,
        xycoords=coords,
        textcoords="offset points",
        fontsize=size,
        color=color,
        **style,
    )


def below(axes: Axes, text: str, *, points: float) -> None:
    """Write a caption this number of points below the axes."""
    place: dict[str, Any] = {"coords": "axes fraction", "ha": "left", "va": "top"}
    write(axes, text, (0, 0), (0, -points), size=10, color=FAINT, **place)


def legend_beside(axes: Axes, *, size: float) -> None:
    """Put the legend to the right of the axes, in letters of this size."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    axes.legend(**place, fontsize=size, frameon=False, labelcolor=FAINT)


def above(axes: Axes, text: str, x: float, *, left: bool = False, align: str | None = None) -> None:
    """Write above the axes, at a fraction of their width (``left``) or centred at a value of x."""
    coords = "axes fraction" if left else ("data", "axes fraction")
    ha = align or ("left" if left else "center")
    write(axes, text, (x, 1), (0, 8), coords=coords, ha=ha, va="bottom")
