"""Add layers to a store that exists: only those that it lacks are forwarded and pooled.

They are extracted into a store of their own beside it, which resumes as any extraction does. Both
are then copied into one file, which replaces the store in one step: HDF5 cannot add a layer to a
file so that a kill leaves it readable. The disk holds the states twice for that moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from probekit.activations.batching import Batch
from probekit.activations.extraction import prepare, run, stored_spec
from probekit.activations.forward import Counts
from probekit.activations.job import Job, Report, Request, is_folder, open_writer, report_on
from probekit.activations.merge import copy_rows
from probekit.activations.store import ActivationStore
from probekit.errors import StoreError, UsageError, human_bytes
from probekit.files import sync_folder

__all__ = ["add_layers"]


def add_layers(
    request: Request,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Report:
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
    start = time.monotonic()
    if request.overwrite:
        raise UsageError("--add-layers keeps the store, and --overwrite replaces it; give one.")
    if is_folder(request.output):
        raise UsageError(
            f"--add-layers adds to a file, and {request.output} is a folder; make a file of it "
            "with `probekit merge`, or extract the further layers into another folder."
        )
    path = Path(os.path.realpath(request.output))
    stored = stored_spec(path)
    if stored is None:
        raise StoreError(f"{path} is not there to add layers to; leave --add-layers out.")
    job = prepare(request)
    with ActivationStore(path, allow_incomplete=True) as store:
        present = list(store.layers)
    missing = sorted(set(job.spec.layers) - set(present))
    job = replace(_of_layers(job, present), path=path)
    if job.spec.to_json() != stored:  # perhaps only the model's folder has another name
        renamed = replace(job, spec=replace(job.spec, model=str(stored.get("model"))))
        job = renamed if renamed.spec.to_json() == stored else job
    added = replace(
        _of_layers(job, missing),
        path=path.with_name(f".{path.name}.added"),
        request=replace(request, compression=None),
    )
    whole = replace(
        _of_layers(job, [*present, *missing]), path=path.with_name(f".{path.name}.whole")
    )
    with open_writer(job) as old:  # checks rows and spec, and keeps other writers out
        if not old.complete:
            raise StoreError(
                f"{path} is not complete; finish it first, by the command that began it."
            )
        if missing:
            _check_room(added, whole)
            report = run(added, show=show, on_batch=on_batch)
            _combine(path, added.path, whole)
        else:
            report = report_on(job, Counts(batch_tokens=job.batch_tokens), (start, start))
        added.path.unlink(missing_ok=True)
    return replace(
        report,
        path=str(path),
        layers=list(whole.spec.layers),
        seconds=time.monotonic() - start,
    )


def _of_layers(job: Job, layers: list[int]) -> Job:
    """The same job for other layers."""
    if not layers:
        return job
    last = job.checkpoint.depth in layers and job.checkpoint.untied
    spec = replace(
        job.spec,
        layers=tuple(sorted(layers)),
        last_layer="after the final norm" if last else None,
    )
    return replace(job, spec=spec)


def _check_room(added: Job, whole: Job) -> None:
    """Raise StoreError unless the disk has room for what is not written yet."""
    needed = sum(job.store_plan.nbytes for job in (added, whole) if not job.path.exists())
    if needed > whole.free_bytes:
        raise StoreError(
            f"Adding layers needs {human_bytes(needed)} beside the store until it is done, but "
            f"{human_bytes(whole.free_bytes)} are free on its disk; free some space."
        )


def _combine(old: Path, added: Path, whole: Job) -> None:
    """Copy the layers of both stores into one file, and put it in the place of ``old``."""
    with (
        ActivationStore(old) as first,
        ActivationStore(added) as second,
        open_writer(whole) as writer,
    ):
        rows = np.arange(len(first))
        copy_rows([first, second], rows, rows, writer)
        writer.finish()
    os.replace(whole.path, old)
    sync_folder(old.parent)
