"""Tables and figure of paper.py: ``python benchmarks/paper_summary.py`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from _harness import RESULTS, read_lines, table
from weak_to_strong_summary import (
    CEILING,
    PLAIN,
    STUDENTS,
    SUPERVISOR,
    Group,
    Line,
)

from probekit.metrics import agreement, pgr

__all__ = [
    "CHAIN",
    "DIRECT",
    "ROUNDS",
    "WEAK",
    "chain_rows",
    "draw",
    "grouped",
    "repeats",
    "round_rows",
    "size",
    "size_rows",
    "summarize",
]

WEAK = "minilm@1"
CHAIN, DIRECT = f"{WEAK}:minilm:mpnet", f"{WEAK}:mpnet"
ROUNDS = ("round 1", "round 2")
CHAIN_ARMS = ("middle", PLAIN, "plain, all rows", "chain", CEILING)
# The sizes that the table shows; the figure shows all.
SHOWN = ("minilm@1", "minilm@6", "mpnet@6", "mpnet@12")
GAP = 3.0  # points of the ceiling over the supervisor without which a PGR is noise
FEWEST = 5  # sizes of which a rank correlation is made
# Model -> width, and parameters before the first block: words, places, kinds of segments, the norm
# after them, and MPNet's biases by distance.
WIDTHS = {"minilm": 384, "mpnet": 768}
BEFORE = {"minilm": (30522 + 512 + 2 + 2) * 384, "mpnet": (30527 + 514 + 2) * 768 + 32 * 12}


def size(model: str) -> int:
    """Parameters of MODEL@LAYERS: a block has 12 d² weights and 13 d biases and scales."""
    name, _, layers = model.partition("@")
    d = WIDTHS[name]
    return BEFORE[name] + int(layers) * (12 * d * d + 13 * d)


def grouped(lines: Sequence[Line], student: str, arms: Sequence[str]) -> list[Group]:
    """Pairs and tasks of a student that have these arms, with the supervisor's line beside them."""
    floors = {(x["task"], x["seed"]): x for x in lines if x["student"] == SUPERVISOR}
    found: dict[tuple[str, str], dict[int, dict[str, Line]]] = {}
    for line in lines:
        floor = floors.get((line["task"], line["seed"]))
        if line["student"] == student and floor is not None:
            seeds = found.setdefault((line["pair"], line["task"]), {})
            seeds.setdefault(line["seed"], {SUPERVISOR: floor})[line["arm"]] = line
    whole = {
        place: {seed: own for seed, own in seeds.items() if {*arms} <= own.keys()}
        for place, seeds in found.items()
    }
    return [Group(*place, student, seeds) for place, seeds in whole.items() if seeds]


def ladder(lines: Sequence[Line], student: str) -> dict[str, list[Group]]:
    """Task -> its students of every size, smallest first."""
    tasks: dict[str, list[Group]] = {}
    for each in grouped(lines, student, (PLAIN, CEILING)):
        if "@" in each.pair.partition(":")[2]:
            tasks.setdefault(each.task, []).append(each)
    return {task: sorted(own, key=lambda each: size(model_of(each))) for task, own in tasks.items()}


def model_of(group: Group) -> str:
    """The student's MODEL@LAYERS."""
    return group.pair.rpartition(":")[2]


def recovered(group: Group, arm: str = PLAIN) -> float:
    """PGR of the mean accuracies; NaN without a gap of three points."""
    gap = group.accuracy(CEILING) - group.accuracy(SUPERVISOR)
    return group.recovered(arm) if gap >= GAP else float("nan")


def repeats(group: Group, arm: str = PLAIN) -> np.ndarray[Any, Any]:
    """Percent of test rows where a student agrees with its supervisor: (seeds, 2).

    First of the rows where the supervisor is right, then of those where it is wrong. Of two classes
    both are the same where both are right or both are wrong.
    """
    pairs = zip(group.right(SUPERVISOR, dict), group.right(arm, dict), strict=True)
    both = [agreement(np.ones(len(weak)), weak, own) for weak, own in pairs]
    return 100 * np.array([[each.right, each.wrong] for each in both])


def correlation(groups: Sequence[Group], values: Sequence[float]) -> str:
    """Spearman's rank correlation of a figure with the student's size."""
    from scipy.stats import spearmanr

    known = [(size(model_of(g)), v) for g, v in zip(groups, values, strict=True) if np.isfinite(v)]
    if len(known) < FEWEST or len({value for _, value in known}) == 1:
        return "-"
    return f"{spearmanr(*zip(*known, strict=True)).statistic:+.2f}"


def size_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per task and student: four sizes, and rank correlations over all."""
    header = ["task, student", "supervisor", "accuracy", "ceiling", "PGR"]
    header += ["repeats right answers", "repeats wrong answers", "the ceiling does"]
    header += ["size and PGR", "size and repeated errors"]
    rows = []
    by_student = {student: ladder(lines, student) for student in STUDENTS}
    for task in dict.fromkeys(task for tasks in by_student.values() for task in tasks):
        for tasks in by_student.values():
            every = tasks.get(task, [])
            shown = [each for name in SHOWN for each in every if model_of(each) == name]
            if len(shown) < len(SHOWN):
                continue
            cells = [_titled(shown[0]), f"{shown[0].accuracy(SUPERVISOR):.1f}"]
            cells += [
                " / ".join(f"{each.accuracy(arm):.1f}" for each in shown)
                for arm in (PLAIN, CEILING)
            ]
            cells.append(" / ".join(_number(recovered(each)) for each in shown))
            for arm, column in ((PLAIN, 0), (PLAIN, 1), (CEILING, 1)):
                means = [repeats(each, arm).mean(axis=0)[column] for each in shown]
                cells.append(" / ".join(f"{mean:.0f}" for mean in means))
            cells.append(correlation(every, [recovered(each) for each in every]))
            wrong = [float(repeats(each).mean(axis=0)[1]) for each in every]
            rows.append([*cells, correlation(every, wrong)])
    return header, rows


def chain_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per task and student: bootstrapping against the direct way."""
    header = ["task, student", "labels right: direct, chain", "supervisor", "middle", "direct"]
    header += ["chain", "direct, all rows", "ceiling", "PGR: direct", "chain"]
    rows = []
    for each in _of_pair(lines, CHAIN, CHAIN_ARMS):
        cells = [_titled(each), f"{each.labels(PLAIN):.1f}, {each.labels('chain'):.1f}"]
        cells += [f"{each.accuracy(arm):.1f}" for arm in (SUPERVISOR, "middle", PLAIN)]
        cells += [str(each.gain(arm)) for arm in ("chain", "plain, all rows")]
        cells.append(f"{each.accuracy(CEILING):.1f}")
        rows.append([*cells, *(_number(recovered(each, arm)) for arm in (PLAIN, "chain"))])
    return header, rows


def round_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per task and student: what rounds of one's own labels change."""
    header = ["task, student", "labels right: weak, round 1, round 2", "training-set PGR"]
    header += ["supervisor", PLAIN, *ROUNDS, CEILING]
    rows = []
    for each in _of_pair(lines, DIRECT, (PLAIN, *ROUNDS, CEILING)):
        fitted = {
            arm: fmean(own[arm]["fitted"] for own in each.seeds.values())
            for arm in (PLAIN, *ROUNDS, CEILING)
        }
        weak = each.labels(PLAIN) / 100
        trained = [pgr(weak, fitted[arm], fitted[CEILING]) for arm in (PLAIN, *ROUNDS)]
        cells = [_titled(each), ", ".join(f"{each.labels(arm):.1f}" for arm in (PLAIN, *ROUNDS))]
        cells.append(" → ".join(map(_number, trained)))
        cells += [f"{each.accuracy(arm):.1f}" for arm in (SUPERVISOR, PLAIN)]
        cells += [str(each.gain(arm)) for arm in ROUNDS]
        rows.append([*cells, f"{each.accuracy(CEILING):.1f}"])
    return header, rows


def _of_pair(lines: Sequence[Line], pair: str, arms: Sequence[str]) -> list[Group]:
    """Groups of one pair, by task and student."""
    every = [
        each for student in STUDENTS for each in grouped(lines, student, arms) if each.pair == pair
    ]
    tasks = list(dict.fromkeys(each.task for each in every))
    return sorted(every, key=lambda each: tasks.index(each.task))


def _titled(group: Group) -> str:
    seeds = "" if len(group.seeds) > 2 else f" ({len(group.seeds)} of 3 seeds)"
    return f"{group.task}, {group.student}{seeds}"


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def summarize(path: Path) -> str:
    """All tables as text."""
    lines = read_lines(path)
    return "\n\n".join(table(*rows(lines)) for rows in (size_rows, chain_rows, round_rows))


FIGURE = Path(__file__).parents[1] / "docs" / "paper_size.png"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Accuracy, PGR and repeated errors against the student's size, task by task."""
    from matplotlib.ticker import FixedLocator, NullLocator

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

    colors = dict(zip(STUDENTS, (COLORS["relabel"], COLORS["filter"]), strict=True))
    by_student = {student: ladder(lines, student) for student in STUDENTS}
    tasks = list(by_student[STUDENTS[0]])
    titles = ("test rows right, %", "PGR", "supervisor's errors repeated, %")
    figure = blank(12.0, 0.6 + 2.5 * len(tasks))
    figure.subplots_adjust(hspace=0.42, wspace=0.22)
    for row, task in enumerate(tasks):
        for column, title in enumerate(titles):
            axes = figure.add_subplot(len(tasks), len(titles), len(titles) * row + column + 1)
            soft_axes(axes, size=8)
            axes.set_xscale("log")
            axes.set_xlim(12.5e6, 122e6)
            axes.xaxis.set_major_locator(FixedLocator([14e6, 20e6, 45e6, 70e6, 110e6]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:.0f} M")
            for student, color in colors.items():
                groups = by_student[student].get(task, [])
                for part, arm in enumerate((PLAIN, CEILING)):
                    if (column, arm) != (1, CEILING):
                        values = [_of_seeds(each, column, arm) for each in groups]
                        _curve(axes, groups, values, color, "-:"[part]).set_label(
                            f"{student}, {('weak labels', 'ceiling')[part]}"
                        )
            first = by_student[STUDENTS[0]][task][0]
            if column == 0:
                floor = first.accuracy(SUPERVISOR)
                axes.axhline(floor, color=FAINT, linewidth=1, linestyle="--")
                axes.set_ylabel(task, fontsize=10, color=INK)
            if column == 1:
                axes.axhline(0, color=INK, linewidth=0.8)
            if row == 0:
                above(axes, title, 0, left=True)
        if row == 0:
            axes.plot([], [], color=FAINT, linewidth=1, linestyle="--", label="supervisor")
            legend_beside(axes, size=8)
    text = "Parameters of all-MiniLM's first 1 to 6 layers and MPNet's 3 to 12. Bars: all seeds."
    below(figure.axes[-3], text, points=26)
    write_figure(figure, path)


def _curve(
    axes: Any,
    groups: Sequence[Group],
    values: Sequence[tuple[float, float, float]],
    color: str,
    style: str,
) -> Any:
    """Draw (least, middle, most) of the seeds against size, each model a line; return the last."""
    drawn = None
    for name in WIDTHS:
        at = [i for i, each in enumerate(groups) if model_of(each).startswith(f"{name}@")]
        least, middle, most = np.array([values[i] for i in at]).reshape(-1, 3).T
        bars = np.maximum([middle - least, most - middle], 0)  # rounding errors may be below
        drawn = axes.errorbar(
            [size(model_of(groups[i])) for i in at],
            middle,
            yerr=bars if style == "-" else None,
            linestyle=style,
            marker="o" if style == "-" else None,
            markersize=2.5,
            linewidth=1.2,
            elinewidth=0.8,
            color=color,
        )
    return drawn


def _of_seeds(group: Group, column: int, arm: str) -> tuple[float, float, float]:
    """Accuracy, PGR or repeated errors of a student: least, of the mean, and most of the seeds."""
    if column == 1:
        middle = recovered(group)
        if np.isnan(middle):
            return middle, middle, middle
        floor, own, best = (group.right(a, dict).mean(axis=1) for a in (SUPERVISOR, arm, CEILING))
        each = np.array([pgr(*three) for three in zip(floor, own, best, strict=True)])
        return float(each.min()), middle, float(each.max())
    each = 100 * group.right(arm, dict).mean(axis=1) if column == 0 else repeats(group, arm)[:, 1]
    return float(each.min()), float(each.mean()), float(each.max())


if __name__ == "__main__":
    draw(read_lines(RESULTS / "paper.jsonl"), FIGURE)
