"""Tables and figure of the grid's finetuned students: one training, read after every epoch.

``python benchmarks/weak_to_strong_curves.py`` draws the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _harness import RESULTS, read_lines
from weak_to_strong_students import BRIEF, FINETUNED, LOSSES, TRAININGS
from weak_to_strong_summary import (
    ARMS,
    CEILING,
    CLEANED,
    DOCS,
    GOALS_HEADER,
    PLAIN,
    SUPERVISOR,
    TAUGHT,
    Group,
    Line,
    goals,
    groups,
    of_seeds,
)

__all__ = [
    "at_stop",
    "draw",
    "finetuned_rows",
    "goal_rows",
    "last",
    "of_epoch",
    "readings",
]

READ = (1, 2, 4, 6)  # epochs that tables show
STOP = "early stop"
FIGURE = DOCS / "finetuned.png"


def of_epoch(epoch: int) -> Callable[[Line], Line]:
    """Read a finetuned student after an epoch; the supervisor's line is as it is."""
    return lambda line: line["epochs"][epoch - 1] if "epochs" in line else line


def at_stop(line: Line) -> Line:
    """Read a finetuned student where it agreed best with held-out weak labels."""
    return line["epochs"][line["stop"] - 1] if "epochs" in line else line


def last(line: Line) -> Line:
    """Read a finetuned student at the end of its training."""
    return line["epochs"][-1] if "epochs" in line else line


def readings() -> dict[str, Callable[[Line], Line]]:
    """Name -> where a finetuned student is read."""
    return {f"epoch {e}": of_epoch(e) for e in READ} | {STOP: at_stop}


def finetuned_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per task and arm: accuracy of plain and ceiling, gains of the others."""
    header = ["supervisor → strong, task", "arm", "labels right", *readings()]
    rows = []
    for each in groups(lines, FINETUNED):
        for arm, own in _arms(each).items():
            fewer = "" if len(own.seeds) == len(each.seeds) else f" ({of_seeds(own)})"
            cells = [each.name, f"{arm}{fewer}", f"{own.labels(arm):.1f}"]
            for at in readings().values():
                known = arm in (PLAIN, CEILING)
                cells.append(f"{own.accuracy(arm, at):.1f}" if known else str(own.gain(arm, at)))
            rows.append(cells)
    return header, rows


def _arms(group: Group) -> dict[str, Group]:
    """Arms from plain labels to the ceiling, with the seeds that have them."""
    found = {}
    for arm in (PLAIN, *LOSSES, *ARMS, *TAUGHT, CEILING):
        seeds = {seed: arms for seed, arms in group.seeds.items() if arm in arms}
        if seeds:
            found[arm] = replace(group, seeds=seeds)
    return found


def goal_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per reading: how many tasks with a gap gain or lose."""
    rows = []
    for name, at in readings().items():
        cells = goals(lines, FINETUNED, at).cells()
        rows.append([f"long, {name}", *cells[1:]])
    if groups(lines, BRIEF):
        rows.append(goals(lines, BRIEF, last).cells())
    return GOALS_HEADER, rows


def draw(lines: Sequence[Line], path: Path) -> None:
    """Test accuracy after every epoch of long trainings, and of brief ones on plain labels."""
    from probekit.reports.figures import (
        COLORS,
        FAINT,
        INK,
        above,
        below,
        blank,
        legend_beside,
        soft_axes,
        write_figure,
    )

    colors = {PLAIN: COLORS["plain"], CEILING: INK}
    colors |= dict(zip(CLEANED, (COLORS["filter"], "#7fb2d4", COLORS["relabel"]), strict=True))
    colors |= {"log-confidence": "#2f855a", "entropy": "#97c3a8", "window": "#b7791f"}
    every = groups(lines, FINETUNED)
    brief = {(each.pair, each.task): each for each in groups(lines, BRIEF)}
    pairs = list(dict.fromkeys(each.pair for each in every))
    tasks = list(dict.fromkeys(each.task for each in every))
    figure = blank(12.0, 3.4 * len(pairs))
    for each in every:
        row, column = pairs.index(each.pair), tasks.index(each.task)
        axes = figure.add_subplot(len(pairs), len(tasks), row * len(tasks) + column + 1)
        soft_axes(axes, size=8)
        arms = _arms(each)
        for arm, color in colors.items():
            if (own := arms.get(arm)) is None:
                continue
            of_seed = next(iter(own.seeds.values()))[arm]
            epochs = range(1, len(of_seed["epochs"]) + 1)
            values = [own.accuracy(arm, of_epoch(epoch)) for epoch in epochs]
            axes.plot(
                *(epochs, values),
                color=color,
                linewidth=2 if arm == PLAIN else 1.2,
                linestyle=":" if arm == CEILING else "-",
                label=arm,
            )
            stop = float(np.mean([of[arm]["stop"] for of in own.seeds.values()]))
            axes.plot(stop, np.interp(stop, epochs, values), "o", color=color, markersize=4)
        if (short := brief.get((each.pair, each.task))) is not None:
            epochs = range(1, TRAININGS[BRIEF].epochs + 1)
            values = [short.accuracy(PLAIN, of_epoch(epoch)) for epoch in epochs]
            style = {"color": colors[PLAIN], "linewidth": 1.6, "linestyle": (0, (4, 2))}
            axes.plot(epochs, values, **style, label=f"{PLAIN}, brief")
        axes.axhline(each.accuracy(SUPERVISOR), color=FAINT, linewidth=1, linestyle="--")
        above(axes, each.task, 0, left=True)
        if column == 0:
            name = each.pair.replace(":", " → ")
            axes.set_ylabel(f"{name}: test rows right, %", fontsize=9, color=INK)
        if row == len(pairs) - 1 and column == 0:
            note = "Epochs at a constant rate; brief: three, with a falling one. Dots: early stop, "
            note += "mean of seeds. Grey dashes: supervisor."
            below(axes, note, points=24)
        if row == 0 and column == len(tasks) - 1:
            legend_beside(axes, size=8)
    write_figure(figure, path)


if __name__ == "__main__":
    draw(read_lines(RESULTS / "weak_to_strong_finetuned.jsonl"), FIGURE)
