"""When does cleaning pay? Weak supervisors and strong models that really are weak and strong.

    python benchmarks/weak_to_strong.py --pairs minilm@1:mpnet --tasks sst2 --seeds 0 --output OWN
    python benchmarks/weak_to_strong.py                        all linear students
    python benchmarks/weak_to_strong.py --students finetuned   a training per arm: many hours
    python benchmarks/weak_to_strong.py --students brief      shorter ones, with a falling rate
    python benchmarks/weak_to_strong.py --summary              tables of what is done

A cell is a pair of a supervisor and a strong model, a task and a seed; an arm is what its student
trains on. Every finished arm is a line of results/weak_to_strong.jsonl, of finetuned students of
weak_to_strong_finetuned.jsonl, or of the file that ``--output`` names, and is not done again: a
killed run resumes where it was. A supervisor is written ``words`` (a bag of words), MODEL or
MODEL@LAYER (a logistic probe on its frozen states), a strong model MODEL, or MODEL@BLOCKS where it
is cut after so many. Tasks are read from ``PROBEKIT_DATA``; without it there is only `docstrings`.
``--models FOLDER`` holds the models in folders of the names here; without it they come from the
hub. With ``--engine ray`` cells, and trainings of finetuned students, are tasks on a Ray cluster,
whose nodes share the folders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _harness import RESULTS, append_line, hardware, read_lines
from _steps import add_engine, end, engine, run_steps
from real_tasks import available_tasks
from weak_to_strong_arms import (
    WORDS,
    Cell,
    Place,
    advised,
    known_models,
    prepared,
)
from weak_to_strong_rows import MODELS, PARTS, TASKS, States, cut, write_states
from weak_to_strong_students import (
    LINEAR,
    LOSSES,
    TRAININGS,
    answers,
    finetuned_student,
    linear_student,
)

# Apart, since a cell's supervisor labels other rows for either.
FILES = {"linear": RESULTS / "weak_to_strong.jsonl"}
FILES |= dict.fromkeys(TRAININGS, RESULTS / "weak_to_strong_finetuned.jsonl")
CACHE = Path.home() / ".cache" / "probekit-weak-to-strong"
PAIRS = ("minilm@1:mpnet", "minilm:mpnet", "words:mpnet", "smollm2:qwen")
# MiniLM's training takes one to two minutes, MPNet's seven to ten: the cheap pair comes first.
TRAINED = ("words:minilm", "minilm@1:mpnet")
SUPERVISOR = "supervisor"


class Grid(NamedTuple):
    """What is done for a kind of student, unless options say otherwise."""

    pairs: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: int
    rows: int
    """Rows of a student."""
    held_out: int
    """Rows with weak labels that it is stopped by."""


TRAINED_ON = ("sst2", "twitter-sentiment", "docstrings", "cola")
GRIDS = {"linear": Grid(PAIRS, TASKS, 3, 1200, 0)}
GRIDS |= dict.fromkeys(TRAININGS, Grid(TRAINED, TRAINED_ON, 2, 500, 150))
ARMS = ("plain", "plain, hard", "plain, 50 true", "random drop", "filter", "relabel, soft")
ARMS += ("relabel, hard", "filter, 50 true", "relabel, 50 true", "ceiling")
# Arms that finetuned students leave out.
LINEAR_ONLY = ("plain, hard", "plain, 50 true", "relabel, 50 true")
KEY = ("pair", "task", "seed", "student", "arm")


def main() -> None:
    """Run what is missing, then print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", choices=tuple(GRIDS), default="linear")
    parser.add_argument("--pairs", nargs="*", metavar="WEAK:STRONG", help=", ".join(PAIRS))
    parser.add_argument("--tasks", nargs="*", help=f"by default {', '.join(TASKS)}")
    parser.add_argument("--seeds", nargs="*", type=int, help="by default 0 1 2")
    parser.add_argument("--arms", nargs="*", help="by default all, in their order")
    parser.add_argument("--rows", type=int, help="of a student; needs an --output of its own")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for rows and states")
    parser.add_argument("--output", type=Path, help="by default of that kind of student")
    parser.add_argument("--summary", action="store_true", help="print the results, run nothing")
    add_engine(parser)
    options = parser.parse_args()
    if options.rows is not None and options.output is None:
        parser.error("--rows: name an --output, since the committed results are of other rows")
    options.output = options.output or FILES[options.students]
    for pair in options.pairs or ():
        weak, _, strong = pair.partition(":")
        if weak.partition("@")[0] not in known_models() or cut(strong)[0] not in MODELS:
            parser.error(
                f"{pair}: give pairs as WEAK:STRONG, WEAK one of {', '.join(known_models())} or "
                f"MODEL@LAYER, STRONG one of {', '.join(MODELS)} or MODEL@BLOCKS"
            )
    known = list(arm_names(options.students))
    for arm in options.arms or ():
        if arm not in known:
            parser.error(f"{arm}: arms are {'; '.join(known)}")
    alarms = [] if options.summary else run(options)
    from weak_to_strong_tables import summary

    print(summary(read_results(options.output)))
    end(alarms)


class Step(NamedTuple):
    """What is missing of a cell: kinds of students and arms."""

    place: Place
    missing: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        arms = {arm for _, arm in self.missing}
        return f"{self.place}, {arms.pop() if len(arms) == 1 else f'{len(arms)} arms'}"


def run(options: argparse.Namespace) -> list[str]:
    """Do every step that the results file lacks; return what failed."""
    left = list(steps(options))
    stores = [
        States(step.place.task, part, *model)
        for step in left
        for model in ((step.place.weak.partition("@")[0], ""), cut(step.place.strong))
        for part in PARTS
        if model[0] != WORDS
    ]
    with engine(options):
        alarms = write_states(stores, options)
        return alarms + run_steps(left, run_step, options, partial(append_line, options.output))


def places(options: argparse.Namespace) -> Iterator[Place]:
    """Cells in the order in which they are done: seed by seed if each takes hours."""
    grid = GRIDS[options.students]
    there = available_tasks()
    for asked in options.tasks or ():
        if asked not in there or asked not in TASKS:
            raise SystemExit(
                f"{asked}: tasks are {', '.join(TASKS)}; all but docstrings need PROBEKIT_DATA."
            )
    tasks = options.tasks or [task for task in grid.tasks if task in there]
    numbers = list(range(grid.seeds)) if options.seeds is None else options.seeds
    split = [pair.split(":") for pair in options.pairs or grid.pairs]
    every = [
        Place(weak, strong, task, seed)
        for weak, strong in split
        for task in tasks
        for seed in numbers
    ]
    yield from sorted(every, key=lambda each: each.seed) if options.students in TRAININGS else every


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of the results file; one that a kill cut off is removed."""
    if path.exists():
        whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
        if cut:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return read_lines(path)


def steps(options: argparse.Namespace) -> Iterator[Step]:
    """Cells, or arms of a cell where each is a training of minutes, that the file lacks."""
    done = {tuple(line[name] for name in KEY) for line in read_results(options.output)}
    students = list(LINEAR) if options.students == "linear" else [options.students]
    names = options.arms or list(arm_names(options.students))
    every = [(SUPERVISOR, SUPERVISOR), *((s, a) for a in names for s in students)]
    for place in places(options):
        left = [each for each in every if (place.pair, place.task, place.seed, *each) not in done]
        size = 1 if options.students in TRAININGS else len(every)
        for start in range(0, len(left), size):
            yield Step(place, tuple(left[start : start + size]))


def run_step(step: Step, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a line for every arm of a step."""
    grid, place = GRIDS[options.students], step.place
    rows = options.rows or grid.rows
    cell, sets, cleaning = prepared(place, rows, grid.held_out, options.models, options.cache)
    for student, arm in step.missing:
        start = time.perf_counter()
        line: dict[str, Any] = dict(
            zip(KEY, (place.pair, place.task, place.seed, student, arm), strict=True)
        )
        if student == SUPERVISOR:
            start -= cleaning  # the training sets of all arms; not the states
            line |= answers(cell.floor, cell.parts["test"].truth) | {"advice": advised(cell)}
        else:
            labels = sets["plain" if arm in LOSSES else arm]
            keep = getattr(labels, "keep", np.ones(len(cell.rows), dtype=bool))
            line["rows"] = int(keep.sum())
            line["labels"] = round(float(np.mean((labels.hard == cell.truth)[keep])), 5)
            line |= train(cell, student, arm, labels, options)
        line |= {"test_rows": len(cell.parts["test"].ids)}
        yield line | {"seconds": round(time.perf_counter() - start, 2), "hardware": hardware()}


def arm_names(students: str) -> Iterator[str]:
    """Arms of a kind of student."""
    linear = students not in TRAININGS
    yield from (name for name in ARMS if linear or name not in LINEAR_ONLY)
    yield from () if linear else LOSSES


def train(
    cell: Cell, student: str, arm: str, labels: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """One student of one arm."""
    if student in LINEAR:
        return linear_student(cell, labels, LINEAR[student])
    place = cell.place
    of = str(len(cell.rows))
    name = "-".join((student, place.weak, place.strong, place.task, str(place.seed), of, arm))
    folder = options.cache / "trainings" / name.replace(", ", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    loss = LOSSES.get(arm, "xent")
    return finetuned_student(cell, labels, loss, TRAININGS[student], options.models, folder)


if __name__ == "__main__":
    main()
