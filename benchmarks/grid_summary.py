"""Tables and the figure of the grid, from its results file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import table

# What an advised action trains on.
ACTION_ARMS = {
    "leave": "weak labels",
    "filter": "filter, ensemble",
    "relabel": "relabel, ensemble",
}
POLICIES = ("rule", "audit 10", "audit 20", "audit 40")
ALWAYS = ("filter, ensemble", "relabel, ensemble")
Z = 1.96
METHODS_HEADER = ("method", "kept", "labels", "acc", "gain", "gain*", "AUROC", "PGR")
METHODS_HEADER += ("better", "worse")
ADVICE_HEADER = ("advice", *ACTION_ARMS, "labels right", "harm > 1", "better", "same", "worse")
ADVICE_HEADER += ("mean gain",)
AIMS_HEADER = ("advice", "pairs", "worse", "gain >= 0", "better", "of those where acting helps")


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of the results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summarize(path: Path, figure: Path | None = None) -> str:
    """Write the figure and return all tables as text."""
    pairs = read(path)
    tasks = sorted({pair["task"] for pair in pairs})
    held = sorted({pair["task"] for pair in held_out(pairs)})
    fixed_on = [task for task in tasks if task not in held]
    seeds = len(pairs[0]["seeds"])
    parts = [f"{len(pairs)} pairs of {len(tasks)} tasks and their supervisors, {seeds} seeds each"]
    for student in pairs[0]["ceiling"]:
        parts += [f"{student} linear student", table(METHODS_HEADER, methods(pairs, student))]
    for name, some in (("tasks that thresholds were fixed on", fixed_on), ("others", held)):
        chosen = [pair for pair in pairs if pair["task"] in some]
        if chosen:
            parts.append(f"advice x outcome, {name}: {', '.join(some)}")
            parts.append(table(ADVICE_HEADER, confusion(chosen)))
    for student in pairs[0]["ceiling"]:
        parts.append(f"following the advice, {student} linear student")
        parts.append(table(AIMS_HEADER, aims(pairs, student)))
    if figure is not None:
        draw(pairs, figure)
    return "\n\n".join(parts)


def held_out(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pairs of the tasks that no constant of the advice was fixed on: every other one by name."""
    tasks = sorted({pair["task"] for pair in pairs})[1::2]
    return [pair for pair in pairs if pair["task"] in tasks]


def arm_of(policy: str) -> str:
    """The arm that follows a policy."""
    return f"follow {policy}" if policy in POLICIES else policy


def outcome(arm: Mapping[str, Any], key: str = "gain") -> str:
    """Whether a gain over plain weak labels is beyond its 95 % interval."""
    gain, error = arm[key], Z * arm[f"{key} se"]
    return "better" if gain > error else "worse" if gain < -error else "same"


def methods(pairs: Sequence[Mapping[str, Any]], student: str) -> list[list[str]]:
    """One row per method: means over pairs, and the number of pairs where it is better or worse."""
    rows = []
    for name in pairs[0]["arms"]:
        arms = [pair["arms"][name] for pair in pairs]
        each = [arm[student] for arm in arms]
        outcomes = Counter(outcome(arm) for arm in each)
        recovered = [
            (arm["acc"] - pair["floor"]) / (pair["ceiling"][student] - pair["floor"])
            for pair, arm in zip(pairs, each, strict=True)
            if pair["floor"] is not None and pair["ceiling"][student] > pair["floor"] + 0.02
        ]
        rows.append(
            [
                name,
                f"{100 * np.mean([arm['kept'] for arm in arms]):.0f} %",
                f"{100 * np.mean([arm['labels'] for arm in arms]):.1f}",
                f"{100 * np.mean([arm['acc'] for arm in each]):.1f}",
                f"{100 * np.mean([arm['gain'] for arm in each]):+.2f}",
                f"{100 * np.mean([arm['gain*'] for arm in each]):+.2f}",
                f"{100 * np.mean([arm['auroc'] for arm in each]):.1f}",
                f"{np.median(recovered):.2f}" if recovered else "-",
                str(outcomes["better"]),
                str(outcomes["worse"]),
            ]
        )
    return rows


def confusion(pairs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Advice by outcome: of labels for every seed, and of memorising students for every pair."""
    rows = []
    for policy in (*POLICIES, *ALWAYS):
        actions = Counter(
            advice[policy] for pair in pairs for advice in pair["advice"] if policy in advice
        )
        students = [pair["arms"][arm_of(policy)]["memorising"] for pair in pairs]
        outcomes = Counter(map(outcome, students))
        right, harm = label_decisions(pairs, policy)
        rows.append(
            [
                policy,
                *(str(actions[name]) if actions else "-" for name in ACTION_ARMS),
                f"{100 * right:.0f} %",
                f"{100 * harm:.0f} %",
                *(str(outcomes[name]) for name in ("better", "same", "worse")),
                f"{100 * np.mean([s['gain'] for s in students]):+.2f}",
            ]
        )
    return rows


def aims(pairs: Sequence[Mapping[str, Any]], student: str) -> list[list[str]]:
    """The number of pairs where following is worse, not worse, and better where acting helps."""
    helped = [
        any(outcome(pair["arms"][arm][student]) == "better" for arm in ALWAYS) for pair in pairs
    ]
    rows = []
    for policy in (*POLICIES, *ALWAYS):
        each = [pair["arms"][arm_of(policy)][student] for pair in pairs]
        outcomes = [outcome(one) for one in each]
        both = sum(o == "better" and h for o, h in zip(outcomes, helped, strict=True))
        rows.append(
            [
                policy,
                str(len(pairs)),
                str(outcomes.count("worse")),
                str(sum(one["gain"] >= 0 for one in each)),
                str(outcomes.count("better")),
                f"{both} of {sum(helped)}",
            ]
        )
    return rows


def label_decisions(pairs: Sequence[Mapping[str, Any]], policy: str) -> tuple[float, float]:
    """Share of pairs where acting or not was right for the labels, and where it cost a point."""
    right, harm = [], []
    for pair in pairs:
        arms = pair["arms"]
        plain = arms["weak labels"]["labels"]
        gain = arms[arm_of(policy)]["labels"] - plain
        could = max(arms[name]["labels"] for name in ALWAYS) - plain
        right.append(gain > 0 or (gain == 0 and could <= 0))
        harm.append(gain < -0.01)
    return float(np.mean(right)), float(np.mean(harm))


def draw(pairs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Gains of a filter, a relabel and the audited advice, pair by pair, with intervals."""
    from probekit.reports.figures import FAINT, INK, below, blank, plain_axes, write_figure

    shown = {
        "filter, ensemble": "#b4540a",
        "relabel, ensemble": "#0b69a3",
        "follow audit 20": "#2f7d4f",
    }
    order = sorted(pairs, key=lambda pair: (pair["task"], pair["supervisor"]))
    figure = blank(11.0, 1.6 + 0.28 * len(order))
    for place, student in enumerate(("regularised", "memorising")):
        axes = figure.add_subplot(1, 2, place + 1)
        plain_axes(axes, len(order))
        names = [f"{pair['task']}, {pair['supervisor']}" for pair in order]
        axes.set_yticks(range(len(order)), names if place == 0 else [""] * len(order), fontsize=8)
        axes.axvline(0, color=INK, linewidth=1)
        for shift, (name, color) in zip((-0.22, 0, 0.22), shown.items(), strict=True):
            each = [pair["arms"][name][student] for pair in order]
            axes.errorbar(
                [100 * arm["gain"] for arm in each],
                np.arange(len(order)) + shift,
                xerr=[100 * Z * arm["gain se"] for arm in each],
                fmt="o",
                markersize=3,
                elinewidth=1,
                color=color,
                label=name,
            )
        axes.set_title(f"{student} linear student", fontsize=11, color=INK, loc="left")
        axes.set_xlabel("points over plain weak labels", fontsize=10, color=INK)
        if place == 1:
            axes.legend(loc="upper right", fontsize=8, frameon=False, labelcolor=FAINT)
        else:
            below(axes, "Means of the seeds; bars: 95 %, of test rows and seeds.", points=40)
    write_figure(figure, path)
