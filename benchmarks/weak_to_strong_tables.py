"""Tables of the weak-to-strong grid: as text after a run, as Markdown in docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from _harness import table
from weak_to_strong_advice import HEADER, KINDS, LEFT_OUT, student_rows, unseen_rows
from weak_to_strong_curves import finetuned_rows, goal_rows
from weak_to_strong_students import FINETUNED
from weak_to_strong_summary import (
    ADVICE_HEADER,
    GOALS_HEADER,
    STUDENTS,
    Line,
    advice_rows,
    goals,
    groups,
    linear_rows,
    taught_rows,
)

__all__ = ["finetuned", "finetuned_advised", "followed", "known", "linear", "summary"]

Form = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
NOTHING = "No cell has a plain, a filtered, both relabelled and a ceiling's student yet."


def summary(lines: Sequence[Line]) -> str:
    """What is done, as text, whichever students it is of."""
    parts = []
    if any(groups(lines, student) for student in STUDENTS):
        parts += [linear(lines, table), table(*taught_rows(lines)), followed(lines, table)]
    if groups(lines, FINETUNED):
        parts.append(finetuned(lines, table))
    return "\n\n".join(parts) or NOTHING


def linear(lines: Sequence[Line], form: Form) -> str:
    """Linear students of weak labels, cleaned ones and the truth, and the goals."""
    parts = [
        f"A {student} student:\n\n{form(*linear_rows(lines, student))}" for student in STUDENTS
    ]
    met = [goals(lines, student).cells() for student in STUDENTS]
    parts.append(f"Pairs with a gap:\n\n{form(GOALS_HEADER, met)}")
    cells = {(line["pair"], line["task"], line["seed"]) for line in lines}
    parts.append(f"Finished so far: {len(cells)} cells (pair of models, task, seed).")
    return "\n\n".join(parts)


def followed(lines: Sequence[Line], form: Form) -> str:
    """What following the advice is worth to linear students."""
    rows = [
        [f"{student}: {policy}", *cells]
        for student in STUDENTS
        for policy, *cells in advice_rows(lines, student)
    ]
    return form(["student: advice", *ADVICE_HEADER[1:]], rows)


def known(lines: Sequence[Line], audits: Sequence[Line], form: Form) -> str:
    """What following the advice for a known linear student is worth, and where it is from."""
    cells = [a for a in audits if a["students"] == "linear"]
    return _advised(lines, cells, [], form, "regularised")


def finetuned(lines: Sequence[Line], form: Form) -> str:
    """Finetuned students after some epochs, and the goals."""
    return f"{form(*finetuned_rows(lines))}\n\n{form(*goal_rows(lines))}"


def finetuned_advised(lines: Sequence[Line], audits: Sequence[Line], form: Form) -> str:
    """What following the advice for a finetuned student is worth, and where it is from."""
    cells = [a for a in audits if a["students"] == FINETUNED]
    return _advised([], cells, lines, form, "long, epoch 6")


def _advised(
    lines: Sequence[Line],
    audits: Sequence[Line],
    finetuned: Sequence[Line],
    form: Form,
    kind: str,
) -> str:
    """Where the constants are chosen, and on other models."""
    seen = [a for a in audits if a["pair"].partition(":")[2] == KINDS[kind].chosen_on]
    parts = [form([*HEADER, *LEFT_OUT], student_rows(lines, audits, finetuned)), _told(seen)]
    unseen = unseen_rows(lines, audits, finetuned)
    if unseen:
        parts += ["Strong models from which no constant is:", form(HEADER, unseen)]
        parts.append(_told([a for a in audits if a not in seen]))
    return "\n\n".join(parts)


def _told(audits: Sequence[Line]) -> str:
    """One sentence on the cells of a table of advice."""
    tasks = sorted({a["task"] for a in audits})
    return f"{len(audits)} cells of {', '.join(tasks)}; twenty draws of each audit."
