"""Figures of ``probekit run``, from what its metrics.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.files import atomic_write
from probekit.reports.figures import DPI, FAINT, GRID, INK, WIDTH_INCHES, above, plain_axes
from probekit.reports.run_tables import run_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_arms", "draw_curves", "draw_grid", "write_figure"]

COLORS = {
    "plain": "#52606d",
    "loss": "#6b4ea0",
    "random": "#9aa5b1",
    "filter": "#b4540a",
    "relabel": "#0b69a3",
    "probe": "#2f7d4f",
    "round": "#8a1c4a",
    "chain": "#0b69a3",
    "naive": "#52606d",
}
LINES = ("#0b69a3", "#b4540a", "#2f7d4f", "#6b4ea0", "#8a1c4a", "#52606d")
GRID_PANELS = (
    ("accuracy", "test accuracy, %"),
    ("pgr", "PGR"),
    ("wrong", "agreement where the supervisor is wrong, %"),
)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.2)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_arms(group: Mapping[str, Any]) -> Figure:
    """Test accuracy of every student between weak floor and ceiling; seeds as small marks.

    ``group`` is an entry of ``groups`` in metrics.json.
    """
    arms = [arm for arm in group["arms"] if arm["kind"] in COLORS]
    ends = [
        next(arm for arm in group["arms"] if arm["kind"] == kind) for kind in ("floor", "ceiling")
    ]
    figure = _figure(WIDTH_INCHES, 1.6 + 0.36 * len(arms))
    axes = figure.subplots()
    plain_axes(axes, len(arms))
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    axes.set_xlabel("test rows right, %", fontsize=11, color=INK, labelpad=6)
    for tick, arm in zip(axes.get_yticklabels(), arms, strict=True):
        tick.set_color(COLORS[arm["kind"]])
    seen = []
    for row, arm in enumerate(arms):
        color, figures = COLORS[arm["kind"]], arm["figures"]["accuracy"]
        value = 100 * figures["median"]
        each = [100 * v for v in figures["values"] if v is not None]
        bar = _bar(arm, value)
        axes.plot(bar, [row, row], color=color, linewidth=2.5, alpha=0.4)
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "|", markersize=8, color=color)
        axes.plot(value, row, "o", markersize=7, color=color)
        seen += [value, *bar, *each]
    floor, top = (100 * arm["figures"]["accuracy"]["median"] for arm in ends)
    for value, other, name in ((floor, top, "weak supervisor"), (top, floor, "ground truth")):
        axes.axvline(value, color=INK, linewidth=1.2, zorder=1)
        # Away from each other: the two lines may be close.
        align = "center" if value == other else "right" if value < other else "left"
        above(axes, f"{name}\n{value:.1f}", value, align=align)
        seen.append(value)
    span = max(max(seen) - min(seen), 1)
    axes.set_xlim(min(seen) - 0.06 * span, max(seen) + 0.06 * span)
    _caption(axes, group)
    return figure


def _bar(arm: Mapping[str, Any], value: float) -> tuple[float, float]:
    """Of several seeds ± their standard error, of one its interval against the weak supervisor."""
    sem = arm["figures"]["accuracy"]["sem"]
    if sem is not None:
        return value - 100 * sem, value + 100 * sem
    gain = arm["gain"]
    if gain is None or "low" not in gain:
        return value, value
    low, high = (value + 100 * (gain[key] - gain["median"]) for key in ("low", "high"))
    return low, high


def _caption(axes: Axes, group: Mapping[str, Any]) -> None:
    several = len(group["seeds"]) > 1
    text = (
        "Dots: medians; marks: seeds; bars: ± standard error of the mean."
        if several
        else "Bars: 95 % interval of the difference from plain weak labels, paired over test rows."
    )
    axes.annotate(
        f"{run_title(group)}. {text}",
        (0, 0),
        (0, -48),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=10,
        color=FAINT,
    )


def draw_curves(result: Mapping[str, Any]) -> Figure:
    """Accuracy against ground truth and agreement with held-out weak labels over the training."""
    curves = result["curves"]
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(3.6 * columns + 0.6, 2.9 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    ends = [arm["accuracy"] for arm in result["arms"] if arm["kind"] in ("floor", "ceiling")]
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        _soft(axes)
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        for end in ends:
            axes.axhline(100 * end, color=INK, linewidth=1)
        for key, color, label in (
            ("accuracy", LINES[0], "test accuracy (ground truth)"),
            ("weak_agreement", LINES[1], "agreement with held-out weak labels"),
        ):
            values = [100 * value for value in curve[key]]
            axes.plot(curve["steps"], values, "-o", color=color, markersize=4, label=label)
        stop = curve["stops"]["weak_early_stop"]
        axes.axvline(stop["step"], color=FAINT, linestyle=":", linewidth=1)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("step", fontsize=11, color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel("%", fontsize=11, color=INK)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncol=2, frameon=False, bbox_to_anchor=(0.5, 0.04)
    )
    return figure


def draw_grid(groups: Sequence[Mapping[str, Any]]) -> Figure:
    """Score, PGR and inherited errors of the plain student against its size, by supervisor.

    The third panel asks for inverse scaling: whether larger students repeat more of the
    supervisor's errors (Burns et al. 2023, section 5.1.3).
    """
    figure = _figure(12.5, 3.9)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.28})
    weak = sorted({(g["parameters"]["weak"], g["weak"]) for g in groups})
    for axes, (panel, label) in zip(panels, GRID_PANELS, strict=True):
        _soft(axes)
        axes.set_xscale("log")
        axes.set_xlabel("student's parameters", fontsize=11, color=INK)
        axes.set_title(label, fontsize=11, color=INK, loc="left")
        for (_, name), color in zip(weak, LINES * 3, strict=False):
            mine = sorted(
                (g for g in groups if g["weak"] == name), key=lambda g: g["parameters"]["strong"]
            )
            points = [(g["parameters"]["strong"], _plain_value(g, panel)) for g in mine]
            points = [(x, y) for x, y in points if y is not None]
            if points:
                axes.plot(*zip(*points, strict=True), "-o", color=color, label=f"from {name}")
            if panel == "accuracy":
                floor = _figure_of(mine[0], "floor")
                axes.axhline(100 * floor, color=color, linestyle=":", linewidth=1)
        if panel == "accuracy":
            ceilings = sorted(
                {(g["parameters"]["strong"], 100 * _figure_of(g, "ceiling")) for g in groups}
            )
            axes.plot(*zip(*ceilings, strict=True), "-", color=INK, label="ground truth")
        if panel == "pgr":
            axes.axhline(0, color=FAINT, linewidth=1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower center",
        ncol=min(4, len(labels)),
        frameon=False,
        bbox_to_anchor=(0.5, -0.2),
    )
    return figure


def _figure_of(group: Mapping[str, Any], kind: str) -> float:
    arm = next(arm for arm in group["arms"] if arm["kind"] == kind)
    return float(arm["figures"]["accuracy"]["median"])


def _plain_value(group: Mapping[str, Any], panel: str) -> float | None:
    arm = next(arm for arm in group["arms"] if arm["kind"] == "plain")
    if panel == "accuracy":
        return 100 * float(arm["figures"]["accuracy"]["median"])
    if panel == "pgr":
        value = arm["pgr"]["median"]
        return None if value is None else float(value)
    wrong = arm["agreement"]["wrong"]["median"]
    return None if wrong is None else 100 * float(wrong)


def _soft(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
