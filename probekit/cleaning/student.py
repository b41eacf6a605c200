"""Advice that knows the student: what it does with wrong labels decides what to do about them.

A student that memorises learns every wrong label by heart, so a relabel pays even if it corrects
none: what a probe gives, right or wrong, is alike for similar texts. One with a chosen penalty sees
through a part of them: many must be wrong, a relabel must correct more than a few, and a filter
must leave out many for the rows that it costs.
A model that is finetuned for long is advised as the latter; one that is finetuned briefly is never
relabelled (docs/methods/advice.md, Which student).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from probekit.errors import UsageError

if TYPE_CHECKING:
    from probekit.cleaning.advice import Advice
    from probekit.cleaning.audit import Action, Finding

__all__ = [
    "AGREE",
    "NEEDED",
    "STUDENTS",
    "Learner",
    "Length",
    "Needed",
    "Student",
    "StudentAdvice",
    "after_audit",
    "after_diagnosis",
    "best_for",
    "learner",
    "most_wrong",
]

Student = Literal["linear", "memorising", "finetune"]
STUDENTS: tuple[Student, ...] = get_args(Student)
# How a finetuned student is trained, if that is known.
Length = Literal["brief", "long"]
# The longest training with a falling rate that was measured, and its highest peak.
BRIEF_EPOCHS, BRIEF_LR = 3.0, 1e-4


@dataclass(frozen=True, slots=True)
class Learner:
    """What will train on the labels and, if it is finetuned, for how long."""

    student: Student
    epochs: float | None = None
    """Passes over the rows, with a rate that falls to 0; None: not known."""
    lr: float | None = None
    """Peak learning rate; None: a usual one."""

    @property
    def kind(self) -> Student | Length:
        """What the rule's constants are of."""
        if self.student != "finetune":
            return self.student
        if (self.epochs or 0) > BRIEF_EPOCHS or (self.lr or 0) > BRIEF_LR:
            return "long"
        return "finetune" if self.epochs is None else "brief"

    @property
    def name(self) -> str:
        """As a sentence names it."""
        return {
            "linear": "linear student",
            "memorising": "memorising student",
            "finetune": "finetuned student",
            "brief": "briefly finetuned student",
            "long": "student finetuned for long",
        }[self.kind]

    @property
    def options(self) -> list[str]:
        """Words that say the same on the command line."""
        given = {"--student": self.student, "--epochs": self.epochs, "--lr": self.lr}
        return [
            word
            for flag, value in given.items()
            if value is not None
            for word in (flag, value if isinstance(value, str) else f"{value:g}")
        ]


def learner(
    student: Student | None, epochs: float | None = None, lr: float | None = None
) -> Learner | None:
    """Return what trains on the labels; None if it is not known.

    Raises
    ------
    UsageError
        If there is no such student, or epochs or a learning rate are those of none that is
        finetuned.
    """
    if student is not None and student not in STUDENTS:
        raise UsageError(f"student is one of {', '.join(STUDENTS)}, got {student!r}.")
    for name, value in (("epochs", epochs), ("lr", lr)):
        if value is None:
            continue
        if student != "finetune":
            raise UsageError(f"{name} is of a student that is finetuned; add student='finetune'.")
        if not 0 < value < math.inf:
            raise UsageError(f"{name} is a number above 0, got {value!r}.")
    return None if student is None else Learner(student, epochs, lr)


class Needed(NamedTuple):
    """What an audit must show for a student to gain."""

    relabel: float
    """Share by which fewer labels are wrong after a relabel; below 0: more may be."""
    filter: float
    """The same after a filter; infinite: none pays."""
    wrong: float = 0.0
    """Share of labels that are wrong as they are: it sees through fewer."""


# Of linear students, and of those that are finetuned for long.
_LINEAR = Needed(0.04, 0.1, wrong=0.2)
_AGREE = 0.86
NEEDED: dict[Student | Length, Needed] = {
    "linear": _LINEAR,
    # A filter gains it hardly more than a random drop of as many rows.
    "memorising": Needed(-0.02, math.inf, wrong=0.05),
    "finetune": _LINEAR,
    "brief": _LINEAR._replace(relabel=math.inf),  # relabels cost one as often as they paid
    "long": _LINEAR,
}
# Above this part of what guessing gets wrong, labels hold too little to learn from.
HOPELESS = 0.7
# A relabel that corrects fewer is not advised for what it corrects.
HARDLY = 0.005
# Without true labels: agreement of probe and labels above which cleaning changes too little.
AGREE: dict[Student | Length, float] = {
    "linear": _AGREE,
    "memorising": 1.0,
    "finetune": _AGREE,
    "brief": 0.0,  # only true labels show where a filter pays
    "long": _AGREE,
}
SEES_THROUGH = (
    "a brief training sees through many wrong labels, and only an audit shows where a filter pays"
)
TRAIN_BRIEFLY = (
    f"Where a fifth of the labels or more were wrong, training for at most {BRIEF_EPOCHS:g} epochs "
    "with a falling rate, on the labels as they are, was worth as much as cleaning them for a long "
    "training."
)
# Students to whom one class a row is worth more than probabilities.
HARD: tuple[Student, ...] = ("memorising",)


@dataclass(frozen=True, slots=True)
class StudentAdvice:
    """What to do about the labels that a student trains on, and why."""

    learner: Learner
    action: Action
    hard: bool
    """Whether a relabel to one class a row suits this student better than probabilities."""
    why: str
    """One clause."""
    few_wrong: bool = False
    """Whether fewer labels seem wrong than such a student gains by cleaning from."""

    @property
    def line(self) -> str:
        """One sentence."""
        relabel = "relabel to one class a row (--hard)" if self.hard else "relabel"
        what = {"leave": "leave the labels alone", "filter": "filter", "relabel": relabel}
        return f"For a {self.learner.name}: {what[self.action]}; {self.why}."

    @property
    def hint(self) -> str:
        """What is worth as much as cleaning; empty if nothing is known to be."""
        brief_pays = self.learner.kind == "long" and not self.few_wrong
        return f" {TRAIN_BRIEFLY}" if brief_pays else ""

    @property
    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        said = {"action": self.action, "hard": self.hard, "why": self.why}
        return asdict(self.learner) | said


def after_audit(learner: Learner, finding: Finding) -> StudentAdvice | None:
    """Advise from the shares of wrong labels that an audit estimates; None without an answer."""
    if finding.action is None:
        return None
    wrong, kept, left = (finding.shares[name].value for name in ("leave", "filter", "relabel"))
    needed = NEEDED[learner.kind]
    action = best_for(needed, wrong, kept, left, len(finding.by_class))
    fewer = f"{_points(wrong - left)} fewer of them are wrong after a relabel"
    if wrong - left < HARDLY:
        fewer = f"{100 * left:.0f} % of them are wrong after a relabel instead of "
        fewer += f"{100 * wrong:.0f} %, but alike for similar texts, so there is less to memorise"
    if action == "relabel":
        return StudentAdvice(learner, action, learner.student in HARD, fewer)
    filtered = f"{_points(wrong - kept)} fewer of them are wrong after a filter"
    if action == "filter":
        return StudentAdvice(learner, action, False, filtered)
    hopeless = most_wrong(len(finding.by_class))
    ways = {"a relabel": (needed.relabel, left), "a filter": (needed.filter, kept)}
    afterwards = {way: part for way, (least, part) in ways.items() if not math.isinf(least)}
    few_wrong = wrong < needed.wrong
    if few_wrong:
        why = f"{100 * wrong:.0f} % of them are wrong; such a student gains by cleaning from "
        why += f"{100 * needed.wrong:.0f} % on"
    elif min(afterwards.values()) >= hopeless:
        named = " or ".join(f"{way} ({100 * part:.0f} % wrong)" for way, part in afterwards.items())
        why = f"most would be as good as guessed after {named}, and nothing can be learned from "
        why += "them"
    elif math.isinf(needed.relabel):
        why = f"{filtered}; such a student gains by one from {_points(needed.filter)} on"
    elif math.isinf(needed.filter):
        why = f"{100 * left:.0f} % of them would be wrong after a relabel instead of "
        why += f"{100 * wrong:.0f} %; such a student gains by one that makes at most "
        why += f"{_points(-needed.relabel)} more wrong"
    else:
        why = f"{_points(wrong - left)} fewer of them are wrong after a relabel and "
        why += f"{_points(wrong - kept)} after a filter; such a student gains from "
        why += f"{_points(needed.relabel)} and {_points(needed.filter)} on"
    return StudentAdvice(learner, "leave", False, why, few_wrong=few_wrong)


def best_for(needed: Needed, wrong: float, kept: float, left: float, classes: int) -> Action:
    """What pays, if shares of labels are wrong as they are, after a filter, and after a relabel."""
    if wrong < needed.wrong:
        return "leave"
    hopeless = most_wrong(classes)
    # Rounded, since 0.3 - 0.26 is below 0.04.
    if left < hopeless and round(wrong - left, 9) >= needed.relabel:
        return "relabel"
    return "filter" if kept < hopeless and round(wrong - kept, 9) >= needed.filter else "leave"


def most_wrong(classes: int) -> float:
    """Share of wrong labels from which on they hold too little to learn from."""
    return HOPELESS * (1 - 1 / max(classes, 2))


def _points(share: float) -> str:
    return f"{max(100 * share, 0):.0f} points"


def after_diagnosis(learner: Learner, advice: Advice) -> StudentAdvice:
    """Advise from what :func:`probekit.diagnose` finds, without true labels."""
    if advice.action == "leave":
        why = "nothing shows that cleaning corrects more of them than it costs"
        return StudentAdvice(learner, "leave", False, why)
    if AGREE[learner.kind] == 0:
        return StudentAdvice(learner, "leave", False, SEES_THROUGH)
    if advice.action == "filter" and math.isinf(NEEDED[learner.kind].filter):
        why = "a filter costs such a student rows, and gains it little more than a random drop"
        return StudentAdvice(learner, "leave", False, why)
    changed, least = 1 - advice.signals.agreement, 1 - AGREE[learner.kind]
    why = f"the probe disagrees with {100 * changed:.0f} % of them"
    if changed < least:
        why += f", and such a student gains where it does with {100 * least:.0f} % or more"
        return StudentAdvice(learner, "leave", False, why, few_wrong=True)
    hard = advice.action == "relabel" and learner.student in HARD
    return StudentAdvice(learner, advice.action, hard, why)
