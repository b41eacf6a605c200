"""Table and figure of label_errors.py: ``python benchmarks/label_summary.py`` draws the figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS
from label_noise import KINDS
from label_states import MODELS, TASKS

__all__ = ["FIGURES", "KIND_NAMES", "METHODS", "draw", "margins", "read", "summarize"]

FILE = RESULTS / "label_errors.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "label_errors.png"
PEER, OURS = "cleanlab", "ensemble"
METHODS = {
    PEER: "cleanlab, text recipe",
    "Datalab": "cleanlab, Datalab on features",
    "SimiFeat": "SimiFeat, vote of 10",
    OURS: "ensemble",
}
KIND_NAMES = {
    "model": "weaker model",
    "words": "bag of words",
    "symmetric": "symmetric",
    "class": "by class",
    "unsure": "where unsure",
    "rule": "by a rule",
}
FIGURES = {"all": "all rows", "ap": "average precision", "precision": "precision"}
MODEL_NAMES = {
    "minilm": "all-MiniLM-L6-v2",
    "mpnet": "all-mpnet-base-v2",
    "smollm2": "SmolLM2-135M",
}
HELD = 75.0  # symmetric errors found at least this well: the states hold the concept
ALLOWED = -1.0  # points below cleanlab

Line = Mapping[str, Any]
Case = tuple[str, str, str, int]


def read(lines: Sequence[Line]) -> dict[Case, dict[str, Line]]:
    """Lines of each case (model, task, kind, seed) by method, of the cases that are complete."""
    cases: dict[Case, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        cases[line["model"], line["task"], line["kind"], line["seed"]][line["method"]] = line
    return {case: found for case, found in cases.items() if METHODS.keys() <= found.keys()}


def mean(cases: Sequence[Mapping[str, Line]], method: str, figure: str) -> float:
    """Mean of a figure in percent."""
    return float(np.mean([100 * found[method][figure] for found in cases]))


def margins(
    cases: Mapping[Case, Mapping[str, Line]], models: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """Points of the ensemble over cleanlab within the weak classes, of each task and kind."""
    each: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (model, task, kind, _), found in cases.items():
        if models is None or model in models:
            each[task, kind].append(100 * (found[OURS]["within"] - found[PEER]["within"]))
    return {pair: float(np.mean(values)) for pair, values in each.items()}


def held(cases: Mapping[Case, Mapping[str, Line]]) -> set[tuple[str, str]]:
    """The pairs (model, task) whose states hold the concept."""
    each: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (model, task, kind, _), found in cases.items():
        if kind == "symmetric":
            each[model, task].append(100 * found[OURS]["within"])
    return {pair for pair, values in each.items() if np.mean(values) >= HELD}


def summarize(lines: Sequence[Line]) -> tuple[list[str], list[list[str]], str]:
    """Header and five rows of the table, and what they say."""
    cases = read(lines)
    header = ["method", *KIND_NAMES.values(), "mean", *FIGURES.values()]
    of_kind = {k: [found for case, found in cases.items() if case[2] == k] for k in KINDS}
    values = []
    for method in METHODS:
        cells = [mean(of_kind[kind], method, "within") for kind in KINDS if of_kind[kind]]
        cells += [mean(list(cases.values()), method, figure) for figure in ("within", *FIGURES)]
        values.append(cells)
    places = list(METHODS)
    over = np.subtract(values[places.index(OURS)], values[places.index(PEER)])
    rows = [
        [name, *(f"{value:.1f}" for value in cells)]
        for name, cells in zip(METHODS.values(), values, strict=True)
    ]
    rows.append(["ensemble over cleanlab's recipe", *(f"{value:+.1f}" for value in over)])
    return header, rows, _conclusion(cases)


def _conclusion(cases: Mapping[Case, Mapping[str, Line]]) -> str:
    pairs = margins(cases)
    below = {pair: value for pair, value in pairs.items() if value < ALLOWED}
    worst = min(pairs, key=lambda pair: pairs[pair])
    holding = held(cases)
    parts = []
    for inside in (True, False):
        points = [
            100 * (found[OURS]["within"] - found[PEER]["within"])
            for case, found in cases.items()
            if (case[:2] in holding) == inside
        ]
        parts.append(float(np.mean(points)) if points else float("nan"))
    tasks, models = {case[1] for case in cases}, {case[0] for case in cases}
    return (
        f"{len(cases)} cases: {len(tasks)} tasks, {len(models)} strong models, six kinds, two "
        f"seeds. Mean margin of the ensemble: {np.mean(list(pairs.values())):+.1f} points over "
        f"pairs of a task and a kind; {parts[0]:+.1f} where the states hold the concept "
        f"(symmetric errors found with an AUROC of at least {HELD:.0f}: {len(holding)} of "
        f"{len({case[:2] for case in cases})} pairs of a model and a task), {parts[1]:+.1f} "
        f"elsewhere. It is more than a point below cleanlab on {len(below)} of {len(pairs)} pairs "
        f"of a task and a kind, most on {worst[0]}, {KIND_NAMES[worst[1]]} ({pairs[worst]:+.1f})."
    )


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw the margin over cleanlab by task and kind, a panel for each strong model."""
    from probekit.reports.figures import FAINT, INK, below, blank, plain_axes, write_figure

    colors = ("#0b69a3", "#2f7d4f", "#7a4fa3", "#b4540a", "#8a8a00", "#b3261e")
    cases = read(lines)
    models = [model for model in MODELS if any(case[0] == model for case in cases)]
    tasks = [task for task in TASKS if any(case[1] == task for case in cases)][::-1]
    each = [value for model in models for value in margins(cases, [model]).values()]
    figure = blank(3.6 * len(models) + 3, 1.8 + 0.34 * len(tasks))
    for place, model in enumerate(models):
        axes = figure.add_subplot(1, len(models), place + 1)
        plain_axes(axes, len(tasks))
        axes.set_yticks(range(len(tasks)), tasks if place == 0 else [""] * len(tasks), fontsize=9)
        axes.set_xlim(min(each) - 1, max(each) + 1)
        axes.axvline(0, color=INK, linewidth=1)
        margin = margins(cases, [model])
        for kind, color in zip(KINDS, colors, strict=True):
            known = [(margin[t, kind], y) for y, t in enumerate(tasks) if (t, kind) in margin]
            if known:
                axes.plot(*zip(*known, strict=True), "o", color=color, label=KIND_NAMES[kind])
        axes.set_title(MODEL_NAMES[model], fontsize=11, color=INK, loc="left")
        axes.set_xlabel("points of AUROC over cleanlab", fontsize=10, color=INK)
        if place == len(models) - 1:
            axes.legend(
                loc="center left",
                bbox_to_anchor=(1.02, 0.5),
                fontsize=9,
                frameon=False,
                labelcolor=FAINT,
            )
        elif place == 0:
            below(axes, "Within the weak classes; means of two seeds.", points=40)
    write_figure(figure, path)


if __name__ == "__main__":
    from grid_summary import read as read_lines

    draw(read_lines(FILE), FIGURE)
