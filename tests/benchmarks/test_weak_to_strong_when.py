"""README's figure: which labels are wrong, and what a relabel gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weak_to_strong_when import PANELS, draw, points_of

ROWS = 80


def line(student: str, arm: str, right: int, labels: float) -> dict[str, Any]:
    answers = {"right": np.packbits(np.arange(ROWS) < right).tobytes().hex(), "acc": right / ROWS}
    place = {"pair": "a:b", "task": "sst2", "seed": 0, "test_rows": ROWS, "labels": labels}
    # A finetuned student is read at its end.
    read = {"epochs": [answers | {"right": "00" * (ROWS // 8)}, answers]}
    return place | {"student": student, "arm": arm} | (read if student == "finetuned" else answers)


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    rights = {"plain": 40, "filter": 42, "relabel, soft": 48, "relabel, hard": 56, "ceiling": 64}
    found = [line("supervisor", "supervisor", 40, 0.75)]
    for student in PANELS:
        found += [line(student, arm, right, 0.75) for arm, right in rights.items()]
    return found


@pytest.mark.parametrize(
    ("student", "right"), [("memorising", 56), ("regularised", 48), ("finetuned", 48)]
)
def test_each_student_is_given_the_relabel_that_suits_it(
    student: str, right: int, lines: list[dict[str, Any]]
) -> None:
    ((group, wrong, gain),) = points_of(lines, student)
    assert (group.task, wrong) == ("sst2", 25.0)
    assert gain.points == pytest.approx(100 * (right - 40) / ROWS)


def test_the_figure_is_drawn(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(lines, tmp_path / "when.png")
    assert (tmp_path / "when.png").read_bytes().startswith(b"\x89PNG")
