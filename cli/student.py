"""``--student``: what will train on the labels, for commands that advise."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from probekit.cli.options import option

__all__ = ["StudentOptions"]


class StudentOptions(TypedDict):
    """What will train on the labels."""

    student: Annotated[
        Literal["linear", "memorising"] | None,
        option(
            "What will train on the labels, which changes the advice: a linear classifier with a "
            "chosen penalty, or one that fits every label.  [default: unknown]"
        ),
    ]
