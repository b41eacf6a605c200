"""Extract into a folder: units of some thousand rows, each of which becomes one part.

A unit depends on its rows alone, so a part has the same bytes whichever process made it, in
whatever order. It is written under a hidden name, where the same command resumes it, and is renamed
into place when it is complete.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from probekit.activations.batching import Batch
from probekit.activations.forward import Ahead, Counts, Window
from probekit.activations.hooks import Tap, pooler
from probekit.activations.index import INDEX, Index, read_index
from probekit.activations.job import (
    Job,
    Report,
    forward_job,
    job_windows,
    open_writer,
    report_on,
    resumable,
    warn_nonfinite,
)
from probekit.activations.loading import tapped
from probekit.activations.part import Part
from probekit.activations.progress import Progress
from probekit.activations.quiet import quiet
from probekit.activations.spec import differing
from probekit.errors import (
    NotAStoreError,
    OutputExistsError,
    StaleStoreError,
    disk_errors,
    first_few,
)
from probekit.files import sync_folder

__all__ = [
    "begin",
    "clear_attempts",
    "plan_units",
    "run_unit",
    "run_units",
    "unit_job",
    "unit_windows",
]

# A part of one layer has some megabytes, and a worker that dies loses no more than minutes.
UNIT_ROWS = 2048
# A part, one that is being written (by an attempt of its own name), and what creates that file.
OURS = re.compile(r"\.{0,2}part-\d{5,}(\.[0-9a-f]{8})?\.h5(\.new)?")
ATTEMPT = re.compile(r"\.{1,2}part-\d{5,}\.[0-9a-f]{8}\.h5(\.new)?")


def plan_units(job: Job) -> tuple[Index, bool]:
    """Return the parts of a job, and whether those that its folder has are to be removed.

    Raises
    ------
    OutputExistsError
        If the folder holds other things.
    StaleStoreError
        If it or a part of it was made from other rows or another spec.
    """
    path, overwrite = job.path, job.request.overwrite
    index = Index.of(job.store_plan, path, UNIT_ROWS)
    if not (path / INDEX).exists():
        others = [] if not path.exists() else [e for e in os.listdir(path) if not e.startswith(".")]
        if others:
            raise OutputExistsError(
                f"{path} is a folder that holds other things ({first_few(sorted(others))}) and no "
                f"{INDEX}; name a new folder, or a file."
            )
        return index, False
    try:
        old = read_index(path)
    except NotAStoreError:
        if overwrite:
            return index, True
        raise
    present = set(range(len(old.counts))) - set(old.missing(path))
    if not present:
        return index, False
    index = Index.of(job.store_plan, path, old.counts[0])
    if why := _difference(index, old, present, path):
        if overwrite:
            return index, True
        raise StaleStoreError(
            f"{path} {why}; name another folder, or pass --overwrite to replace it."
        )
    return index, overwrite and len(present) == len(old.counts)  # else it is resumed


def _difference(index: Index, old: Index, present: set[int], path: Path) -> str:
    """Return why a folder does not fit the plan; empty if it does. Missing parts may change."""
    if keys := differing(index.spec, old.spec):
        shown = (f"{k} is {old.spec.get(k)!r} there and {index.spec.get(k)!r} now" for k in keys)
        return f"was made with another spec: {'; '.join(shown)}"
    if index.counts != old.counts:
        return f"was made from {sum(old.counts):,} rows, and there are {sum(index.counts):,} now"
    if index.groups_fingerprint != old.groups_fingerprint:
        return "was made with other groups"
    for number in sorted(present):
        part = Part(index.paths(path)[number])
        why = index.difference(number, part.header)
        part.close()
        if why:
            return f"holds {part.path.name}, which {why}"
    return ""


def begin(job: Job, index: Index, *, afresh: bool) -> None:
    """Make the folder and write ``store.json``; ``afresh``: remove the parts that are there."""
    with disk_errors(job.path):
        job.path.mkdir(exist_ok=True)
    index.write(job.path)
    # Only now: without an index what is left would belong to nobody.
    for name in os.listdir(job.path) if afresh else ():
        if OURS.fullmatch(name):
            (job.path / name).unlink(missing_ok=True)


def clear_attempts(folder: Path) -> None:
    """Remove what lost workers were writing; one that is alive after all fails to rename it."""
    for name in os.listdir(folder):
        if ATTEMPT.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def unit_job(job: Job, index: Index, number: int, keys: Sequence[str], attempt: str = "") -> Job:
    """Return a unit as a job that writes a hidden file; ``attempt`` makes its name unique.

    Its rows have only what is read and stored of them: ``keys`` are those of the whole plan.
    """
    target = index.paths(job.path)[number]
    return replace(
        job,
        request=replace(job.request, overwrite=True),  # of the hidden file
        path=target.with_name(f".{target.stem}{attempt}.h5"),
        rows=job.rows.part(int(index.starts[number]), int(index.starts[number + 1]), keys),
        target=target,
    )


def unit_windows(unit: Job) -> Ahead[Window]:
    """Tokenise a unit in a thread."""
    return Ahead(job_windows(unit, np.zeros(len(unit.rows), bool)))


def run_unit(
    unit: Job,
    tap: Tap,
    source: Ahead[Window],
    progress: Progress,
    *,
    on_batch: Callable[[Batch], None] | None = None,
) -> Counts:
    """Forward a unit's rows and rename the complete part into place."""
    assert unit.target is not None
    with open_writer(unit) as writer:
        counts = forward_job(unit, tap, source, writer, progress, on_batch=on_batch)
        writer.finish()
        # While it is locked: nobody else may have made the hidden file anew.
        os.replace(unit.path, unit.target)
    sync_folder(unit.target.parent)
    return counts


def run_units(
    job: Job,
    *,
    share: tuple[int, int] = (0, 1),
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Report | None:
    """Extract the units that are missing; the same call resumes after a stop.

    Of several processes, process ``share[0]`` makes every ``share[1]``-th part. They need not wait
    for each other.

    Returns
    -------
    The report of the whole store; None if other processes have not made all of their parts.
    """
    start = time.monotonic()
    counts = Counts(batch_tokens=job.batch_tokens)
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        index, afresh = plan_units(job)
        if not afresh:
            begin(job, index, afresh=False)
        mine = range(share[0], len(index.counts), share[1])
        missing = set(mine if afresh else index.missing(job.path))
        todo, keys = [i for i in mine if i in missing], list(job.store_plan.further_keys)
        loaded = time.monotonic()
        if todo:
            following = unit_job(job, index, todo[0], keys)
            windows = unit_windows(following)  # tokenises while the weights are read
            stack.callback(lambda: windows.close())
            take = pooler(job.spec.pooling)
            tap = stack.enter_context(tapped(job.checkpoint, job.spec.layers, take, job.placement))
            if afresh:  # what is there is replaced only now
                begin(job, index, afresh=True)
            loaded = time.monotonic()
            total = sum(index.counts[i] for i in mine)

            def done() -> int:
                return total - sum(index.counts[i] for i in index.missing(job.path) if i in mine)

            progress = Progress(total, done=done(), show=show)
            if len(todo) < len(mine):
                progress.note(f"Resuming {job.path}: {done():,} of {total:,} rows are done.")
            with resumable(progress, done, total, job.path):
                for after in [*todo[1:], None]:
                    unit, source = following, windows
                    if after is not None:
                        following = unit_job(job, index, after, keys)
                        windows = unit_windows(following)
                    unit = replace(unit, batch_tokens=counts.batch_tokens)
                    counts += run_unit(unit, tap, source, progress, on_batch=on_batch)
            progress.clear()
            warn_nonfinite(job, counts, progress)
    return None if index.missing(job.path) else report_on(job, counts, (start, loaded))
