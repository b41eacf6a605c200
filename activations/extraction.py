"""Model and rows in, a store of hidden states out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from probekit.activations.batching import (
    Array,
    Batch,
    Buckets,
    Evenness,
    default_batch_tokens,
    mixes_padding,
)
from probekit.activations.checkpoint import (
    Checkpoint,
    hashed,
    open_checkpoint,
    open_loaded,
    tokenizer_fingerprint,
)
from probekit.activations.create import Plan
from probekit.activations.encoding import Encoder, Survey, read_template, refusal
from probekit.activations.forward import (
    Ahead,
    Counts,
    Feed,
    Sink,
    Window,
    forward_all,
    read_windows,
)
from probekit.activations.hooks import Tap, pooler
from probekit.activations.loading import Placement, input_device, kind_of, resolve_device, tapped
from probekit.activations.precision import extraction_precision
from probekit.activations.progress import Progress
from probekit.activations.quiet import quiet
from probekit.activations.spec import COMPRESSIONS, DTYPES, POOLS, ExtractionSpec, parse_layers
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import (
    DataError,
    OutputExistsError,
    StoreError,
    UsageError,
    first_few,
    human_bytes,
)
from probekit.files import refuse_reads
from probekit.kinds import COUNT, Choice, Flag, Layers, Maybe, Name, Settings, Text, checked
from probekit.settings import configuration
from probekit.sources import load_rows

__all__ = [
    "Job",
    "Report",
    "Request",
    "estimate",
    "extract",
    "forward_job",
    "job_windows",
    "open_writer",
    "prepare",
    "read_rows",
    "report_on",
    "run",
    "stored_spec",
]

MODEL = Name("a model's name")
COLUMN = Maybe(Text("a column's name"))


@configuration
class Request:
    """All settings of an extraction; see ``probekit extract -h``."""

    rows: Any
    """Task name, path, ``hf:…``, Rows, data set, DataFrame or list."""
    model: Any
    """Hub name, folder, or a loaded pair (model, tokenizer)."""
    output: str | Path
    """Store to write."""
    layers: Annotated[Any, Layers()] = "mid"
    """See ``parse_layers``."""
    pool: Annotated[str, Choice("auto", *POOLS)] = "auto"
    """``auto``: last token for models that read left to right, mean for the others."""
    dtype: Annotated[str, Choice("auto", *DTYPES)] = "auto"
    """Dtype the model computes in; ``auto``: that of the checkpoint."""
    store_dtype: Annotated[str, Choice("same", *DTYPES)] = "same"
    """Dtype that is stored; ``same``: the model's."""
    max_length: Annotated[int | None, Maybe(COUNT)] = None
    """Maximum number of tokens per row; None: what tokenizer and model are made for."""
    batch_tokens: Annotated[int | None, Maybe(COUNT)] = None
    """Padded tokens per batch; None: depends on the kind of device."""
    device: Annotated[str, Text("a device, such as auto, cpu or cuda:0,")] = "auto"
    """See ``Placement``."""
    template: str | Path | None = None
    """File with a Jinja2 template."""
    revision: Annotated[str | None, Maybe(Text("a revision"))] = None
    """Branch, tag or commit on the hub."""
    text_column: Annotated[str | None, COLUMN] = None
    id_column: Annotated[str | None, COLUMN] = None
    group_column: Annotated[str | None, COLUMN] = None
    """Column of what rows belong to: a question, dialogue or user."""
    limit: Annotated[int | None, Maybe(COUNT)] = None
    """Only the first rows."""
    skip_refused: Annotated[bool, Flag()] = False
    """Leave out rows that the template refuses."""
    trust_remote_code: Annotated[bool, Flag()] = False
    """Run code that a checkpoint contains."""
    quantization: Annotated[dict[str, Any] | None, Maybe(Settings())] = None
    """See ``Placement``."""
    compression: Annotated[str | None, Maybe(Choice(*COMPRESSIONS))] = None
    """``gzip`` or ``lzf``; a compressed store is smaller and cannot be memory-mapped."""
    overwrite: Annotated[bool, Flag()] = False
    flush_rows: Annotated[int | None, Maybe(COUNT)] = None
    """Mark rows done at least this often, besides every two seconds."""

    def __post_init__(self) -> None:
        """Raise UsageError if the model is neither a name nor loaded."""
        if not isinstance(self.model, tuple | list):
            name = str(self.model) if isinstance(self.model, Path) else self.model
            checked(("model",), MODEL, name)


@dataclass(frozen=True)
class Job:
    """An extraction that is ready to run."""

    request: Request
    path: Path
    rows: Rows
    checkpoint: Checkpoint
    encoder: Encoder
    spec: ExtractionSpec
    placement: Placement
    batch_tokens: int
    notes: tuple[str, ...] = ()
    """Sentences for the user about the rows and settings."""
    precision: str = ""
    """A sentence about the dtype that was chosen, if it was not asked for."""

    @property
    def widths(self) -> dict[int, int]:
        """Layer to width of its states."""
        return {layer: self.checkpoint.widths[layer] for layer in self.spec.layers}

    @property
    def buckets(self) -> Buckets | None:
        """The lengths to which batches are padded, where each new shape costs a kernel."""
        device, checkpoint = torch.device(kind_of(self.placement.device)), self.checkpoint
        return Buckets.of(device, checkpoint.dtype, checkpoint.position_limit)

    @property
    def store_plan(self) -> Plan:
        """What the store will hold."""
        return Plan(
            self.spec.to_json(),
            self.rows.ids,
            self.rows.hashes,
            self.widths,
            self.spec.store_dtype,
            self.rows.source,
            self.rows.keys,
            self.rows.groups,
        )

    @property
    def free_bytes(self) -> int:
        """Free bytes on the output's disk."""
        return shutil.disk_usage(self.path.parent).free


def prepare(request: Request) -> Job:
    """Read rows, configuration and tokenizer, and check all that can be checked without weights.

    Raises
    ------
    ProbekitError
        If anything is wrong, with one sentence about it.
    """
    path = _checked_output(Path(request.output))
    named = [each for each in (request.rows, request.model) if isinstance(each, str | Path)]
    refuse_reads([path], [*named, request.template], overwrite=request.overwrite)
    rows = read_rows(request)
    if isinstance(request.model, tuple | list):
        checkpoint = _loaded(request)
    else:
        checkpoint = open_checkpoint(
            str(request.model),
            revision=request.revision,
            dtype=request.dtype,
            trust_remote_code=request.trust_remote_code,
        )
    checkpoint, precision = _in_precision(request, checkpoint, path)
    request, begun = _with_stored_settings(request, checkpoint, path)
    max_length = checkpoint.length(request.max_length)
    with quiet():
        encoder = Encoder(
            checkpoint.tokenizer,
            kind=rows.kind,
            max_length=max_length,
            template=read_template(request.template),
        )
        survey = encoder.survey(rows)
    rows, notes = _accepted(rows, survey, request)
    if checkpoint.sentence is not None:
        used = {"pooling": request.pool == "auto", "max_length": request.max_length is None}
        notes += tuple(filter(None, [begun, checkpoint.sentence.describe(**used)]))
    placement = _placement(request, checkpoint)
    spec = _keep_label(_spec(request, checkpoint, encoder, survey), path)
    kind = kind_of(placement.device)
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
    )
    # A loaded model's widths are measured here, before hooks can stop it half-way.
    needed = job.store_plan.nbytes
    if not path.exists() and needed > job.free_bytes:
        raise StoreError(
            f"{path} needs {human_bytes(needed)}, but {human_bytes(job.free_bytes)} "
            "are free on its disk; free some space, or store fewer layers or a smaller dtype."
        )
    return job


def _checked_output(path: Path) -> Path:
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; name a file to write.")
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output {path.name} does not exist.")
    return path


def read_rows(request: Request) -> Rows:
    """Return the rows of a request, up to its limit."""
    columns = {"text_column": request.text_column, "id_column": request.id_column}
    if isinstance(request.rows, str | Path):
        rows = load_rows(request.rows, **columns)
    else:
        rows = Rows.from_any(request.rows, **{k: v for k, v in columns.items() if v is not None})
    if request.group_column is not None:
        rows = rows.grouped(request.group_column)
    if request.limit is not None and request.limit < len(rows):
        return rows.select(range(request.limit))
    return rows


def _accepted(rows: Rows, survey: Survey, request: Request) -> tuple[Rows, tuple[str, ...]]:
    """Return the rows that the template does not refuse, and notes about them."""
    notes = [rows.note] if rows.note else []
    total, refused = len(rows), survey.refused
    if refused:
        if not request.skip_refused or len(refused) == total:
            how = "" if request.skip_refused else ", or leave such rows out with --skip-refused"
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


def _in_precision(request: Request, checkpoint: Checkpoint, path: Path) -> tuple[Checkpoint, str]:
    """Return the checkpoint in the dtype that the device computes in, and a sentence about it."""
    if checkpoint.loaded or request.dtype != "auto" or request.quantization is not None:
        return checkpoint, ""
    chosen = extraction_precision("auto", resolve_device(request.device), checkpoint.dtype)
    own = str(checkpoint.dtype).removeprefix("torch.")
    begun = None if request.overwrite else stored_spec(path)
    if begun is not None and begun.get("dtype") == own != chosen.dtype:
        return checkpoint, f"Computing in {own}, as the store was begun."
    return replace(checkpoint, dtype=getattr(torch, chosen.dtype)), str(chosen)


def _placement(request: Request, checkpoint: Checkpoint) -> Placement:
    if checkpoint.loaded:
        return Placement(str(input_device(checkpoint.root)))
    quantization = request.quantization
    if quantization is not None and quantization.get("load_in_4bit"):
        # The default of transformers is float32.
        name = str(checkpoint.dtype).removeprefix("torch.")
        quantization = {"bnb_4bit_compute_dtype": name, **quantization}
    return Placement(resolve_device(request.device), quantization)


def _spec(
    request: Request, checkpoint: Checkpoint, encoder: Encoder, survey: Survey
) -> ExtractionSpec:
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    same = dtype if dtype in DTYPES else "float32"
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
        store_dtype=same if request.store_dtype == "same" else request.store_dtype,
        max_length=encoder.max_length,
        kind=encoder.kind,
        template=None if encoder.template is None else hashed(encoder.template),
        quantization=request.quantization,
        separator=encoder.separator,
        opening="once" if survey.opened else None,
        batches="equal lengths" if mixes_padding(checkpoint.config.model_type) else None,
        last_layer="after the final norm" if normed else None,
    )


def _with_stored_settings(
    request: Request, checkpoint: Checkpoint, path: Path
) -> tuple[Request, str]:
    """Resume a store of 0.1.0, which did not read a sentence-transformers model's settings.

    Returns the request with that store's pooling and maximum length, and a note.
    """
    stored = stored_spec(path)
    if checkpoint.sentence is None or request.overwrite or stored is None:
        return request, ""
    plain = replace(checkpoint, sentence=None)
    try:
        old = {"pooling": plain.default_pool, "max_length": plain.length(None)}
    except UsageError:  # 0.1.0 required --pool here
        return request, ""
    now = {"pooling": checkpoint.default_pool, "max_length": checkpoint.length(None)}
    asked = {"pooling": request.pool != "auto", "max_length": request.max_length is not None}
    other = [key for key in old if not asked[key] and stored.get(key) == old[key] != now[key]]
    if stored.get("weights") != checkpoint.weights or not other:
        return request, ""
    kept: dict[str, Any] = {"pool" if key == "pooling" else key: old[key] for key in other}
    kept_settings = " and ".join(f"{key.replace('_', ' ')} {old[key]}" for key in other)
    return replace(request, **kept), f"The store was created with {kept_settings}, which is kept."


def _keep_label(spec: ExtractionSpec, path: Path) -> ExtractionSpec:
    """Keep the model name of an existing store if only the model's folder was renamed."""
    stored = stored_spec(path) or {}
    renamed = replace(spec, model=str(stored.get("model")))
    return renamed if renamed.to_json() == stored else spec


def stored_spec(path: Path) -> dict[str, Any] | None:
    """Return the spec of the store at ``path``, complete or not; None without a store."""
    try:
        with ActivationStore(path, allow_incomplete=True) as store:
            return store.spec
    except StoreError:
        return None


@dataclass(frozen=True)
class Report:
    """Summary of an extraction."""

    path: str
    rows: int
    """Number of rows in the store."""
    rows_forwarded: int
    """Number of rows that this run forwarded; the others were done before."""
    tokens: int
    """Number of tokens of all rows in the store, without padding."""
    tokens_forwarded: int
    truncated: int
    """Number of rows longer than ``max_length``."""
    batches: int
    seconds: float
    """From the start to the finished store."""
    forward_seconds: float
    """The part of ``seconds`` with the model loaded."""
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
    """Store a model's pooled hidden states of every row; resumes an interrupted call.

    Parameters
    ----------
    rows
        Task name, path, ``hf:org/name[:config]@split``, Rows, data set, DataFrame, list of texts or
        of dicts.
    model
        Hub name or folder, or a loaded pair (model, tokenizer).
    output
        HDF5 file to write (docs/format.md).
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
    """Run a job; an interrupted one can be resumed.

    Parameters
    ----------
    job
        From ``prepare``.
    show
        Whether to draw a progress bar; None: on a terminal and in a notebook.
    on_batch
        Called with every batch after its forward pass.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(quiet(python_warnings=False))
        writer = None
        # An existing store is checked before the model is loaded, and replaced only after.
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
    """Yield tokenised windows of the rows not done; ``share`` as in ``read_windows``."""
    return read_windows(
        job.rows,
        job.encoder,
        done,
        batch_tokens=job.batch_tokens,
        vocabulary=job.checkpoint.vocabulary,
        share=share,
        buckets=job.buckets,
    )


def open_writer(job: Job) -> StoreWriter:
    """Create or resume the store of a job."""
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
    """Forward the windows of ``source`` and write the states; rows done stay done on errors."""
    checkpoint, request = job.checkpoint, job.request
    before = int(writer.done.sum())
    progress = Progress(len(job.rows), done=before, show=show)
    if before:
        progress.note(f"Resuming {job.path}: {before:,} of {len(job.rows):,} rows are done.")
    if writer.changed:
        progress.note(f"{writer.changed:,} of the rows that were not done have another text now.")
    feed = Feed(tap, input_device(tap.root), checkpoint.pad_id, job.buckets)
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
        # The first error is the one to report.
        with suppress(StoreError, OSError):
            sink.close()
        progress.clear()
        # The same row would stop the same command again.
        first = "once such rows are repaired (not removed) " if isinstance(error, DataError) else ""
        error.add_note(
            f"{int(writer.done.sum()):,} of {len(job.rows):,} rows are stored in {job.path}; "
            f"{first}the same command resumes from there."
        )
        raise
    sink.close()
    progress.clear()
    for layer, wrong in sorted(sink.nonfinite.items()):
        progress.note(
            f"{wrong:,} rows have inf or NaN in layer {layer}: too large for "
            f"{job.spec.dtype} (model) or {job.spec.store_dtype} (file); use bfloat16 or float32."
        )
    return replace(counts, nonfinite=dict(sorted(sink.nonfinite.items())))


def report_on(job: Job, counts: Counts, times: tuple[float, float]) -> Report:
    """Summarize a job whose store is complete; ``times``: its start, and the model loaded."""
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
