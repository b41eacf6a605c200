"""One extraction: what is asked for, what is ready to run, and how its batches are forwarded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from probekit.activations.batching import Array, Batch, Buckets, Evenness
from probekit.activations.checkpoint import Checkpoint
from probekit.activations.create import Plan
from probekit.activations.encoding import Encoder
from probekit.activations.forward import (
    Ahead,
    Counts,
    Feed,
    Sink,
    Window,
    forward_all,
    read_windows,
)
from probekit.activations.hooks import POOLERS, Tap
from probekit.activations.loading import Placement, input_device, kind_of, tapped
from probekit.activations.progress import MovingBar, Progress
from probekit.activations.spec import COMPRESSIONS, DTYPES, POOLS, ExtractionSpec
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.data import Rows
from probekit.errors import DataError
from probekit.kinds import COUNT, Choice, Flag, Layers, Maybe, Name, Settings, Text, checked
from probekit.settings import configuration

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
    """Store to write; a folder if it ends with ``/`` or is one."""
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
    """File, or folder of parts."""
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
    folder: bool = False
    """Whether the store is a folder of parts."""
    target: Path | None = None
    """Of a unit: the part that ``path`` becomes."""
    adds: bool = False
    """Whether the layers are added to a store that is there."""

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
            None if self.target else self.rows.source,  # store.json has that of the parts
            self.rows.keys,
            self.rows.groups,
        )

    @property
    def free_bytes(self) -> int:
        """Free bytes on the output's disk."""
        return shutil.disk_usage(self.path.parent).free


def of_layers(job: Job, layers: Collection[int]) -> Job:
    """Return the same job for other layers."""
    last = job.checkpoint.depth in layers and job.checkpoint.untied
    spec = replace(
        job.spec,
        layers=tuple(sorted(layers)),
        last_layer="after the final norm" if last else None,
    )
    return replace(job, spec=spec)


def is_folder(output: str | Path) -> bool:
    """Whether an output is a folder of parts: it ends with ``/`` or is one already."""
    return str(output).endswith("/") or Path(output).is_dir()


@dataclass(frozen=True)
class Summary:
    """What was extracted, in rows or in pairs."""

    path: str
    tokens_forwarded: int
    truncated: int
    """Number of rows with a text longer than ``max_length``."""
    seconds: float
    """From the start to the finished store."""
    forward_seconds: float
    """The part of ``seconds`` with the model loaded."""
    layers: list[int]
    pooling: str
    store_dtype: str
    device: str
    nonfinite: dict[int, int]
    """Layer to number of rows, of those that this run stored, with inf or NaN."""


@dataclass(frozen=True)
class Report(Summary):
    """Summary of an extraction."""

    rows: int
    """Number of rows in the store."""
    rows_forwarded: int
    """Number of rows that this run forwarded; the others were done before."""
    tokens: int
    """Number of tokens of all rows in the store, without padding."""
    batches: int
    batch_tokens: int
    """Padded tokens per batch, after any halving."""


@dataclass(frozen=True)
class PairReport(Summary):
    """Summary of an extraction of differences."""

    pairs: int
    texts: int
    """Number of distinct texts in them; of a folder, in each part."""
    texts_forwarded: int
    """Number of texts that this run forwarded; the others were done before."""
    equal: int
    """Number of pairs, of those subtracted, whose two texts have identical states."""


def tapped_model(job: Job) -> AbstractContextManager[Tap]:
    """Load the model of a job, with hooks on its layers."""
    return tapped(job.checkpoint, job.spec.layers, POOLERS[job.spec.pooling], job.placement)


def job_windows(job: Job, done: Array) -> Iterator[Window]:
    """Yield tokenised windows of the rows not done."""
    return read_windows(
        job.rows,
        job.encoder,
        done,
        batch_tokens=job.batch_tokens,
        vocabulary=job.checkpoint.vocabulary,
        buckets=job.buckets,
    )


def open_writer(job: Job) -> StoreWriter:
    """Create or resume the file of a job."""
    request = job.request
    return StoreWriter.open(
        job.path, job.store_plan, overwrite=request.overwrite, compression=request.compression
    )


def forward_job(
    job: Job,
    tap: Tap,
    source: Ahead[Window],
    writer: StoreWriter,
    progress: Progress,
    *,
    on_batch: Callable[[Batch], None] | None = None,
) -> Counts:
    """Forward the windows of ``source`` and write the states; rows done stay done on errors."""
    checkpoint = job.checkpoint
    if writer.changed:
        progress.note(f"{writer.changed:,} of the rows that were not done have another text now.")
    feed = Feed(tap, input_device(tap.root), checkpoint.pad_id, job.buckets)
    dtype = getattr(torch, job.spec.store_dtype)
    with closing(source), Sink(writer, dtype=dtype, flush_rows=job.request.flush_rows) as sink:
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
    return replace(counts, nonfinite=dict(sorted(sink.nonfinite.items())))


@contextmanager
def resumable(
    progress: MovingBar, done: Callable[[], int], total: int, path: Path
) -> Iterator[None]:
    """Add to an error the number of rows that are stored, and that the same command resumes."""
    try:
        yield
    except BaseException as error:
        progress.clear()
        # The same row would stop the same command again.
        first = "once such rows are repaired (not removed) " if isinstance(error, DataError) else ""
        error.add_note(
            f"{done():,} of {total:,} rows are stored in {path}; {first}the same command resumes "
            "from there."
        )
        raise


def warn_nonfinite(job: Job, counts: Counts, progress: MovingBar) -> None:
    """Note the rows, or the differences, that a dtype was too small for."""
    what = "differences" if job.spec.pairs else "rows"
    for layer, wrong in counts.nonfinite.items():
        progress.note(
            f"{wrong:,} {what} have inf or NaN in layer {layer}: too large for "
            f"{job.spec.dtype} (model) or {job.spec.store_dtype} (file); use bfloat16 or float32."
        )


def report_on(job: Job, counts: Counts, times: tuple[float, float], *, texts: int = 0) -> Summary:
    """Summarize a job whose store is complete.

    ``times``: its start, and the model loaded; ``texts``: of pairs, the number of distinct texts.
    """
    end = time.monotonic()
    with ActivationStore(job.path) as store:
        tokens, truncated = int(store.n_tokens.sum(dtype=np.int64)), int(store.truncated.sum())
        layers = store.layers
    shared: dict[str, Any] = {
        "path": str(job.path),
        "tokens_forwarded": counts.tokens,
        "truncated": truncated,
        "seconds": end - times[0],
        "forward_seconds": end - times[1],
        "layers": layers,
        "pooling": job.spec.pooling,
        "store_dtype": job.spec.store_dtype,
        "device": job.placement.device,
        "nonfinite": counts.nonfinite,
    }
    if job.spec.pairs:
        return PairReport(
            pairs=len(job.rows),
            texts=texts,
            texts_forwarded=counts.rows,
            equal=counts.equal,
            **shared,
        )
    return Report(
        rows=len(job.rows),
        rows_forwarded=counts.rows,
        tokens=tokens,
        batches=counts.batches,
        batch_tokens=counts.batch_tokens,
        **shared,
    )
