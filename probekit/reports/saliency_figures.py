"""Figures of ``probekit saliency``: the five bars, and accuracy by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit.reports.figures import FAINT, GRID, INK, below, blank
from probekit.reports.saliency_tables import instead

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_bars", "draw_layers"]

# Key of a bar -> colour and label: weak labels warm, ground truth cool, both: purple.
BARS = {
    "probe_weak": ("#d9822b", "1. probe,\nweak labels"),
    "probe_truth": ("#5fa8d3", "2. probe,\nground truth"),
    "finetune_weak": ("#b4540a", "3. finetune,\nweak labels"),
    "finetune_weak_probe_truth": ("#6b4ea0", "4. as 3, then\nprobe,\nground truth"),
    "finetune_truth": ("#0b69a3", "5. finetune,\nground truth"),
}
CURVES = {
    "finetune_weak_probe_truth": ("#6b4ea0", "ground truth, after finetuning on weak labels"),
    "finetune_truth_probe_truth": ("#0b69a3", "ground truth, after finetuning on it"),
    "probe_truth": ("#5fa8d3", "ground truth, before finetuning"),
    "probe_weak": ("#d9822b", "weak labels, before finetuning"),
}
LINES = {"finetune_truth": "finetune, ground truth", "finetune_weak": "finetune, weak labels"}
PANEL_COLUMNS = 3
HEADROOM = 0.14  # of the axis, above the tallest bar


def draw_bars(pair: Mapping[str, Any]) -> Figure:
    """The five bars, all tasks together first; like Burns et al. 2023, section 5.2.3.

    ``pair`` is an entry of ``pairs`` in metrics.json.
    """
    shown = _shown(pair)
    columns = 1 if len(shown) == 1 else min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = blank(7.4 * columns + 0.4, 4.5 * rows)
    panels = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"hspace": 0.52, "wspace": 0.32}
    )
    for axes, summary in zip(panels.flat, shown, strict=False):
        _bars_panel(axes, summary)
    for axes in panels[:, 0]:
        axes.set_ylabel("test rows right, %", fontsize=11, color=INK)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    below(panels[-1, 0], _bars_caption(pair, shown[0]), points=64)
    return figure


def _shown(pair: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*([pair["overall"]] if pair["overall"] is not None else []), *pair["tasks"]]


def _bars_panel(axes: Axes, summary: Mapping[str, Any]) -> None:
    _soft(axes)
    lowest, highest = _range(summary)
    for place, bar in enumerate(summary["bars"]):
        color, value = BARS[bar["key"]][0], 100 * bar["mean"]
        low, high = _ends(bar)
        axes.bar(place, value, width=0.68, color=color, zorder=2)
        axes.plot([place, place], [low, high], color=INK, linewidth=1.4, zorder=4)
        axes.annotate(
            f"{value:.1f}",
            (place, max(high, value)),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=11,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            zorder=6,
        )
        if bar["chosen"] is not None:
            chosen = 100 * bar["chosen"]["mean"]
            low, high = _ends(bar["chosen"])
            axes.plot([place + 0.45] * 2, [low, high], color=color, linewidth=1.2, zorder=3)
            axes.plot(
                place + 0.45,
                chosen,
                "D",
                markersize=7,
                color=color,
                markerfacecolor="white",
                markeredgewidth=1.6,
                zorder=5,
            )
    for key, style in (("weak_accuracy", "--"), ("chance", ":")):
        axes.axhline(100 * summary[key], color=FAINT, linewidth=1.1, linestyle=style, zorder=3)
    _beside_lines(axes, summary)
    axes.set_xticks(range(len(BARS)), [label for _, label in BARS.values()], fontsize=10)
    axes.set_xlim(-0.6, len(BARS) - 0.3)
    axes.set_ylim(lowest, highest)
    axes.set_title(f"{summary['name']}   {_gap(summary)}", fontsize=11, color=INK, loc="left")


def _range(summary: Mapping[str, Any]) -> tuple[float, float]:
    """From below the lowest figure, so that differences show, to above the highest."""
    seen = [100 * summary["chance"], 100 * summary["weak_accuracy"]]
    for bar in summary["bars"]:
        seen += [100 * bar["mean"], *_ends(bar)]
        if bar["chosen"] is not None:
            seen += [100 * bar["chosen"]["mean"], *_ends(bar["chosen"])]
    span = max(max(seen) - min(seen), 2)
    return max(0.0, min(seen) - 0.12 * span), max(seen) + HEADROOM * span


def _ends(found: Mapping[str, Any]) -> tuple[float, float]:
    """± the standard error where there is one, else the interval."""
    if found["sem"] is not None:
        return 100 * (found["mean"] - found["sem"]), 100 * (found["mean"] + found["sem"])
    return 100 * found["low"], 100 * found["high"]


def _beside_lines(axes: Axes, summary: Mapping[str, Any]) -> None:
    weak, chance = 100 * summary["weak_accuracy"], 100 * summary["chance"]
    upper_is_weak = weak >= chance
    for name, y, up in (
        ("weak supervisor", weak, upper_is_weak),
        ("majority", chance, not upper_is_weak),
    ):
        axes.annotate(
            f"{name}\n{y:.1f}",
            (1, y),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="bottom" if up else "top",
            fontsize=9.5,
            color=FAINT,
            annotation_clip=False,
        )


def _gap(summary: Mapping[str, Any]) -> str:
    gap = summary["gap_closed"]
    if gap["value"] is None:
        return f"no gap to close; {instead(summary)}"
    if gap["unbounded"]:
        return f"gap too small; {instead(summary)}"
    return f"gap closed {gap['value']:.2f} [{gap['low']:.2f} {gap['high']:.2f}]"


def _bars_caption(pair: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    lines = (
        "95 % interval over test rows"
        if first["over"] is None
        else f"± standard error of the mean over {first['over']}"
    )
    if pair["overall"] is not None:
        lines += " (of a task over its seeds, or its 95 % interval over test rows)"
    return (
        f"{pair['weak']} → {pair['strong']}, {len(pair['seeds'])} seed"
        f"{'s'[: len(pair['seeds']) != 1]}. The axis does not start at 0.\n"
        "Bars: linear probes at the last layer; diamonds: at the layer chosen on validation rows.\n"
        f"Lines on bars: {lines}.\n"
        "Gap closed: how far bar 4 lies from bar 2 to bar 5, with its 95 % interval."
    )


def draw_layers(pair: Mapping[str, Any]) -> Figure:
    """Accuracy of linear probes by layer, before and after finetuning on weak labels."""
    shown = _shown(pair)
    columns = 2 if len(shown) == 4 else min(PANEL_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = blank(5.2 * columns + 0.8, 3.5 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.42})
    for axes, summary in zip(panels.flat, shown, strict=False):
        _layers_panel(axes, summary)
    for axes in panels[:, 0]:
        axes.set_ylabel("test rows right, %", fontsize=11, color=INK)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        frameon=False,
        labelcolor=INK,
        fontsize=10,
        bbox_to_anchor=(
            figure.subplotpars.left - 0.01,
            figure.subplotpars.bottom - 0.42 / figure.get_figheight(),
        ),
    )
    return figure


def _layers_panel(axes: Axes, summary: Mapping[str, Any]) -> None:
    _soft(axes)
    bars = {bar["key"]: 100 * bar["mean"] for bar in summary["bars"]}
    for key, (color, name) in CURVES.items():
        if key not in summary["curves"]:
            continue
        curve = summary["curves"][key]
        mean = [100 * value for value in curve["mean"]]
        axes.plot(curve["layers"], mean, "-o", color=color, markersize=4.5, label=name, zorder=3)
        # Between tasks it is their difficulty that differs, not the curves.
        if summary["over"] == "seeds":
            axes.fill_between(
                curve["layers"],
                [m - 100 * s for m, s in zip(mean, curve["sem"], strict=True)],
                [m + 100 * s for m, s in zip(mean, curve["sem"], strict=True)],
                color=color,
                alpha=0.15,
                linewidth=0,
            )
        if curve["emerges"] is not None:
            at = curve["layers"].index(curve["emerges"])
            axes.plot(
                curve["emerges"],
                mean[at],
                "o",
                markersize=11,
                color=color,
                markerfacecolor="none",
                zorder=4,
            )
    for (key, name), style in zip(LINES.items(), ("-", "--"), strict=True):
        axes.axhline(bars[key], color=INK, linewidth=1.1, linestyle=style, label=name)
    axes.axhline(100 * summary["chance"], color=FAINT, linewidth=1.1, linestyle=":")
    axes.plot([], [], "o", markersize=11, color=FAINT, markerfacecolor="none", label=RING)
    axes.plot([], [], color=FAINT, linestyle=":", label="majority")
    layers = summary["curves"]["probe_truth"]["layers"]
    axes.set_xticks(_ticks(layers))
    axes.set_xlabel("layer (0: embeddings)", fontsize=11, color=INK)
    axes.set_title(str(summary["name"]), fontsize=11, color=INK, loc="left")


RING = "90 % of the way from the majority to the best layer"


def _ticks(layers: Sequence[int], most: int = 13) -> list[int]:
    step = -(-len(layers) // most)
    return list(layers[::step])


def _soft(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
