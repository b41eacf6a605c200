"""One job in several processes, on one machine or many."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from probekit.activations.batching import Batch
from probekit.activations.extraction import (
    Job,
    Report,
    forward_job,
    job_windows,
    open_writer,
    report_on,
)
from probekit.activations.forward import Ahead, Counts
from probekit.activations.hooks import pooler
from probekit.activations.loading import tapped
from probekit.activations.member import MemberWriter
from probekit.activations.quiet import quiet
from probekit.activations.ranks import Ranks, joined
from probekit.activations.store import ActivationStore

__all__ = ["run_together"]


def run_together(
    job: Job,
    ranks: Ranks,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Report | None:
    """Run this process's share of a job; every process returns when all are done.

    Every process plans the same batches and forwards every ``world``-th of them. Processes that see
    the same disk write one store, led by the first of them. With several disks, each disk's store
    ends with its share of the rows, for :func:`probekit.activations.merge.merge`.

    Returns
    -------
    The report of all processes, on the leader of a disk whose store is complete; else None.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        group = stack.enter_context(joined(ranks, job.path.parent))
        led = stack.enter_context(open_writer(job)) if group.leads else None
        before = None if led is None else led.done
        group.wait()  # the store exists
        writer = led
        if writer is None:
            path = Path(os.path.realpath(job.path))
            writer = stack.enter_context(MemberWriter(path, job.store_plan, ranks.rank))
        counts, loaded = Counts(batch_tokens=job.batch_tokens), time.monotonic()
        if not writer.done.all():
            source = Ahead(job_windows(job, writer.done, (ranks.rank, ranks.world)))
            stack.callback(source.close)
            take = pooler(job.spec.pooling)
            tap = stack.enter_context(tapped(job.checkpoint, job.spec.layers, take, job.placement))
            loaded = time.monotonic()
            shown = show if ranks.rank == 0 else False
            counts = forward_job(job, tap, source, writer, show=shown, on_batch=on_batch)
        writer.flush()
        group.wait()  # every row is written
        if led is not None:
            led.take_notes()
            if led.done.all():
                led.finish()
        group.wait()
    if led is None or before is None or not led.complete:
        return None
    with ActivationStore(job.path) as store:
        tokens = int(store.n_tokens[~before].sum(dtype=np.int64))
    together = replace(counts, rows=int((~before).sum()), tokens=tokens)
    return report_on(job, together, (start, loaded))
