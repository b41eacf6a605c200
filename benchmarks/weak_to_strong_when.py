"""When a relabel pays: README's figure of the weak-to-strong grid.

``python benchmarks/weak_to_strong_when.py`` draws it from the committed results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _harness import RESULTS, read_lines
from weak_to_strong_advice import KINDS
from weak_to_strong_curves import last
from weak_to_strong_students import FINETUNED
from weak_to_strong_summary import DOCS, PLAIN, Gain, Group, Line, groups

from probekit.cleaning.student import NEEDED

__all__ = ["draw", "points_of"]

FIGURE = DOCS / "when.png"
PANELS = {
    "memorising": "memorising classifier: relabel --hard",
    "regularised": "regularised classifier: relabel",
    FINETUNED: "finetuned for six epochs: relabel",
}
# The relabel that suits each, as the advice has it.
RELABEL = {kind.student: kind.relabel for kind in KINDS.values()}
# Tasks on which labels are right and the strong model is stronger; the others are one colour.
TASKS = {"sst2": "#2b6cb0", "twitter-sentiment": "#b7791f", "docstrings": "#2f855a"}
OTHERS = "other tasks"


def points_of(lines: Sequence[Line], student: str) -> list[tuple[Group, float, Gain]]:
    """Every pair and task with the percent of its labels that are wrong, and a relabel's gain."""
    arm = RELABEL[student]
    return [
        (each, 100 - each.labels(PLAIN), each.gain(arm, last)) for each in groups(lines, student)
    ]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Gain of a relabel against the share of wrong labels, with intervals, for three students."""
    from probekit.reports.figures import (
        FAINT,
        INK,
        above,
        below,
        blank,
        legend_beside,
        soft_axes,
        write_figure,
    )

    figure = blank(12.0, 3.2)
    shown = None
    for place, (student, title) in enumerate(PANELS.items()):
        axes = shown = figure.add_subplot(1, len(PANELS), place + 1, sharex=shown, sharey=shown)
        soft_axes(axes, size=9)
        axes.axhline(0, color=INK, linewidth=1)
        axes.axvline(100 * NEEDED["linear"].wrong, color=FAINT, linewidth=1, linestyle="--")
        named = set()
        for each, wrong, gain in points_of(lines, student):
            task = each.task if each.task in TASKS else OTHERS
            axes.errorbar(
                *(wrong, gain.points),
                yerr=[[gain.points - gain.low], [gain.high - gain.points]],
                fmt="o",
                markersize=4,
                elinewidth=1,
                color=TASKS.get(task, FAINT),
                label=None if task in named else task,
            )
            named.add(task)
        above(axes, title, 0, left=True)
        if place == 0:
            axes.set_ylabel("points over plain labels", fontsize=9, color=INK)
            note = "Percent of the weak labels that are wrong. Bars: 95 %, of test rows and seeds. "
            below(axes, f"{note}Dashes: a fifth.", points=24)
    if shown is not None:
        legend_beside(shown, size=8)
    write_figure(figure, path)


if __name__ == "__main__":
    NAMES = ("weak_to_strong", "weak_to_strong_finetuned")
    draw([line for name in NAMES for line in read_lines(RESULTS / f"{name}.jsonl")], FIGURE)
