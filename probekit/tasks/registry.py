"""Tasks by name: what each is, where it is from, and its rows split by split."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from probekit.data import Rows
from probekit.errors import UsageError

__all__ = ["Task", "get_task", "load_task_rows", "register", "task_names"]

# A family of tasks is one module with a tuple TASKS, imported when a task is first asked for.
FAMILIES = ("probekit.tasks.docstrings",)

_registered: dict[str, Task] = {}


@dataclass(frozen=True)
class Task:
    """A named classification task whose truth is known.

    ``load`` gives the rows of a split for a seed, with the columns id, text and label (the number
    of the class).
    """

    name: str
    """Name on the command line."""
    description: str
    """What a row is and what its classes are, in a sentence or two."""
    source: str
    """Where the texts are from, with versions where they depend on them."""
    licence: str
    """Licence of the texts."""
    classes: tuple[str, ...]
    """Class names, in the order of the label numbers."""
    splits: tuple[str, ...]
    """Names of the splits; no row is in two of them."""
    load: Callable[[str, int], Rows]
    """Split and seed to rows."""

    def rows(self, split: str, *, seed: int = 0) -> Rows:
        """Rows of one split: columns id, text and label (class number), in an order of the seed.

        Raises
        ------
        UsageError
            Where the task has no such split.
        """
        if split not in self.splits:
            raise UsageError(
                f"The task {self.name!r} has no split {split!r}{_nearest(split, self.splits)}; "
                f"it has {', '.join(self.splits)}."
            )
        return self.load(split, seed)


def register(task: Task) -> None:
    """Make a task known by its name; a name stands for one task only."""
    if task.name in _known():
        raise UsageError(f"A task {task.name!r} is registered already; take another name.")
    if "@" in task.name or not task.name:
        raise UsageError(f"A task's name must not be empty or hold '@', got {task.name!r}.")
    _registered[task.name] = task


def task_names() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(_known())


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises
    ------
    UsageError
        Where there is none; names like it are offered.
    """
    known = _known()
    if name not in known:
        raise UsageError(
            f"There is no task {name!r}{_nearest(name, known)}; "
            "`probekit tasks list` names them all."
        )
    return known[name]


def load_task_rows(source: str, *, seed: int = 0) -> Rows:
    """Rows of ``name@split``, or of all splits of ``name`` (which then have a column split)."""
    name, at, split = source.partition("@")
    task = get_task(name)
    if at:
        return task.rows(split, seed=seed)
    parts = {split: task.rows(split, seed=seed) for split in task.splits}
    names = next(iter(parts.values())).columns
    columns = {
        column: [value for rows in parts.values() for value in rows.columns[column]]
        for column in names
    }
    columns["split"] = [split for split, rows in parts.items() for _ in range(len(rows))]
    return Rows(columns, source=name)


def _known() -> dict[str, Task]:
    known = dict(_registered)
    for family in FAMILIES:
        known.update({task.name: task for task in importlib.import_module(family).TASKS})
    return known


def _nearest(name: str, names: Mapping[str, object] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
