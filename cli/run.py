"""``probekit run``: floor, students and ceiling of a whole experiment, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict, Unpack

import click

from probekit.cli.options import emit, option, options_of, say
from probekit.cli.run_options import (
    CourseOptions,
    ExperimentOptions,
    open_experiment,
    raise_failures,
    read_run_config,
)

__all__ = ["command"]


class StudentOptions(TypedDict):
    """How labels are cleaned, and which students learn from them."""

    weak_labels: Annotated[
        str | None, option("File of weak labels (id and label, prob or probs), instead of --weak.")
    ]
    student: Annotated[
        str | None,
        option(
            "finetune, linear or memorising (linear ones read frozen states), "
            "comma-separated (finetune)."
        ),
    ]
    losses: Annotated[
        str | None,
        option("Losses on plain weak labels; the first is also that of all other students (xent)."),
    ]
    probes: Annotated[
        str | None, option("knn, logreg, topofilter (these three), ensemble, mass-mean.")
    ]
    actions: Annotated[str | None, option("filter, relabel, relabel-hard (filter,relabel).")]
    layer: Annotated[str | None, option("Layer that the probes read: a number, mid or last (mid).")]
    random_drops: Annotated[
        int | None, option("Number of random drops per filter size, as a baseline (1).")
    ]
    rounds: Annotated[int | None, option("Strong-to-strong rounds (1).")]
    chain: Annotated[str | None, option("Bootstrapping: models, weakest first, comma-separated.")]
    curves: Annotated[bool, option("Keep predictions of every evaluation.")]
    output: Annotated[
        Path,
        option(
            "Folder of the run; the same command resumes it.",
            "-o",
            "--output",
            default=Path("runs/run"),
        ),
    ]


class RunOptions(ExperimentOptions, StudentOptions, CourseOptions):
    """Options of ``probekit run``."""


@click.command("run")
@options_of(RunOptions)
def command(**options: Unpack[RunOptions]) -> None:
    """Measure what a student recovers of the gap between weak supervisor and ceiling.

    The weak model, finetuned on one half of the rows, labels the other; students of the strong
    model train on these labels, as they are and cleaned by probes, between floor and ceiling.

    Example: probekit run --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/first
    """
    from probekit.experiments.config import RunConfig
    from probekit.experiments.run import Run, open_folder
    from probekit.reports.run import report_run

    config = read_run_config(options, RunConfig.from_mapping)
    folder = options["output"]
    run = open_experiment(Run, config, folder, options, open_folder)
    if run is None:
        return
    results = run.carry_out(folder)
    text = report_run(run, results, folder, say)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, tables, figures and report.html are in {folder}.")
    raise_failures(results, folder)
