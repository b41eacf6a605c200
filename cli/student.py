"""``--student``: what will train on the labels, for commands that advise."""

from __future__ import annotations

from typing import Annotated, TypedDict

from probekit.cleaning.student import Student
from probekit.cli.options import option

__all__ = ["StudentOptions"]


class StudentOptions(TypedDict):
    """What will train on the labels."""

    student: Annotated[
        Student | None,
        option(
            "What will train on the labels, which changes the advice: a linear classifier with a "
            "chosen penalty, one that fits every label, or a finetuned model.  [default: unknown]"
        ),
    ]
