"""Figures of results, drawn from the same stored numbers as the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.files import atomic_write
from probekit.reports.tables import recovered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["above", "below", "blank", "demo_figure", "draw_demo", "plain_axes", "write_figure"]

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLORS = {"plain": "#52606d", "random": "#9aa5b1", "filter": "#b4540a", "relabel": "#0b69a3"}
WIDTH_INCHES, DPI = 10.0, 150
PGR_AT = 1.08  # of the width of the students' panel


def demo_figure(results: Mapping[str, Any], path: str | Path) -> None:
    """Write :func:`draw_demo` as a PNG."""
    write_figure(draw_demo(results), path)


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, cut to what is drawn."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.2)


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_demo(results: Mapping[str, Any]) -> Figure:
    """Draw how right each training set is, and how far its student gets.

    ``results`` as in :func:`probekit.reports.tables.demo_table`.
    """
    arms = [arm for arm in results["arms"] if arm["kind"] in COLORS]
    figure = blank(WIDTH_INCHES, 1.9 + 0.34 * len(arms))
    left, right = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": [1, 2], "wspace": 0.06}
    )
    for axes in (left, right):
        plain_axes(axes, len(arms))
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    for tick, arm in zip(left.get_yticklabels(), arms, strict=True):
        tick.set_color(COLORS[arm["kind"]])
    _labels_panel(left, arms)
    _students_panel(right, arms, results)
    _caption(left, results)
    return figure


def plain_axes(axes: Axes, rows: int) -> None:
    """Lay out axes for so many rows: nothing but faint lines down."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(rows - 0.4, -0.6)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(length=0, colors=INK, labelsize=11)
    for side in axes.spines.values():
        side.set_visible(False)


def _labels_panel(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("training labels right, %", fontsize=11, color=INK, labelpad=6)
    values = [100 * arm["label_accuracy"] for arm in arms]
    axes.axvline(values[0], color=FAINT, linewidth=1, linestyle=":")
    for row, (arm, value) in enumerate(zip(arms, values, strict=True)):
        axes.plot(value, row, "o", markersize=7, color=COLORS[arm["kind"]])
        axes.annotate(
            f"{value:.1f}",
            (value, row),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=10.5,
            color=INK,
        )
    span = max(max(values) - min(values), 2)
    axes.set_xlim(min(values) - 0.15 * span, max(values) + 0.45 * span)


def _students_panel(
    axes: Axes, arms: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> None:
    axes.set_xlabel("test rows its student gets right, %", fontsize=11, color=INK, labelpad=6)
    floor, top = (100 * results["arms"][end]["accuracy"] for end in (0, -1))
    plain = 100 * arms[0]["accuracy"]
    axes.axvline(plain, color=FAINT, linewidth=1, linestyle=":")
    seen = [floor, top]
    for row, arm in enumerate(arms):
        color, value = COLORS[arm["kind"]], 100 * arm["accuracy"]
        if arm["gain"] is not None:
            # The interval is of a difference from the dotted line.
            ends = [plain + 100 * arm["gain"][key] for key in ("gain_low", "gain_high")]
            axes.plot(ends, [row, row], color=color, linewidth=2.5, alpha=0.4)
            seen += ends
        matched = 100 * arm["accuracy_prior_matched"]
        axes.plot(matched, row, "o", markersize=7, color=color, markerfacecolor="white")
        axes.plot(value, row, "o", markersize=7, color=color)
        seen += [value, matched]
        axes.annotate(
            recovered(arm["pgr"]),
            (PGR_AT, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=10.5,
            color=INK,
        )
    for value, name in ((floor, "weak supervisor"), (top, "ground truth")):
        axes.axvline(value, color=INK, linewidth=1.2, zorder=1)
        above(axes, f"{name}\n{value:.1f}", value)
    above(axes, "PGR [95 %]", PGR_AT, left=True)
    span = max(seen) - min(seen)
    axes.set_xlim(min(seen) - 0.06 * span, max(seen) + 0.06 * span)


def _caption(axes: Axes, results: Mapping[str, Any]) -> None:
    below(
        axes,
        f"{results['test_rows']:,} test rows; filled: at 0.5, hollow: with the class shares of the "
        "weak labels. Bars: 95 % interval of the\n"
        "difference from plain weak labels (dotted), paired over test rows. PGR: at 0.5, between "
        "weak supervisor and ground truth.",
        points=52,
    )


def below(axes: Axes, text: str, *, points: float) -> None:
    """Write a caption so many points below the axes."""
    axes.annotate(
        text,
        (0, 0),
        (0, -points),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=10,
        color=FAINT,
    )


def above(axes: Axes, text: str, x: float, *, left: bool = False, align: str | None = None) -> None:
    """Write above the axes: at a fraction of the width from the left, or at a value, centred."""
    axes.annotate(
        text,
        (x, 1),
        (0, 8),
        xycoords="axes fraction" if left else ("data", "axes fraction"),
        textcoords="offset points",
        ha=align or ("left" if left else "center"),
        va="bottom",
        fontsize=10.5,
        color=INK,
    )
