"""``probekit saliency``: linear probes against finetuning on the same rows, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict, Unpack

import click

from probekit.cli.options import SectionedCommand, emit, option, options_of, say
from probekit.cli.run import (
    CourseOptions,
    ExperimentOptions,
    open_experiment,
    raise_failures,
    read_run_config,
)

__all__ = ["command"]


class ProbedOptions(TypedDict):
    """What is probed, and the loss of the student beside."""

    losses: Annotated[str | None, option("Loss of the student on weak labels.  [default: xent]")]
    layers: Annotated[
        str | None, option("Layers to probe: all, last, or numbers and ranges.  [default: all]")
    ]
    after_truth: Annotated[
        bool, option("Also by layer: probes on the states of the model finetuned on ground truth.")
    ]
    output: Annotated[
        Path,
        option(
            "Folder of the comparison; the same command resumes it.",
            "-o",
            "--output",
            default=Path("runs/saliency"),
        ),
    ]


class SaliencyOptions(ExperimentOptions, ProbedOptions, CourseOptions):
    """Options of ``probekit saliency``."""


@click.command("saliency", cls=SectionedCommand)
@options_of(
    SaliencyOptions, Experiment=ExperimentOptions, Probes=ProbedOptions, Course=CourseOptions
)
def command(**options: Unpack[SaliencyOptions]) -> None:
    """Compare linear probes with finetuning on one concept.

    Five bars on the same rows: linear probes on weak labels and on ground truth, finetuning on
    weak labels, a linear probe with ground truth on that model's states, finetuning on ground
    truth; and accuracy by layer, before and after finetuning.

    Example: probekit saliency --task docstrings --weak MODEL@layers=1 --strong MODEL -o runs/s
    """
    from probekit.experiments.saliency import Saliency, SaliencyConfig, open_saliency_folder
    from probekit.reports.saliency import write_saliency_reports

    config = read_run_config(options, SaliencyConfig.from_mapping)
    folder = options["output"]
    saliency = open_experiment(Saliency, config, folder, options, open_saliency_folder)
    if saliency is None:
        return
    results = saliency.carry_out(folder)
    text = write_saliency_reports(results, folder)
    emit(results, text, as_json=options["as_json"])
    say(f"Predictions, metrics.json, table.md, bars and layers are in {folder}.")
    raise_failures(results, folder)
