"""``probekit extract``: rows and a model in, a store of hidden states out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

import click

from probekit.activations.spec import COMPRESSIONS, DTYPES, POOLS
from probekit.cli.engine import EngineOptions, check_engine
from probekit.cli.options import (
    AsJson,
    BatchTokens,
    Overwrite,
    Revision,
    SectionedCommand,
    TrustRemoteCode,
    argument,
    emit,
    option,
    options_of,
    pick,
    say,
)

if TYPE_CHECKING:
    from probekit.activations.batching import Batch
    from probekit.activations.job import Job, Request, Summary
    from probekit.cli.ranks import Ranks
    from probekit.data import Rows


class RequestOptions(TypedDict):
    """What is extracted: the fields of :class:`probekit.activations.extraction.Request`."""

    rows: Annotated[str, argument("Task, file or data set of rows.")]
    model: Annotated[
        str,
        option(
            "Hugging Face name or local folder; NAME@layers=K is its first K blocks.",
            "-m",
            "--model",
            required=True,
        ),
    ]
    output: Annotated[
        str,
        option(
            "HDF5 file to write, or a folder of them (acts/).",
            "-o",
            "--output",
            required=True,
            type=click.Path(),
        ),
    ]
    layers: Annotated[
        str,
        option(
            "Numbers (0 = embeddings, -1 = last), ranges 3-6, mid, last, all; comma-separated.",
            default="mid",
        ),
    ]
    pool: Annotated[
        str,
        option(
            "One state per row, over real tokens; auto: as a sentence-transformers model "
            "says, else last for decoders, mean for encoders.",
            type=click.Choice(["auto", *POOLS]),
            default="auto",
        ),
    ]
    dtype: Annotated[
        str,
        option(
            "Number type of the computation; auto: that of the checkpoint, or float32 where the "
            "CPU has no instructions for it.",
            type=click.Choice(["auto", *DTYPES]),
            default="auto",
        ),
    ]
    store_dtype: Annotated[
        str,
        option(
            "Number type in the file; same: the model's.",
            type=click.Choice(["same", *DTYPES]),
            default="same",
        ),
    ]
    max_length: Annotated[
        int | None, option("Tokens per row.  [default: the model's]", type=click.IntRange(1))
    ]
    batch_tokens: BatchTokens
    device: Annotated[
        str,
        option(
            "auto, cpu, cuda, cuda:N, mps, or map to spread a large model over all devices.",
            default="auto",
        ),
    ]
    text_column: Annotated[
        str | None, option("Column of the text or messages.  [default: text, messages]")
    ]
    id_column: Annotated[
        str | None, option("Column of the row ids.  [default: id, else row numbers]")
    ]
    group_column: Annotated[
        str | None,
        option(
            "Column of a question, dialogue or user: its rows share a fold and never vote together."
        ),
    ]
    template: Annotated[
        Path | None,
        option("Jinja2 file over text and text_pair, or a chat template over messages."),
    ]
    skip_refused: Annotated[bool, option("Leave out rows that the template refuses.")]
    limit: Annotated[int | None, option("Read only the first rows.", type=click.IntRange(1))]
    revision: Revision
    trust_remote_code: TrustRemoteCode
    compression: Annotated[
        str | None,
        option(
            "Compress the file; compressed stores cannot be memory-mapped.",
            type=click.Choice(COMPRESSIONS),
        ),
    ]
    overwrite: Overwrite
    flush_rows: Annotated[int | None, option("", type=click.IntRange(1), hidden=True)]


class ExtractOptions(RequestOptions, EngineOptions):
    """Options of ``probekit extract``."""

    load_in: Annotated[Literal["8bit", "4bit"] | None, option("Quantise while loading.")]
    quantization: Annotated[Path | None, option("JSON file with arguments of BitsAndBytesConfig.")]
    compare: Annotated[
        bool,
        option("Rows are pairs (text, text_pair or chosen, rejected): store second minus first."),
    ]
    add_layers: Annotated[
        bool,
        option(
            "Add the layers to the store that is there: only those that it lacks are run and "
            "stored; the other settings must be the same."
        ),
    ]
    dry_run: Annotated[bool, option("Count rows, tokens and bytes; load no weights.")]
    as_json: AsJson
    forward_log: Annotated[Path | None, option("", hidden=True)]


@click.command("extract", cls=SectionedCommand)
@options_of(ExtractOptions)
def command(**options: Unpack[ExtractOptions]) -> None:
    """Store a model's hidden states of every row.

    ROWS is a task (docstrings), a file (JSONL, CSV, TSV, Parquet), a saved data set, or
    hf:org/name[:config]@split, with a column text, text and text_pair, or messages. After a stop,
    the same command resumes.

    Example: probekit extract rows.jsonl -m sentence-transformers/all-MiniLM-L6-v2 -o acts.h5
    """
    from probekit.errors import UsageError
    from probekit.safe import regular_file

    quantization = _quantization(options["load_in"], options["quantization"])
    if options["template"] is not None:
        regular_file(options["template"], error=UsageError)  # before seconds of imports
    compare, adds = options["compare"], options["add_layers"]
    if adds and compare:
        raise UsageError("--add-layers cannot add to differences of pairs; leave it out.")
    if adds and options["dry_run"]:
        raise UsageError("--add-layers has no --dry-run; leave it out.")
    from probekit.activations.quiet import rare_collection

    with rare_collection():
        from probekit.activations.extraction import estimate, prepare, prepare_adding, run
        from probekit.activations.job import PairReport, Request
        from probekit.activations.units import run_units
        from probekit.cli.ranks import local_device, ranks_from_environment

    fields = pick(options, *RequestOptions.__annotations__)
    ranks, on_ray = ranks_from_environment(), check_engine(options)
    device = _worker_device(ranks, options) if on_ray else None
    if ranks is not None:
        fields["device"] = local_device(options["device"], ranks)
    request = Request(**fields, quantization=quantization)
    if ranks is not None:
        _check_shared(request)
    if adds:
        job = prepare_adding(request, device=device)
    else:
        job = prepare(request, compare=compare, device=device)
    for note in (*job.notes, *_without_ids(job.rows)):
        say(note)
    if options["dry_run"]:
        counts = estimate(job)
        emit(counts, _estimate_text(counts), as_json=options["as_json"])
        return
    log = None if options["forward_log"] is None else _logger(options["forward_log"])
    report: Summary | None
    if on_ray:
        report = _on_ray(job, options)
    elif ranks is not None:
        report = run_units(job, share=(ranks.rank, ranks.world), on_batch=log)
    else:
        report = run(job, on_batch=log)
    if report is None:
        say(f"{job.path}: process {ranks.rank if ranks else 0} has written its parts.")
        return
    say(" ".join(filter(None, (_report_text(report), job.precision))))
    if isinstance(report, PairReport) and report.equal:
        say(
            f"{report.equal:,} pairs have identical states on both sides, which no probe can use: "
            "if they were truncated before their texts differ, raise --max-length."
        )
    if options["as_json"]:
        emit(asdict(report), "", as_json=True)


def _worker_device(ranks: Ranks | None, options: ExtractOptions) -> str:
    """Return the device of Ray's workers; raise UsageError if they cannot do what is asked for."""
    from probekit.errors import UsageError

    if options["dry_run"]:
        raise UsageError("--dry-run works without --engine ray; leave it out.")
    if ranks is not None or options["device"] != "auto":
        raise UsageError(
            "--engine ray starts its own workers, on GPUs with --gpus-per-worker; leave out "
            f"{'torchrun and accelerate' if ranks else '--device'}."
        )
    gpus = options["gpus_per_worker"] or 0.0
    return "cpu" if not gpus else "cuda:0" if gpus <= 1 else "map"


def _on_ray(job: Job, options: ExtractOptions) -> Summary:
    from probekit.activations.cluster import run_on_ray

    return run_on_ray(
        job,
        address=options["address"],
        workers=options["workers"],
        gpus=options["gpus_per_worker"] or 0.0,
    )


def _check_shared(request: Request) -> None:
    """Raise UsageError unless several processes can write the output."""
    from probekit.activations.job import is_folder
    from probekit.errors import UsageError

    output = Path(request.output)
    if not is_folder(request.output):
        raise UsageError(
            f"{output} would have several writers; name a folder, to which each process adds "
            f"parts: -o {output.with_suffix('')}/"
        )
    if request.overwrite:
        raise UsageError(
            "--overwrite would remove the parts that another process has just written; leave it "
            f"out, and remove {output} first."
        )


def _without_ids(rows: Rows) -> list[str]:
    """A note on rows without ids."""
    keys = rows.keys
    if keys.id_column is not None:
        return []
    others = list(keys.candidates())
    also = f", and by {', '.join(others)}, where labels have that column too" if others else ""
    return [
        f"{rows.source} has no column id: its rows are known by their numbers{also}. Name a column "
        "of ids with --id-column to join and merge by it."
    ]


def _quantization(load_in: str | None, path: Path | None) -> dict[str, Any] | None:
    from probekit.errors import UsageError
    from probekit.safe import read_json

    if load_in is not None and path is not None:
        raise UsageError("--load-in and --quantization say the same; give one of them.")
    if load_in is not None:
        return {f"load_in_{load_in}": True}
    if path is None:
        return None
    arguments = read_json(path, error=UsageError)
    if not isinstance(arguments, dict):
        raise UsageError(f'{path} must hold a JSON object, e.g. {{"load_in_4bit": true}}.')
    return arguments


def _logger(path: Path) -> Any:
    if path.exists():
        from probekit.safe import regular_file

        regular_file(path)

    def log(batch: Batch) -> None:
        with path.open("a", encoding="ascii") as file:
            file.write(f"{len(batch)}\n")

    return log


def _report_text(report: Summary) -> str:
    from probekit.activations.job import PairReport, Report

    if isinstance(report, Report):
        total, forwarded, unit = report.rows, report.rows_forwarded, "rows"
        what = f"{total:,} rows, {report.tokens:,} tokens, {report.truncated:,} rows truncated"
    else:
        assert isinstance(report, PairReport)
        total, forwarded, unit = report.texts, report.texts_forwarded, "texts"
        what = (
            f"{report.pairs:,} pairs of {total:,} texts, second minus first, "
            f"{report.truncated:,} pairs truncated"
        )
    rate = report.tokens_forwarded / max(report.forward_seconds, 1e-9)
    again = total - forwarded
    return (
        f"{report.path}: {what}, layers {', '.join(map(str, report.layers))}; "
        + (f"{again:,} {unit} were done before, " if again else "")
        + f"{report.seconds:.1f} s"
        + (f" ({rate:,.0f} tokens/s on {report.device})." if forwarded else ".")
    )


def _estimate_text(counts: dict[str, Any]) -> str:
    from probekit.errors import human_bytes

    spec = counts["spec"]
    pairs, what = "", "rows"
    if "pairs" in counts:
        pairs, what = f"{counts['pairs']:,} pairs of ", "texts"
    lines = [
        f"{pairs}{counts[what]:,} {what}, {counts['tokens']:,} tokens, the longest "
        f"{counts['longest']:,}; {counts['truncated']:,} {what} truncated"
        + (f" at {spec['max_length']:,}" if spec["max_length"] else ""),
        f"{counts['batches']:,} batches of at most {counts['batch_tokens']:,} tokens, pooled by "
        f"{spec['pooling']}, stored as {spec['store_dtype']}",
    ]
    for layer, size in counts["bytes_per_layer"].items():
        lines.append(f"  layer {layer:>3}: {counts['widths'][layer]:,} wide, {human_bytes(size)}")
    if pairs:
        lines.append(f"{human_bytes(counts['temporary_bytes'])} for the texts, until that is done")
    needed, free = human_bytes(counts["bytes"]), human_bytes(counts["free_bytes"])
    lines.append(f"{needed} on disk in all; {free} are free")
    return "\n".join(lines)
