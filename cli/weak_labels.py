"""``probekit weak-labels``: a weaker model's probe labels the rows it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.cleaning_options import penalty_type
from probekit.cli.labels import classes_option, position_option, tell_labels
from probekit.cli.options import (
    emit,
    json_option,
    output_option,
    overwrite_option,
    say,
    seed_option,
)
from probekit.cli.outputs import claim

__all__ = ["command"]


@click.command("weak-labels")
@click.argument("acts", type=click.Path(path_type=Path))
@click.option("--truth", required=True, help="Ground truth: a file with id and label, or a task.")
@click.option("--truth-column", help="Column of the truth, if not label.")
@click.option("--id-column", help="Column that joins truth and rows, if not id.")
@classes_option
@position_option
@click.option(
    "--train-ids",
    type=click.Path(path_type=Path),
    help="Rows to train on: a text file of ids, or a table with a column id.",
)
@click.option("--train-share", type=float, help="Share of the rows with truth to train on (0.5).")
@click.option("--train-rows", type=int, help="Number of rows with truth to train on.")
@click.option("--layer", type=int, help="Which layer; needed where several are stored.")
@click.option("--l2", type=penalty_type, default="auto", help="Penalty of the probe.")
@click.option(
    "--intercept/--no-intercept",
    "fit_intercept",
    default=None,
    help="With a bias or without.  [default: with; without for differences of pairs]",
)
@output_option("Weak labels to write: .parquet or .jsonl.")
@overwrite_option
@seed_option
@json_option
def command(**options: Any) -> None:
    """Label rows with a probe that some true labels have taught.

    ACTS is the activation store of a weaker model. A logistic probe is trained on the rows chosen
    and labels all others: a cheap weak supervisor.

    Example: probekit weak-labels weak.h5 --truth truth.csv --train-rows 200 -o weak.parquet
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.weak_supervisor import score_labels, weak_labels
    from probekit.errors import UsageError
    from probekit.labels import load_labels

    output: Path = options["output"]
    claim(options, "output")
    if output.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"{output} must end in .parquet or .jsonl; these are what is written.")
    truth = load_labels(
        options["truth"],
        id_column=options["id_column"],
        label_column=options["truth_column"],
        classes=options["classes"],
        by_position=options["by_position"],
    )
    with ActivationStore(options["acts"]) as store:
        tell_labels(truth, store.keys)
        done = weak_labels(
            store,
            truth,
            train_ids=None if options["train_ids"] is None else _ids(options["train_ids"]),
            train_share=options["train_share"],
            train_rows=options["train_rows"],
            layer=options["layer"],
            l2=options["l2"],
            fit_intercept=options["fit_intercept"],
            seed=options["seed"],
        )
    done.labels.save(output)
    say(f"{len(done.labels):,} weak labels written to {output}")
    result = {
        "output": str(output),
        "trained_rows": len(done.trained),
        "labelled_rows": len(done.labels),
        "l2": done.probe.l2_,
        "fit_intercept": done.probe.fit_intercept,
        **score_labels(done.labels, truth),
    }
    emit(result, _text(result), as_json=options["as_json"])


def _ids(path: Path) -> list[str]:
    """Ids of a table's column ``id`` in any case, or of a text file's lines."""
    from probekit.errors import DataError
    from probekit.joins import find_ids
    from probekit.safe import read_text
    from probekit.sources import read_table
    from probekit.tables import SUFFIXES, suffix_of

    if suffix_of(path) in SUFFIXES:
        found = find_ids(read_table(path).columns, source=str(path))
        if found.id_column is None:
            raise DataError(f"{path} has no column 'id'; give one id per line, or a column id.")
        ids = list(found.ids)
    else:
        lines = read_text(path, limit=None).split("\n")
        ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path} holds no ids.")
    return ids


def _text(result: dict[str, Any]) -> str:
    from probekit.reports.verdicts import figures_text

    bias = "" if result["fit_intercept"] else ", no bias"
    lines = [
        f"trained on {result['trained_rows']:,} rows (l2 {result['l2']:.3g}{bias}), "
        f"labelled {result['labelled_rows']:,}"
    ]
    if result["judged_rows"]:
        shown = figures_text({"accuracy": result["accuracy"], "AUROC": result["auroc"]})
        lines.append(f"of these {result['judged_rows']:,} have a truth: {shown}")
    return "\n".join(lines)
