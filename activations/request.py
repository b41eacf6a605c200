"""What a user asks an extraction for, and the job that it becomes before any weight is loaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from probekit.activations.batching import default_batch_tokens
from probekit.activations.checkpoint import Checkpoint, open_checkpoint, open_loaded
from probekit.activations.compression import ALLOWED
from probekit.activations.create import Plan
from probekit.activations.encoding import Encoder, Survey
from probekit.activations.identity import hashed, tokenizer_fingerprint
from probekit.activations.loading import Placement, input_device, kind_of, resolve_device
from probekit.activations.padding import mixes_padding
from probekit.activations.quiet import quiet
from probekit.activations.spec import DTYPES, POOLS, ExtractionSpec, parse_layers
from probekit.activations.store import ActivationStore
from probekit.activations.templates import read_template, refusal
from probekit.data import Rows
from probekit.errors import DataError, OutputExistsError, StoreError, UsageError, first_few
from probekit.kinds import Choice, Flag, Layers, Maybe, Name, Settings, Text, checked
from probekit.limits import COUNT
from probekit.outputs import refuse_reads
from probekit.settings import configuration
from probekit.sources import load_rows
from probekit.trouble import human_bytes

LONG = "are so long that only the part which is read was tokenised"

_NORMED = "after the final norm"

__all__ = ["Job", "Request", "prepare", "read_rows"]


MODEL = Name("a model's name")
COLUMN = Maybe(Text("a column's name"))


@configuration
class Request:
    """Everything that can be said about an extraction; see ``probekit extract -h``."""

    rows: Any
    """Task name, path, ``hf:…``, Rows, data set, DataFrame or list."""
    model: Any
    """Hub name, folder, or a pair (model, tokenizer) that is loaded."""
    output: str | Path
    """Store to write."""
    layers: Annotated[Any, Layers()] = "mid"
    """See ``parse_layers``."""
    pool: Annotated[str, Choice("auto", *POOLS)] = "auto"
    """``auto``: last token for models that read left to right, mean for the others."""
    dtype: Annotated[str, Choice("auto", *DTYPES)] = "auto"
    """Numbers the model computes in; ``auto``: those of the checkpoint."""
    store_dtype: Annotated[str, Choice("same", *DTYPES)] = "same"
    """Numbers that are stored; ``same``: the model's."""
    max_length: Annotated[int | None, Maybe(COUNT)] = None
    """Tokens per row; None: what tokenizer and model are made for."""
    batch_tokens: Annotated[int | None, Maybe(COUNT)] = None
    """Padded tokens per batch; None: by the kind of device."""
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
    """Run code that a checkpoint brings."""
    quantization: Annotated[dict[str, Any] | None, Maybe(Settings())] = None
    """See ``Placement``."""
    compression: Annotated[str | None, Maybe(Choice(*ALLOWED))] = None
    """``gzip`` or ``lzf``; such a store is smaller, and cannot be mapped."""
    overwrite: Annotated[bool, Flag()] = False
    flush_rows: Annotated[int | None, Maybe(COUNT)] = None
    """Mark rows done at least this often, besides every two seconds."""

    def __post_init__(self) -> None:
        """Refuse a model that is neither named nor loaded."""
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
    """What people should know of the rows, each a sentence."""

    @property
    def widths(self) -> dict[int, int]:
        """Layer to width of its states."""
        return {layer: self.checkpoint.widths[layer] for layer in self.spec.layers}

    @property
    def store_plan(self) -> Plan:
        """What the store is to hold."""
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
        """Room on the output's disk."""
        return shutil.disk_usage(self.path.parent).free


def prepare(request: Request) -> Job:
    """Read rows, configuration and tokenizer, and check all that can be checked without weights.

    Raises
    ------
    ProbekitError
        One sentence about whatever is wrong.
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
    request, begun = _as_begun(request, checkpoint, path)
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
        notes += tuple(filter(None, [begun, checkpoint.sentence.told(**used)]))
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
    )
    # A loaded model is asked for its widths here, where no tap stops it half-way.
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
    """Rows that a request names, as many as it asks for."""
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
    """Rows that the template takes, and what to say about them."""
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
        notes.append(f"{survey.long:,} rows {LONG}.")
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
        raise UsageError(
            f"A model that is loaded already is taken as it is; leave out {', '.join(wrong)}."
        )
    return open_loaded(*request.model)


def _placement(request: Request, checkpoint: Checkpoint) -> Placement:
    if checkpoint.loaded:
        return Placement(str(input_device(checkpoint.root)))
    quantization = request.quantization
    if quantization is not None and quantization.get("load_in_4bit"):
        # transformers would compute in float32 unless told.
        name = str(checkpoint.dtype).removeprefix("torch.")
        quantization = {"bnb_4bit_compute_dtype": name, **quantization}
    return Placement(resolve_device(request.device), quantization)


def _spec(
    request: Request, checkpoint: Checkpoint, encoder: Encoder, survey: Survey
) -> ExtractionSpec:
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    same = dtype if dtype in DTYPES else "float32"
    layers = parse_layers(request.layers, checkpoint.depth)
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
        last_layer=_NORMED if checkpoint.untied and checkpoint.depth in layers else None,
    )


def _as_begun(request: Request, checkpoint: Checkpoint, path: Path) -> tuple[Request, str]:
    """Go on with a store of 0.1.0, which did not know what a sentence-transformers folder says.

    Returns the request with the pooling and length of that store, and a note.
    """
    if checkpoint.sentence is None or request.overwrite:
        return request, ""
    try:
        with ActivationStore(path, allow_incomplete=True) as store:
            there = store.spec
    except StoreError:
        return request, ""
    plain = replace(checkpoint, sentence=None)
    try:
        old = {"pooling": plain.default_pool, "max_length": plain.length(None)}
    except UsageError:  # 0.1.0 had to be told how to pool
        return request, ""
    now = {"pooling": checkpoint.default_pool, "max_length": checkpoint.length(None)}
    asked = {"pooling": request.pool != "auto", "max_length": request.max_length is not None}
    other = [key for key in old if not asked[key] and there.get(key) == old[key] != now[key]]
    if there.get("weights") != checkpoint.weights or not other:
        return request, ""
    kept: dict[str, Any] = {"pool" if key == "pooling" else key: old[key] for key in other}
    told = " and ".join(f"{key.replace('_', ' ')} {old[key]}" for key in other)
    return replace(request, **kept), f"The store was begun with {told}, and goes on so."


def _keep_label(spec: ExtractionSpec, path: Path) -> ExtractionSpec:
    """Go on under the name that a store began with where only the folder was renamed."""
    try:
        with ActivationStore(path, allow_incomplete=True) as store:
            there = store.spec
    except StoreError:
        return spec
    renamed = replace(spec, model=str(there.get("model")))
    return renamed if renamed.to_json() == there else spec
