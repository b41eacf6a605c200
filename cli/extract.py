"""``probekit extract``: rows and a model in, a store of hidden states out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.activations.spec import COMPRESSIONS, DTYPES, POOLS
from probekit.cli.options import emit, json_option, output_option, overwrite_option, say

if TYPE_CHECKING:
    from probekit.activations.batching import Batch
    from probekit.activations.differences import PairReport
    from probekit.activations.extraction import Report, Request
    from probekit.activations.ranks import Ranks
    from probekit.data import Rows


@click.command("extract")
@click.argument("rows")
@click.option(
    "-m",
    "--model",
    required=True,
    help="Hugging Face name or local folder; NAME@layers=K is its first K blocks.",
)
@output_option("HDF5 file to write.")
@click.option(
    "--layers",
    default="mid",
    help="Numbers (0 = embeddings, -1 = last), ranges 3-6, mid, last, all; comma between.",
)
@click.option(
    "--pool",
    type=click.Choice(["auto", *POOLS]),
    default="auto",
    help="One state per row, over real tokens; auto: what a model of sentence-transformers says, "
    "else last for decoders, mean for encoders.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    help="Numbers the model computes in; auto: those of the checkpoint.",
)
@click.option(
    "--store-dtype",
    type=click.Choice(["same", *DTYPES]),
    default="same",
    help="Numbers in the file; same: the model's.",
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens per row.  [default: model's]")
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    help="Padded tokens per batch.  [default: by device]",
)
@click.option(
    "--device",
    default="auto",
    help="auto, cpu, cuda, cuda:N, mps, or map to spread a large model over all there is.",
)
@click.option("--text-column", help="Column of the text or messages.  [default: text, messages]")
@click.option("--id-column", help="Column of the row ids.  [default: id, else row numbers]")
@click.option(
    "--group-column",
    help="Column of a question, dialogue or user: its rows share a fold and never vote together.",
)
@click.option(
    "--template",
    type=click.Path(path_type=Path),
    help="Jinja2 file over text and text_pair, or a chat template over messages.",
)
@click.option("--skip-refused", is_flag=True, help="Leave out rows that the template refuses.")
@click.option("--limit", type=click.IntRange(1), help="Take only the first rows.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--load-in", type=click.Choice(["8bit", "4bit"]), help="Quantise while loading.")
@click.option(
    "--quantization",
    type=click.Path(path_type=Path),
    help="JSON file with arguments of BitsAndBytesConfig.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    help="Compress the file; compressed stores cannot be memory-mapped.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Rows are pairs (text, text_pair or chosen, rejected): store second minus first.",
)
@click.option("--dry-run", is_flag=True, help="Count rows, tokens and bytes; load no weights.")
@overwrite_option
@json_option
@click.option("--flush-rows", type=click.IntRange(1), hidden=True)
@click.option("--forward-log", type=click.Path(path_type=Path), hidden=True)
def command(
    *,
    compare: bool,
    dry_run: bool,
    as_json: bool,
    load_in: str | None,
    quantization: Path | None,
    forward_log: Path | None,
    **asked: Any,
) -> None:
    """Store a model's hidden states of every row.

    ROWS is a task (docstrings), a file (JSONL, CSV, TSV, Parquet), a saved data set, or
    hf:org/name[:config]@split, with a column text, text and text_pair, or messages. After a stop,
    the same command goes on where it was.

    Example: probekit extract rows.jsonl -m sentence-transformers/all-MiniLM-L6-v2 -o acts.h5
    """
    from probekit.errors import UsageError
    from probekit.safe import regular_file

    quantized = _quantization(load_in, quantization)
    if asked["template"] is not None:
        regular_file(asked["template"], error=UsageError)  # told before seconds of imports
    from probekit.activations.quiet import rare_collection

    with rare_collection():
        from probekit.activations.extraction import Request, estimate, prepare, run
        from probekit.activations.ranks import local_device, ranks_from_environment
        from probekit.activations.together import run_together

    ranks = ranks_from_environment()
    if ranks is not None:
        asked["device"] = local_device(asked["device"], ranks)
    request = Request(**asked, quantization=quantized)
    log = None if forward_log is None else _logger(forward_log)
    if compare:
        _compare(request, log, ranks, dry_run=dry_run, as_json=as_json)
        return
    job = prepare(request)
    for note in (*job.notes, *_without_ids(job.rows)):
        say(note)
    if dry_run:
        found = estimate(job)
        emit(found, _estimate_text(found), as_json=as_json)
        return
    if ranks is None:
        report: Report | None = run(job, on_batch=log)
    else:
        report = run_together(job, ranks, on_batch=log)
    if report is None:
        _say_share(job.path, ranks)
        return
    say(_report_text(report))
    if as_json:
        from dataclasses import asdict

        emit(asdict(report), "", as_json=True)


def _compare(
    request: Request, log: Any, ranks: Ranks | None, *, dry_run: bool, as_json: bool
) -> None:
    """Extract both texts of every pair and store the difference."""
    from dataclasses import asdict

    from probekit.activations.differences import (
        estimate_differences,
        prepare_differences,
        run_differences,
    )
    from probekit.errors import UsageError

    if ranks is not None:
        raise UsageError("--compare works in one process; start it without torchrun or accelerate.")
    work = prepare_differences(request)
    for note in filter(None, (work.pairs.note, *work.texts.notes, *_without_ids(work.pairs))):
        say(note)
    if dry_run:
        found = estimate_differences(work)
        emit(found, _estimate_text(found), as_json=as_json)
        return
    report = run_differences(work, on_batch=log)
    say(_pairs_text(report))
    if report.equal:
        say(
            f"{report.equal:,} pairs have the very same states on both sides and tell a probe "
            "nothing: cut off before they part, if truncated; raise --max-length."
        )
    for layer, wrong in sorted(report.nonfinite.items()):
        say(
            f"{wrong:,} differences have inf or NaN in layer {layer}: too large for "
            f"{report.store_dtype}; take --store-dtype float32."
        )
    if as_json:
        emit(asdict(report), "", as_json=True)


def _without_ids(rows: Rows) -> list[str]:
    """What it means that rows have no ids."""
    keys = rows.keys
    if keys.id_column is not None:
        return []
    others = list(keys.candidates())
    also = f", and by {', '.join(others)}, where labels have that column too" if others else ""
    return [
        f"{rows.source} has no column id: its rows are known by their numbers{also}. Name a column "
        "of ids with --id-column to join and merge by it."
    ]


def _say_share(path: Path, ranks: Ranks | None) -> None:
    """Tell, once per disk, what to do with a store that holds a share of the rows."""
    from probekit.activations.store import ActivationStore

    with ActivationStore(path, allow_incomplete=True) as store:
        if store.complete or ranks is None or ranks.local:
            return
        say(
            f"{path} holds {int(store.done.sum()):,} of {len(store):,} rows, the share of this "
            "disk's processes; join the shares with `probekit merge`."
        )


def _quantization(load_in: str | None, path: Path | None) -> dict[str, Any] | None:
    from probekit.errors import UsageError
    from probekit.safe import read_json

    if load_in is not None and path is not None:
        raise UsageError("--load-in and --quantization say the same; give one of them.")
    if load_in is not None:
        return {f"load_in_{load_in}": True}
    if path is None:
        return None
    found = read_json(path, error=UsageError)
    if not isinstance(found, dict):
        raise UsageError(f'{path} must hold a JSON object, e.g. {{"load_in_4bit": true}}.')
    return found


def _logger(path: Path) -> Any:
    if path.exists():
        from probekit.safe import regular_file

        regular_file(path)

    def log(batch: Batch) -> None:
        with path.open("a", encoding="ascii") as file:
            file.write(f"{len(batch)}\n")

    return log


def _report_text(report: Report) -> str:
    what = f"{report.rows:,} rows, {report.tokens:,} tokens, {report.truncated:,} rows truncated"
    return _result(report, what, report.rows, report.rows_forwarded, "rows")


def _pairs_text(report: PairReport) -> str:
    what = (
        f"{report.pairs:,} pairs of {report.texts:,} texts, second minus first, "
        f"{report.truncated:,} pairs truncated"
    )
    return _result(report, what, report.texts, report.texts_forwarded, "texts")


def _result(report: Report | PairReport, what: str, total: int, forwarded: int, unit: str) -> str:
    rate = report.tokens_forwarded / max(report.forward_seconds, 1e-9)
    again = total - forwarded
    return (
        f"{report.path}: {what}, layers {', '.join(map(str, report.layers))}; "
        + (f"{again:,} {unit} were done before, " if again else "")
        + f"{report.seconds:.1f} s"
        + (f" ({rate:,.0f} tokens/s on {report.device})." if forwarded else ".")
    )


def _estimate_text(found: dict[str, Any]) -> str:
    from probekit.errors import human_bytes

    spec = found["spec"]
    pairs, what = "", "rows"
    if "pairs" in found:
        pairs, what = f"{found['pairs']:,} pairs of ", "texts"
    lines = [
        f"{pairs}{found[what]:,} {what}, {found['tokens']:,} tokens, the longest "
        f"{found['longest']:,}; {found['truncated']:,} {what} truncated"
        + (f" at {spec['max_length']:,}" if spec["max_length"] else ""),
        f"{found['batches']:,} batches of at most {found['batch_tokens']:,} tokens, pooled by "
        f"{spec['pooling']}, stored as {spec['store_dtype']}",
    ]
    for layer, size in found["bytes_per_layer"].items():
        lines.append(f"  layer {layer:>3}: {found['widths'][layer]:,} wide, {human_bytes(size)}")
    if pairs:
        lines.append(f"{human_bytes(found['temporary_bytes'])} for the texts, until that is done")
    lines.append(
        f"{human_bytes(found['bytes'])} on disk in all; {human_bytes(found['free_bytes'])} are free"
    )
    return "\n".join(lines)
