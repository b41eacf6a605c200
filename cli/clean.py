"""``probekit clean``: one command from a file with noisy labels to a training set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.options import (
    emit,
    json_option,
    overwrite_option,
    quiet_option,
    say,
    seed_option,
)
from probekit.cli.outputs import claim_folder

if TYPE_CHECKING:
    from probekit.cleaned import CleanResult
    from probekit.columns import AmbiguousColumnError

__all__ = ["command"]

SUSPECTS, TEXT_WIDTH = 8, 60


@click.command("clean")
@click.argument("data")
@click.option("-m", "--model", help="Hub name or folder.  [default: all-MiniLM-L6-v2]")
@click.option("--text", help="Column of the text.  [default: guessed]")
@click.option("--label", help="Column of the label.  [default: guessed]")
@click.option("--id", "id_column", help="Column of ids, if not id.  [default: row numbers]")
@click.option(
    "-o",
    "--output",
    default="cleaned",
    type=click.Path(path_type=Path, file_okay=True),
    help="Folder for states, verdicts, training set, report and summary.",
)
@click.option(
    "--action",
    default="auto",
    type=click.Choice(["auto", "filter", "relabel", "leave"]),
    help="What to do; auto: as `probekit diagnose` advises.",
)
@click.option(
    "--contamination",
    default=0.2,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of each weak class that a filter drops.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Padded tokens per batch.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@overwrite_option
@seed_option
@quiet_option
@json_option
def command(
    data: str,
    *,
    model: str | None,
    text: str | None,
    label: str | None,
    id_column: str | None,
    output: Path,
    action: Any,
    contamination: float,
    device: str,
    batch_tokens: int | None,
    trust_remote_code: bool,
    overwrite: bool,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Clean the labels of a table: one command from a file to a training set.

    DATA is a CSV, TSV, JSONL or Parquet file, a saved data set, hf:org/name@split or a task. A
    strong model's hidden states are stored (and resume after a stop), the labels are diagnosed,
    and then filtered, relabelled or left alone. The folder holds the training set, a report of the
    most doubtful rows, and a summary with the plain commands that do the same.

    Example: probekit clean reviews.csv --text review_body --label stars -o cleaned
    """
    from probekit.cleaned import clean
    from probekit.columns import AmbiguousColumnError

    if output.absolute().parent.is_dir():
        claim_folder(output)
    if model is None:
        say("Reading all-MiniLM-L6-v2, a small encoder; name a stronger model with -m.")
    while True:
        try:
            result = clean(
                data,
                model=model,
                text=text,
                label=label,
                id=id_column,
                output=output,
                action=action,
                contamination=contamination,
                device=device,
                batch_tokens=batch_tokens,
                trust_remote_code=trust_remote_code,
                overwrite=overwrite,
                seed=seed,
                progress=False if quiet else None,
                report=say,
            )
            break
        except AmbiguousColumnError as error:
            if not _at_terminal():
                raise
            if error.role == "text":
                text = _ask(error)
            else:
                label = _ask(error)
    emit(result.summary(), _text(result), as_json=as_json)


def _at_terminal() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


def _ask(error: AmbiguousColumnError) -> str:
    """Ask at the terminal which column is meant."""
    say(str(error))
    column: str = click.prompt(
        f"Which column is the {error.role}?", type=click.Choice(error.candidates), err=True
    )
    return column


def _text(result: CleanResult) -> str:
    """Counts, the most doubtful rows, and what to do next."""
    from probekit.reports.tables import Table, share_of

    summary = result.summary()
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
            for row in result.suspects(SUSPECTS)
        ),
    )
    return "\n\n".join([table.text(rule=False), suspects.text(rule=False), _next(result)])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else line[: TEXT_WIDTH - 1] + "…"


def _next(result: CleanResult) -> str:
    """What to do next, a line each."""
    files, kept = result.files, int(result.verdicts.keep.sum())
    lines = [
        f"Look      {files['report']} shows every row, the most doubtful first.",
        f"Train     {files['train']} holds {kept:,} rows with label, probs and weight.",
    ]
    if result.audit is not None:
        lines.append(f"Be sure   20 true labels settle what to do:\n  {result.audit}")
    return "\n".join(lines)
