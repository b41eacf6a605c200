"""Tables and figures of weak_to_strong.py; as a script it draws the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, read_lines

from probekit.metrics import pgr

__all__ = [
    "ADVICE_HEADER",
    "GAP",
    "GOALS_HEADER",
    "STUDENTS",
    "Goals",
    "Group",
    "advice_rows",
    "all_have",
    "draw",
    "draw_every_arm",
    "goals",
    "groups",
    "linear_rows",
    "of_seeds",
    "paired",
    "taught_rows",
]

Array = np.ndarray[Any, Any]

Z = 1.96
# A gap that is worth recovering, in points of accuracy between plain weak labels and the ceiling.
GAP = 3.0
LEAST_PGR = 0.15
FEWEST = 5  # pairs with a gap: half of fewer are one or two
PLAIN, CEILING, SUPERVISOR = "plain", "ceiling", "supervisor"
# Arms that need no true label, and of these the ones that act.
CLEANED = ("filter", "relabel, soft", "relabel, hard")
ARMS = ("random drop", *CLEANED)
TAUGHT = ("plain, 50 true", "filter, 50 true", "relabel, 50 true")
STUDENTS = ("regularised", "memorising")
# What to do -> its arm, and who says so.
ACTION_ARMS = {"leave": PLAIN, "filter": "filter", "relabel": "relabel, soft"}
ADVISED = ("diagnose", "audit 20", "audit 40")
POLICIES = {"diagnose": "`diagnose`", "audit 20": "audit of 20", "audit 40": "audit of 40"}
POLICIES |= {"filter": "always filter", "relabel": "always relabel"}
ADVICE_HEADER = ["advice", *ACTION_ARMS, "better", "worse", "mean gain", "least"]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Gain:
    """Points over plain weak labels, paired over test rows and seeds."""

    points: float
    error: float
    """Standard error, of the test rows and of the seeds."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.points - Z * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.points + Z * self.error

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {Z * self.error:.1f}"


def paired(first: Array, second: Array) -> Gain:
    """Points between right answers (seeds, test rows) of two students of the same seeds."""
    more = 100 * (first - second)
    of_rows = more.mean(axis=0).var(ddof=1) / more.shape[1]
    of_seeds = more.mean(axis=1).var(ddof=1) / len(more) if len(more) > 1 else 0.0
    return Gain(float(more.mean()), float(np.sqrt(of_rows + of_seeds)))


@dataclass(frozen=True, eq=False)
class Group:
    """Lines of one pair, task and student: seed -> arm -> line."""

    pair: str
    task: str
    student: str
    seeds: dict[int, dict[str, Line]]

    @property
    def name(self) -> str:
        """Models and task, as tables and the figure have them."""
        seeds = "" if len(self.seeds) > 2 else f" ({of_seeds(self)})"
        return f"{self.pair.replace(':', ' → ')}, {self.task}{seeds}"

    def right(self, arm: str | Sequence[str], at: Callable[[Line], Line]) -> Array:
        """Right answers (seeds, test rows) of an arm, or of one for each seed."""
        names = [arm] * len(self.seeds) if isinstance(arm, str) else arm
        lines = [at(arms[n]) for n, arms in zip(names, self.seeds.values(), strict=True)]
        rows = next(iter(self.seeds.values()))[SUPERVISOR]["test_rows"]
        bits = [np.frombuffer(bytes.fromhex(line["right"]), np.uint8) for line in lines]
        return np.stack([np.unpackbits(own, count=rows) for own in bits]).astype(float)

    def accuracy(self, arm: str, at: Callable[[Line], Line] = dict) -> float:
        """Percent right, mean of the seeds."""
        return 100 * float(self.right(arm, at).mean())

    def gain(self, arm: str | Sequence[str], at: Callable[[Line], Line] = dict) -> Gain:
        """Points over the same student of plain weak labels, of an arm, or of one for each seed."""
        return paired(self.right(arm, at), self.right(PLAIN, at))

    def labels(self, arm: str) -> float:
        """Percent of the labels trained on that are right."""
        return 100 * float(np.mean([arms[arm]["labels"] for arms in self.seeds.values()]))

    def recovered(self, arm: str, at: Callable[[Line], Line] = dict) -> float:
        """PGR of the mean accuracies."""
        floor = self.accuracy(SUPERVISOR)
        return pgr(floor, self.accuracy(arm, at), self.accuracy(CEILING, at))

    def gap(self, at: Callable[[Line], Line] = dict) -> float:
        """Points between plain weak labels and the ceiling."""
        return self.accuracy(CEILING, at) - self.accuracy(PLAIN, at)


def groups(
    lines: Sequence[Line], student: str, arms: Sequence[str] = (PLAIN, *CLEANED, CEILING)
) -> list[Group]:
    """Pairs and tasks of a student in the file's order, with the seeds that have these arms."""
    found: dict[tuple[str, str], dict[int, dict[str, Line]]] = {}
    for line in lines:
        if line["student"] in (student, SUPERVISOR):
            seeds = found.setdefault((line["pair"], line["task"]), {})
            seeds.setdefault(line["seed"], {})[line["arm"]] = line
    whole = {
        place: {seed: own for seed, own in seeds.items() if {SUPERVISOR, *arms} <= own.keys()}
        for place, seeds in found.items()
    }
    return [Group(*place, student, seeds) for place, seeds in whole.items() if seeds]


def linear_rows(lines: Sequence[Line], student: str) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per pair and task: labels, accuracies, gains, PGR."""
    header = ["supervisor → strong, task", "labels right: weak, kept, relabelled"]
    header += ["supervisor", PLAIN, *ARMS, CEILING, "PGR: plain", "best"]
    rows = []
    for each in groups(lines, student):
        shown = (PLAIN, "filter", "relabel, hard")
        cells = [each.name]
        cells.append(", ".join(f"{each.labels(arm):.1f}" for arm in shown))
        cells += [f"{each.accuracy(arm):.1f}" for arm in (SUPERVISOR, PLAIN)]
        cells += [str(each.gain(arm)) if all_have(each, arm) else "-" for arm in ARMS]
        cells.append(f"{each.accuracy(CEILING):.1f}")
        values = [each.recovered(arm) for arm in (PLAIN, *CLEANED)]
        cells += [f"{v:.2f}" if np.isfinite(v) else "-" for v in (values[0], max(values[1:]))]
        rows.append(cells)
    return header, rows


def all_have(group: Group, arm: str) -> bool:
    return all(arm in arms for arms in group.seeds.values())


@dataclass(frozen=True)
class Goals:
    """What acting does on the pairs with a gap."""

    student: str
    pairs: int
    by_arm: dict[str, tuple[int, int]]
    """Arm -> number of pairs whose interval is above 0, and below."""
    above: int
    """Pairs where that of any arm is above 0."""
    below: int
    recovered: tuple[float, ...]
    """PGR of the best arm less that of plain weak labels, where both are defined."""

    @property
    def met(self) -> bool | None:
        """Above 0 on half of the pairs, below 0 on 1 in 20, PGR +0.15; None: too few pairs."""
        if self.pairs < FEWEST:
            return None
        enough = self.above >= self.pairs / 2 and self.below <= self.pairs / 20
        return enough and bool(self.recovered) and float(np.mean(self.recovered)) >= LEAST_PGR

    def cells(self) -> list[str]:
        """As GOALS_HEADER names them."""
        mean = f"{np.mean(self.recovered):+.2f}" if self.recovered else "-"
        counts = [f"{up} / {down}" for up, down in self.by_arm.values()]
        met = {True: "yes", False: "no", None: f"fewer than {FEWEST} pairs"}[self.met]
        ends = [str(self.above), str(self.below), mean, met]
        return [self.student, str(self.pairs), *counts, *ends]


def goals(lines: Sequence[Line], student: str, at: Callable[[Line], Line] = dict) -> Goals:
    """Count the pairs whose ceiling is three points above plain weak labels."""
    gapped = [each for each in groups(lines, student) if each.gap(at) >= GAP]
    gains = [[each.gain(arm, at) for arm in CLEANED] for each in gapped]
    more = [
        max(each.recovered(arm, at) for arm in CLEANED) - each.recovered(PLAIN, at)
        for each in gapped
    ]
    return Goals(
        student,
        len(gapped),
        {
            arm: (sum(own[i].low > 0 for own in gains), sum(own[i].high < 0 for own in gains))
            for i, arm in enumerate(CLEANED)
        },
        sum(any(gain.low > 0 for gain in own) for own in gains),
        sum(any(gain.high < 0 for gain in own) for own in gains),
        tuple(value for value in more if np.isfinite(value)),
    )


GOALS_HEADER = [
    "student",
    f"pairs with a gap of {GAP:.0f} points",
    *(f"{arm}: above / below 0" for arm in CLEANED),
    "any above",
    "any below",
    "PGR, best arm less plain",
    "goals met",
]


def taught_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per student: what 50 true labels are worth, alone and to cleaning."""
    rows = []
    for student in STUDENTS:
        every = [
            each for each in groups(lines, student) if all(all_have(each, arm) for arm in TAUGHT)
        ]
        cells = [student, str(len(every))]
        for arm in (*TAUGHT, "filter", "relabel, hard"):
            gains = [each.gain(arm) for each in every]
            above, below = sum(g.low > 0 for g in gains), sum(g.high < 0 for g in gains)
            mean = f"{np.mean([g.points for g in gains]):+.2f}" if gains else "-"
            cells.append(f"{mean} ({above} / {below})")
        rows.append(cells)
    return ["student", "pairs", *TAUGHT, "filter", "relabel, hard"], rows


def advice_rows(lines: Sequence[Line], student: str) -> list[list[str]]:
    """One row per policy: its actions, and what following it is worth to a student."""
    every = groups(lines, student)
    rows = []
    for policy, name in POLICIES.items():
        actions = [[_action(arms, policy) for arms in each.seeds.values()] for each in every]
        gains = [
            each.gain([ACTION_ARMS[action] for action in own])
            for each, own in zip(every, actions, strict=True)
        ]
        counts = Counter(action for own in actions for action in own)
        rows.append(
            [
                name,
                *(str(counts[action]) for action in ACTION_ARMS),
                str(sum(g.low > 0 for g in gains)),
                str(sum(g.high < 0 for g in gains)),
                f"{np.mean([g.points for g in gains]):+.2f}",
                f"{min(g.points for g in gains):+.1f}",
            ]
        )
    return rows


def _action(arms: Mapping[str, Line], policy: str) -> str:
    return str(arms[SUPERVISOR]["advice"][policy]) if policy in ADVISED else policy


def of_seeds(group: Group) -> str:
    return f"{len(group.seeds)} seed{'s' if len(group.seeds) > 1 else ''}"


DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "weak_to_strong.png"
EVERY_ARM = DOCS / "interventions.png"
LARGEST = 15  # points where the colours of `draw_every_arm` end


def draw(lines: Sequence[Line], path: Path) -> None:
    """Gains of a filter and two relabels, pair by pair, with intervals, for two students."""
    from probekit.reports.figures import (
        COLORS,
        INK,
        below,
        blank,
        legend_beside,
        plain_axes,
        write_figure,
    )

    shown = dict(zip(CLEANED, (COLORS["filter"], "#7fb2d4", COLORS["relabel"]), strict=True))
    both = [groups(lines, student) for student in STUDENTS]
    figure = blank(11.0, 1.6 + 0.34 * len(both[0]))
    for place, (student, order) in enumerate(zip(STUDENTS, both, strict=True)):
        axes = figure.add_subplot(1, 2, place + 1)
        plain_axes(axes, len(order))
        names = [each.name for each in order]
        axes.set_yticks(range(len(order)), names if place == 0 else [""] * len(order), fontsize=8)
        axes.axvline(0, color=INK, linewidth=1)
        for shift, (arm, color) in zip((-0.24, 0, 0.24), shown.items(), strict=True):
            gains = [each.gain(arm) for each in order]
            axes.errorbar(
                [gain.points for gain in gains],
                np.arange(len(order)) + shift,
                xerr=[Z * gain.error for gain in gains],
                fmt="o",
                markersize=3,
                elinewidth=1,
                color=color,
                label=arm,
            )
        gaps = [each.gap() for each in order]
        axes.plot(gaps, range(len(order)), "|", color=INK, markersize=8, label="ceiling")
        axes.set_title(f"{student} linear student", fontsize=11, color=INK, loc="left")
        axes.set_xlabel("points over plain weak labels", fontsize=10, color=INK)
        if place == 1:
            legend_beside(axes, size=8)
        else:
            below(axes, "Bars: 95 %, of test rows and seeds.", points=40)
    write_figure(figure, path)


def draw_every_arm(lines: Sequence[Line], path: Path) -> None:
    """All arms on all pairs and tasks as one grid of gains; sure ones are bold."""
    from probekit.reports.figures import INK, below, blank, write_figure

    both = [groups(lines, student) for student in STUDENTS]
    arms = (*ARMS, *TAUGHT, CEILING)
    figure = blank(12.0, 2.2 + 0.3 * len(both[0]))
    for place, (student, order) in enumerate(zip(STUDENTS, both, strict=True)):
        axes = figure.add_subplot(1, 2, place + 1)
        gains = [
            [each.gain(arm) if all_have(each, arm) else None for arm in arms] for each in order
        ]
        points = [[np.nan if gain is None else gain.points for gain in row] for row in gains]
        axes.imshow(points, cmap="RdBu", vmin=-LARGEST, vmax=LARGEST, aspect="auto")
        for i, row in enumerate(gains):
            for j, gain in enumerate(row):
                if gain is None:
                    continue
                sure = gain.low > 0 or gain.high < 0
                axes.text(
                    *(j, i),
                    f"{gain.points:+.1f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    fontweight="bold" if sure else "normal",
                    color="white" if abs(gain.points) > 0.6 * LARGEST else INK,
                )
        axes.set_xticks(range(len(arms)), arms, fontsize=8, rotation=40, ha="right")
        names = [each.name for each in order] if place == 0 else [""] * len(order)
        axes.set_yticks(range(len(order)), names, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{student} linear student", fontsize=11, color=INK, loc="left")
        if place == 0:
            note = "Points over plain weak labels; bold: the 95 % interval excludes 0."
            below(axes, note, points=72)
    write_figure(figure, path)


if __name__ == "__main__":
    RESULT_LINES = read_lines(RESULTS / "weak_to_strong.jsonl")
    draw(RESULT_LINES, FIGURE)
    draw_every_arm(RESULT_LINES, EVERY_ARM)
