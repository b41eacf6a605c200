"""Extract into a folder: units of some thousand rows, each of which becomes one part.

A unit depends on its rows alone, so a part has the same bytes whichever process made it, in
whatever order. It is written under a hidden name, where the same command resumes it, and takes the
place of its part when it is complete.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from probekit.activations.batching import Batch
from probekit.activations.differences import count_texts, subtract, texts_job
from probekit.activations.forward import Ahead, Counts
from probekit.activations.hooks import Tap
from probekit.activations.index import INDEX, Index, read_index
from probekit.activations.job import (
    Job,
    Summary,
    forward_job,
    job_windows,
    of_layers,
    open_writer,
    report_on,
    resumable,
    tapped_model,
    warn_nonfinite,
)
from probekit.activations.merge import copy_rows
from probekit.activations.part import Part
from probekit.activations.progress import Progress
from probekit.activations.quiet import quiet
from probekit.activations.spec import differences
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import (
    NotAStoreError,
    OutputExistsError,
    StaleStoreError,
    disk_errors,
    first_few,
)
from probekit.files import sync_folder

# A part of one layer has some megabytes, and a worker that dies loses no more than minutes.
UNIT_ROWS = 2048
# A part; one that is being written (by an attempt of its own name), and what that is made of.
PART = re.compile(r"part-\d{5,}\.h5")
HIDDEN = re.compile(
    r"\.{1,3}part-\d{5,}(?P<attempt>\.[0-9a-f]{8})?\.h5(\.texts|\.added|\.whole)?(\.new)?"
)


class Units:
    """The parts of a job's folder, planned before the first is made.

    ``index`` is what ``store.json`` says, or will say.

    Raises OutputExistsError if the folder holds other things, and StaleStoreError if it or a part
    of it was made from other rows or another spec.
    """

    def __init__(self, job: Job) -> None:
        self.job, self._afresh = job, False
        path, overwrite = job.path, job.request.overwrite
        self.index = Index.of(job.store_plan, path, UNIT_ROWS)
        self._keys = list(job.store_plan.further_keys)
        if not (path / INDEX).exists():
            names = os.listdir(path) if path.exists() else []
            if others := sorted(name for name in names if not name.startswith(".")):
                raise OutputExistsError(
                    f"{path} is a folder that holds other things ({first_few(others)}) and no "
                    f"{INDEX}; name a new folder, or a file."
                )
            return
        try:
            old = read_index(path)
        except NotAStoreError:
            if not overwrite:
                raise
            self._afresh = True
            return
        present = set(range(len(old.counts))) - set(old.missing(path))
        if not present:
            return
        if job.adds:
            job = of_layers(job, old.layers)
        self.index = Index.of(job.store_plan, path, old.counts[0])
        why = _difference(self.index, old, present, path)
        if why and not overwrite:
            other = (
                "--add-layers takes the rows, the model and the settings of the store"
                if job.adds
                else "name another folder, or pass --overwrite to replace it"
            )
            raise StaleStoreError(f"{path} {why}; {other}.")
        # One that is complete is replaced, any other resumed.
        self._afresh = bool(why) or (overwrite and len(present) == len(old.counts))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of rows, or of texts of pairs, that are forwarded for each part."""
        if not self.job.spec.pairs:
            return [*self.index.counts]
        cuts = zip(self.index.starts[:-1].tolist(), self.index.starts[1:].tolist(), strict=True)
        return [count_texts(self.job.rows, *cut) for cut in cuts]

    def begin(self) -> None:
        """Make the folder and write ``store.json``; then remove what is to be made afresh."""
        if self.job.adds:
            return  # until all parts have the layers
        with disk_errors(self.job.path):
            self.job.path.mkdir(exist_ok=True)
        self.index.write(self.job.path)
        # Only now: without an index what is left would belong to nobody.
        if self._afresh:
            self._remove(PART)
            self._remove(HIDDEN)
        self._afresh = False

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are still to be made."""
        if self.job.adds:
            return [i for i in range(len(self.index.counts)) if not self._has_layers(i)]
        if self._afresh or not self.job.path.exists():
            return [*range(len(self.index.counts))]
        return self.index.missing(self.job.path)

    def _has_layers(self, number: int) -> bool:
        part = Part(self.index.paths(self.job.path)[number])
        part.close()
        return set(self.job.spec.layers) <= part.header.layers.keys()

    def rows_done(self, mine: range | None = None) -> int:
        """Return the number of rows in the parts that are made, of ``mine`` or of all."""
        numbers = {*(range(len(self.index.counts)) if mine is None else mine)}
        return sum(self.index.counts[i] for i in numbers.difference(self.missing()))

    def unit(self, number: int, attempt: str = "") -> Job:
        """Return a part as a job that writes a hidden file; ``attempt`` makes its name unique.

        Its rows have only what is read and stored of them.
        """
        target = self.index.paths(self.job.path)[number]
        start, stop = self.index.starts[number : number + 2].tolist()
        return replace(
            self.job,
            request=replace(self.job.request, overwrite=False),
            path=target.with_name(f".{target.stem}{attempt}.h5{'.added' * self.job.adds}"),
            rows=self.job.rows.part(start, stop, self._keys),
            target=target,
        )

    def finish(self) -> bool:
        """Whether every part is made; then nothing else is left in the folder."""
        if self.missing():
            return False
        if self.job.adds:
            layers = {*read_index(self.job.path).layers, *self.job.spec.layers}
            plan = of_layers(self.job, layers).store_plan
            Index.of(plan, self.job.path, self.index.counts[0]).write(self.job.path)
        self._remove(HIDDEN)
        return True

    def report(self, counts: Counts, times: tuple[float, float]) -> Summary:
        """Summarize the whole store, as :func:`report_on`."""
        return report_on(self.job, counts, times, texts=sum(self.sizes))

    def clear_attempts(self) -> None:
        """Remove what lost workers were writing; one that is alive after all fails to rename it."""
        self._remove(HIDDEN, attempts=True)

    def _remove(self, pattern: re.Pattern[str], *, attempts: bool = False) -> None:
        for name in os.listdir(self.job.path) if self.job.path.exists() else ():
            match = pattern.fullmatch(name)
            if match and (not attempts or match["attempt"]):
                (self.job.path / name).unlink(missing_ok=True)


def _difference(index: Index, old: Index, present: set[int], path: Path) -> str:
    """Return why a folder does not fit the plan; empty if it does. Missing parts may change."""
    if different := differences(old.spec, index.spec, "there"):
        return f"was made with another spec: {different}"
    if index.counts != old.counts:
        return f"was made from {sum(old.counts):,} rows, and there are {sum(index.counts):,} now"
    if index.groups_fingerprint != old.groups_fingerprint:
        return "was made with other groups"
    for number in sorted(present):
        part = Part(index.paths(path)[number])
        part.close()
        if why := index.difference(number, part.header):
            return f"holds {part.path.name}, which {why}"
    return ""


def forwarded(job: Job) -> Iterator[Job]:
    """Yield what a job forwards for its file, or for each part of a new folder."""
    step = UNIT_ROWS if job.folder else len(job.rows)
    for start in range(0, len(job.rows), step):
        part = replace(job, rows=job.rows.part(start, start + step))
        yield texts_job(part) if job.spec.pairs else part


class Unit:
    """A part that is being made: from now on a thread tokenises for it.

    What is forwarded for it are its rows, or the texts of its pairs.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        plain = replace(job, request=replace(job.request, compression=None))
        self._states = texts_job(job) if job.spec.pairs else plain if job.adds else job
        self._source = Ahead(job_windows(self._states, np.zeros(len(self._states.rows), bool)))

    def run(
        self,
        tap: Tap,
        progress: Progress,
        *,
        batch_tokens: int,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> Counts:
        """Forward what is missing, and put the complete part into its place."""
        job, target = self._job, self._job.target
        assert target is not None
        states = replace(self._states, batch_tokens=batch_tokens)
        # While the hidden file is locked: nobody else may have made it anew.
        with _open_hidden(states) as writer:
            counts = forward_job(states, tap, self._source, writer, progress, on_batch=on_batch)
            writer.finish()
            if job.adds:
                add_to(target, job)
            elif job.spec.pairs:
                with _open_hidden(job) as differences:
                    counts = subtract(job, states.path, differences, counts)
                    differences.finish()
                    os.replace(job.path, target)
            else:
                os.replace(job.path, target)
            states.path.unlink(missing_ok=True)
        sync_folder(target.parent)
        return counts

    def close(self) -> None:
        """Stop tokenising."""
        self._source.close()


def _open_hidden(job: Job) -> StoreWriter:
    """Create or resume a hidden file; one that another job left is replaced."""
    try:
        return open_writer(job)
    except (StaleStoreError, OutputExistsError):
        job.path.unlink()
        return open_writer(job)


def add_to(path: Path, job: Job) -> None:
    """Put a file with further layers, those at ``job.path``, in the place of the store at ``path``.

    HDF5 cannot add a layer to a file so that a kill leaves it readable.
    """
    with ActivationStore(path) as old, ActivationStore(job.path) as added:
        whole = of_layers(job, {*old.layers, *added.layers})
        whole = replace(whole, path=job.path.with_suffix(".whole"))
        with _open_hidden(whole) as writer:
            copy_rows([old, added], 0, writer)
            writer.finish()
            os.replace(whole.path, path)
    sync_folder(path.parent)


def run_units(
    job: Job,
    *,
    share: tuple[int, int] = (0, 1),
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Summary | None:
    """Make the parts that are missing; the same call resumes after a stop.

    Of several processes, process ``share[0]`` makes every ``share[1]``-th part. They need not wait
    for each other.

    Returns the report of the whole store; None if others have not made all of their parts.
    """
    start = time.monotonic()
    counts = Counts(batch_tokens=job.batch_tokens)
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        units = Units(job)
        mine = range(share[0], len(units.sizes), share[1])
        todo = sorted({*mine}.intersection(units.missing()))
        loaded = time.monotonic()
        if todo:
            following = Unit(units.unit(todo[0]))  # tokenises while the weights are read
            stack.callback(lambda: following.close())
            tap = stack.enter_context(tapped_model(job))
            units.begin()  # what is there is replaced only now
            loaded = time.monotonic()
            total, done = sum(units.index.counts[i] for i in mine), partial(units.rows_done, mine)
            all_rows, to_do = (sum(units.sizes[i] for i in part) for part in (mine, todo))
            progress = Progress(all_rows, done=all_rows - to_do, show=show)
            if len(todo) < len(mine):
                progress.note(f"Resuming {job.path}: {done():,} of {total:,} rows are done.")
            with resumable(progress, done, total, job.path):
                for after in [*todo[1:], None]:
                    unit = following
                    if after is not None:
                        following = Unit(units.unit(after))
                    tokens = counts.batch_tokens
                    counts += unit.run(tap, progress, batch_tokens=tokens, on_batch=on_batch)
            progress.clear()
            warn_nonfinite(job, counts, progress)
    return units.report(counts, (start, loaded)) if units.finish() else None
