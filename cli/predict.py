"""``probekit predict``: what a finetuned classifier says about other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.labels import read_truth
from probekit.cli.options import emit, json_option, output_option, overwrite_option, say
from probekit.cli.outputs import claim

__all__ = ["command"]


@click.command("predict")
@click.argument("rows")
@click.option("-m", "--model", required=True, help="Folder `model` of `probekit finetune`.")
@output_option("Predictions to write: .parquet or .jsonl, in the form of labels.")
@click.option("--truth", help="Ground truth; opened once the predictions are written.")
@click.option(
    "--max-length", type=click.IntRange(1), help="Tokens per row.  [default: as in the training]"
)
@click.option("--batch-tokens", type=click.IntRange(1), help="Padded tokens per batch.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--text-column", help="Column of the text, if not text or messages.")
@click.option("--id-column", help="Column of the ids, if not id.")
@overwrite_option
@json_option
def command(**options: Any) -> None:
    """Label rows with a classifier that was finetuned.

    The predictions are weak labels for whoever comes next: filter, relabel, or another student.

    Example: probekit predict test.jsonl -m student/model -o predictions.parquet
    """
    from probekit.errors import UsageError
    from probekit.reports.verdicts import figures_text
    from probekit.sources import load_rows
    from probekit.students.predict import evaluate_predictions, predict_rows

    output: Path = options["output"]
    claim(options, "output")
    if output.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"{output} must end in .parquet or .jsonl; these are what is written.")
    rows = load_rows(
        options["rows"], text_column=options["text_column"], id_column=options["id_column"]
    )
    if rows.note:
        say(rows.note)
    how = {name: options[name] for name in ("max_length", "batch_tokens", "device")}
    found = predict_rows(options["model"], rows, **how)
    found.save(output)
    result: dict[str, Any] = {"path": str(output), "rows": len(found), "metrics": None}
    truncated, length = found.provenance["truncated"], found.provenance["max_length"]
    result |= {"truncated": truncated, "max_length": length}
    text = (
        f"{output}: {len(found):,} rows, {truncated:,} rows truncated"
        + (f" at {length:,} tokens" if length else "")
        + f", classes {', '.join(found.classes)}."
    )
    if options["truth"] is not None:
        metrics = evaluate_predictions(found, read_truth(options, found.keys))
        result["metrics"] = metrics
        text += f"\n{metrics['rows']:,} rows with truth: {figures_text(metrics)}"
    emit(result, text, as_json=options["as_json"])
