"""``probekit run``: floor, students and ceiling of a whole experiment, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, quiet_option, say
from probekit.cli.outputs import claim_folder, make_folder
from probekit.cli.run_options import read_run_config, refuse_failures
from probekit.errors import ProbekitError

__all__ = ["command"]


@click.command("run")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with any of the fields.")
@click.option("--preset", help="Start from a published experiment: burns or eleuther.")
@click.option("--task", help="Tasks, or files of rows with a column label, comma-separated.")
@click.option("--weak", help="Models of the weak supervisors, comma-separated.")
@click.option("--strong", help="Models of students and ceiling, comma-separated.")
@click.option("--losses", help="Losses on plain weak labels; the first is all others' (xent).")
@click.option("--probes", help="knn, logreg, topofilter (these three), ensemble, mass-mean.")
@click.option("--actions", help="filter, relabel, relabel-hard (filter,relabel).")
@click.option("--layer", help="Layer that the probes read: a number, mid or last (mid).")
@click.option("--seeds", help="Comma-separated seeds, or how many (1).")
@click.option("--rounds", type=int, help="Strong-to-strong rounds (1).")
@click.option("--chain", help="Bootstrapping: models, weakest first, comma-separated.")
@click.option("--lm-first", is_flag=True, help="Language-model loss before student and ceiling.")
@click.option("--weak-on", help="heldout or train: whose rows the supervisor labels (heldout).")
@click.option("--curves", is_flag=True, help="Keep predictions of every evaluation.")
@click.option("--supervisor-rows", type=int, help="Rows with ground truth for the supervisor.")
@click.option("--student-rows", type=int, help="Rows with weak labels for the student.")
@click.option("--test-rows", type=int, help="Rows to test on.")
@click.option("--random-drops", type=int, help="Random drops per size of filter (1).")
@click.option("--epochs", type=float, help="Passes of every finetuning over its rows.")
@click.option("--weak-lr", type=float, help="Learning rate of the supervisors.")
@click.option("--strong-lr", type=float, help="Learning rate of students and ceilings.")
@click.option("--lora", is_flag=True, help="Train low-rank adapters instead of all weights.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any field, such as finetune.batch_size=16 or probe_options.knn.k=50; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/run"),
    help="Folder of the run; goes on where it stopped.",
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="Folder of the steps that runs share (beside the run: steps).",
)
@click.option("--dry-run", is_flag=True, help="Print steps, rows, tokens and disk, and do nothing.")
@quiet_option
@json_option
def command(**options: Any) -> None:
    """Measure what a student recovers of the gap between weak supervisor and ceiling.

    The weak model, finetuned on one half of the rows, labels the other; students of the strong
    model train on these labels, as they are and cleaned by probes, between floor and ceiling.

    Example: probekit run --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/first
    """
    from probekit.experiments.config import RunConfig
    from probekit.experiments.plan import plan, plan_text
    from probekit.experiments.run import Run, open_folder

    config = read_run_config(options, RunConfig.from_mapping)
    folder = options["output"]
    steps = options["steps"] or folder.absolute().parent / "steps"
    if options["dry_run"]:
        open_folder(folder, config, make=False)
        found = plan(config, steps)
        emit(found, plan_text(found), as_json=options["as_json"])
        return
    tell = (lambda _: None) if options["quiet"] else say
    run = Run(config, steps, tell)
    run.check()  # what is wrong is said before anything is written
    claim_folder(folder)
    open_folder(folder, config)
    make_folder(steps)
    results = run.carry_out(folder)
    from probekit.reports.rows import run_rows
    from probekit.reports.run import write_run_reports

    try:
        rows = run_rows(run)
    except ProbekitError as error:  # hours of work are not to end so
        say(f"Note: report.html is without rows: {error}")
        rows = None
    text = write_run_reports(results, folder, rows=rows)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, tables, figures and report.html are in {folder}.")
    refuse_failures(results, folder)
