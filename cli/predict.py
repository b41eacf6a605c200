"""``probekit predict``: what a finetuned classifier, or a saved probe, says about other rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.labels import Truth, read_truth
from probekit.cli.options import (
    AsJson,
    BatchTokens,
    IdColumn,
    Overwrite,
    SectionedCommand,
    TextColumn,
    argument,
    emit,
    option,
    options_of,
    output_table,
    say,
)
from probekit.cli.outputs import check_suffix, claim

if TYPE_CHECKING:
    from probekit.labels import WeakLabels

__all__ = ["command"]


class PredictOptions(TypedDict):
    """Options of ``probekit predict``."""

    rows: Annotated[str, argument("Task, file or data set of rows; with --probe a store.")]
    model: Annotated[str | None, option("Folder `model` of `probekit finetune`.", "-m", "--model")]
    saved_probe: Annotated[
        Path | None,
        option(
            "Instead of a model: folder of `filter --save-probe`; ROWS is then a store.", "--probe"
        ),
    ]
    output: Annotated[Path, output_table("Predictions to write, in the form of labels:")]
    truth: Truth
    max_length: Annotated[
        int | None, option("Tokens per row.  [default: as in the training]", type=click.IntRange(1))
    ]
    batch_tokens: BatchTokens
    device: Annotated[str, option("auto, cpu, cuda, cuda:N or mps.", default="auto")]
    text_column: TextColumn
    id_column: IdColumn
    overwrite: Overwrite
    as_json: AsJson


@click.command("predict", cls=SectionedCommand)
@options_of(PredictOptions)
def command(**options: Unpack[PredictOptions]) -> None:
    """Label rows with a finetuned classifier or a saved probe.

    The predictions are weak labels for whoever comes next: filter, relabel, or another student.

    Example: probekit predict test.jsonl -m student/model -o predictions.parquet
    """
    from probekit.errors import UsageError
    from probekit.sources import load_rows
    from probekit.students.predict import predict_rows

    output = options["output"]
    claim(options, "output")
    check_suffix(output, ".parquet", ".jsonl", "")
    if (options["model"] is None) == (options["saved_probe"] is None):
        raise UsageError("Give one of --model and --probe.")
    if options["saved_probe"] is not None:
        _by_probe(options, options["saved_probe"])
        return
    rows = load_rows(
        options["rows"], text_column=options["text_column"], id_column=options["id_column"]
    )
    if rows.note:
        say(rows.note)
    labels = predict_rows(
        str(options["model"]),
        rows,
        max_length=options["max_length"],
        batch_tokens=options["batch_tokens"],
        device=options["device"],
    )
    labels.save(output)
    truncated, length = labels.provenance["truncated"], labels.provenance["max_length"]
    result: dict[str, Any] = {"path": str(output), "rows": len(labels), "metrics": None}
    result |= {"truncated": truncated, "max_length": length}
    text = (
        f"{output}: {len(labels):,} rows, {truncated:,} rows truncated"
        + (f" at {length:,} tokens" if length else "")
        + f", classes {', '.join(labels.classes)}."
    )
    _print(result, text, labels, options)


def _by_probe(options: PredictOptions, probe: Path) -> None:
    """Label the rows of a store with a saved probe."""
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.saved import label_store

    output = options["output"]
    with ActivationStore(options["rows"]) as store:
        labels = label_store(store, probe)
    labels.save(output)
    result = {"path": str(output), "rows": len(labels), "metrics": None}
    text = f"{output}: {len(labels):,} rows, classes {', '.join(labels.classes)}."
    _print(result, text, labels, options)


def _print(result: dict[str, Any], text: str, labels: WeakLabels, options: PredictOptions) -> None:
    """Print the result, with metrics if there is a truth."""
    from probekit.reports.verdicts import figures_text
    from probekit.students.predict import evaluate_predictions

    if options["truth"] is not None:
        metrics = evaluate_predictions(labels, read_truth(options, labels.keys))
        result["metrics"] = metrics
        text += f"\n{metrics['rows']:,} rows with truth: {figures_text(metrics)}"
    emit(result, text, as_json=options["as_json"])
