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
FEWER = tuple(
    Needed(relabel, filtered)
    for relabel in (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, inf)
    for filtered in (0.06, 0.08, 0.1, 0.12, 0.15)
)
AGREED = (1.0, 0.96, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8, 0.0)
POINT = 1.0  # what counts as a gain or a harm
MOST_HARM = 0.05
HEADER = ["student: advice", "leave", "filter", "relabel", "right", "harm > 1 point", "mean gain"]
HEADER += ["least"]
LEFT_OUT = ["each task left out: right", "harm"]


@dataclass(frozen=True)
class Choice:
    """What one finding would do to a student of one cell."""

    task: str
    act: Callable[[Any], str]
    """What a rule with these constants does."""
    gain: Mapping[str, float]
    """Points that each action gains."""
    best: float
    """Most points that any cleaning gains."""


@dataclass(frozen=True)
class Outcome:
    """What following a rule is worth."""

    actions: Mapping[str, float]
    """Share of each action."""
    right: float
    """Share that loses nothing by acting, or misses no more than a point by leaving."""
    harm: float
    gain: float
    least: float


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
    acts = [each.act(constants(each.task)) for each in choices]
    gained = [each.gain[act] for each, act in zip(choices, acts, strict=True)]
    right = [
        each.best <= POINT if act == "leave" else gain >= 0
        for each, act, gain in zip(choices, acts, gained, strict=True)
    ]
    counts = Counter(acts)
    return Outcome(
        {act: counts[act] / len(acts) for act in ACTIONS},
        float(np.mean(right)),
        float(np.mean(np.array(gained) < -POINT)),
        float(np.mean(gained)),
        min(gained),
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
    for place, arms in cells.items():
        if place not in known or not {PLAIN, *CLEANED} <= arms.keys():
            continue
        plain = kind.at(arms[PLAIN])["acc"]
        points = {name: round(100 * (kind.at(arms[name])["acc"] - plain), 6) for name in CLEANED}
        gain = {"leave": 0.0, "filter": points["filter"], "relabel": points[kind.relabel]}
        make = partial(Choice, place[1], gain=gain, best=max(points.values()))
        drawn = {
            size: [
                make(partial(_after_audit, shares))
                for shares in zip(*(known[place][size][name] for name in ACTIONS), strict=True)
            ]
            for size in SIZES
        }
        blind = make(partial(_after_diagnosis, arms[SUPERVISOR]["advice"]))
        yield str(place[0]).partition(":")[2], {"diagnose": [blind], **drawn}


def _after_audit(shares: tuple[float, ...], needed: Needed) -> str:
    return best_for(needed, *shares, classes=2)


def _after_diagnosis(said: Line, agreed: float) -> str:
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
