"""Steps of a grid: one after another in this process, or as tasks on a Ray cluster.

A step yields lines of the results file. Here each is written as it comes, on a cluster when its
step ends. A step that fails is an alarm, and the others go on; the same command does what is
missing, on either engine.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from probekit.engine import RayTasks, on_ray, ray_tasks
from probekit.errors import ProbekitError

Line = Mapping[str, Any]
Work = Callable[[Any, argparse.Namespace], Iterator[Line]]
Write = Callable[[Line], None]


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options that commands of probekit have."""
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--address", help="of a Ray cluster: auto or HOST:PORT")
    parser.add_argument("--workers", type=int, help="steps at a time; default: one for each CPU")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)


@contextmanager
def engine(options: argparse.Namespace) -> Iterator[None]:
    """Within it, :func:`run_steps` has the cluster that the options ask for.

    The script exits with one sentence if there is none.
    """
    try:
        with nullcontext() if options.engine == "local" else _cluster(options):
            yield
    except ProbekitError as error:
        raise SystemExit(str(error)) from None


def _cluster(options: argparse.Namespace) -> AbstractContextManager[object]:
    return on_ray(options.address, workers=options.workers, gpus=options.gpus_per_worker)


def end(alarms: Sequence[str]) -> None:
    """Exit with what failed, if anything did."""
    if alarms:
        raise SystemExit("\n".join(alarms))


def run_steps(
    steps: Sequence[Any], work: Work, options: argparse.Namespace, write: Write
) -> list[str]:
    """Write the lines of every step; return one sentence for each step that failed."""
    tasks = ray_tasks()
    done = _here(steps, work, options) if tasks is None else _shared(tasks, steps, work, options)
    alarms, start = [], time.perf_counter()
    for number, (step, lines) in enumerate(done, 1):
        try:
            for line in lines:
                write(line)
        except Exception as error:  # a step's, whatever it is: the others go on
            if not isinstance(error, ProbekitError | OSError | MemoryError):
                traceback.print_exception(error)
            reason = str(error).strip().splitlines()[-1:]  # of a worker's traceback, the error
            alarms.append(": ".join([f"{step} failed", *reason]))
            print(alarms[-1], flush=True)
        else:
            now = time.perf_counter() - start
            print(f"{step}: done, {number} of {len(steps)} after {now:.0f} s", flush=True)
    return alarms


def _here(
    steps: Sequence[Any], work: Work, options: argparse.Namespace
) -> Iterator[tuple[Any, Iterator[Line]]]:
    return ((step, work(step, options)) for step in steps)


def _shared(
    tasks: RayTasks, steps: Sequence[Any], work: Work, options: argparse.Namespace
) -> Iterator[tuple[Any, Iterator[Line]]]:
    """Steps in the order in which they end, at most as many at a time as there are workers."""
    left, asked = list(reversed(steps)), dict[Any, Any]()
    while left or asked:
        while left and len(asked) < tasks.workers:
            step = left.pop()
            asked[tasks.begin(_lines, work, step, options)] = step
        for reply in tasks.wait(list(asked)):
            yield asked.pop(reply), _answered(tasks, reply)


def _lines(work: Work, step: Any, options: argparse.Namespace) -> list[Line]:
    return list(work(step, options))


def _answered(tasks: RayTasks, reply: Any) -> Iterator[Line]:
    yield from tasks.result(reply)
