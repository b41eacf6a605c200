"""Model and rows in, a store of hidden states out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probekit.activations.batching import Array, Batch
from probekit.activations.forward import Counts, Feed, Sink, Window, forward_all, read_windows
from probekit.activations.hooks import Tap
from probekit.activations.loading import input_device, tapped
from probekit.activations.padding import Evenness
from probekit.activations.pooling import pooler
from probekit.activations.progress import Progress
from probekit.activations.quiet import quiet
from probekit.activations.request import Job, Request, prepare
from probekit.activations.store import ActivationStore
from probekit.activations.threads import Ahead
from probekit.activations.writer import StoreWriter
from probekit.errors import DataError, StoreError

__all__ = [
    "Report",
    "estimate",
    "extract",
    "forward_job",
    "job_windows",
    "open_writer",
    "report_on",
    "run",
]


@dataclass(frozen=True)
class Report:
    """What an extraction has done."""

    path: str
    rows: int
    """Rows in the store."""
    rows_forwarded: int
    """Rows that this run forwarded; the others were done before."""
    tokens: int
    """Tokens of all rows in the store, without padding."""
    tokens_forwarded: int
    truncated: int
    """Rows that were longer than ``max_length``."""
    batches: int
    seconds: float
    """From the start to the finished store."""
    forward_seconds: float
    """The part of it with the model loaded."""
    batch_tokens: int
    """Padded tokens per batch, after any halving."""
    layers: list[int]
    pooling: str
    store_dtype: str
    device: str
    nonfinite: dict[int, int]
    """Layer to number of rows, of those forwarded, with inf or NaN."""


def extract(
    rows: Any,
    model: Any,
    *,
    output: str | Path,
    layers: str | int | list[int] = "mid",
    pool: str = "auto",
    **options: Any,
) -> ActivationStore:
    """Store a model's pooled hidden states of every row; resumes what the same call began.

    Parameters
    ----------
    rows
        Task name, path, ``hf:org/name[:config]@split``, Rows, data set, DataFrame, list of texts or
        of dicts.
    model
        Hub name or folder, or a pair (model, tokenizer) that is loaded already.
    output
        HDF5 file to write (docs/format.md).
    layers
        Numbers as in ``hidden_states``, ranges, ``mid``, ``last``, ``all``.
    pool
        ``last``, ``first``, ``mean`` or ``max`` over real tokens; ``auto``: ``last`` for models
        that read left to right, ``mean`` for the others.
    **options
        Further fields of :class:`probekit.activations.request.Request`: ``dtype``, ``store_dtype``,
        ``max_length``, ``batch_tokens``, ``device``, ``template``, ``revision``, ``text_column``,
        ``id_column``, ``group_column``, ``limit``, ``trust_remote_code``, ``quantization``,
        ``compression``, ``overwrite``; and ``progress`` (bool).

    Raises
    ------
    ProbekitError
        One sentence about whatever is wrong; rows that are done stay stored.
    """
    progress = options.pop("progress", None)
    request = Request(rows, model, output, layers, pool, **options)
    return ActivationStore(run(prepare(request), show=progress).path)


def estimate(job: Job) -> dict[str, Any]:
    """Count rows, tokens and bytes on disk of an extraction, without loading weights."""
    plan = job.store_plan
    nothing_done = np.zeros(len(job.rows), bool)
    tokens = truncated = longest = batches = 0
    with quiet():
        for window in job_windows(job, nothing_done):
            tokens += int(window.encoded.lengths.sum())
            truncated += int(window.encoded.truncated.sum())
            longest = max(longest, int(window.encoded.lengths.max()))
            batches += len(window.batches)
    per_layer = {i: len(job.rows) * w * plan.dtype.itemsize for i, w in job.widths.items()}
    return {
        "path": str(job.path),
        "rows": len(job.rows),
        "tokens": tokens,
        "truncated": truncated,
        "longest": longest,
        "batches": batches,
        "batch_tokens": job.batch_tokens,
        "bytes_per_layer": per_layer,
        "bytes": plan.nbytes,
        "free_bytes": job.free_bytes,
        "widths": job.widths,
        "spec": job.spec.to_json(),
    }


def run(
    job: Job,
    *,
    show: bool | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Report:
    """Run a job to its end, or as far as it gets.

    Parameters
    ----------
    job
        From ``prepare``.
    show
        Whether to draw the moving line of progress; None: on a terminal.
    on_batch
        Called with every batch that was forwarded.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        writer = None
        # What is there is looked at before the model is loaded, and replaced only after.
        if job.path.exists() and not job.request.overwrite:
            writer = stack.enter_context(open_writer(job))
        if writer is not None and writer.done.all():
            writer.finish()
            return report_on(job, Counts(batch_tokens=job.batch_tokens), (start, time.monotonic()))
        done = np.zeros(len(job.rows), bool) if writer is None else writer.done
        source = Ahead(job_windows(job, done))  # tokenises while the weights are read
        stack.callback(source.close)
        take = pooler(job.spec.pooling)
        tap = stack.enter_context(tapped(job.checkpoint, job.spec.layers, take, job.placement))
        if writer is None:
            writer = stack.enter_context(open_writer(job))
        loaded = time.monotonic()
        counts = forward_job(job, tap, source, writer, show=show, on_batch=on_batch)
        writer.finish()
    return report_on(job, counts, (start, loaded))


def job_windows(job: Job, done: Array, share: tuple[int, int] = (0, 1)) -> Iterator[Window]:
    """Tokenised windows of the rows that are not done; ``share`` as in ``read_windows``."""
    return read_windows(
        job.rows,
        job.encoder,
        done,
        batch_tokens=job.batch_tokens,
        vocabulary=job.checkpoint.vocabulary,
        share=share,
    )


def open_writer(job: Job) -> StoreWriter:
    """Make or resume the store of a job."""
    return StoreWriter.open(
        job.path,
        spec=job.spec.to_json(),
        ids=job.rows.ids,
        hashes=job.rows.hashes,
        widths=job.widths,
        store_dtype=job.spec.store_dtype,
        source=job.rows.source,
        keys=job.rows.keys,
        groups=job.rows.groups,
        overwrite=job.request.overwrite,
        compression=job.request.compression,
    )


def forward_job(
    job: Job,
    tap: Tap,
    source: Ahead[Window],
    writer: StoreWriter,
    *,
    show: bool | None,
    on_batch: Callable[[Batch], None] | None,
) -> Counts:
    """Forward what ``source`` gives and write it; what is done stays, whatever happens."""
    checkpoint, request = job.checkpoint, job.request
    before = int(writer.done.sum())
    progress = Progress(len(job.rows), done=before, show=show)
    if before:
        progress.note(f"Going on with {job.path}: {before:,} of {len(job.rows):,} rows are done.")
    if writer.changed:
        progress.note(f"{writer.changed:,} of the rows that were not done have another text now.")
    feed = Feed(
        tap,
        input_device(tap.root),
        checkpoint.pad_id,
    )
    dtype = getattr(torch, job.spec.store_dtype)
    sink = Sink(writer, dtype=dtype, flush_rows=request.flush_rows)
    try:
        counts = forward_all(
            source,
            feed,
            sink,
            ids=job.rows.ids,
            batch_tokens=job.batch_tokens,
            progress=progress,
            even=Evenness(checkpoint.dtype, known=job.spec.batches is not None),
            on_batch=on_batch,
        )
    except BaseException as error:
        source.close()
        # What went wrong first is what the user must hear.
        with suppress(StoreError, OSError):
            sink.close()
        progress.clear()
        # Its row would stop the same command again.
        first = "once such rows are repaired (not removed) " if isinstance(error, DataError) else ""
        error.add_note(
            f"{int(writer.done.sum()):,} of {len(job.rows):,} rows are stored in {job.path}; "
            f"{first}the same command goes on from there."
        )
        raise
    sink.close()
    progress.clear()
    for layer, wrong in sorted(sink.nonfinite.items()):
        progress.note(
            f"{wrong:,} rows have inf or NaN in layer {layer}: too large for "
            f"{job.spec.dtype} (model) or {job.spec.store_dtype} (file); take bfloat16 or float32."
        )
    return replace(counts, nonfinite=dict(sorted(sink.nonfinite.items())))


def report_on(job: Job, counts: Counts, times: tuple[float, float]) -> Report:
    """Sum up a job whose store is complete; ``times`` are those of its start and of the model's."""
    end = time.monotonic()
    with ActivationStore(job.path) as store:
        tokens, truncated = int(store.n_tokens.sum(dtype=np.int64)), int(store.truncated.sum())
    return Report(
        path=str(job.path),
        rows=len(job.rows),
        rows_forwarded=counts.rows,
        tokens=tokens,
        tokens_forwarded=counts.tokens,
        truncated=truncated,
        batches=counts.batches,
        seconds=end - times[0],
        forward_seconds=end - times[1],
        batch_tokens=counts.batch_tokens,
        layers=list(job.spec.layers),
        pooling=job.spec.pooling,
        store_dtype=job.spec.store_dtype,
        device=job.placement.device,
        nonfinite=counts.nonfinite,
    )
