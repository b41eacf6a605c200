"""Figures of Burns et al. (arXiv 2312.09390) and of EleutherAI's post, with small models.

    python benchmarks/paper.py --tasks docstrings --seeds 0 --output OWN   one task, one seed
    python benchmarks/paper.py                                             what the results lack

A logistic probe on layer 1 of all-MiniLM with 300 true labels labels 1,200 rows. Students are
logistic probes on layers of growing networks, all-MiniLM cut after 1 to 6 and all-mpnet-base after
3 to 12: one chooses its penalty, one memorises. Besides: bootstrapping over all-MiniLM, and rounds
in which a student learns its own labels. Finished lines of results/paper.jsonl are not repeated, so
a killed run resumes. Tables and figure: ``python benchmarks/paper_summary.py``. Tasks are read from
``PROBEKIT_DATA``; without it there is only `docstrings`. ``--models FOLDER`` holds the models as
``minilm`` and ``mpnet``; without it they come from the hub. With ``--engine ray`` every task and
seed is a task on a Ray cluster, whose nodes share the folders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _harness import RESULTS, append_line, hardware
from _steps import add_engine, end, engine, run_steps
from paper_summary import CHAIN, DIRECT, ROUNDS, WEAK, summarize
from real_tasks import available_tasks
from weak_to_strong import KEY, SUPERVISOR, read_results
from weak_to_strong_arms import Cell, Place, draw_cell
from weak_to_strong_rows import PARTS, TASKS, States, model_states, write_states
from weak_to_strong_students import LINEAR, answers, fit_linear, tested

from probekit.labels import WeakLabels
from probekit.probes import LogisticProbe

FILE = RESULTS / "paper.jsonl"
CACHE = Path.home() / ".cache" / "probekit-paper"
DEFAULT_TASKS = ("sst2", "docstrings", "twitter-sentiment", "cola")
ROWS = 1200
SMALL, LARGE = "minilm", "mpnet"
LARGE_LAYERS = "3-12"

Lines = dict[str, dict[str, Any]]
# The pair of models, its arms, and what a kind of student (its penalty) gives for each of them.
Study = tuple[str, tuple[str, ...], Callable[[Any], Lines]]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", help=f"by default {', '.join(DEFAULT_TASKS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="default: from the hub")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for rows and states")
    parser.add_argument("--output", type=Path, default=FILE)
    add_engine(parser)
    options = parser.parse_args()
    there = [task for task in available_tasks() if task in TASKS]
    for task in options.tasks or ():
        if task not in there:
            parser.error(f"{task}: tasks are {', '.join(TASKS)}; most need PROBEKIT_DATA.")
    tasks = options.tasks or [task for task in DEFAULT_TASKS if task in there]
    alarms = run([(task, seed) for seed in options.seeds for task in tasks], options)
    print(summarize(options.output))
    end(alarms)


class Step(NamedTuple):
    """A task and seed, and which of its lines the results file has: pair, student, arm."""

    task: str
    seed: int
    done: frozenset[tuple[str, ...]]

    def __str__(self) -> str:
        return f"{self.task}, seed {self.seed}"


def run(places: list[tuple[str, int]], options: argparse.Namespace) -> list[str]:
    """Do what the results file lacks of some tasks and seeds; return what failed."""
    lines = read_results(options.output)
    steps = [
        Step(
            *place,
            frozenset(
                (line["pair"], line["student"], line["arm"])
                for line in lines
                if (line["task"], line["seed"]) == place
            ),
        )
        for place in places
    ]
    models = ((SMALL, ""), (LARGE, LARGE_LAYERS))
    stores = [
        States(task, part, model, layers)
        for task, _ in places
        for model, layers in models
        for part in PARTS
    ]
    with engine(options):
        alarms = write_states(stores, options)
        return alarms + run_steps(steps, run_step, options, partial(append_line, options.output))


def run_step(step: Step, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield every line of a task and seed that is missing."""
    task, seed, done = step
    begun = time.perf_counter()
    place = Place(WEAK, SMALL, task, seed)
    small = draw_cell(place, ROWS, 0, options.models, options.cache)
    states = partial(model_states, folder=options.models, cache=options.cache, layers=LARGE_LAYERS)
    pool, test = (states(task, part, LARGE) for part in PARTS)
    large = replace(small, pool=pool, test=test)

    def missing(pair: str, student: str, found: Lines, seconds: float) -> Iterator[dict[str, Any]]:
        for arm, figures in found.items():
            if (pair, student, arm) not in done:
                key = dict(zip(KEY, (pair, task, seed, student, arm), strict=True))
                tested_rows = len(small.parts["test"].ids)
                yield (
                    key
                    | figures
                    | {
                        "seconds": round(seconds, 2),
                        "test_rows": tested_rows,
                        "hardware": hardware(),
                    }
                )

    floor = {SUPERVISOR: answers(small.floor, small.parts["test"].truth)}
    yield from missing(WEAK, SUPERVISOR, floor, time.perf_counter() - begun)
    for pair, arms, work in studies(small, large):
        for student, l2 in LINEAR.items():
            if all((pair, student, arm) in done for arm in arms):
                continue
            start = time.perf_counter()
            found = work(l2)
            each = (time.perf_counter() - start) / len(found)
            yield from missing(pair, student, {arm: found[arm] for arm in arms}, each)


def studies(small: Cell, large: Cell) -> Iterator[Study]:
    """Students of every size, then the chain and the rounds."""
    for name, cell in ((SMALL, small), (LARGE, large)):
        for layer in cell.pool.layers:
            arms = partial(rung, replace(cell, read=layer))
            yield f"{WEAK}:{name}@{layer}", ("plain", "ceiling"), arms
    yield (
        CHAIN,
        ("middle", "plain", "plain, all rows", "chain", "ceiling"),
        partial(chain, small, large),
    )
    yield DIRECT, ("plain", *ROUNDS, "ceiling"), partial(rounds, large)


def rung(cell: Cell, l2: Any) -> Lines:
    """A student of one size on weak labels and on the truth."""
    labels = {"plain": cell.weak, "ceiling": cell.true}
    return {arm: outcome(cell, own, fit_linear(cell, own, l2)) for arm, own in labels.items()}


def chain(small: Cell, large: Cell, l2: Any) -> Lines:
    """Bootstrapping: the small model learns half of the weak labels and labels the other half.

    The large one learns that half, as the supervisor or as the small model labels it.
    """
    rng = np.random.default_rng([small.place.seed, 3])
    order = rng.permutation(small.rows)
    first, last = (np.sort(half) for half in np.array_split(order, 2))
    one = replace(small, rows=first, read=small.layer)
    two = replace(large, rows=last, read=large.layer)
    middle = fit_linear(one, one.weak, l2)
    passed = middle.predict_proba(one.pool.read(one.layer, last))
    labels = {"plain": two.weak, "chain": two.labels(passed), "ceiling": two.true}
    lines = {arm: outcome(two, own, fit_linear(two, own, l2)) for arm, own in labels.items()}
    every = fit_linear(large, large.weak, l2)
    lines["plain, all rows"] = outcome(large, large.weak, every)
    return lines | {"middle": outcome(one, one.weak, middle)}


def rounds(cell: Cell, l2: Any) -> Lines:
    """Strong-to-strong: a fresh student learns what the last one says of its training rows."""
    X = cell.pool.read(cell.layer, cell.rows)
    lines, labels = {}, cell.weak
    for arm in ("plain", *ROUNDS):
        probe = fit_linear(cell, labels, l2)
        said = cell.labels(probe.predict_proba(X))
        lines[arm] = outcome(cell, labels, probe) | {"fitted": right(cell, said)}
        labels = said
    best = fit_linear(cell, cell.true, l2)
    fitted = right(cell, cell.labels(best.predict_proba(X)))
    return lines | {"ceiling": outcome(cell, cell.true, best) | {"fitted": fitted}}


def outcome(cell: Cell, labels: WeakLabels, probe: LogisticProbe) -> dict[str, Any]:
    """The labels that a student learned from, and its answers on the test rows."""
    return {"rows": len(labels.ids), "labels": right(cell, labels), **tested(cell, probe)}


def right(cell: Cell, labels: WeakLabels) -> float:
    """Share of a cell's rows whose label is the true one."""
    return round(float(np.mean(labels.hard == cell.truth)), 5)


if __name__ == "__main__":
    main()
