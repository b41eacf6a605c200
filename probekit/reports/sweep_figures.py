"""Figures of a sweep: curves over the strength, a line per layer; and layers against strengths."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.probes.registry import REGISTRY, probe_spec
from probekit.reports.figures import GRID, INK, below, blank, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_layers", "draw_strengths", "write_figures"]

PALE, DARK = 0.12, 0.95
CHOICE = "#b4540a"
PANEL_WIDTH, HEIGHT = 4.6, 3.6
FEW = 13  # layers; of more, points would hide the lines
LETTERS = 11.5  # of a caption, for each inch
Points = list[tuple[float, float]]


def write_figures(sweep: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``strengths.png`` and ``layers.png``; nothing where no probe has a strength."""
    if not _probes(sweep):
        return []
    drawn = {"strengths.png": draw_strengths, "layers.png": draw_layers}
    for name, draw in drawn.items():
        write_figure(draw(sweep), folder / name)
    return [folder / name for name in drawn]


def draw_strengths(sweep: Mapping[str, Any]) -> Figure:
    """Draw a panel per probe and a line per layer over the strength.

    With a truth the probe's AUROC less that of the weak labels, as in
    https://blog.eleuther.ai/weak-to-strong/; without one the out-of-fold weak log-loss. ``sweep``
    is :attr:`probekit.experiments.sweep.Sweep.plain`.
    """
    measure, label = _measure(sweep)
    probes, layers = _probes(sweep), _layers(sweep)
    few = len(layers) <= FEW
    figure = blank(PANEL_WIDTH * len(probes), HEIGHT)
    panels = figure.subplots(1, len(probes), sharey=True, squeeze=False)[0]
    for axes, probe in zip(panels, probes, strict=True):
        _plain(axes)
        spec = probe_spec(probe)
        axes.set_title(spec.label, fontsize=12, color=INK, loc="left")
        axes.set_xlabel(spec.axis, fontsize=11, color=INK)
        for number, layer in enumerate(layers):
            points = _curve(sweep, probe, layer, measure)
            if points:
                x, y = zip(*points, strict=True)
                color = _color(number, len(layers))
                axes.plot(x, y, "-", color=color, linewidth=1.8 if few else 1.2)
                if few:
                    axes.plot(x, y, "o", color=color, markersize=3.5)
        _strength_axis(axes, [row["strength"] for row in _of(sweep, probe)])
        if measure == "auroc_gain":
            axes.axhline(0, color=INK, linewidth=1, zorder=1)
        _mark_choice(axes, sweep, probe, measure)
    _limits(panels[0], sweep, probes, measure)
    panels[0].set_ylabel(label, fontsize=11, color=INK)
    figure.subplots_adjust(wspace=0.08, right=0.9)
    _layer_scale(panels[-1], layers)
    below(panels[0], _caption(sweep, measure, PANEL_WIDTH * len(probes)), points=46)
    return figure


def draw_layers(sweep: Mapping[str, Any]) -> Figure:
    """Draw the same figures as colours, layers upwards and strengths to the right."""
    import matplotlib as mpl
    import numpy as np

    measure, label = _measure(sweep)
    probes, layers = _probes(sweep), _layers(sweep)
    grids = {probe: _grid(sweep, probe, layers, measure) for probe in probes}
    widths = [len(columns) for columns, _ in grids.values()]
    wide = 2.2 + 0.5 * sum(widths) + 0.4 * len(probes)
    figure = blank(wide, 1.9 + (0.36 if len(layers) <= FEW else 0.22) * len(layers))
    panels = figure.subplots(
        1, len(probes), sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths}
    )[0]
    values = np.concatenate([grid.ravel() for _, grid in grids.values()])
    low, high = _colour_limits(values[np.isfinite(values)], gain=measure == "auroc_gain")
    colors = mpl.colormaps["RdBu" if measure == "auroc_gain" else "viridis_r"]
    colors = colors.with_extremes(bad="#f5f7fa")
    for axes, probe in zip(panels, probes, strict=True):
        columns, grid = grids[probe]
        image = axes.imshow(grid, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
        axes.set_title(probe_spec(probe).label, fontsize=12, color=INK, loc="left")
        axes.set_xlabel(_strength_name(probe), fontsize=11, color=INK)
        axes.set_xticks(range(len(columns)), [_short(c) for c in columns], rotation=60)
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.tick_params(length=0, colors=INK, labelsize=10)
        for side in axes.spines.values():
            side.set_visible(False)
        _frame_choice(axes, sweep, probe, columns, layers)
    panels[0].set_ylabel("layer", fontsize=11, color=INK)
    figure.subplots_adjust(wspace=0.06, right=0.88)
    figure.align_xlabels(panels)
    bar = figure.colorbar(image, ax=list(panels), pad=0.02, fraction=0.04, extend="both")
    bar.set_label(label, fontsize=10.5, color=INK)
    bar.ax.tick_params(length=0, colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    below(panels[0], _caption(sweep, measure, wide, frame=True), points=64)
    return figure


def _measure(sweep: Mapping[str, Any]) -> tuple[str, str]:
    gains = [row["auroc_gain"] for row in sweep["rows"]]
    if any(_finite(gain) for gain in gains):
        return "auroc_gain", "AUROC − weak labels' AUROC"
    return "weak_log_loss", "out-of-fold weak log-loss"


def _probes(sweep: Mapping[str, Any]) -> list[str]:
    there = dict.fromkeys(row["probe"] for row in sweep["rows"])
    return [name for name, spec in REGISTRY.items() if spec.axis and name in there]


def _layers(sweep: Mapping[str, Any]) -> list[int]:
    return sorted({row["layer"] for row in sweep["rows"] if row["layer"] is not None})


def _of(sweep: Mapping[str, Any], probe: str) -> list[Mapping[str, Any]]:
    return [row for row in sweep["rows"] if row["probe"] == probe]


def _curve(sweep: Mapping[str, Any], probe: str, layer: int, measure: str) -> Points:
    """Strength and mean figure: of the seeds, and of TopoFilter's other strengths."""
    found: dict[float, list[float]] = {}
    for row in _of(sweep, probe):
        if row["layer"] == layer and _finite(row[measure]):
            found.setdefault(row["strength"], []).append(row[measure])
    return sorted((x, math.fsum(values) / len(values)) for x, values in found.items())


def _grid(
    sweep: Mapping[str, Any], probe: str, layers: Sequence[int], measure: str
) -> tuple[list[float], Any]:
    import numpy as np

    columns = sorted({row["strength"] for row in _of(sweep, probe)})
    grid = np.full((len(layers), len(columns)), np.nan)
    for i, layer in enumerate(layers):
        for x, value in _curve(sweep, probe, layer, measure):
            grid[i, columns.index(x)] = value
    return columns, grid


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", colors=INK, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)


def _strength_axis(axes: Axes, strengths: Sequence[float]) -> None:
    """A logarithmic axis, numbered as people write such numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = min(strengths), max(strengths)
    if low <= 0:
        smallest = min((s for s in strengths if s > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest)
    elif high > low:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(set(strengths)) <= 4:
        axes.set_xticks(sorted(set(strengths)))


def _limits(axes: Axes, sweep: Mapping[str, Any], probes: Sequence[str], measure: str) -> None:
    """Leave out what would press all else into a line: k = 1 and the like."""
    import numpy as np

    values = [
        y
        for probe in probes
        for layer in _layers(sweep)
        for _, y in _curve(sweep, probe, layer, measure)
    ]
    low, high = min(values), max(values)
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 4 * max(third - first, 1e-3)
    if measure == "auroc_gain":
        low = max(low, min(first - reach, 0))
    else:
        high = min(high, third + reach)
    room = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(low - room, high + room)


def _colour_limits(values: Any, *, gain: bool) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.05, 0.95])
    if gain:
        high = max(abs(low), abs(high), 1e-3)
        return -float(high), float(high)
    return float(low), float(max(high, low + 1e-6))


def _color(number: int, many: int) -> Any:
    import matplotlib as mpl

    share = (number + 1) / many
    return mpl.colormaps["viridis_r"](PALE + (DARK - PALE) * share)


def _layer_scale(axes: Axes, layers: Sequence[int]) -> None:
    """Name the lines at the right: a few layers, from the last at the top to the first."""
    many = len(layers)
    step = max(1, math.ceil(many / 13))
    shown = [i for i in range(many) if (many - 1 - i) % step == 0][::-1]
    axes.annotate("layer", (1.03, 1), xycoords="axes fraction", fontsize=10.5, color=INK, va="top")
    for place, i in enumerate(shown):
        y = 0.9 - 0.88 * place / max(len(shown), 8)
        axes.plot(
            [1.03, 1.09],
            [y, y],
            color=_color(i, many),
            linewidth=3,
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.annotate(
            str(layers[i]), (1.11, y), xycoords="axes fraction", fontsize=10, color=INK, va="center"
        )


def _mark_choice(axes: Axes, sweep: Mapping[str, Any], probe: str, measure: str) -> None:
    choice = sweep["choice"]
    if choice is None or choice["probe"] != probe or choice.get("layer") is None:
        return
    name = _strength_name(probe)
    for x, y in _curve(sweep, probe, choice["layer"], measure):
        if x == choice[name]:
            axes.plot(x, y, "o", markersize=11, markerfacecolor="none", color=CHOICE, mew=2)


def _frame_choice(
    axes: Axes, sweep: Mapping[str, Any], probe: str, columns: list[float], layers: list[int]
) -> None:
    from matplotlib.patches import Rectangle

    choice = sweep["choice"]
    if choice is None or choice["probe"] != probe or choice.get("layer") is None:
        return
    x, y = columns.index(choice[_strength_name(probe)]), layers.index(choice["layer"])
    frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=CHOICE, linewidth=2.5)
    frame.set_clip_on(False)
    axes.add_patch(frame)


def _strength_name(probe: str) -> str:
    return probe_spec(probe).strengths[0]


def _caption(sweep: Mapping[str, Any], measure: str, inches: float, *, frame: bool = False) -> str:
    if sweep["choice"] is None:  # of several sweeps; who averages them says so
        return ""
    rows = sweep["rows"][0]["rows"]
    parts = [f"{rows:,} rows, every figure out of fold."]
    if measure == "auroc_gain":
        auroc = sweep["weak_labels"]["auroc"]
        parts.append(f"Weak labels' AUROC {auroc:.3f}; above 0 a probe is better than its labels.")
    mark = "Framed" if frame else "Ringed"
    if sweep["choice"]["probe"] in _probes(sweep) and sweep["choice"].get("layer") is not None:
        parts.append(f"{mark}: the choice made without ground truth.")
    elif sweep["choice"]["probe"] not in _probes(sweep):
        parts.append(f"The choice without ground truth was {sweep['choice']['probe']}.")
    if "topofilter" in _probes(sweep):
        parts.append("TopoFilter: mean over its other strengths.")
    return "\n".join(textwrap.wrap(" ".join(parts), max(40, int(LETTERS * inches * 0.86))))


def _short(value: float) -> str:
    """1e-4, 0.003, 0.03, 1, 50."""
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:g}"


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
