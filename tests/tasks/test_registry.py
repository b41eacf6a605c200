from __future__ import annotations

import dataclasses

import pytest

from probekit.data import Rows
from probekit.errors import UsageError
from probekit.tasks import Task, get_task, load_task_rows, register, task_names


def colours(split: str, seed: int) -> Rows:
    start = {"weak": 0, "test": 10}[split]
    numbers = range(start, start + 3)
    return Rows(
        {
            "id": [f"c{i}" for i in numbers],
            "text": [f"colour {i} of seed {seed}" for i in numbers],
            "label": [i % 2 for i in numbers],
        },
        source=f"colours@{split}",
    )


TASK = Task(
    name="colours",
    description="Is the colour warm?",
    source="made up",
    licence="MIT",
    classes=("cold", "warm"),
    splits=("weak", "test"),
    load=colours,
)


def test_docstrings_is_known_from_the_start() -> None:
    assert "docstrings" in task_names()
    assert get_task("docstrings").name == "docstrings"


def test_a_registered_task_is_found_and_its_rows_are_those_of_split_and_seed() -> None:
    register(TASK)
    assert task_names() == sorted(task_names())
    assert get_task("colours") is TASK
    assert TASK.rows("test", seed=7).ids == ["c10", "c11", "c12"]
    assert load_task_rows("colours@test", seed=7).contents() == TASK.rows("test", seed=7).contents()
    assert load_task_rows("colours@test").contents() != TASK.rows("test", seed=7).contents()


def test_without_a_split_all_of_them_come_in_order_and_are_named() -> None:
    register(TASK)
    rows = load_task_rows("colours")
    assert rows.ids == ["c0", "c1", "c2", "c10", "c11", "c12"]
    assert rows.columns["split"] == ["weak"] * 3 + ["test"] * 3
    assert rows.columns["label"] == [0, 1, 0, 0, 1, 0]


def test_a_name_stands_for_one_task() -> None:
    register(TASK)
    with pytest.raises(UsageError, match="'colours' is registered already"):
        register(TASK)
    with pytest.raises(UsageError, match="registered already"):
        register(dataclasses.replace(TASK, name="docstrings"))


@pytest.mark.parametrize("name", ["", "a@b"])
def test_a_name_that_a_source_could_not_carry_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="must not be empty or hold '@'"):
        register(dataclasses.replace(TASK, name=name))


def test_an_unknown_task_is_told_with_names_like_it() -> None:
    with pytest.raises(UsageError, match=r"no task 'docstring' \(did you mean docstrings\?\)"):
        load_task_rows("docstring@student")
    with pytest.raises(UsageError, match=r"no task 'zzz'; `probekit tasks list`"):
        get_task("zzz")


def test_an_unknown_split_is_told_with_those_there_are() -> None:
    register(TASK)
    with pytest.raises(
        UsageError, match=r"no split 'tset' \(did you mean test\?\); it has weak, test\."
    ):
        load_task_rows("colours@tset")
    with pytest.raises(UsageError, match="no split ''"):
        load_task_rows("colours@")
