"""Reports of a sweep: tables, the choice in words, figures and page, from its file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.probes.registry import REGISTRY, STRENGTHS, probe_spec
from probekit.reports.figures import INK, below, blank, png, soft_axes, write, write_figure
from probekit.reports.page import RECORDED, Figure, Page, PageTable, flat
from probekit.reports.tables import MISSING, Table, share
from probekit.safe import plain_command

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

__all__ = [
    "choice_text",
    "draw_layers",
    "draw_strengths",
    "measure_name",
    "strength_text",
    "sweep_page",
    "sweep_table",
    "write_figures",
]

# Column -> heading; columns without a value (no ground truth was given) are omitted.
COLUMNS = {
    "weak_log_loss": "log-loss",
    "weak_log_loss_se": "± s.e.",
    "weak_accuracy": "acc weak",
    "weak_auroc": "AUROC weak",
    "changed": "changed",
    "accuracy": "acc",
    "auroc": "AUROC",
    "auroc_gain": "gain",
    "relabelled_soft": "soft",
    "relabelled_hard": "hard",
}
# Shown in percent, as in every table; files hold fractions.
PERCENT = (
    *("weak_accuracy", "weak_auroc", "changed", "accuracy", "auroc"),
    *("relabelled_soft", "relabelled_hard", "kept_own"),
)
USUAL_SHARE = 0.2
ROWS_SHOWN = 1000

PALE, DARK = 0.12, 0.95
CHOICE = "#b4540a"
PANEL_WIDTH, HEIGHT = 4.6, 3.6
FEW = 13  # layers; with more, points would hide the lines
CHARACTERS = 11.5  # of a caption per inch
Points = list[tuple[float, float]]


def sweep_page(sweep: Mapping[str, Any], *, title: str) -> Page:
    """Describe a sweep as a page; ``title`` is the name of its file.

    ``sweep`` is what :func:`probekit.experiments.sweep.read_sweep` returned.
    """
    rows, means, choice = sweep["rows"], sweep["means"], sweep["choice"]
    layers = list(dict.fromkeys(r["layer"] for r in rows if r["layer"] is not None))
    tables = [PageTable("The best strength of each layer and probe", sweep_table(sweep))]
    if sweep["regret"]:
        tables.append(PageTable("Cost of choosing without ground truth", _regret_table(sweep)))
    tables.append(PageTable("Every strength", _rows_table(means), folded=True))
    recorded = plain_command(sweep.get("command"), "sweep")
    return Page(
        title=title,
        kind="sweep",
        facts=(
            ("Layers", ", ".join(map(str, layers))),
            ("Probes", ", ".join(dict.fromkeys(row["probe"] for row in rows))),
            ("Strengths", f"{len(means):,}"),
            ("Chosen probe", str(choice["probe"])),
            ("Chosen layer", str(choice.get("layer", "all"))),
            ("Chosen strength", strength_text(choice) or MISSING),
        ),
        alarms=tuple(sweep.get("notes", ())),
        tables=tuple(tables),
        figures=tuple(
            Figure(caption, png(draw(sweep))) for draw, caption in _figures(sweep).values()
        ),
        notes=(" ".join(choice_text({**sweep, "regret": {}}).split("\n")),),
        commands=() if recorded is None else ((RECORDED, recorded),),
        provenance=flat(sweep.get("provenance", {})),
    )


def write_figures(sweep: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``strengths.png`` and ``layers.png``, or nothing if no probe has a strength."""
    figures = _figures(sweep)
    for name, (draw, _) in figures.items():
        write_figure(draw(sweep), folder / name)
    return [folder / name for name in figures]


def _figures(sweep: Mapping[str, Any]) -> dict[str, tuple[Callable[..., Any], str]]:
    """Curves and heat map, or none if no probe has a strength on a layer."""
    if not _probes(sweep) or not _layers(sweep):
        return {}
    return {
        "strengths.png": (draw_strengths, "By strength of regularisation, a line per layer"),
        "layers.png": (draw_layers, "Layers by strength"),
    }


def _regret_table(sweep: Mapping[str, Any]) -> Table:
    rows = []
    for measure, regret in sweep["regret"].items():
        at = regret["at"]
        where = [at["probe"], f"layer {at.get('layer', 'all')}", strength_text(at)]
        keys = ("chosen", "oracle", "regret", "by_strength")
        shown = (f"{100 * regret[key]:.2f}" for key in keys)
        rows.append((measure_name(measure), *shown, ", ".join(filter(None, where))))
    header = ("measure, %", "chosen", "best", "regret", "by strength", "the best is at")
    notes = (
        "The best of each measure is chosen with ground truth. By strength: the part of the regret",
        "that another strength of the chosen probe on the chosen layer would have avoided.",
    )
    return Table(header, tuple(rows), notes)


def _rows_table(means: Sequence[Mapping[str, Any]]) -> Table:
    own = ("layer", "probe", "strength", "seed", "rows", *STRENGTHS)
    names = [n for n in means[0] if n not in own and any(_finite(row[n]) for row in means)]
    rows = tuple(
        (
            row["probe"],
            "all" if row["layer"] is None else str(row["layer"]),
            strength_text(row) or MISSING,
            *(_cell(name, row[name]) for name in names),
        )
        for row in means[:ROWS_SHOWN]
    )
    left = len(means) - len(rows)
    notes = (f"The file has {left:,} more rows.",) if left else ()
    heads = (n.replace("_", " ") + (", %" if _in_percent(n) else "") for n in names)
    return Table(("probe", "layer", "strength", *heads), rows, notes)


def strength_text(row: Mapping[str, Any]) -> str:
    """A strength as text: ``k 50``, ``k_zeta 32, k_cc 4, zeta 0.5``; "" if there is none."""
    return ", ".join(f"{n} {row[n]:.3g}" for n in STRENGTHS if row.get(n) is not None)


def measure_name(column: str) -> str:
    """The name of a column of ground truth in a sentence."""
    kind, _, how = column.partition("_")
    if kind == "filtered":
        rule = "its own rule" if how == "own" else f"dropping {100 * float(how):g} %"
        return f"label accuracy after filter, {rule}"
    if kind == "relabelled":
        return f"label accuracy after relabel, {how}"
    return {"auroc": "AUROC", "auroc_gain": "AUROC less the weak labels'"}.get(column, column)


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """One row for each layer and probe, at the strength chosen without ground truth."""
    best = sweep["best"]
    shown = [name for name in COLUMNS if any(row[name] is not None for row in best)]
    dropped = _usual_filter(best)
    names = [*shown, *([dropped] if dropped else [])]
    header = (
        "layer",
        "probe",
        "strength",
        *(COLUMNS.get(name) or f"drop {name.removeprefix('filtered_')}" for name in names),
    )
    rows = tuple(
        (
            "all" if row["layer"] is None else str(row["layer"]),
            row["probe"] + (" *" if _is(row, sweep["choice"]) else ""),
            strength_text(row) or MISSING,
            *(_cell(name, row[name]) for name in names),
        )
        for row in best
    )
    return Table(header, rows, _notes(sweep, dropped))


def choice_text(sweep: Mapping[str, Any]) -> str:
    """The choice and, if ground truth is known, its regret against the best row."""
    choice = sweep["choice"]
    where = "all stored layers" if "layer" not in choice else f"layer {choice['layer']}"
    strength = strength_text(choice)
    lines = [
        f"Choice without ground truth: {choice['probe']} on {where}"
        + (f", {strength}" if strength else "")
        + f" (out-of-fold weak log-loss {choice['weak_log_loss']:.4f} "
        f"± {choice['weak_log_loss_se']:.4f}, least {choice['least']:.4f})."
    ]
    if len({row["layer"] for row in sweep["best"]}) > 1:
        lines.append(
            "Trust the strength more than the layer: weak labels are easiest to predict from "
            "states like those\ntheir supervisor read; --layers last avoids that question."
        )
    for measure, regret in sweep["regret"].items():
        if measure == "auroc_gain":
            continue  # AUROC less a constant
        at = regret["at"]
        layer = "all layers" if "layer" not in at else f"layer {at['layer']}"
        oracle = ", ".join(filter(None, [at["probe"], layer, strength_text(at)]))
        lines.append(
            f"  regret {100 * regret['regret']:.2f} points in {measure_name(measure)}, "
            f"{100 * regret['by_strength']:.2f} of it by the strength: "
            f"{100 * regret['chosen']:.2f} %, best {100 * regret['oracle']:.2f} % ({oracle})"
        )
    return "\n".join(lines)


def _usual_filter(best: Sequence[Mapping[str, Any]]) -> str | None:
    """The filter column whose share is nearest to the default one."""
    names = [
        name
        for name in best[0]
        if name.startswith("filtered_")
        and name != "filtered_own"
        and any(row[name] is not None for row in best)
    ]
    if not names:
        return None
    return min(names, key=lambda n: abs(float(n.removeprefix("filtered_")) - USUAL_SHARE))


def _notes(sweep: Mapping[str, Any], dropped: str | None) -> tuple[str, ...]:
    notes = [
        "Each layer and probe at the strength of the one-standard-error rule; * the choice. "
        "log-loss, acc weak,",
        "AUROC weak: out of fold, against the weak labels, %. changed: rows, %, that hard "
        "relabelling changes.",
    ]
    weak = sweep["weak_labels"]
    if weak["accuracy"] is not None:
        notes += [
            "acc, AUROC: against ground truth, %; gain: AUROC less the weak labels' own "
            f"({share(weak['auroc'])}), points. soft, hard"
            f"{', drop' if dropped else ''}: label accuracy, %, after",
            f"relabel{' and filter' if dropped else ''}; the weak labels': "
            f"{100 * weak['accuracy']:.1f} %.",
        ]
    return tuple(notes)


def _is(row: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    return all(row[name] == choice.get(name) for name in ("layer", "probe", *STRENGTHS))


def _in_percent(name: str) -> bool:
    """Whether tables show this column of the file in percent."""
    return name in PERCENT or name.startswith("filtered")


def _cell(name: str, value: float | None) -> str:
    """A value of a column of the file as text."""
    if value is None or not math.isfinite(value):
        return MISSING
    if _in_percent(name):
        return f"{100 * value:.1f}"
    return f"{100 * value:+.1f}" if name == "auroc_gain" else f"{value:.3f}"


def draw_strengths(sweep: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draw a panel per probe and a line per layer over the strength.

    With ground truth: the probe's AUROC less that of the weak labels, as in
    https://blog.eleuther.ai/weak-to-strong/. Without: the out-of-fold weak log-loss. ``sweep``
    is :attr:`probekit.experiments.sweep.Sweep.plain`.
    """
    measure, label = _measure(sweep)
    probes, layers = _probes(sweep), _layers(sweep)
    few = len(layers) <= FEW
    figure = blank(PANEL_WIDTH * len(probes), HEIGHT)
    panels = figure.subplots(1, len(probes), sharey=True, squeeze=False)[0]
    for axes, probe in zip(panels, probes, strict=True):
        soft_axes(axes)
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


def draw_layers(sweep: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draw the same values as a heat map, with layers upwards and strengths to the right."""
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
        soft_axes(axes, grid=None)
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
    names = {row["probe"] for row in sweep["rows"]}
    return [name for name, spec in REGISTRY.items() if spec.axis and name in names]


def _layers(sweep: Mapping[str, Any]) -> list[int]:
    return sorted({row["layer"] for row in sweep["rows"] if row["layer"] is not None})


def _of(sweep: Mapping[str, Any], probe: str) -> list[Mapping[str, Any]]:
    return [row for row in sweep["rows"] if row["probe"] == probe]


def _curve(sweep: Mapping[str, Any], probe: str, layer: int, measure: str) -> Points:
    """Strength and mean value, over seeds and over TopoFilter's other strengths."""
    curve: dict[float, list[float]] = {}
    for row in _of(sweep, probe):
        if row["layer"] == layer and _finite(row[measure]):
            curve.setdefault(row["strength"], []).append(row[measure])
    return sorted((x, math.fsum(values) / len(values)) for x, values in curve.items())


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


def _strength_axis(axes: Axes, strengths: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers as labels."""
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
    """Cut off outliers, such as k = 1, that would flatten every other curve."""
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


def _color(number: int, n: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis_r"](PALE + (DARK - PALE) * ((number + 1) / n))


def _layer_scale(axes: Axes, layers: Sequence[int]) -> None:
    """A legend at the right: up to 13 layers, the last at the top."""
    n = len(layers)
    step = max(1, math.ceil(n / 13))
    shown = [i for i in range(n) if (n - 1 - i) % step == 0][::-1]
    beside: dict[str, Any] = {"coords": "axes fraction"}
    write(axes, "layer", (1.03, 1), va="top", **beside)
    for place, i in enumerate(shown):
        y = 0.9 - 0.88 * place / max(len(shown), 8)
        line: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([1.03, 1.09], [y, y], color=_color(i, n), linewidth=3, **line)
        write(axes, str(layers[i]), (1.11, y), size=10, va="center", **beside)


def _choice_of(sweep: Mapping[str, Any], probe: str) -> tuple[int, float] | None:
    """Layer and strength of the choice, if it is this probe on one layer."""
    choice = sweep["choice"]
    if choice is None or choice["probe"] != probe or choice.get("layer") is None:
        return None
    return choice["layer"], choice[_strength_name(probe)]


def _mark_choice(axes: Axes, sweep: Mapping[str, Any], probe: str, measure: str) -> None:
    if (choice := _choice_of(sweep, probe)) is None:
        return
    layer, strength = choice
    for x, y in _curve(sweep, probe, layer, measure):
        if x == strength:
            axes.plot(x, y, "o", markersize=11, markerfacecolor="none", color=CHOICE, mew=2)


def _frame_choice(
    axes: Axes, sweep: Mapping[str, Any], probe: str, columns: list[float], layers: list[int]
) -> None:
    from matplotlib.patches import Rectangle

    if (choice := _choice_of(sweep, probe)) is None:
        return
    x, y = columns.index(choice[1]), layers.index(choice[0])
    frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=CHOICE, linewidth=2.5)
    frame.set_clip_on(False)
    axes.add_patch(frame)


def _strength_name(probe: str) -> str:
    return probe_spec(probe).strengths[0]


def _caption(sweep: Mapping[str, Any], measure: str, inches: float, *, frame: bool = False) -> str:
    if sweep["choice"] is None:  # the mean of several sweeps, which has a caption of its own
        return ""
    rows = sweep["rows"][0]["rows"]
    parts = [f"{rows:,} rows, every figure out of fold."]
    if measure == "auroc_gain":
        auroc = sweep["weak_labels"]["auroc"]
        parts.append(f"Weak labels' AUROC {auroc:.3f}; above 0 a probe beats its labels.")
    mark = "Framed" if frame else "Ringed"
    probe = sweep["choice"]["probe"]
    if probe not in _probes(sweep):
        parts.append(f"The choice without ground truth was {probe}.")
    elif sweep["choice"].get("layer") is not None:
        parts.append(f"{mark}: the choice made without ground truth.")
    if "topofilter" in _probes(sweep):
        parts.append("TopoFilter: mean over its other strengths.")
    return "\n".join(textwrap.wrap(" ".join(parts), max(40, int(CHARACTERS * inches * 0.86))))


def _short(value: float) -> str:
    """1e-4, 0.003, 0.03, 1, 50."""
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:g}"


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
