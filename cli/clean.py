"""``probekit clean``: one command from a file with noisy labels to a training set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

import click

from probekit.cli.labels import Annotators, Trusted
from probekit.cli.options import (
    AsJson,
    BatchTokens,
    Overwrite,
    Quiet,
    SectionedCommand,
    Seed,
    TrustRemoteCode,
    argument,
    at_terminal,
    emit,
    option,
    options_of,
    say,
)
from probekit.cli.outputs import claim_folder
from probekit.cli.student import StudentOptions

if TYPE_CHECKING:
    from probekit.cleaned import CleanResult
    from probekit.columns import AmbiguousColumnError

__all__ = ["command"]

SUSPECTS, TEXT_WIDTH = 8, 60


class CleanOptions(StudentOptions):
    """Options of ``probekit clean``."""

    data: Annotated[str, argument("Table with a column of texts and a column of labels.")]
    model: Annotated[
        str | None,
        option(
            "Name on Hugging Face or folder; a larger one knows more.  "
            "[default: all-MiniLM-L6-v2, a small encoder that needs no GPU]",
            "-m",
            "--model",
        ),
    ]
    text: Annotated[str | None, option("Column of the text.  [default: guessed]")]
    label: Annotated[str | None, option("Column of the label.  [default: guessed]")]
    id_column: Annotated[
        str | None, option("Column of ids.  [default: id, else row numbers from 0]", "--id")
    ]
    output: Annotated[
        Path,
        option(
            "Folder for states, verdicts, training set, report and summary.",
            "-o",
            "--output",
            default="cleaned",
        ),
    ]
    action: Annotated[
        Literal["auto", "filter", "relabel", "leave"],
        option(
            "What to do; auto: as `probekit diagnose` advises, with --student for that student.",
            default="auto",
        ),
    ]
    save_probe: Annotated[
        Path | None,
        option("New folder for the fitted probe, with which `probekit predict` labels new rows."),
    ]
    contamination: Annotated[
        float | None,
        option(
            "Share of each weak class that a filter drops.  [default: 0.2; trusted labels may make "
            "it up to 0.5]",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
        ),
    ]
    annotators: Annotators
    trusted: Trusted
    device: Annotated[str, option("auto, cpu, cuda, cuda:1, mps.", default="auto")]
    batch_tokens: BatchTokens
    trust_remote_code: TrustRemoteCode
    overwrite: Overwrite
    seed: Seed
    quiet: Quiet
    as_json: AsJson


@click.command("clean", cls=SectionedCommand)
@options_of(CleanOptions)
def command(**options: Unpack[CleanOptions]) -> None:
    """Clean a table's labels, from one file to a training set.

    DATA is a CSV, TSV, JSONL, Parquet or Excel file, a saved data set, hf:org/name@split or a task.
    A strong model's hidden states are stored (and resume after a stop), the labels are diagnosed,
    and then filtered, relabelled or left alone. The folder holds the training set, a report of the
    most doubtful rows, and a summary with the plain commands that do the same.

    Example: probekit clean reviews.csv --text review_body --label stars -o cleaned
    """
    from probekit.cleaned import clean
    from probekit.columns import AmbiguousColumnError

    output, text, label = options["output"], options["text"], options["label"]
    if output.absolute().parent.is_dir():
        claim_folder(output)
    if options["model"] is None:
        say("Reading all-MiniLM-L6-v2, a small encoder; name a stronger model with -m.")
    while True:
        try:
            result = clean(
                options["data"],
                model=options["model"],
                text=text,
                label=label,
                id=options["id_column"],
                output=output,
                action=options["action"],
                student=options["student"],
                epochs=options["epochs"],
                lr=options["lr"],
                contamination=options["contamination"],
                annotators=options["annotators"],
                trusted=options["trusted"],
                save_probe=options["save_probe"],
                device=options["device"],
                batch_tokens=options["batch_tokens"],
                trust_remote_code=options["trust_remote_code"],
                overwrite=options["overwrite"],
                seed=options["seed"],
                progress=False if options["quiet"] else None,
                report=say,
            )
            break
        except AmbiguousColumnError as error:
            if not at_terminal():
                raise
            if error.role == "text":
                text = _ask(error)
            else:
                label = _ask(error)
    summary = result.summary()
    emit(summary, _text(result, summary), as_json=options["as_json"])


def _ask(error: AmbiguousColumnError) -> str:
    """Ask at the terminal which column is meant."""
    say(str(error))
    column: str = click.prompt(
        f"Which column is the {error.role}?", type=click.Choice(error.candidates), err=True
    )
    return column


def _text(result: CleanResult, summary: dict[str, Any]) -> str:
    """Counts, the most doubtful rows, and what to do next."""
    from probekit.reports.tables import Table, share_of

    acted = "changed" if result.action == "relabel" else "dropped"
    counts = [*summary["classes"], {"name": "all", **summary}]
    table = Table(
        ("weak class", "rows", acted, "share"),
        tuple(
            (c["name"], f"{c['rows']:,}", f"{c[acted]:,}", share_of(c[acted], c["rows"]))
            for c in counts
        ),
    )
    suspects = Table(
        ("most doubtful rows", "row", "label", "probe says", "disagreement"),
        tuple(
            (
                _short(row["text"]),
                row["id"],
                str(row["label"]),
                str(row["suggested"]),
                f"{row['disagreement']:.2f}",
            )
            for row in summary["suspects"][:SUSPECTS]
        ),
    )
    return "\n\n".join([table.text(rule=False), suspects.text(rule=False), _next(result)])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else line[: TEXT_WIDTH - 1] + "…"


def _next(result: CleanResult) -> str:
    """What to do next, a line each."""
    files, kept = result.files, int(result.verdicts.keep.sum())
    copies = [str(path) for name, path in files.items() if name.startswith("train.")]
    lines = [
        f"Look      {files['report']} shows every row, the most doubtful first.",
        f"Train     {files['train']} holds {kept:,} rows: their columns, label, probs and weight"
        + (f"; {copies[0]} the same." if copies else "."),
    ]
    if result.audit is not None:
        lines.append(f"Be sure   20 true labels settle what to do:\n  {result.audit}")
    return "\n".join(lines)
