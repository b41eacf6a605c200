"""``probekit weak-labels``: a weaker model's probe labels the rows it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.labels import ByPosition, Classes, TruthColumn, print_labels
from probekit.cli.options import (
    FILE,
    AsJson,
    IdColumn,
    Overwrite,
    SectionedCommand,
    Seed,
    argument,
    emit,
    option,
    options_of,
    output_table,
    say,
)
from probekit.cli.outputs import check_suffix, claim
from probekit.cli.verdicts import WordOrNumber

__all__ = ["command"]


class WeakLabelsOptions(TypedDict):
    """Options of ``probekit weak-labels``."""

    acts: Annotated[Path, argument("Activation store of the weaker model.", type=FILE)]
    truth: Annotated[
        str, option("Ground truth: a file with id and label, or a task.", required=True)
    ]
    truth_column: TruthColumn
    id_column: IdColumn
    classes: Classes
    by_position: ByPosition
    train_ids: Annotated[
        Path | None, option("Rows to train on: a text file of ids, or a table with a column id.")
    ]
    train_share: Annotated[
        float | None, option("Share of the rows with truth to train on.  [default: 0.5]")
    ]
    train_rows: Annotated[int | None, option("Number of rows with truth to train on.")]
    layer: Annotated[int | None, option("Layer to read; required if several are stored.")]
    l2: Annotated[Any, option("Penalty of the probe.", type=WordOrNumber("auto"), default="auto")]
    fit_intercept: Annotated[
        bool | None,
        option(
            "With a bias or without.  [default: with; without for differences of pairs]",
            "--intercept/--no-intercept",
            default=None,
        ),
    ]
    output: Annotated[Path, output_table("Weak labels to write:")]
    overwrite: Overwrite
    seed: Seed
    as_json: AsJson


@click.command("weak-labels", cls=SectionedCommand)
@options_of(WeakLabelsOptions)
def command(**options: Unpack[WeakLabelsOptions]) -> None:
    """Label rows with a probe trained on some true labels.

    ACTS is the activation store of a weaker model. A logistic probe is trained on some rows
    and labels all others: a cheap weak supervisor.

    Example: probekit weak-labels weak.h5 --truth truth.csv --train-rows 200 -o weak.parquet
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.weak_supervisor import score_labels, weak_labels
    from probekit.labels import load_labels

    output = options["output"]
    claim(options, "output")
    check_suffix(output, ".parquet", ".jsonl", "")
    truth = load_labels(
        options["truth"],
        id_column=options["id_column"],
        label_column=options["truth_column"],
        classes=options["classes"],
        by_position=options["by_position"],
        column_option="--truth-column",
    )
    with ActivationStore(options["acts"]) as store:
        print_labels(truth, store.keys)
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
        keys = find_ids(read_table(path).columns, source=str(path))
        if keys.id_column is None:
            raise DataError(f"{path} has no column 'id'; give one id per line, or a column id.")
        ids = list(keys.ids)
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
