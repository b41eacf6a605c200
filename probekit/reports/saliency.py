"""Reports of a saliency comparison: tables, figures and page, from its metrics.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.files import atomic_write
from probekit.reports.figures import FAINT, INK, below, blank, png, soft_axes, write, write_figure
from probekit.reports.page import Figure, Page, PageTable, folder_command, settings
from probekit.reports.tables import MISSING, Table, difference, interval, percent

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

__all__ = [
    "draw_bars",
    "draw_layers",
    "gap_sentence",
    "layers_table",
    "saliency_page",
    "saliency_table",
    "write_saliency_reports",
]

# Key of a bar -> colour and label: weak labels warm, ground truth cool, both: purple.
BARS = {
    "probe_weak": ("#d9822b", "1. probe,\nweak labels"),
    "probe_truth": ("#5fa8d3", "2. probe,\nground truth"),
    "finetune_weak": ("#b4540a", "3. finetune,\nweak labels"),
    "finetune_weak_probe_truth": ("#6b4ea0", "4. as 3, then\nprobe,\nground truth"),
    "finetune_truth": ("#0b69a3", "5. finetune,\nground truth"),
}
# Key of a curve -> colour and name in the figure.
CURVES = {
    "finetune_weak_probe_truth": ("#6b4ea0", "ground truth, after finetuning on weak labels"),
    "finetune_truth_probe_truth": ("#0b69a3", "ground truth, after finetuning on it"),
    "probe_truth": ("#5fa8d3", "ground truth, before finetuning"),
    "probe_weak": ("#d9822b", "weak labels, before finetuning"),
}
LINES = {"finetune_truth": "finetune, ground truth", "finetune_weak": "finetune, weak labels"}
PANEL_COLUMNS = 3
HEADROOM = 0.14  # of the axis, above the tallest bar
RING = "90 % of the way from the majority to the best layer"
# Key of a curve -> name in the table.
TABLED = {
    "probe_truth": "ground truth, before finetuning",
    "finetune_weak_probe_truth": "ground truth, after it on weak labels",
    "finetune_truth_probe_truth": "ground truth, after it on ground truth",
    "probe_weak": "weak labels, before finetuning",
}
SHOWN_LAYERS = 9


def write_saliency_reports(results: Mapping[str, Any], folder: Path) -> str:
    """Write table.md, bars.png and layers.png of a comparison and return its tables as text.

    ``results`` is the content of metrics.json; figures of several pairs of models are numbered.
    """
    text: list[str] = []
    markdown: list[str] = []
    several = len(results["pairs"]) > 1
    for number, pair in enumerate(results["pairs"], 1):
        for summary in _shown(pair):
            title = saliency_title(pair, summary)
            bars, layers = saliency_table(summary), layers_table(summary)
            text += [title, "", bars.text(), "", layers.text(), ""]
            markdown += [f"## {title}", "", bars.markdown(), "", layers.markdown(), ""]
        for name, (draw, caption) in FIGURES.items():
            path = f"{name}-{number}.png" if several else f"{name}.png"
            write_figure(draw(pair), folder / path)
            markdown += [f"![{caption}]({path})", ""]
    for failure in results.get("failures", ()):
        text.append(f"Warning: {failure}")
        markdown += [f"**Warning**: {failure}", ""]
    with atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join(markdown))
    return "\n".join(text).rstrip()


def saliency_page(results: Mapping[str, Any], *, folder: Path) -> Page:
    """Describe a comparison as a page; ``results`` is the content of metrics.json."""
    tables, figures = [], []
    for pair in results["pairs"]:
        for summary in _shown(pair):
            title = saliency_title(pair, summary)
            tables.append(PageTable(title, saliency_table(summary)))
            tables.append(PageTable(f"By layer: {title}", layers_table(summary)))
        where = f": {pair['weak']} → {pair['strong']}" if len(results["pairs"]) > 1 else ""
        for draw, caption in FIGURES.values():
            figures.append(Figure(f"{caption}{where}", png(draw(pair))))
    return Page(
        title=folder.absolute().name,
        kind="saliency",
        tables=tuple(tables),
        figures=tuple(figures),
        commands=(folder_command("saliency", folder),),
        provenance=settings(results, "versions", "hardware", "config"),
    )


def _shown(pair: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All tasks together, if there are several, then each task."""
    return [*([pair["overall"]] if pair["overall"] is not None else []), *pair["tasks"]]


def saliency_title(pair: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Tasks, models and seeds of a table."""
    seeds = len(pair["seeds"])
    models = f"{pair['weak']} → {pair['strong']}"
    return f"{summary['name']}: {models}, {seeds} seed{'s'[: seeds != 1]}"


def saliency_table(summary: Mapping[str, Any]) -> Table:
    """The five bars, with the probes at the last layer and at the layer chosen on validation.

    ``summary`` is an entry of ``tasks`` of a pair in metrics.json, or its ``overall``.
    """
    over_probe = {
        each["first"]: each for each in summary["compared"] if each["second"] == "probe_truth"
    }
    header = ("bar", "acc", "− bar 2", "AUROC", "acc, chosen layer", "layer")
    rows = []
    for number, bar in enumerate(summary["bars"], 1):
        key, layers = bar["key"], summary["chosen_layers"].get(bar["key"])
        rows.append(
            (
                f"{number}. {bar['name']}",
                _mean(bar),
                _difference(over_probe[key]) if key in over_probe else MISSING,
                percent(summary["auroc"][key]),
                MISSING if bar["chosen"] is None else _mean(bar["chosen"]),
                ", ".join(map(str, layers)) if layers else MISSING,
            )
        )
    return Table(header, tuple(rows), tuple(_notes(summary)))


def _mean(result: Mapping[str, Any]) -> str:
    """A mean in percent with its standard error, or with its interval if it has none."""
    text = percent(result["mean"])
    if result["sem"] is not None:
        return f"{text} ± {100 * result['sem']:.1f}"
    return f"{text} [{100 * result['low']:.1f} {100 * result['high']:.1f}]"


def _difference(result: Mapping[str, Any]) -> str:
    return difference(result["mean"], result["low"], result["high"])


def gap_sentence(summary: Mapping[str, Any], *, chosen: bool = False) -> str:
    """The share of the gap between bars 2 and 5 that bar 4 closes, or why it is undefined."""
    gap = summary["gap_closed_chosen" if chosen else "gap_closed"]
    where = "probes at the chosen layer" if chosen else "probes at the last layer"
    start = f"Gap closed, (bar 4 − bar 2) / (bar 5 − bar 2), {where}:"
    if gap["value"] is None:
        return f"{start} none to close, {gap['reason']}; {instead(summary, chosen=chosen)}."
    if gap["unbounded"]:
        return f"{start} no bounds, {gap['reason']}; {instead(summary, chosen=chosen)}."
    text = f"{start} {interval(gap['value'], gap['low'], gap['high'])}"
    if gap["sem"] is not None:
        text += f", s.e.m. over {summary['over']} {gap['sem']:.2f}"
    return text + "."


def instead(summary: Mapping[str, Any], *, chosen: bool = False) -> str:
    """Bar 4 − bar 2 in points, shown if there is no gap."""
    result = _compared(summary)["finetune_weak_probe_truth", "probe_truth"]
    return f"bar 4 − bar 2 {_difference(result['chosen'] if chosen else result)} points"


def finetune_sentence(summary: Mapping[str, Any]) -> str:
    """The gain of finetuning over a linear probe on the same labels, in points."""
    compared = _compared(summary)
    weak = _difference(compared["finetune_weak", "probe_weak"])
    truth = _difference(compared["finetune_truth", "probe_truth"])
    return f"Finetuning over a probe, points: on weak labels {weak}, on ground truth {truth}."


def _compared(summary: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(each["first"], each["second"]): each for each in summary["compared"]}


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    yield gap_sentence(summary)
    yield gap_sentence(summary, chosen=True)
    yield finetune_sentence(summary)
    yield (
        f"acc: test rows right at 0.5, %; majority {percent(summary['chance'])}, weak supervisor "
        f"{percent(summary['weak_accuracy'])};"
    )
    yield (
        f"{percent(summary['label_accuracy'])} % of the weak labels are right. All bars train on "
        "the same rows; penalties and"
    )
    yield "layers are chosen on validation rows (bar 1: by their weak labels), never on test rows."
    if summary["over"] is not None:
        yield f"± standard error of the mean over {summary['over']}."
    yield "[95 % interval]: paired bootstrap over test rows; another seed moves it too."


def layers_table(summary: Mapping[str, Any]) -> Table:
    """Test accuracy by layer of linear probes before and after finetuning."""
    curves = {key: summary["curves"][key] for key in TABLED if key in summary["curves"]}
    if not curves:
        raise LookupError("no curves")  # of a damaged file
    layers = next(iter(curves.values()))["layers"]
    shown = _spaced(len(layers))
    header = ("probe", *(f"layer {layers[i]}" for i in shown), "linear from")
    rows = tuple(
        (
            TABLED[key],
            *(percent(curve["mean"][i]) for i in shown),
            MISSING if curve["emerges"] is None else f"layer {curve['emerges']}",
        )
        for key, curve in curves.items()
    )
    notes = (
        "Test rows that linear probes get right, %, before and after finetuning. linear from: the",
        "first layer whose probe reaches 90 % of the way from the majority to the best layer.",
    )
    return Table(header, rows, notes)


def _spaced(n: int) -> list[int]:
    """At most nine indices, evenly spaced, the first and the last included."""
    if n <= SHOWN_LAYERS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)})


def draw_bars(pair: Mapping[str, Any]) -> matplotlib.figure.Figure:
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


def _bars_panel(axes: Axes, summary: Mapping[str, Any]) -> None:
    soft_axes(axes, grid="y")
    lowest, highest = _range(summary)
    for place, bar in enumerate(summary["bars"]):
        color, value = BARS[bar["key"]][0], 100 * bar["mean"]
        low, high = _ends(bar)
        axes.bar(place, value, width=0.68, color=color, zorder=2)
        axes.plot([place, place], [low, high], color=INK, linewidth=1.4, zorder=4)
        box: Any = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        at = place, max(high, value)
        write(axes, f"{value:.1f}", at, (0, 3), size=11, ha="center", bbox=box, zorder=6)
        if bar["chosen"] is not None:
            chosen = 100 * bar["chosen"]["mean"]
            low, high = _ends(bar["chosen"])
            axes.plot([place + 0.45] * 2, [low, high], color=color, linewidth=1.2, zorder=3)
            hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.6}
            axes.plot(place + 0.45, chosen, "D", markersize=7, color=color, zorder=5, **hollow)
    for key, style in (("weak_accuracy", "--"), ("chance", ":")):
        axes.axhline(100 * summary[key], color=FAINT, linewidth=1.1, linestyle=style, zorder=3)
    _beside_lines(axes, summary)
    axes.set_xticks(range(len(BARS)), [label for _, label in BARS.values()], fontsize=10)
    axes.set_xlim(-0.6, len(BARS) - 0.3)
    axes.set_ylim(lowest, highest)
    axes.set_title(f"{summary['name']}   {_gap(summary)}", fontsize=11, color=INK, loc="left")


def _range(summary: Mapping[str, Any]) -> tuple[float, float]:
    """Limits of the axis: not from 0, so that differences show."""
    seen = [100 * summary["chance"], 100 * summary["weak_accuracy"]]
    for bar in summary["bars"]:
        seen += [100 * bar["mean"], *_ends(bar)]
        if bar["chosen"] is not None:
            seen += [100 * bar["chosen"]["mean"], *_ends(bar["chosen"])]
    span = max(max(seen) - min(seen), 2)
    return max(0.0, min(seen) - 0.12 * span), max(seen) + HEADROOM * span


def _ends(result: Mapping[str, Any]) -> tuple[float, float]:
    """Mean ± standard error if there is one, else the interval."""
    if result["sem"] is not None:
        return 100 * (result["mean"] - result["sem"]), 100 * (result["mean"] + result["sem"])
    return 100 * result["low"], 100 * result["high"]


def _beside_lines(axes: Axes, summary: Mapping[str, Any]) -> None:
    weak, chance = 100 * summary["weak_accuracy"], 100 * summary["chance"]
    place: dict[str, Any] = {"coords": ("axes fraction", "data"), "annotation_clip": False}
    for name, y, up in (
        ("weak supervisor", weak, weak >= chance),
        ("majority", chance, weak < chance),
    ):
        va = "bottom" if up else "top"
        write(axes, f"{name}\n{y:.1f}", (1, y), (5, 0), size=9.5, color=FAINT, va=va, **place)


def _gap(summary: Mapping[str, Any]) -> str:
    gap = summary["gap_closed"]
    if gap["value"] is None:
        return f"no gap to close; {instead(summary)}"
    if gap["unbounded"]:
        return f"gap too small; {instead(summary)}"
    return f"gap closed {interval(gap['value'], gap['low'], gap['high'])}"


def _bars_caption(pair: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    lines = (
        "95 % interval over test rows"
        if first["over"] is None
        else f"± standard error of the mean over {first['over']}"
    )
    if pair["overall"] is not None:
        lines += " (for a task: over its seeds, or its 95 % interval over test rows)"
    return (
        f"{pair['weak']} → {pair['strong']}, {len(pair['seeds'])} seed"
        f"{'s'[: len(pair['seeds']) != 1]}. The axis does not start at 0.\n"
        "Bars: linear probes at the last layer; diamonds: at the layer chosen on validation rows.\n"
        f"Lines on bars: {lines}.\n"
        "Gap closed: (bar 4 − bar 2) / (bar 5 − bar 2), with its 95 % interval."
    )


def draw_layers(pair: Mapping[str, Any]) -> matplotlib.figure.Figure:
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
    soft_axes(axes, grid="y")
    bars = {bar["key"]: 100 * bar["mean"] for bar in summary["bars"]}
    for key, (color, name) in CURVES.items():
        if key not in summary["curves"]:
            continue
        curve = summary["curves"][key]
        mean = [100 * value for value in curve["mean"]]
        axes.plot(curve["layers"], mean, "-o", color=color, markersize=4.5, label=name, zorder=3)
        # Over tasks the spread is that of their difficulty, not of the curves.
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
            ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none"}
            axes.plot(curve["emerges"], mean[at], "o", color=color, zorder=4, **ring)
    for (key, name), style in zip(LINES.items(), ("-", "--"), strict=True):
        axes.axhline(bars[key], color=INK, linewidth=1.1, linestyle=style, label=name)
    axes.axhline(100 * summary["chance"], color=FAINT, linewidth=1.1, linestyle=":")
    axes.plot([], [], "o", markersize=11, color=FAINT, markerfacecolor="none", label=RING)
    axes.plot([], [], color=FAINT, linestyle=":", label="majority")
    layers = summary["curves"]["probe_truth"]["layers"]
    axes.set_xticks(_ticks(layers))
    axes.set_xlabel("layer (0: embeddings)", fontsize=11, color=INK)
    axes.set_title(str(summary["name"]), fontsize=11, color=INK, loc="left")


def _ticks(layers: Sequence[int], maximum: int = 13) -> list[int]:
    step = -(-len(layers) // maximum)
    return list(layers[::step])


FIGURES = {
    "bars": (draw_bars, "Probe against finetune"),
    "layers": (draw_layers, "Accuracy of linear probes by layer"),
}
