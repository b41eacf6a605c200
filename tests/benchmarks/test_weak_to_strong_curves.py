"""Finetuned students of the grid: read after an epoch or at their stop, with gains and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weak_to_strong_curves import (
    at_stop,
    draw,
    finetuned_rows,
    goal_rows,
    of_epoch,
)
from weak_to_strong_lengths import choice_rows, length_rows, more_rows
from weak_to_strong_sizes import confidence_rows
from weak_to_strong_tables import NOTHING, summary

ROWS, EPOCHS = 80, 6


def bits(right: int) -> str:
    """Which of the test rows are right: the first ones."""
    return np.packbits(np.arange(ROWS) < right).tobytes().hex()


def line(arm: str, rights: list[int], stop: int = 1) -> dict[str, Any]:
    place = {"pair": "a:b", "task": "t", "seed": 0, "test_rows": ROWS, "labels": 0.75}
    student = {"student": "finetuned", "arm": arm, "stop": stop}
    epochs = [{"right": bits(right), "acc": right / ROWS} for right in rights]
    return place | student | {"epochs": epochs}


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Plain labels are forgotten again from 64 right to 44; a filter keeps 60, from 60 on."""
    supervisor = {"pair": "a:b", "task": "t", "seed": 0, "test_rows": ROWS, "right": bits(48)}
    return [
        supervisor | {"student": "supervisor", "arm": "supervisor"},
        line("plain", [64, 64, 60, 56, 50, 44], stop=2),
        line("filter", [60] * EPOCHS),
        line("relabel, soft", [62] * EPOCHS),
        line("relabel, hard", [52] * EPOCHS, stop=4),
        line("ceiling", [72] * EPOCHS),
    ]


def test_a_student_is_read_after_an_epoch_and_at_its_stop(lines: list[dict[str, Any]]) -> None:
    plain = lines[1]
    assert of_epoch(6)(plain)["right"] == bits(44)
    assert at_stop(plain)["right"] == bits(64)
    assert of_epoch(1)(lines[0]) is lines[0]  # the supervisor has no epochs


def test_gains_turn_with_the_length_of_training(lines: list[dict[str, Any]]) -> None:
    header, rows = finetuned_rows(lines)
    by_arm = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_arm["plain"]["epoch 6"] == f"{100 * 44 / ROWS:.1f}"
    assert by_arm["filter"]["epoch 1"].startswith(f"{100 * (60 - 64) / ROWS:+.1f} ±")
    assert by_arm["filter"]["epoch 6"].startswith(f"{100 * (60 - 44) / ROWS:+.1f} ±")
    assert by_arm["relabel, hard"]["early stop"].startswith(f"{100 * (52 - 64) / ROWS:+.1f} ±")
    header, rows = goal_rows(lines)
    above = {row[0]: row[header.index("filter: above / below 0")] for row in rows}
    assert above["long, epoch 1"] == "0 / 1"
    assert above["long, epoch 6"] == "1 / 0"


def test_an_arm_is_shown_of_the_seeds_that_have_it(lines: list[dict[str, Any]]) -> None:
    again = [entry | {"seed": 1} for entry in lines]
    header, rows = finetuned_rows([*lines, *again, line("entropy", [70] * EPOCHS)])
    by_arm = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_arm["entropy (1 seed)"]["epoch 1"].startswith(f"{100 * (70 - 64) / ROWS:+.1f} ±")
    assert by_arm["filter"]["supervisor → strong, task"] == "a → b, t (2 seeds)"


def test_long_and_brief_trainings_are_compared_on_the_same_seeds(
    lines: list[dict[str, Any]],
) -> None:
    ends = {"plain": 66, "filter": 60, "relabel, soft": 62, "relabel, hard": 52, "ceiling": 70}
    brief = [line(arm, [50, 50, end]) | {"student": "brief"} for arm, end in ends.items()]
    header, rows = length_rows([*lines, *brief])
    (row,) = (dict(zip(header, row, strict=True)) for row in rows)
    assert row["long: plain"] == f"{100 * 44 / ROWS:.1f}"
    assert row["best cleaned"] == f"{100 * 62 / ROWS:.1f}"
    assert row["brief: plain"] == f"{100 * 66 / ROWS:.1f}"
    assert row["brief − long, plain"].startswith(f"{100 * (66 - 44) / ROWS:+.1f} ±")
    assert row["brief: filter"].startswith(f"{100 * (60 - 66) / ROWS:+.1f} ±")
    assert row["brief: ceiling"] == f"{100 * 70 / ROWS:.1f}"
    header, rows_of_ways = choice_rows([*lines, *brief])
    ways = {row[1]: dict(zip(header, row, strict=True)) for row in rows_of_ways}
    assert ways["brief, plain"]["mean gain"] == f"{100 * (66 - 44) / ROWS:+.1f}"
    assert ways["long, filter"]["gain > 1 point"] == "100 %"
    assert ways["long, plain, early stop"]["mean gain"] == f"{100 * (64 - 44) / ROWS:+.1f}"
    assert "long, plain" not in ways  # what the others are compared with
    assert {row[0] for row in rows_of_ways} == {"20 % or more"}
    better = [entry | {"labels": 0.9} for entry in lines]  # apart where few labels are wrong
    assert {row[0] for row in choice_rows([*better, *brief])[1]} == {"fewer"}
    # A seed that was trained one way only tells nothing.
    own = [entry | {"seed": 1} for entry in brief]
    again = [lines[0] | {"seed": 1}, *own]
    assert length_rows([*lines, *brief, *again])[1] == [rows[0]]
    assert length_rows([*lines, *again])[1] == []
    (alone,) = length_rows(again)[1]  # never trained for long
    assert alone[2:4] == ["-", "-"]
    assert alone[4:6] == [f"{100 * 66 / ROWS:.1f}", "-"]


def test_an_unfinished_grid_is_summarised_in_one_sentence(lines: list[dict[str, Any]]) -> None:
    """`--arms plain` alone made the summary end in a traceback."""
    assert "long, epoch 1" in summary(lines)
    assert "A regularised student" not in summary(lines)  # none of them is a linear one
    assert summary(lines[:2]) == NOTHING


def test_a_confidence_loss_is_compared_by_size(lines: list[dict[str, Any]]) -> None:
    """It needs plain labels and a ceiling beside it, no cleaned ones."""
    own = [entry for entry in lines if entry["arm"] in ("supervisor", "plain", "ceiling")]
    header, rows = confidence_rows([*own, line("log-confidence", [64, 68, 68, 68, 68, 68])])
    (row,) = (dict(zip(header, row, strict=True)) for row in rows)
    assert row["supervisor"] == f"{100 * 48 / ROWS:.1f}"
    assert row["epoch 2: gain"].startswith(f"{100 * (68 - 64) / ROWS:+.1f} ±")
    # From 48 right to 72 right: 64 and 68 recover 16 and 20 of 24.
    assert row["epoch 2: PGR"] == "0.67 → 0.83"
    assert row["early stop: PGR"] == "0.67 → 0.67"  # it stops after the first epoch
    near = [entry | {"right": bits(71)} if entry["arm"] == "supervisor" else entry for entry in own]
    header, rows = confidence_rows([*near, line("log-confidence", [64] * EPOCHS)])
    assert dict(zip(header, rows[0], strict=True))["epoch 2: PGR"] == "-"  # no gap to recover
    assert confidence_rows(own)[1] == []


def test_the_figure_shows_every_arm_at_every_epoch(
    lines: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plot = Axes.plot

    def noted(self: Any, x: Any, y: Any, *rest: Any, **style: Any) -> Any:
        if "label" in style:
            drawn[style["label"]] = list(y)
        return plot(self, x, y, *rest, **style)

    monkeypatch.setattr(Axes, "plot", noted)
    draw(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    assert drawn["plain"] == pytest.approx([100 * n / ROWS for n in (64, 64, 60, 56, 50, 44)])
    assert set(drawn) == {"plain", "filter", "relabel, soft", "relabel, hard", "ceiling"}


def test_more_rows_stand_beside_few_of_the_same_seeds(lines: list[dict[str, Any]]) -> None:
    few = [{**each, "rows": 500} for each in lines]
    few += [{**each, "seed": 1} for each in few]
    many = [{**each, "rows": 1050} for each in lines if each["arm"] != "ceiling"]
    gained = next(each for each in many if each["arm"] == "filter")
    gained |= line("filter", [70] * EPOCHS)
    header, (less, more) = more_rows(few, many)
    first, second = (dict(zip(header, row, strict=True)) for row in (less, more))
    assert [each["rows"] for each in (first, second)] == ["500", "1,050"]
    assert first["supervisor → strong, task"].endswith("(1 seed)")  # which both have
    assert first["epoch 6: plain"] == second["epoch 6: plain"] == f"{100 * 44 / ROWS:.1f}"
    assert first["epoch 6: filter"].startswith(f"+{100 * 16 / ROWS:.1f}")
    assert second["epoch 6: filter"].startswith(f"+{100 * 26 / ROWS:.1f}")
