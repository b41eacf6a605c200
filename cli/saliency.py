"""``probekit saliency``: linear probes against finetuning on the same rows, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probekit.cli.options import emit, json_option, quiet_option, say
from probekit.cli.outputs import claim_folder, make_folder
from probekit.cli.run_options import read_run_config, refuse_failures

__all__ = ["command"]


@click.command("saliency")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file with any of the fields, or a run's.",
)
@click.option("--preset", help="Start from a published experiment: burns or eleuther.")
@click.option("--task", help="Tasks, or files of rows with a column label, comma-separated.")
@click.option("--weak", help="Models of the weak supervisors, comma-separated.")
@click.option("--strong", help="Models that are probed and finetuned, comma-separated.")
@click.option("--layers", help="Layers to probe: all, last, or numbers and ranges (all).")
@click.option(
    "--after-truth",
    is_flag=True,
    help="Also by layer: probes on the states of the model finetuned on ground truth.",
)
@click.option("--losses", help="Loss of the student on weak labels (xent).")
@click.option("--seeds", help="Comma-separated seeds, or how many (1).")
@click.option("--lm-first", is_flag=True, help="Language-model loss before everything.")
@click.option("--weak-on", help="heldout or train: whose rows the supervisor labels (heldout).")
@click.option("--supervisor-rows", type=int, help="Rows with ground truth for the supervisor.")
@click.option("--student-rows", type=int, help="Rows that every bar trains on.")
@click.option("--test-rows", type=int, help="Rows to test on.")
@click.option("--epochs", type=float, help="Passes of every finetuning over its rows.")
@click.option("--weak-lr", type=float, help="Learning rate of the supervisors.")
@click.option("--strong-lr", type=float, help="Learning rate of the finetuned bars.")
@click.option("--lora", is_flag=True, help="Train low-rank adapters instead of all weights.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any field, such as finetune.batch_size=16 or validation_share=0.2; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/saliency"),
    help="Folder of the comparison; goes on where it stopped.",
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="Folder of the steps that it shares with runs (beside the output: steps).",
)
@click.option("--dry-run", is_flag=True, help="Print steps, rows, tokens and disk, and do nothing.")
@quiet_option
@json_option
def command(**options: Any) -> None:
    """Compare linear probes with finetuning: how salient a concept is in the strong model.

    Five bars on the same rows: linear probes on weak labels and on ground truth, finetuning on
    weak labels, a linear probe with ground truth on that model's states, finetuning on ground
    truth; and accuracy by layer, before and after finetuning.

    Example: probekit saliency --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/s
    """
    from probekit.experiments.plan import plan, plan_text
    from probekit.experiments.saliency import Saliency, SaliencyConfig, open_saliency_folder

    config = read_run_config(options, SaliencyConfig.from_mapping)
    folder = options["output"]
    steps = options["steps"] or folder.absolute().parent / "steps"
    if options["dry_run"]:
        open_saliency_folder(folder, config, make=False)
        found = plan(config, steps, experiment=Saliency)
        emit(found, plan_text(found), as_json=options["as_json"])
        return
    tell = (lambda _: None) if options["quiet"] else say
    saliency = Saliency(config, steps, tell)
    saliency.check()  # what is wrong is said before anything is written
    claim_folder(folder)
    open_saliency_folder(folder, config)
    make_folder(steps)
    results = saliency.carry_out(folder)
    from probekit.reports.saliency import write_saliency_reports

    text = write_saliency_reports(results, folder)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, table.md, bars and layers are in {folder}.")
    refuse_failures(results, folder)
