"""Advice that knows the student: what it does with wrong labels decides what to do about them.

A student that memorises repeats every wrong label that it is trained on, so it gains from every
one that is corrected. One with a chosen penalty sees through many of them: a relabel must correct
more than a few, and a filter must leave out many for the rows that it costs. A finetuned model is
advised as the latter (docs/methods/advice.md, Which student).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from probekit.errors import UsageError

if TYPE_CHECKING:
    from probekit.cleaning.advice import Advice
    from probekit.cleaning.audit import Action, Finding

__all__ = [
    "AGREE",
    "NEEDED",
    "STUDENTS",
    "Needed",
    "Student",
    "StudentAdvice",
    "after_audit",
    "after_diagnosis",
    "best_for",
    "called",
    "most_wrong",
]

Student = Literal["linear", "memorising", "finetune"]
STUDENTS: tuple[Student, ...] = get_args(Student)


class Needed(NamedTuple):
    """Shares by which fewer labels must be wrong for a student to gain."""

    relabel: float
    filter: float


# None was chosen for finetuned students: those of linear ones were measured on them, too.
_LINEAR = Needed(0.04, 0.1)
NEEDED: dict[Student, Needed] = {
    "linear": _LINEAR,
    "memorising": Needed(0.0, 0.1),
    "finetune": _LINEAR,
}
# Above this part of what guessing gets wrong, labels hold too little to learn from.
HOPELESS = 0.7
# Without true labels: agreement of probe and labels above which cleaning changes too little.
AGREE: dict[Student, float] = {"linear": 0.88, "memorising": 1.0, "finetune": 0.88}
# Students to whom one class a row is worth more than probabilities.
HARD: tuple[Student, ...] = ("memorising",)


@dataclass(frozen=True, slots=True)
class StudentAdvice:
    """What to do about the labels that a student trains on, and why."""

    student: Student
    action: Action
    hard: bool
    """Whether a relabel to one class a row suits this student better than probabilities."""
    why: str
    """One clause."""

    @property
    def line(self) -> str:
        """One sentence."""
        relabel = "relabel to one class a row (--hard)" if self.hard else "relabel"
        what = {"leave": "leave the labels alone", "filter": "filter", "relabel": relabel}
        return f"For a {called(self.student)} student: {what[self.action]}; {self.why}."


def called(student: Student) -> str:
    """Name a student in a sentence."""
    return "finetuned" if student == "finetune" else student


def after_audit(student: Student, finding: Finding) -> StudentAdvice | None:
    """Advise from the shares of wrong labels that an audit estimates; None without an answer.

    Raises
    ------
    UsageError
        If there is no such student.
    """
    _check(student)
    if finding.action is None:
        return None
    wrong, kept, left = (finding.shares[name].value for name in ("leave", "filter", "relabel"))
    action = best_for(NEEDED[student], wrong, kept, left, len(finding.by_class))
    fewer = f"{_points(wrong - left)} fewer of them are wrong after a relabel"
    if action == "relabel":
        return StudentAdvice(student, action, student in HARD, fewer)
    filtered = f"{_points(wrong - kept)} fewer after a filter"
    if action == "filter":
        return StudentAdvice(student, action, False, filtered)
    hopeless = most_wrong(len(finding.by_class))
    why = f"{fewer}, {filtered}; such a student gains from {_points(NEEDED[student].relabel)} and "
    why += f"{_points(NEEDED[student].filter)} on"
    if min(kept, left) >= hopeless:
        why = f"most would be as good as guessed after a relabel ({100 * left:.0f} % wrong) or a "
        why += f"filter ({100 * kept:.0f} %), and nothing can be learned from them"
    return StudentAdvice(student, "leave", False, why)


def best_for(needed: Needed, wrong: float, kept: float, left: float, classes: int) -> Action:
    """What pays, if shares of labels are wrong as they are, after a filter, and after a relabel."""
    hopeless = most_wrong(classes)
    if left < hopeless and wrong - left >= needed.relabel:
        return "relabel"
    return "filter" if kept < hopeless and wrong - kept >= needed.filter else "leave"


def most_wrong(classes: int) -> float:
    """Share of wrong labels from which on they hold too little to learn from."""
    return HOPELESS * (1 - 1 / max(classes, 2))


def _points(share: float) -> str:
    return f"{max(100 * share, 0):.0f} points"


def after_diagnosis(student: Student, advice: Advice) -> StudentAdvice:
    """Advise from what :func:`probekit.diagnose` finds, without true labels.

    Raises
    ------
    UsageError
        If there is no such student.
    """
    _check(student)
    if advice.action == "leave":
        why = "nothing shows that cleaning corrects more of them than it costs"
        return StudentAdvice(student, "leave", False, why)
    changed, least = 1 - advice.signals.agreement, 1 - AGREE[student]
    why = f"the probe disagrees with {100 * changed:.0f} % of them"
    if changed < least:
        why += f", and such a student gains where it does with {100 * least:.0f} % or more"
        return StudentAdvice(student, "leave", False, why)
    hard = advice.action == "relabel" and student in HARD
    return StudentAdvice(student, advice.action, hard, why)


def _check(student: str) -> None:
    if student not in STUDENTS:
        raise UsageError(f"student is one of {', '.join(STUDENTS)}, got {student!r}.")
