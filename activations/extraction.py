"""Model and rows in, a store of hidden states out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probekit.activations.batching import Batch, default_batch_tokens, mixes_padding
from probekit.activations.checkpoint import (
    Checkpoint,
    hashed,
    open_checkpoint,
    open_loaded,
    tokenizer_fingerprint,
)
from probekit.activations.differences import subtract, texts_job, texts_of_pairs
from probekit.activations.encoding import Encoder, Survey, read_template, refusal
from probekit.activations.forward import Ahead, Counts
from probekit.activations.index import read_index
from probekit.activations.job import (
    Job,
    Request,
    Summary,
    forward_job,
    is_folder,
    job_windows,
    of_layers,
    open_writer,
    report_on,
    resumable,
    tapped_model,
    warn_nonfinite,
)
from probekit.activations.loading import Placement, input_device, kind_of, resolve_device
from probekit.activations.precision import extraction_precision
from probekit.activations.progress import Progress
from probekit.activations.quiet import quiet
from probekit.activations.spec import (
    DIFFERENCE,
    ExtractionSpec,
    differing,
    parse_layers,
    storable,
)
from probekit.activations.store import ActivationStore
from probekit.activations.units import add_to, forwarded, run_units
from probekit.data import Rows
from probekit.errors import (
    DataError,
    OutputExistsError,
    StaleStoreError,
    StoreError,
    UsageError,
    first_few,
    human_bytes,
)
from probekit.files import refuse_reads
from probekit.sources import load_rows

__all__ = [
    "estimate",
    "extract",
    "extract_differences",
    "prepare",
    "prepare_adding",
    "run",
]


def prepare(request: Request, *, compare: bool = False, device: str | None = None) -> Job:
    """Read rows, configuration and tokenizer, and check all that can be checked without weights.

    With ``compare`` the differences of pairs are stored. ``device`` is that of workers elsewhere,
    which this machine need not have.

    Raises ProbekitError if anything is wrong, with one sentence about it.
    """
    path, folder = Path(request.output), is_folder(request.output)
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
    named = [each for each in (request.rows, request.model) if isinstance(each, str | Path)]
    refuse_reads([path], [*named, request.template], overwrite=request.overwrite)
    if compare and request.skip_refused:
        raise UsageError(
            "--skip-refused leaves out rows and --compare reads both texts of each; remove the "
            "pairs that the template refuses from the file."
        )
    rows = read_rows(request)
    read = texts_of_pairs(rows)[0] if compare else rows
    if isinstance(request.model, tuple | list):
        checkpoint = _loaded(request)
    else:
        checkpoint = open_checkpoint(
            str(request.model),
            revision=request.revision,
            dtype=request.dtype,
            trust_remote_code=request.trust_remote_code,
        )
    checkpoint, precision = _in_precision(request, checkpoint, path, device)
    max_length = checkpoint.length(request.max_length)
    with quiet():
        encoder = Encoder(
            checkpoint.tokenizer,
            kind=read.kind,
            max_length=max_length,
            template=read_template(request.template),
        )
        survey = encoder.survey(read)
    rows, notes = _accepted(rows, read, survey, request)
    if checkpoint.sentence is not None:
        used = {"pooling": request.pool == "auto", "max_length": request.max_length is None}
        notes += tuple(filter(None, [checkpoint.sentence.describe(**used)]))
    placement = _placement(request, checkpoint, device)
    spec = _spec(request, checkpoint, encoder, survey)
    if compare:
        spec = replace(spec, pairs=DIFFERENCE["pairs"])
    spec = _keep_label(spec, path)
    kind = "cuda" if device not in (None, "cpu") else kind_of(placement.device)
    job = Job(
        request,
        path,
        rows,
        checkpoint,
        encoder,
        spec,
        placement,
        batch_tokens=request.batch_tokens or default_batch_tokens(kind),
        notes=notes,
        precision=precision,
        folder=folder,
    )
    # A loaded model's widths are measured here, before hooks can stop it half-way.
    needed = job.store_plan.nbytes + (next(forwarded(job)).store_plan.nbytes if compare else 0)
    if not path.exists() and needed > job.free_bytes:
        raise StoreError(
            f"{path} needs {human_bytes(needed)}, but {human_bytes(job.free_bytes)} "
            "are free on its disk; free some space, or store fewer layers or a smaller dtype."
        )
    return job


def prepare_adding(request: Request, *, device: str | None = None) -> Job:
    """Return a job that adds the request's layers to the store at its output.

    The job's layers are those that the store lacks; if it lacks none, its own. For every row the
    network runs up to the deepest of them, whatever is stored. They are extracted into a file
    beside the store, or beside each part of a folder, which resumes as any extraction does. Both
    are then copied into one, which replaces the store, or the part, in one step: the disk holds its
    states twice for that moment. ``device`` is as of :func:`prepare`.

    Raises StoreError if there is no store, and as :func:`prepare`.
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


def read_rows(request: Request) -> Rows:
    """Return the rows of a request, up to its limit."""
    columns = {"text_column": request.text_column, "id_column": request.id_column}
    read = load_rows if isinstance(request.rows, str | Path) else Rows.from_any
    rows = read(request.rows, **columns)
    if request.group_column is not None:
        rows = rows.grouped(request.group_column)
    if request.limit is not None and request.limit < len(rows):
        return rows.select(range(request.limit))
    return rows


def _accepted(
    rows: Rows, read: Rows, survey: Survey, request: Request
) -> tuple[Rows, tuple[str, ...]]:
    """Return the rows that the template does not refuse, and notes; ``read``: what it renders."""
    notes = [rows.note] if rows.note else []
    total, refused = len(read), survey.refused
    if refused:
        if not request.skip_refused or len(refused) == total:
            whole = request.skip_refused or read is not rows
            how = "" if whole else ", or leave such rows out with `probekit extract --skip-refused`"
            raise refusal(refused, total=total, leave_out=how)
        rows = rows.select([i for i, name in enumerate(rows.ids) if name not in refused])
        notes.append(
            f"{len(refused):,} of {total:,} rows are left out, which the template refuses (ids "
            f"{first_few(list(refused))})."
        )
    if survey.long:
        notes.append(
            f"{survey.long:,} rows are so long that only the part which is read was tokenised."
        )
    return rows, tuple(notes)


def _loaded(request: Request) -> Checkpoint:
    if len(request.model) != 2:
        raise UsageError("A loaded model is a pair: (transformers model, tokenizer).")
    given = {
        "revision": request.revision is not None,
        "dtype": request.dtype != "auto",
        "device": request.device != "auto",
        "quantization": request.quantization is not None,
        "trust_remote_code": request.trust_remote_code,
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise UsageError(f"A loaded model is used as it is; leave out {', '.join(wrong)}.")
    return open_loaded(*request.model)


def _in_precision(
    request: Request, checkpoint: Checkpoint, path: Path, device: str | None
) -> tuple[Checkpoint, str]:
    """Return the checkpoint in the dtype that the device computes in, and a sentence about it."""
    asked = checkpoint.loaded or request.dtype != "auto" or request.quantization is not None
    if asked or device not in (None, "cpu"):  # GPUs compute in the checkpoint's dtype
        return checkpoint, ""
    chosen = extraction_precision(device or resolve_device(request.device), checkpoint.dtype)
    own = str(checkpoint.dtype).removeprefix("torch.")
    begun = None if request.overwrite else stored_spec(path)
    if begun is not None and begun.get("dtype") == own != chosen.dtype:
        return checkpoint, f"Computing in {own}, as the store was begun."
    return replace(checkpoint, dtype=getattr(torch, chosen.dtype)), str(chosen)


def _placement(request: Request, checkpoint: Checkpoint, device: str | None) -> Placement:
    if checkpoint.loaded:
        return Placement(str(input_device(checkpoint.root)))
    quantization = request.quantization
    if quantization is not None and quantization.get("load_in_4bit"):
        # The default of transformers is float32.
        name = str(checkpoint.dtype).removeprefix("torch.")
        quantization = {"bnb_4bit_compute_dtype": name, **quantization}
    return Placement(device or resolve_device(request.device), quantization)


def _spec(
    request: Request, checkpoint: Checkpoint, encoder: Encoder, survey: Survey
) -> ExtractionSpec:
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    layers = parse_layers(request.layers, checkpoint.depth)
    normed = checkpoint.untied and checkpoint.depth in layers
    return ExtractionSpec(
        model=checkpoint.label,
        revision=checkpoint.revision,
        weights=checkpoint.weights,
        tokenizer=tokenizer_fingerprint(checkpoint.tokenizer),
        layers=layers,
        pooling=checkpoint.default_pool if request.pool == "auto" else request.pool,
        dtype=dtype,
        store_dtype=storable(dtype) if request.store_dtype == "same" else request.store_dtype,
        max_length=encoder.max_length,
        kind=encoder.kind,
        template=None if encoder.template is None else hashed(encoder.template),
        quantization=request.quantization,
        separator=encoder.separator,
        opening="once" if survey.opened else None,
        batches="equal lengths" if mixes_padding(checkpoint.config.model_type) else None,
        last_layer="after the final norm" if normed else None,
    )


def _keep_label(spec: ExtractionSpec, path: Path) -> ExtractionSpec:
    """Keep the model name of an existing store if only the model's folder was renamed."""
    stored = stored_spec(path) or {}
    renamed = replace(spec, model=str(stored.get("model")))
    other = {*differing(renamed.to_json(), stored)} - {"layers", "last_layer"}
    return spec if other else renamed


def stored_spec(path: Path) -> dict[str, Any] | None:
    """Return the spec of the store at ``path``, complete or not; None without a store."""
    try:
        if path.is_dir():
            return read_index(path).spec
        with ActivationStore(path, allow_incomplete=True) as store:
            return store.spec
    except StoreError:
        return None


def extract(
    rows: Any,
    model: Any,
    *,
    output: str | Path,
    layers: str | int | list[int] = "mid",
    pool: str = "auto",
    **options: Any,
) -> ActivationStore:
    """Store a model's pooled hidden states of every row; resumes an interrupted call.

    Parameters
    ----------
    rows
        Task name, path, ``hf:org/name[:config]@split``, Rows, data set, DataFrame, list of texts or
        of dicts.
    model
        Hub name or folder, or a loaded pair (model, tokenizer).
    output
        HDF5 file to write, or a folder of such files if it ends with ``/`` (docs/format.md).
    layers
        Numbers as in ``hidden_states``, ranges, ``mid``, ``last``, ``all``.
    pool
        ``last``, ``first``, ``mean`` or ``max`` over real tokens; ``auto``: ``last`` for models
        that read left to right, ``mean`` for the others.
    **options
        Further fields of :class:`Request`: ``dtype``, ``store_dtype``, ``max_length``,
        ``batch_tokens``, ``device``, ``template``, ``revision``, ``text_column``, ``id_column``,
        ``group_column``, ``limit``, ``skip_refused``, ``trust_remote_code``, ``quantization``,
        ``compression``, ``overwrite``; and ``progress`` (bool).

    Raises
    ------
    ProbekitError
        If anything is wrong, with one sentence about it; rows that are done stay stored.
    """
    progress = options.pop("progress", None)
    request = Request(rows, model, output, layers, pool, **options)
    return ActivationStore(run(prepare(request), show=progress).path)


def extract_differences(
    rows: Any,
    model: Any,
    *,
    output: str | Path,
    layers: str | int | list[int] = "mid",
    pool: str = "auto",
    **options: Any,
) -> ActivationStore:
    """Store h(second) − h(first) of every pair, each text read alone; resumes an interrupted call.

    The store has the pairs' ids and text hashes, so that labels and verdicts of pairs join it. The
    difference is computed in float32 from the model's states, then stored.

    Parameters
    ----------
    rows
        Pairs: rows with ``text`` and ``text_pair``, or with ``chosen`` and ``rejected``.
    model, output, layers, pool, options
        As :func:`extract`.

    Raises
    ------
    ProbekitError
        As for ``extract``; a UsageError if the rows are not pairs.
    """
    progress = options.pop("progress", None)
    request = Request(rows, model, output, layers, pool, **options)
    return ActivationStore(run(prepare(request, compare=True), show=progress).path)


def estimate(job: Job) -> dict[str, Any]:
    """Count rows, tokens and bytes on disk of an extraction, without loading weights."""
    plan = job.store_plan
    tokens = truncated = longest = batches = texts = temporary = 0
    with quiet():
        for states in forwarded(job):
            texts += len(states.rows)
            temporary = max(temporary, states.store_plan.nbytes)
            for window in job_windows(states, np.zeros(len(states.rows), bool)):
                tokens += int(window.encoded.lengths.sum())
                truncated += int(window.encoded.truncated.sum())
                longest = max(longest, int(window.encoded.lengths.max()))
                batches += len(window.batches)
    pairs: dict[str, int] = {}
    if job.spec.pairs:
        pairs = {"pairs": len(job.rows), "texts": texts, "temporary_bytes": temporary}
    return {
        "path": str(job.path),
        "rows": len(job.rows),
        **pairs,
        "tokens": tokens,
        "truncated": truncated,
        "longest": longest,
        "batches": batches,
        "batch_tokens": job.batch_tokens,
        "bytes_per_layer": {
            layer: len(job.rows) * width * plan.dtype.itemsize
            for layer, width in job.widths.items()
        },
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
) -> Summary:
    """Run a job of ``prepare`` or ``prepare_adding``; an interrupted one can be resumed.

    ``show``: whether to draw a progress bar; None: on a terminal and in a notebook. ``on_batch`` is
    called with every batch after its forward pass.
    """
    if job.folder:
        report = run_units(job, show=show, on_batch=on_batch)
        assert report is not None, "a single process makes every part"
        return report
    start = time.monotonic()
    with quiet(python_warnings=False):
        if job.spec.pairs:
            texts = texts_job(job)
            counts, loaded = _run_pairs(job, texts, show, on_batch)
            return report_on(job, counts, (start, loaded), texts=len(texts.rows))
        counts, loaded = (_run_adding if job.adds else _run_states)(job, show, on_batch)
        return report_on(job, counts, (start, loaded))


def _run_states(
    job: Job, show: bool | None, on_batch: Callable[[Batch], None] | None
) -> tuple[Counts, float]:
    """Extract into one file; return what was done, and when the model was loaded."""
    with ExitStack() as stack:
        writer = None
        # An existing store is checked before the model is loaded, and replaced only after.
        if job.path.exists() and not job.request.overwrite:
            writer = stack.enter_context(open_writer(job))
        if writer is not None and writer.done.all():
            writer.finish()
            return Counts(batch_tokens=job.batch_tokens), time.monotonic()
        done = np.zeros(len(job.rows), bool) if writer is None else writer.done
        source = Ahead(job_windows(job, done))  # tokenises while the weights are read
        stack.callback(source.close)
        tap = stack.enter_context(tapped_model(job))
        if writer is None:
            writer = stack.enter_context(open_writer(job))
        loaded = time.monotonic()
        total, before = len(job.rows), int(writer.done.sum())
        progress = Progress(total, done=before, show=show)
        if before:
            progress.note(f"Resuming {job.path}: {before:,} of {total:,} rows are done.")
        with resumable(progress, lambda: int(writer.done.sum()), total, job.path):
            counts = forward_job(job, tap, source, writer, progress, on_batch=on_batch)
        progress.clear()
        warn_nonfinite(job, counts, progress)
        writer.finish()
    return counts, loaded


def _run_pairs(
    job: Job, texts: Job, show: bool | None, on_batch: Callable[[Batch], None] | None
) -> tuple[Counts, float]:
    """Extract differences into one file; return the same of their texts."""
    counts, loaded = Counts(batch_tokens=job.batch_tokens), time.monotonic()
    with ExitStack() as stack:
        writer = None
        # An existing store is replaced only when the states of the texts are complete.
        if not (job.request.overwrite and job.path.exists()):
            writer = stack.enter_context(open_writer(job))
        if writer is None or not writer.complete:
            try:
                counts, loaded = _run_states(texts, show, on_batch)
            except (StaleStoreError, OutputExistsError):  # of other pairs
                texts.path.unlink()
                counts, loaded = _run_states(texts, show, on_batch)
            if writer is None:
                writer = stack.enter_context(open_writer(job))
            counts = subtract(job, texts.path, writer, counts)
            warn_nonfinite(job, counts, Progress(0, show=False))
        writer.finish()
    texts.path.unlink(missing_ok=True)
    return counts, loaded


def _run_adding(
    job: Job, show: bool | None, on_batch: Callable[[Batch], None] | None
) -> tuple[Counts, float]:
    """Add layers to one file; return the same of the layers."""
    path = job.path
    counts, loaded = Counts(batch_tokens=job.batch_tokens), time.monotonic()
    with ActivationStore(path, allow_incomplete=True) as store:
        present = store.layers
    added = replace(job, path=path.with_name(f".{path.name}.added"))
    # Checks rows and spec, and keeps other writers out.
    with open_writer(of_layers(job, present)) as old:
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
            counts, loaded = _run_states(plain, show, on_batch)
            add_to(path, added)
        added.path.unlink(missing_ok=True)
    return counts, loaded
