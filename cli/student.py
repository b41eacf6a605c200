"""``--student``: what will train on the labels, for commands that advise."""

from __future__ import annotations

from typing import Annotated, TypedDict

from probekit.cleaning.student import Learner, Student, learner
from probekit.cli.options import option

__all__ = ["STUDENT", "StudentOptions", "learner_of"]


class StudentOptions(TypedDict):
    """What will train on the labels."""

    student: Annotated[
        Student | None,
        option(
            "What will train on the labels, which changes the advice: a linear classifier with a "
            "chosen penalty, one that fits every label, or a finetuned model.  [default: unknown]"
        ),
    ]
    epochs: Annotated[
        float | None,
        option("With --student finetune: its passes over the rows.  [default: unknown]"),
    ]
    lr: Annotated[
        float | None,
        option("With --student finetune: its peak learning rate.  [default: a usual one]"),
    ]


STUDENT = tuple(StudentOptions.__annotations__)


def learner_of(options: StudentOptions) -> Learner | None:
    """What the options say; None: unknown."""
    return learner(options["student"], options["epochs"], options["lr"])
