"""Figures of ``probekit run``, from what its metrics.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit.reports.figures import (
    COLORS,
    FAINT,
    GRID,
    INK,
    WIDTH_INCHES,
    above,
    below,
    blank,
    plain_axes,
)
from probekit.reports.run_tables import run_title, shown_pgr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_arms", "draw_curves", "draw_grid"]

ARM_COLORS = COLORS | {
    "loss": "#6b4ea0",
    "probe": "#2f7d4f",
    "round": "#8a1c4a",
    "chain": "#0b69a3",
    "naive": "#52606d",
}
LINES = ("#0b69a3", "#b4540a", "#2f7d4f", "#6b4ea0", "#8a1c4a", "#52606d")
CURVES = (
    ("accuracy", LINES[0], "test accuracy (ground truth)"),
    ("weak_agreement", LINES[1], "agreement with held-out weak labels"),
)
STOPS = (
    ("weak_early_stop", "v", "stop at the best agreement"),
    ("oracle", "*", "best accuracy (oracle)"),
)
GRID_PANELS = (
    ("accuracy", "test rows right, %"),
    ("pgr", "PGR"),
    ("wrong", "supervisor's errors repeated, %"),
)
NEAR = 0.15  # of the axis: ticks of sizes nearer than this would run into each other


def draw_arms(group: Mapping[str, Any]) -> Figure:
    """Test accuracy of every student between weak floor and ceiling; seeds as small marks.

    ``group`` is an entry of ``groups`` in metrics.json.
    """
    arms = [arm for arm in group["arms"] if arm["kind"] in ARM_COLORS and _measured(arm)]
    figure = blank(WIDTH_INCHES, 1.6 + 0.36 * len(arms))
    axes = figure.subplots()
    plain_axes(axes, len(arms))
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    axes.set_xlabel("test rows right, %", fontsize=11, color=INK, labelpad=6)
    for tick, arm in zip(axes.get_yticklabels(), arms, strict=True):
        tick.set_color(ARM_COLORS[arm["kind"]])
    seen = []
    for row, arm in enumerate(arms):
        color, figures = ARM_COLORS[arm["kind"]], arm["figures"]["accuracy"]
        value = 100 * figures["median"]
        each = [100 * v for v in figures["values"] if v is not None]
        bar = _bar(arm, value)
        axes.plot(bar, [row, row], color=color, linewidth=2.5, alpha=0.4)
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "|", markersize=8, color=color)
        axes.plot(value, row, "o", markersize=7, color=color)
        seen += [value, *bar, *each]
    plain = next((arm for arm in arms if arm["kind"] in ("plain", "naive")), None)
    if plain is not None:
        axes.axvline(100 * _accuracy(plain), color=FAINT, linewidth=1, linestyle=":")
    seen += _ends(axes, group)
    seen = seen or [0, 100]
    span = max(max(seen) - min(seen), 1)
    axes.set_xlim(min(seen) - 0.06 * span, max(seen) + 0.06 * span)
    bars = (
        "Dots: medians; marks: seeds; bars: ± standard error of the mean."
        if len(group["seeds"]) > 1
        else "Bars: 95 % interval of the difference from the dotted line, paired over test rows."
    )
    below(axes, f"{run_title(group)}.\n{bars}", points=48)
    return figure


def _ends(axes: Axes, group: Mapping[str, Any]) -> list[float]:
    """Draw weak supervisor and ceiling as lines down, those that did not fail."""
    names = {"floor": "weak supervisor", "ceiling": "ground truth"}
    ends = {kind: found for kind in names if (found := _end(group, kind)) is not None}
    for kind, value in ends.items():
        other = next((ends[each] for each in ends if each != kind), value)
        axes.axvline(100 * value, color=INK, linewidth=1.2, zorder=1)
        # Away from each other: the two lines may be close.
        align = "center" if value == other else "right" if value < other else "left"
        above(axes, f"{names[kind]}\n{100 * value:.1f}", 100 * value, align=align)
    return [100 * value for value in ends.values()]


def _bar(arm: Mapping[str, Any], value: float) -> tuple[float, float]:
    """Of several seeds ± their standard error, of one its interval against the plain student."""
    sem = arm["figures"]["accuracy"]["sem"]
    if sem is not None:
        return value - 100 * sem, value + 100 * sem
    gain = arm["gain"]
    if gain is None or "low" not in gain:
        return value, value
    low, high = (value + 100 * (gain[key] - gain["median"]) for key in ("low", "high"))
    return low, high


def draw_curves(result: Mapping[str, Any]) -> Figure:
    """Accuracy against ground truth and agreement with held-out weak labels over the training.

    ``result`` is an entry of ``results`` in metrics.json that has ``curves``.
    """
    curves = result["curves"]
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = blank(3.6 * columns + 0.6, 2.9 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    names = {"floor": "weak supervisor", "ceiling": "ground truth"}
    ends = {
        names[arm["kind"]]: arm["accuracy"]
        for arm in result["arms"]
        if arm["kind"] in names and arm["accuracy"] is not None
    }
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        _soft(axes)
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        for end in ends.values():
            axes.axhline(100 * end, color=INK, linewidth=1)
        for key, color, label in CURVES:
            values = [100 * value for value in curve[key]]
            axes.plot(curve["steps"], values, "-o", color=color, markersize=4, label=label)
        for stop, mark, label in STOPS:
            found = curve["stops"][stop]
            size = 13 if mark == "*" else 9
            x, y = found["step"], 100 * found["accuracy"]
            axes.plot(x, y, mark, color=INK, markersize=size, label=label)
    first, last = panels[0, 0], panels.flat[len(curves) - 1]
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for place, axes in enumerate(panels.flat[: len(curves)]):
        if place + columns >= len(curves):
            axes.set_xlabel("step", fontsize=11, color=INK)
            axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("%", fontsize=11, color=INK)
    for name, end in ends.items():
        # Away from each other: the two lines may be close.
        _beside(last, name, 100 * end, side="bottom" if end == max(ends.values()) else "top")
    handles, labels = first.get_legend_handles_labels()
    _legend(figure, handles, labels, columns=1 if columns == 1 else 2, inches=0.55)
    return figure


def draw_grid(groups: Sequence[Mapping[str, Any]]) -> Figure:
    """Score, PGR and inherited errors of the plain student against its size, by supervisor.

    The third panel asks for inverse scaling: whether larger students repeat more of the
    supervisor's errors (Burns et al. 2023, section 5.1.3). ``groups`` are those of one task.
    """
    figure = blank(12.5, 3.9)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.22})
    weak = sorted({(group["parameters"]["weak"], group["weak"]) for group in groups})
    for axes, (panel, label) in zip(panels, GRID_PANELS, strict=True):
        _soft(axes)
        _size_axis(axes, sorted({group["parameters"]["strong"] for group in groups}))
        axes.set_title(label, fontsize=11, color=INK, loc="left")
        for (_, name), color in zip(weak, LINES * len(weak), strict=False):
            mine = [group for group in groups if group["weak"] == name]
            points = [(g["parameters"]["strong"], _plain_value(g, panel)) for g in mine]
            known = sorted((x, y) for x, y in points if y is not None)
            axes.plot(*_columns(known), "-o", color=color, label=f"from {name}")
            floor = _end(mine[0], "floor")
            if panel == "accuracy" and floor is not None:
                axes.axhline(100 * floor, color=color, linestyle=":", linewidth=1)
        if panel == "accuracy":
            tops = {(g["parameters"]["strong"], _end(g, "ceiling")) for g in groups}
            drawn = sorted((size, 100 * top) for size, top in tops if top is not None)
            axes.plot(*_columns(drawn), "-", color=INK, label="ground truth")
        if panel == "pgr":
            axes.axhline(0, color=FAINT, linewidth=1)
    handles, labels = panels[0].get_legend_handles_labels()
    text = f"{groups[0]['task']}, plain students on weak labels. Dotted: the weak supervisors."
    below(panels[0], text, points=46)
    _legend(figure, handles, labels, columns=min(4, len(labels)), inches=0.85)
    return figure


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Logarithmic, with ticks at the models' own sizes."""
    axes.set_xscale("log")
    apart = (sizes[-1] / sizes[0]) ** NEAR
    ticks = [sizes[0]]
    for size in sizes[1:]:
        if size >= apart * ticks[-1]:
            ticks.append(size)
    axes.set_xticks(ticks, [_size(size) for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("student's parameters", fontsize=11, color=INK)


def _size(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def _accuracy(arm: Mapping[str, Any]) -> float:
    return float(arm["figures"]["accuracy"]["median"])


def _measured(arm: Mapping[str, Any]) -> bool:
    """Whether a seed of it did not fail."""
    return arm["figures"]["accuracy"]["median"] is not None


def _end(group: Mapping[str, Any], kind: str) -> float | None:
    arm = next(arm for arm in group["arms"] if arm["kind"] == kind)
    return _accuracy(arm) if _measured(arm) else None


def _plain_value(group: Mapping[str, Any], panel: str) -> float | None:
    arm = next(arm for arm in group["arms"] if arm["kind"] == "plain")
    if not _measured(arm):
        return None
    if panel == "accuracy":
        return 100 * _accuracy(arm)
    if panel == "pgr":
        return shown_pgr(arm["pgr"])  # refused where the tables refuse it
    wrong = None if arm["agreement"] is None else arm["agreement"]["wrong"]["median"]
    return None if wrong is None else 100 * float(wrong)


def _soft(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)


def _beside(axes: Axes, text: str, y: float, *, side: str) -> None:
    axes.annotate(
        text,
        (1, y),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va=side,
        fontsize=10,
        color=INK,
        annotation_clip=False,
    )


def _legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], *, columns: int, inches: float
) -> None:
    """So far below the axes."""
    figure.legend(
        handles,
        labels,
        loc="upper center",
        ncol=columns,
        frameon=False,
        labelcolor=INK,
        bbox_to_anchor=(0.5, figure.subplotpars.bottom - inches / figure.get_figheight()),
    )
