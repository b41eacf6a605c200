"""Tasks by name, and the draws that their rows are dealt by."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.tasks import Task, get_task, load_task_rows, register, task_names
from probekit.tasks.registry import balanced, draw


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


def test_an_unknown_task_is_reported_with_names_like_it() -> None:
    with pytest.raises(UsageError, match=r"no task 'docstring' \(did you mean docstrings\?\)"):
        load_task_rows("docstring@student")
    with pytest.raises(UsageError, match=r"no task 'zzz'; `probekit tasks list`"):
        get_task("zzz")


def test_an_unknown_split_is_reported_with_those_there_are() -> None:
    register(TASK)
    with pytest.raises(
        UsageError, match=r"no split 'tset' \(did you mean test\?\); it has weak, test\."
    ):
        load_task_rows("colours@tset")
    with pytest.raises(UsageError, match="no split ''"):
        load_task_rows("colours@")


def test_every_task_has_a_pool_or_halves_and_a_test_split() -> None:
    for task in map(get_task, task_names()):
        assert set(task.halves or (task.pool,)) <= set(task.splits), task.name
        assert task.test in task.splits, task.name


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"classify, reward, completion, got 'rank' for 'colours'"):
        dataclasses.replace(TASK, kind="rank")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, points: str) -> None:
    """Lay a package out as installers do: a module and the metadata of its distribution."""
    (folder / "colours_tasks.py").write_text(module)
    info = folder / "colours_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colours-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[probekit.tasks]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "colours_tasks", raising=False)


MODULE = """
from probekit.tasks import Task
one = Task(name="installed", description="d", source="s", licence="l", classes=("a", "b"),
           splits=("train", "test"), load=lambda split, seed: None)
both = (one, Task(name="second", description="d", source="s", licence="l", classes=("a", "b"),
                  splits=("train", "test"), load=lambda split, seed: None))
taken = Task(name="docstrings", description="d", source="s", licence="l", classes=("a", "b"),
             splits=("train", "test"), load=lambda split, seed: None)
number = 7
"""


@pytest.mark.parametrize(
    ("points", "names"),
    [("x = colours_tasks:one", {"installed"}), ("x = colours_tasks:both", {"installed", "second"})],
)
def test_installed_packages_bring_tasks(
    points: str, names: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not names & set(task_names())
    install(monkeypatch, tmp_path, MODULE, points)
    assert names <= set(task_names())
    assert get_task("installed").splits == ("train", "test")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("x = colours_tasks:number", "must be a probekit.tasks.Task or a tuple of them, got"),
        ("x = colours_tasks:nothing", "cannot be loaded: AttributeError"),
        ("x = no_such_module:TASKS", "cannot be loaded: ModuleNotFoundError"),
        ("x = colours_tasks:taken", "has a task 'docstrings', a name that exists already"),
    ],
)
def test_a_package_whose_tasks_cannot_be_used_is_named(
    points: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, MODULE, points)
    with pytest.raises(
        DataError, match=r"^The entry point x = '\w+:\w+' of probekit.tasks " + message
    ):
        task_names()


def test_the_example_of_the_docs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "how-to" / "your-own-task.md").read_text(encoding="utf-8")
    (module,) = re.findall(r'```python title="birds_tasks.py"\n(.*?)```', page, re.DOTALL)
    (points,) = re.findall(r'\[project.entry-points."probekit.tasks"\]\n(.*?)\n\n', page, re.DOTALL)
    name, _, target = points.strip().partition(" = ")
    install(monkeypatch, tmp_path, "", f"{name} = {target.strip(chr(34))}")
    (tmp_path / "birds_tasks.py").write_text(module)
    monkeypatch.delitem(sys.modules, "birds_tasks", raising=False)
    assert load_task_rows("birds@test").columns["label"] == [0, 1]
    assert len(load_task_rows("birds")) == 6


def test_every_class_keeps_as_many_rows_as_the_smallest_and_its_first_ones() -> None:
    labels = [0, 0, 1, 0, 2, 1, 0, 2, 2, 1]
    kept = balanced(labels, n_classes=3)
    assert kept == [0, 1, 2, 3, 4, 5, 7, 8, 9]  # of class 0 the fourth row is left out
    assert balanced([0, 0, 0], n_classes=2) == []


def test_a_draw_depends_on_key_seed_and_use_and_on_nothing_else() -> None:
    assert draw("a", seed=0, use="order") == draw("a", seed=0, use="order")
    others = [
        draw("b", seed=0, use="order"),
        draw("a", seed=1, use="order"),
        draw("a", seed=0, use="label"),
    ]
    assert len({draw("a", seed=0, use="order"), *others}) == 4


def test_draws_are_uniform() -> None:
    # The lowest bit decides labels: of 10,000, four standard errors are 200.
    draws = [draw(str(i), seed=3, use="label") for i in range(10_000)]
    assert abs(sum(d % 2 for d in draws) - 5000) < 200
    shares = np.histogram(np.array(draws) / 2**64, bins=10, range=(0, 1))[0]
    assert np.all(np.abs(shares - 1000) < 4 * 30)  # sqrt(10000 * .1 * .9) = 30


def test_a_lone_surrogate_is_a_key_too() -> None:
    assert draw("\ud800", seed=0, use="order") != draw("", seed=0, use="order")
