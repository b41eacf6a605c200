"""Tasks by name: description, source, and the rows of each split.

Tasks come from three places: the families below, installed packages with the entry point group
``probekit.tasks``, and :func:`register`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from probekit.data import Rows
from probekit.errors import DataError, UsageError, did_you_mean

__all__ = ["Task", "balanced", "draw", "get_task", "load_task_rows", "register", "task_names"]

# A family of tasks is a module with a tuple TASKS, imported when a task is first used.
FAMILIES = (
    "probekit.tasks.chess",
    "probekit.tasks.docstrings",
    "probekit.tasks.nlp",
    "probekit.tasks.reward",
)

ENTRY_POINTS = "probekit.tasks"
KINDS = ("classify", "reward", "completion")

_registered: dict[str, Task] = {}


@dataclass(frozen=True)
class Task:
    """A named task whose truth is known.

    ``load`` returns the rows of a split for a seed, with the columns id, text and label (the number
    of the class), or id, text and completion if ``kind`` is ``completion``.
    """

    name: str
    """Name on the command line."""
    description: str
    """What a row is and what its classes are, in a sentence or two."""
    source: str
    """Where the texts are from, with versions if the texts depend on them."""
    licence: str
    """Licence of the texts."""
    classes: tuple[str, ...]
    """Class names, in the order of the label numbers."""
    splits: tuple[str, ...]
    """Names of the splits; no row is in two of them."""
    load: Callable[[str, int], Rows]
    """Function from split and seed to rows."""
    kind: str = "classify"
    """``classify``, ``reward`` (preference pairs) or ``completion``."""
    pool: str = "train"
    """Split that is divided between supervisor and student."""
    test: str = "test"
    """Split to test on."""
    halves: tuple[str, str] | None = None
    """Splits of supervisor and student, if the task has its own."""
    card: str = ""
    """Link of the data-set card."""
    prompt: str = ""
    """Template of a row's text, columns in braces."""
    notes: str = ""
    """Notes on the splits: which were carved out of others, which rows were removed."""
    variant: Callable[[str], Task] | None = None
    """Function from what follows a colon in the name (``docstrings:numpy,scipy``) to that task."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"A task's kind is {', '.join(KINDS)}, got {self.kind!r} for {self.name!r}."
            )

    def rows(self, split: str, *, seed: int = 0) -> Rows:
        """Return the rows of one split, ordered by the seed; raises as :meth:`check_split`."""
        self.check_split(split)
        return self.load(split, seed)

    def check_split(self, split: str) -> None:
        """Raise UsageError if the task has no such split.

        Raises
        ------
        UsageError
            With the names of its splits.
        """
        if split not in self.splits:
            raise UsageError(
                f"The task {self.name!r} has no split {split!r}{did_you_mean(split, self.splits)}; "
                f"it has {', '.join(self.splits)}."
            )


def register(task: Task) -> None:
    """Register a task by its name, which must be new."""
    if task.name in _known():
        raise UsageError(f"A task {task.name!r} is registered already; take another name.")
    if "@" in task.name or not task.name:
        raise UsageError(f"A task's name must not be empty or hold '@', got {task.name!r}.")
    _registered[task.name] = task


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted(_known())


def get_task(name: str) -> Task:
    """Return the task of that name, or its variant (``docstrings:numpy,scipy``).

    Raises
    ------
    UsageError
        If there is no such task; the message suggests similar names. If it has no variants, or
        not this one.
    """
    known = _known()
    base, colon, parameter = name.partition(":")
    if base not in known:
        raise UsageError(
            f"There is no task {base!r}{did_you_mean(base, known)}; "
            "`probekit tasks list` lists all tasks."
        )
    task = known[base]
    if not colon:
        return task
    if task.variant is None:
        raise UsageError(
            f"The task {base!r} has no variants, got {name!r}; leave out {colon + parameter!r}."
        )
    return task.variant(parameter)


def draw(key: str, *, seed: int, use: str) -> int:
    """Return 64 random bits of a key, independent of the row's position and of other rows."""
    text = f"{use}\x1f{seed}\x1f{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def balanced(labels: Sequence[int], *, n_classes: int) -> list[int]:
    """Return positions of rows with equally many of each class, the first ones of each.

    Undersampling: of rows in random order, random ones are left out; the order is kept.
    """
    counts = Counter(labels)
    smallest = min(counts[label] for label in range(n_classes))
    seen: Counter[int] = Counter()
    kept = []
    for position, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= smallest:
            kept.append(position)
    return kept


def load_task_rows(source: str, *, seed: int = 0) -> Rows:
    """Return rows of ``name@split``, or of all splits of ``name`` (with a column split)."""
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
    joined = Rows(columns, source=name)
    groups = [rows.groups for rows in parts.values()]
    if all(known is not None for known in groups):
        joined.groups = [group for known in groups for group in known or ()]
    return joined


def _known() -> dict[str, Task]:
    known: dict[str, Task] = {}
    for family in FAMILIES:
        known.update({task.name: task for task in importlib.import_module(family).TASKS})
    for task, where in _installed():
        if task.name in known:
            raise DataError(
                f"{where} has a task {task.name!r}, a name that exists already; rename it there or "
                "uninstall the package."
            )
        known[task.name] = task
    return {**known, **_registered}


def _installed() -> Iterator[tuple[Task, str]]:
    """Yield the tasks of installed packages, each with its entry point."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        where = f"The entry point {point.name} = {point.value!r} of {ENTRY_POINTS}"
        try:
            loaded = point.load()
        except Exception as error:  # importing another package may raise anything
            raise DataError(
                f"{where} cannot be loaded: {type(error).__name__}: {error}; repair or uninstall "
                "the package."
            ) from error
        tasks = (loaded,) if isinstance(loaded, Task) else loaded
        if not isinstance(tasks, tuple | list) or not all(isinstance(t, Task) for t in tasks):
            raise DataError(
                f"{where} must be a probekit.tasks.Task or a tuple of them, got "
                f"{type(loaded).__name__}."
            )
        yield from ((task, where) for task in tasks)
