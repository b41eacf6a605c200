"""The rule of advice that knows the student: chosen on tasks, tested on others and other models.

``python benchmarks/weak_to_strong_advice.py`` prints the table of docs/results.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple

import numpy as np
from _harness import RESULTS, read_lines, table
from weak_to_strong_curves import STOP, at_stop, last, of_epoch
from weak_to_strong_students import BRIEF, FINETUNED, TRAININGS
from weak_to_strong_summary import CLEANED, PLAIN, SUPERVISOR

from probekit.cleaning.student import AGREE, NEEDED, Length, Needed, Student, best_for

__all__ = [
    "HEADER",
    "KINDS",
    "LEFT_OUT",
    "Choice",
    "Gains",
    "Rule",
    "choices",
    "choose",
    "rules",
    "student_rows",
    "unseen_rows",
]

Line = Mapping[str, Any]


class Kind(NamedTuple):
    """A student of the grid, and where it is read."""

    student: str
    advised_as: Student | Length
    relabel: str
    """Arm of the relabel that suits it; a memorising one gets one class a row."""
    chosen_on: str | None
    """Strong model of the cells from which probekit's constants are; None: of no cells."""
    at: Callable[[Line], Line] = dict

    @property
    def students(self) -> str:
        """What audits call its cells."""
        return FINETUNED if self.student in TRAININGS else "linear"


KINDS = {
    "regularised": Kind("regularised", "linear", "relabel, soft", "mpnet"),
    "memorising": Kind("memorising", "memorising", "relabel, hard", "mpnet"),
    "long, epoch 2": Kind(FINETUNED, "finetune", "relabel, soft", None, of_epoch(2)),
    "long, epoch 6": Kind(FINETUNED, "long", "relabel, soft", "minilm", of_epoch(6)),
    f"long, {STOP}": Kind(FINETUNED, "long", "relabel, soft", "minilm", at_stop),
    BRIEF: Kind(BRIEF, "brief", "relabel, soft", "minilm", last),
}
# What may be done; an audit has the share of wrong labels after each.
ACTIONS = ("leave", "filter", "relabel")
SIZES = ("audit 20", "audit 40", "audit 100")
# Below 0 since the decoders' memorising students gained by relabels that correct nothing.
FEWER = tuple(
    Needed(relabel, filtered, wrong)
    for relabel in (-0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.1, inf)
    for filtered in (0.08, 0.1, 0.15, inf)
    for wrong in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
)
AGREED = (1.0, 0.96, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.0)
POINT = 1.0  # what counts as a gain or a harm
MOST_HARM = 0.05
HEADER = ["student: advice", "leave", "filter", "relabel", "right", "harm > 1 point", "mean gain"]
HEADER += ["least", "over seeds: right", "over seeds: harm"]
LEFT_OUT = ["each task left out: right", "harm"]


class Gains(NamedTuple):
    """What acting is worth to a student, or to those of all seeds in the mean."""

    points: Mapping[str, float]
    """Action -> what it gains."""
    best: float
    """Most points that any cleaning gains."""

    def right(self, act: str) -> bool:
        """Acting loses nothing, or leaving misses no more than a point."""
        return self.best <= POINT if act == "leave" else self.points[act] >= 0


@dataclass(frozen=True)
class Choice:
    """What one finding would do to a student of one cell."""

    task: str
    act: Callable[[Any], str]
    """What a rule with these constants does."""
    own: Gains
    seeds: Gains
    """Of all seeds of its pair and task: a single training's chance is larger than most gains."""


@dataclass(frozen=True)
class Outcome:
    """What following a rule is worth."""

    actions: Mapping[str, float]
    """Share of each action."""
    right: float
    harm: float
    gain: float
    least: float
    seeds_right: float
    """The same, judged by what each action gains over all seeds in the mean."""
    seeds_harm: float


@dataclass(frozen=True)
class Rule:
    """A kind of advice for a student: candidates for its constants, and those that probekit has."""

    name: str
    candidates: Sequence[Any]
    own: Any
    choices: list[Choice]
    unseen: list[Choice]
    """Of cells of other models, from which no constant is."""


def follow(choices: Sequence[Choice], constants: Callable[[str], Any]) -> Outcome:
    """Follow a rule, whose constants may depend on the task."""
    done = [(each, each.act(constants(each.task))) for each in choices]
    counts = Counter(act for _, act in done)
    gained = np.array([each.own.points[act] for each, act in done])
    over_seeds = np.array([each.seeds.points[act] for each, act in done])
    return Outcome(
        {act: counts[act] / len(done) for act in ACTIONS},
        float(np.mean([each.own.right(act) for each, act in done])),
        float(np.mean(gained < -POINT)),
        float(gained.mean()),
        float(gained.min()),
        float(np.mean([each.seeds.right(act) for each, act in done])),
        float(np.mean(over_seeds < -POINT)),
    )


def choose(choices: Sequence[Choice], candidates: Sequence[Any]) -> Any:
    """The constants that are right most often among those that seldom harm; else the safest."""
    found = [(value, follow(choices, lambda _, v=value: v)) for value in candidates]
    safe = [(value, each) for value, each in found if each.harm <= MOST_HARM]
    if not safe:
        return min(found, key=lambda pair: pair[1].harm)[0]
    return max(safe, key=lambda pair: pair[1].right)[0]


def rules(
    lines: Sequence[Line], audits: Sequence[Line], finetuned: Sequence[Line] = ()
) -> Iterator[tuple[str, Rule]]:
    """Kind of student, and every way to be advised, on the cells that have both."""
    for name, kind in KINDS.items():
        own = finetuned if kind.students == FINETUNED else lines
        constants = dict.fromkeys(SIZES, (FEWER, NEEDED[kind.advised_as]))
        cells = list(choices(own, audits, kind))
        for advice, known in {"diagnose": (AGREED, AGREE[kind.advised_as]), **constants}.items():
            seen, unseen = list[Choice](), list[Choice]()
            for strong, by_advice in cells:
                (seen if strong == kind.chosen_on else unseen).extend(by_advice[advice])
            title = "`diagnose`" if advice == "diagnose" else advice.replace(" ", " of ")
            yield name, Rule(title, *known, seen, unseen)


def choices(
    lines: Sequence[Line], audits: Sequence[Line], kind: Kind
) -> Iterator[tuple[str, dict[str, list[Choice]]]]:
    """For each cell its strong model, and the choices after `diagnose` and after every audit."""
    cells: dict[tuple[Any, ...], dict[str, Line]] = {}
    for line in lines:
        if line["student"] in (kind.student, SUPERVISOR):
            place = (line["pair"], line["task"], line["seed"])
            cells.setdefault(place, {})[line["arm"]] = line
    known = {(a["pair"], a["task"], a["seed"]): a for a in audits if a["students"] == kind.students}
    there = [place for place in cells if place in known and {PLAIN, *CLEANED} <= set(cells[place])]
    gained = {place: _gained(cells[place], kind) for place in there}
    for place in there:
        seeds = [gained[other] for other in there if other[:2] == place[:2]]
        over_seeds = _gains(
            {arm: float(np.mean([each[arm] for each in seeds])) for arm in CLEANED}, kind
        )
        make = partial(Choice, place[1], own=_gains(gained[place], kind), seeds=over_seeds)
        drawn = {
            size: [
                make(partial(_after_audit, shares))
                for shares in zip(*(known[place][size][name] for name in ACTIONS), strict=True)
            ]
            for size in SIZES
        }
        blind = make(partial(_after_diagnosis, cells[place][SUPERVISOR]["advice"], kind))
        yield str(place[0]).partition(":")[2], {"diagnose": [blind], **drawn}


def _gained(arms: Mapping[str, Line], kind: Kind) -> dict[str, float]:
    """Points of every cleaning over plain labels; rounded, since 100 * (0.71 - 0.7) is above 1."""
    plain = kind.at(arms[PLAIN])["acc"]
    return {arm: round(100 * (kind.at(arms[arm])["acc"] - plain), 6) for arm in CLEANED}


def _gains(points: Mapping[str, float], kind: Kind) -> Gains:
    by_action = {"leave": 0.0, "filter": points["filter"], "relabel": points[kind.relabel]}
    return Gains(by_action, max(points.values()))


def _after_audit(shares: tuple[float, ...], needed: Needed) -> str:
    return best_for(needed, *shares, classes=2)


def _after_diagnosis(said: Line, kind: Kind, agreed: float) -> str:
    if said["diagnose"] == "filter" and NEEDED[kind.advised_as].filter == inf:
        return "leave"
    return str(said["diagnose"]) if said["A"] <= agreed else "leave"


def student_rows(
    lines: Sequence[Line], audits: Sequence[Line], finetuned: Sequence[Line] = ()
) -> list[list[str]]:
    """One row per student and advice, as HEADER and LEFT_OUT name them."""
    rows = []
    for kind, rule in rules(lines, audits, finetuned):
        if not rule.choices:
            continue
        rows.append([*_row(kind, rule, rule.choices), *_left_out(rule)])
    return rows


def unseen_rows(
    lines: Sequence[Line], audits: Sequence[Line], finetuned: Sequence[Line] = ()
) -> list[list[str]]:
    """One row per student and advice, as HEADER names them, on models not chosen on."""
    every = rules(lines, audits, finetuned)
    return [_row(kind, rule, rule.unseen) for kind, rule in every if rule.unseen]


def _left_out(rule: Rule) -> list[str]:
    """What the rule is worth on each task, with constants from the others."""
    tasks = {each.task for each in rule.choices}
    if len(tasks) < 2:
        return ["-"] * len(LEFT_OUT)
    learned = {
        task: choose([c for c in rule.choices if c.task != task], rule.candidates) for task in tasks
    }
    found = follow(rule.choices, learned.__getitem__)
    return [f"{100 * found.right:.0f} %", f"{100 * found.harm:.1f} %"]


def _row(kind: str, rule: Rule, choices: Sequence[Choice]) -> list[str]:
    """What following probekit's own constants is worth."""
    own = follow(choices, lambda _: rule.own)
    return [
        f"{kind}: {rule.name}",
        *(f"{100 * share:.0f} %" for share in own.actions.values()),
        f"{100 * own.right:.0f} %",
        f"{100 * own.harm:.1f} %",
        f"{own.gain:+.2f}",
        f"{own.least:+.1f}",
        f"{100 * own.seeds_right:.0f} %",
        f"{100 * own.seeds_harm:.1f} %",
    ]


if __name__ == "__main__":
    ALL = [
        read_lines(RESULTS / f"{name}.jsonl")
        for name in ("weak_to_strong", "weak_to_strong_audits", "weak_to_strong_finetuned")
    ]
    print(table([*HEADER, *LEFT_OUT], student_rows(*ALL)))
    print(table(HEADER, unseen_rows(*ALL)))
    for KIND, RULE in rules(*ALL):
        if RULE.choices:
            print(KIND, RULE.name, "would choose", choose(RULE.choices, RULE.candidates))
