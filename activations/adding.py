"""Add layers to a store that exists: only those that it lacks are forwarded and pooled.

They are extracted into a store of their own beside it, or beside each part of a folder, which
resumes as any extraction does. Both are then copied into one file, which replaces the store in one
step. The disk holds the states of the file, or of the part, twice for that moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from probekit.activations.batching import Batch
from probekit.activations.extraction import prepare, run, run_states, stored_spec
from probekit.activations.forward import Counts
from probekit.activations.job import (
    Job,
    Request,
    Summary,
    of_layers,
    open_writer,
    report_on,
)
from probekit.activations.quiet import quiet
from probekit.activations.store import ActivationStore
from probekit.activations.units import add_to
from probekit.errors import StoreError, UsageError, human_bytes

__all__ = ["add_layers", "prepare_adding", "run_adding"]


def add_layers(
    request: Request,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Summary:
    """Add the request's layers to the store at its output; the same call resumes after a stop.

    The network runs up to the deepest missing layer for every row, whatever is stored; layers that
    are stored are neither pooled nor computed beyond that.

    Parameters
    ----------
    request
        The request that made the store, with the layers to add.
    show, on_batch
        As :func:`probekit.activations.extraction.run`.

    Returns
    -------
    Report of the whole store; ``rows_forwarded`` is 0 if it had every layer.

    Raises
    ------
    StaleStoreError
        If the store was made from other rows, another model or with other settings.
    StoreError
        If there is no store, it is incomplete, or the disk has no room.
    """
    return run_adding(prepare_adding(request), show=show, on_batch=on_batch)


def prepare_adding(request: Request, *, device: str | None = None) -> Job:
    """Return a job of the layers that the store at the request's output lacks.

    If it lacks none, they are its own. ``device`` is as of :func:`extraction.prepare`.
    """
    path = Path(os.path.realpath(request.output))
    if request.overwrite:
        raise UsageError("--add-layers keeps the store, and --overwrite replaces it; give one.")
    if stored_spec(path) is None:
        raise StoreError(f"{path} is not there to add layers to; leave --add-layers out.")
    job = prepare(request, device=device)
    with ActivationStore(path, allow_incomplete=True) as store:
        present = store.layers
    layers = set(job.spec.layers).difference(present) or present
    return replace(of_layers(job, layers), path=path, adds=True)


def run_adding(
    job: Job,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Summary:
    """Run the job; arguments as in ``extraction.run``."""
    if job.folder:
        return run(job, show=show, on_batch=on_batch)
    path, start = job.path, time.monotonic()
    counts, loaded = Counts(batch_tokens=job.batch_tokens), start
    with ActivationStore(path, allow_incomplete=True) as store:
        present = store.layers
    added = replace(job, path=path.with_name(f".{path.name}.added"))
    # Checks rows and spec, and keeps other writers out.
    with open_writer(of_layers(job, present)) as old, quiet(python_warnings=False):
        if not old.complete:
            raise StoreError(
                f"{path} is not complete; finish it first, by the command that began it."
            )
        if lacking := set(job.spec.layers).difference(present):
            needed = of_layers(job, {*present, *lacking}).store_plan.nbytes
            needed += 0 if added.path.exists() else added.store_plan.nbytes
            if needed > job.free_bytes:
                raise StoreError(
                    f"Adding layers needs {human_bytes(needed)} beside the store until it is done, "
                    f"but {human_bytes(job.free_bytes)} are free on its disk; free some space."
                )
            plain = replace(added, request=replace(job.request, compression=None))
            counts, loaded = run_states(plain, show, on_batch)
            add_to(path, added)
        added.path.unlink(missing_ok=True)
    return report_on(job, counts, (start, loaded))
