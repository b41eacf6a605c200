"""Table and figure of label_errors.py: ``python benchmarks/label_summary.py`` draws the figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, read_lines
from label_noise import KINDS
from label_states import MODELS, TASKS

__all__ = [
    "METHODS",
    "candidates",
    "decoder",
    "draw",
    "many_classes",
    "margins",
    "read",
    "shrunk",
    "summarize",
]

FILE = RESULTS / "label_errors.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "label_errors.png"
PEER, UNIT, OURS = "cleanlab", "cleanlab, unit length", "ensemble"
METHODS = {
    PEER: "cleanlab, text recipe, states as they are",
    UNIT: "cleanlab, text recipe, states of unit length",
    "Datalab, unit length": "cleanlab, Datalab, states of unit length",
    "SimiFeat": "SimiFeat, vote of 10",
    OURS: "ensemble",
}
BEST = "upper layers, penalty 3"
CANDIDATES = {
    "kNN on the last layer",
    "last layer, mass-mean",
    "mass-mean",
    "second round",
    "stacked, all layers",
    "upper layers",
    "upper layers, mass-mean",
    BEST,
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
HEADER = ["method", *KIND_NAMES.values(), "mean", *FIGURES.values()]
SHRUNK = "penalty 3, kNN on the last layer"
TWELVE, DECODER = "docstrings-12", "smollm2"
DECODED = (PEER, UNIT, "Datalab, unit length", "SimiFeat", OURS, SHRUNK)
HELD = 75.0  # symmetric errors found at least this well: the states hold the concept
ALLOWED = -1.0  # points below cleanlab

Line = Mapping[str, Any]
Case = tuple[str, str, str, int]


def read(lines: Sequence[Line]) -> dict[Case, dict[str, Line]]:
    """Lines of each case (model, task, kind, seed) by method, of the encoders' complete cases."""
    cases: dict[Case, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line["model"] != DECODER:
            cases[line["model"], line["task"], line["kind"], line["seed"]][line["method"]] = line
    return {case: found for case, found in cases.items() if METHODS.keys() <= found.keys()}


def mean(cases: Sequence[Mapping[str, Line]], method: str, figure: str) -> float:
    """Mean of a figure in percent."""
    return float(np.mean([100 * found[method][figure] for found in cases]))


def margins(
    cases: Mapping[Case, Mapping[str, Line]],
    models: Sequence[str] | None = None,
    peer: str = PEER,
) -> dict[tuple[str, str], float]:
    """Points of the ensemble over cleanlab within the weak classes, of each task and kind."""
    each: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (model, task, kind, _), found in cases.items():
        if models is None or model in models:
            each[task, kind].append(100 * (found[OURS]["within"] - found[peer]["within"]))
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
    return HEADER, _by_kind(cases, METHODS), _conclusion(cases)


def _by_kind(cases: Mapping[Case, Mapping[str, Line]], methods: Iterable[str]) -> list[list[str]]:
    """One row for each method: within the classes by kind and over all, then the other figures."""
    of_kind = {k: [found for case, found in cases.items() if case[2] == k] for k in KINDS}
    rows = []
    for method in methods:
        cells = [mean(of_kind[kind], method, "within") for kind in KINDS if of_kind[kind]]
        cells += [mean(list(cases.values()), method, figure) for figure in ("within", *FIGURES)]
        rows.append([METHODS.get(method, method), *(f"{value:.1f}" for value in cells)])
    return rows


def many_classes(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Methods that were run on ``docstrings`` with twelve packages as classes."""
    cases: dict[Case, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line["task"] == TWELVE:
            place = (line["model"], line["task"], line["kind"], line["seed"])
            cases[place][line["method"]] = line
    return HEADER, _by_kind(cases, ("SimiFeat", OURS, SHRUNK))


def decoder(lines: Sequence[Line]) -> tuple[list[str], list[list[str]], str]:
    """Methods that were run on the decoder's states, of fewer tasks than the encoders'."""
    cases: dict[Case, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line["model"] == DECODER:
            place = (line["model"], line["task"], line["kind"], line["seed"])
            cases[place][line["method"]] = line
    tasks, seeds = (sorted({case[i] for case in cases}) for i in (1, 3))
    text = (
        f"{len(cases)} cases: {MODEL_NAMES[DECODER]} on {', '.join(map(str, tasks))}; six kinds, "
        f"{'one seed' if len(seeds) == 1 else 'two seeds'}."
    )
    return HEADER, _by_kind(cases, DECODED), text


def shrunk(lines: Sequence[Line]) -> tuple[list[str], list[list[str]], str]:
    """The ensemble with a strong penalty and fewer votes, on the cases where it was tried."""
    cases = {case: found for case, found in read(lines).items() if SHRUNK in found}
    gains: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (model, task, kind, _), found in cases.items():
        gain = 100 * (found[SHRUNK]["within"] - found[OURS]["within"])
        gains[MODEL_NAMES[model], task].append(gain)
        gains[model, task, kind].append(gain)
    means = {place: float(np.mean(values)) for place, values in gains.items()}
    pairs = [place for place in means if len(place) == 2]
    tasks = [f"{task} ({model}) {means[model, task]:+.1f}" for model, task in pairs]
    worst = min(means.keys() - pairs, key=lambda place: means[place])
    text = (
        f"{len(cases)} cases. *{SHRUNK}* over the ensemble: {', '.join(tasks)}; its worst pair of "
        f"a model's task and a kind is {means[worst]:+.1f} ({worst[1]}, {KIND_NAMES[worst[2]]})."
    )
    return HEADER, _by_kind(cases, (OURS, SHRUNK, UNIT)), text


def candidates(lines: Sequence[Line]) -> tuple[list[str], list[list[str]], str]:
    """Changes of the ensemble beside it, on the cases where all of them were tried."""
    cases = {case: found for case, found in read(lines).items() if found.keys() >= CANDIDATES}
    tasks = sorted({case[1] for case in cases}, key=TASKS.index)
    ruled = [found for case, found in cases.items() if case[2] == "rule"]
    others = [found for case, found in cases.items() if case[2] != "rule"]
    header = ["change", "within", "errors by a rule", "other kinds", *FIGURES.values()]
    rows = []
    for method in (OURS, *sorted(CANDIDATES), UNIT):
        every = list(cases.values())
        cells = [mean(part, method, "within") for part in (every, ruled, others)]
        cells += [mean(every, method, figure) for figure in FIGURES]
        rows.append([METHODS.get(method, method), *(f"{value:.1f}" for value in cells)])
    models = " and ".join(MODEL_NAMES[model] for model in sorted({case[0] for case in cases}))
    gains = []
    for task in tasks:
        part = [found for case, found in cases.items() if case[1] == task]
        gains.append(f"{task} {mean(part, BEST, 'within') - mean(part, OURS, 'within'):+.1f}")
    text = f"{len(cases)} cases; {models}. *{BEST}* over the ensemble: {', '.join(gains)}."
    return header, rows, text


def _conclusion(cases: Mapping[Case, Mapping[str, Line]]) -> str:
    tasks, models = {case[1] for case in cases}, sorted({case[0] for case in cases})
    holding = held(cases)
    parts = [
        f"{len(cases)} cases: {len(tasks)} tasks, strong models "
        f"{' and '.join(MODEL_NAMES[model] for model in models)}, six kinds, two seeds."
    ]
    for peer, name in ((PEER, "as they are"), (UNIT, "of unit length")):
        pairs = margins(cases, peer=peer)
        below = sum(value < ALLOWED for value in pairs.values())
        worst = min(pairs, key=lambda pair: pairs[pair])
        inside = _mean_margin(cases, peer, {case for case in cases if case[:2] in holding})
        outside = _mean_margin(cases, peer, {case for case in cases if case[:2] not in holding})
        parts.append(
            f"Over cleanlab's recipe on states {name} the ensemble is "
            f"{_mean_margin(cases, peer, set(cases))} points in the mean of all cases "
            f"({inside} where the states hold the concept, {outside} elsewhere), and more than a "
            f"point below it on {below} of {len(pairs)} pairs of a task and a kind, at worst "
            f"{pairs[worst]:+.1f} ({worst[0]}, {KIND_NAMES[worst[1]]})."
        )
    parts.append(
        f"States hold a concept, here, if symmetric errors are found with an AUROC of at least "
        f"{HELD:.0f}: {len(holding)} of {len({case[:2] for case in cases})} pairs of a model and a "
        "task."
    )
    return "\n".join(parts)


def _mean_margin(cases: Mapping[Case, Mapping[str, Line]], peer: str, chosen: set[Case]) -> str:
    """Mean points of the ensemble over a peer, of some of the cases."""
    points = [100 * (cases[c][OURS]["within"] - cases[c][peer]["within"]) for c in chosen]
    return f"{np.mean(points):+.1f}" if points else "no case"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw the margins over cleanlab by task and kind, a panel for each strong model and form."""
    from probekit.reports.figures import INK, below, blank, legend_beside, plain_axes, write_figure

    colors = ("#0b69a3", "#2f7d4f", "#7a4fa3", "#b4540a", "#8a8a00", "#b3261e")
    cases = read(lines)
    models = [model for model in MODELS if any(case[0] == model for case in cases)]
    tasks = [task for task in TASKS if any(case[1] == task for case in cases)][::-1]
    panels = [(model, peer) for peer in (PEER, UNIT) for model in models]
    each = [value for m, peer in panels for value in margins(cases, [m], peer).values()]
    figure = blank(10.5, 2 * (1.6 + 0.28 * len(tasks)))
    for place, (model, peer) in enumerate(panels):
        axes = figure.add_subplot(2, len(models), place + 1)
        plain_axes(axes, len(tasks))
        left = place % len(models) == 0
        axes.set_yticks(range(len(tasks)), tasks if left else [""] * len(tasks), fontsize=9)
        axes.set_xlim(min(each) - 1, max(each) + 1)
        axes.axvline(0, color=INK, linewidth=1)
        margin = margins(cases, [model], peer)
        for kind, color in zip(KINDS, colors, strict=True):
            known = [(margin[t, kind], y) for y, t in enumerate(tasks) if (t, kind) in margin]
            if known:
                axes.plot(*zip(*known, strict=True), "o", color=color, label=KIND_NAMES[kind])
        form = "states as they are" if peer == PEER else "states of unit length"
        axes.set_title(f"{MODEL_NAMES[model]}, {form}", fontsize=10, color=INK, loc="left")
        if peer == UNIT:
            axes.set_xlabel("points of AUROC over cleanlab", fontsize=10, color=INK)
        if place == len(models) - 1:
            legend_beside(axes, size=9)
        if place == len(panels) - len(models):
            below(axes, "Within the weak classes; means of two seeds.", points=40)
    write_figure(figure, path)


if __name__ == "__main__":
    draw(read_lines(FILE), FIGURE)
