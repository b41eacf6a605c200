"""``probekit filter``: leave out rows whose weak label a probe disagrees with."""

from __future__ import annotations

from typing import Any

import click

from probekit.cli.cleaning_options import (
    label_options,
    probe_options,
    result_options,
    share_type,
)

__all__ = ["command"]


@click.command("filter")
@label_options
@probe_options
@click.option(
    "--contamination",
    type=share_type,
    help="Share to drop (0.2; with --global 0.1); or estimated: auto for each class, confident for "
    "each pair of classes (confident learning).",
)
@click.option(
    "--global", "over_all", is_flag=True, help="Drop among all rows, not within each weak class."
)
@click.option(
    "--threshold", type=float, help="Instead of a share: drop where the disagreement is above it."
)
@click.option("--zeta", type=float, help="topofilter paper: share of votes needed (0.5).")
@click.option(
    "--cap",
    is_flag=True,
    default=None,
    help="topofilter eleuther: never drop more than the contamination.",
)
@click.option(
    "--rank",
    is_flag=True,
    default=None,
    help="topofilter paper: drop exactly the contamination (0.2).",
)
@result_options
def command(**options: Any) -> None:
    """Drop the rows whose weak label the probe disagrees with most.

    The probe never predicts a row that it has seen the label of. ACTS is an activation store.

    Example: probekit filter acts.h5 --labels weak.parquet --probe knn -o verdicts.parquet
    """
    from probekit.cleaning.predict import filter_labels
    from probekit.cli.cleaning_run import pick, run_cleaning

    preset = options["preset"] is not None
    how = pick(options, "contamination", "threshold")
    if preset and not how:
        how["contamination"] = 0.1
    run_cleaning(
        filter_labels,
        options,
        per_class=not (options["over_all"] or preset),
        **how,
    )
