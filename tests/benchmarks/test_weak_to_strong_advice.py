"""The rule for a known student: followed, chosen among safe constants, tested on other tasks."""

from __future__ import annotations

from typing import Any

import pytest
from weak_to_strong_advice import (
    FEWER,
    HEADER,
    LEFT_OUT,
    Choice,
    Gains,
    choose,
    follow,
    student_rows,
    unseen_rows,
)

from probekit.cleaning.student import NEEDED


def choice(saved: float, gain: float, task: str = "t", best: float | None = None) -> Choice:
    """An audit after which a relabel saves so much, and gains this student so many points."""
    gains = {"leave": 0.0, "filter": 0.0, "relabel": gain}
    own = Gains(gains, gain if best is None else best)
    return Choice(task, lambda needed: "relabel" if saved >= needed.relabel else "leave", own, own)


def test_following_a_rule_counts_what_it_does() -> None:
    every = [choice(0.10, 5.0), choice(0.06, -3.0), choice(0.01, -2.0), choice(0.02, 4.0)]
    found = follow(every, lambda _: NEEDED["linear"])  # acts from 0.04 on
    assert found.actions == {"leave": 0.5, "filter": 0.0, "relabel": 0.5}
    assert found.right == 0.5  # one gain, one harm, one rightly left, one missed
    assert found.harm == 0.25
    assert found.gain == pytest.approx((5.0 - 3.0) / 4)
    assert found.least == -3.0


def test_constants_are_chosen_among_those_that_seldom_harm() -> None:
    every = [choice(0.03, -2.0), choice(0.05, 3.0), choice(0.12, 6.0)]
    assert choose(every, FEWER).relabel in (0.04, 0.05)
    # The control: if the small saving gains, too, there is nothing to hold back for.
    assert choose([choice(0.0, 2.0), *every[1:]], FEWER).relabel <= 0


def cell(
    task: str, gain: float, left: float, strong: str = "mpnet", seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    place = {"pair": f"a:{strong}", "task": task, "seed": seed}
    advice = {"diagnose": "relabel", "A": 0.8}
    lines = [place | {"student": "supervisor", "arm": "supervisor", "advice": advice}]
    for arm, more in (("plain", 0.0), ("filter", 0.0), ("relabel, soft", gain)):
        lines.append(place | {"student": "regularised", "arm": arm, "acc": 0.7 + more / 100})
    lines.append(place | {"student": "regularised", "arm": "relabel, hard", "acc": 0.7})
    shares = {"leave": [0.2] * 2, "filter": [0.15] * 2, "relabel": [left] * 2}
    audits = {f"audit {m}": shares for m in (20, 40, 100)}
    return lines, place | {"students": "linear"} | audits


def test_a_task_is_advised_by_the_others() -> None:
    """On each task alone 7 points saved gain; on the other one 7 points harm."""
    cells = [cell("gains", 5.0, 0.13), cell("harms", -5.0, 0.13)]
    lines = [line for own, _ in cells for line in own]
    rows = student_rows(lines, [audit for _, audit in cells])
    names = [*HEADER, *LEFT_OUT]
    row = dict(zip(names, next(row for row in rows if "audit of 40" in row[0]), strict=True))
    assert (row["relabel"], row["right"], row["harm > 1 point"]) == ("100 %", "50 %", "50.0 %")
    # Learned on `gains` the rule acts on `harms`; learned on `harms` it leaves `gains` alone.
    assert row["each task left out: right"] == "0 %"
    assert row["harm"] == "50.0 %"


def test_cells_of_another_model_test_the_rule_and_are_not_chosen_on() -> None:
    chosen_on = [cell("gains", 5.0, 0.13), cell("too", 4.0, 0.13)]
    cells = [*chosen_on, cell("harms", -5.0, 0.13, "another")]
    lines, audits = [line for own, _ in cells for line in own], [audit for _, audit in cells]
    without = [line for own, _ in chosen_on for line in own]
    assert student_rows(lines, audits) == student_rows(without, audits)
    (row,) = (row for row in unseen_rows(lines, audits) if "audit of 40" in row[0])
    told = dict(zip(HEADER, row, strict=True))
    assert (told["relabel"], told["right"], told["least"]) == ("100 %", "0 %", "-5.0")
    assert unseen_rows(without, audits) == []


def test_over_seeds_one_training_that_lost_by_chance_does_not_count() -> None:
    """A relabel gains 5, 4 and -1.5 points: harm in one of three, and none in the mean."""
    cells = [cell("t", gain, 0.13, seed=i) for i, gain in enumerate((5.0, 4.0, -1.5))]
    # The control: another task, whose seeds must not count here, loses in the mean, too.
    cells += [cell("lost", gain, 0.13, seed=i) for i, gain in enumerate((-8.0, 1.0, 1.0))]
    lines = [line for own, _ in cells for line in own]
    rows = student_rows(lines, [audit for _, audit in cells])
    row = dict(zip(HEADER, next(row for row in rows if "audit of 40" in row[0]), strict=False))
    assert (row["right"], row["harm > 1 point"]) == ("67 %", "33.3 %")
    assert (row["over seeds: right"], row["over seeds: harm"]) == ("50 %", "50.0 %")


def finetuned_cell(gains: list[float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A student whose relabel gains so many points after each epoch; it stops after the first."""
    place = {"pair": "a:minilm", "task": "t", "seed": 0}
    advice = {"diagnose": "leave", "A": 0.8}
    lines = [place | {"student": "supervisor", "arm": "supervisor", "advice": advice}]
    for arm in ("plain", "filter", "relabel, soft", "relabel, hard"):
        more = gains if arm == "relabel, soft" else [0.0] * len(gains)
        epochs = [{"acc": 0.7 + points / 100} for points in more]
        lines.append(place | {"student": "finetuned", "arm": arm, "epochs": epochs, "stop": 1})
    shares = {"leave": [0.3] * 2, "filter": [0.28] * 2, "relabel": [0.15] * 2}
    return lines, place | {"students": "finetuned"} | {f"audit {m}": shares for m in (20, 40, 100)}


def test_a_finetuned_student_is_judged_where_it_is_read() -> None:
    lines, audit = finetuned_cell([-3.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    linear, _ = cell("t", 5.0, 0.15, "minilm")  # its supervisor labels other rows, advised so
    found = student_rows(linear, [audit], lines)
    rows = {row[0]: dict(zip([*HEADER, *LEFT_OUT], row, strict=True)) for row in found}
    for read, gain in (("epoch 6", "+5.00"), ("early stop", "-3.00")):
        assert rows[f"long, {read}: audit of 40"]["mean gain"] == gain
    assert rows["long, epoch 6: `diagnose`"]["leave"] == "100 %"
    assert not any(name.startswith("regularised") for name in rows)  # nobody audited its rows
    (row,) = (row for row in unseen_rows(linear, [audit], lines) if "audit of 40" in row[0])
    assert row[0].startswith("long, epoch 2")  # no constant is from a training cut there


def test_a_brief_training_has_its_own_rule() -> None:
    lines, audit = finetuned_cell([-3.0, 1.0, 2.0])
    brief = [line | {"student": "brief"} if "epochs" in line else line for line in lines]
    names = {row[0].partition(":")[0] for row in student_rows([], [audit], brief)}
    assert names == {"brief"}
    assert student_rows([], [audit], lines[:3]) == []  # not every arm was trained


def test_one_task_leaves_none_to_learn_from() -> None:
    lines, audit = cell("t", 5.0, 0.13)
    row = dict(zip([*HEADER, *LEFT_OUT], student_rows(lines, [audit])[0], strict=True))
    assert (row["right"], row["harm"]) == ("100 %", "-")


def test_a_point_is_no_more_than_a_point_whatever_the_floats_say() -> None:
    """0.71 - 0.7 is above 0.01 in floats, which made leaving the labels wrong at a gain of one."""
    lines, audit = finetuned_cell([0.0, 0.0])
    for line in lines[1:]:
        line["epochs"] = [{"acc": 0.71 if line["arm"] == "relabel, soft" else 0.7}] * 6
    assert 100 * (0.71 - 0.7) > 1  # the trap
    rows = student_rows([], [audit], lines)
    (row,) = (row for row in rows if row[0] == "long, epoch 6: `diagnose`")
    told = dict(zip([*HEADER, *LEFT_OUT], row, strict=True))
    assert (told["leave"], told["right"]) == ("100 %", "100 %")
