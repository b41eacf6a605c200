"""``probekit relabel``: give every row a label that a probe had a say in."""

from __future__ import annotations

from typing import Any

import click

from probekit.cli.cleaning_options import label_options, probe_options, result_options

__all__ = ["command"]


@click.command("relabel")
@label_options
@probe_options
@click.option(
    "--blend",
    type=float,
    help="Soft labels: share of the probe, the rest being the weak label (0.75).",
)
@click.option("--hard", is_flag=True, help="Hard labels, with the class shares of the weak ones.")
@click.option("--threshold", type=float, help="Hard labels: the second of two classes above this.")
@click.option("--only-above", type=float, help="Leave labels whose disagreement is not above this.")
@result_options
def command(**options: Any) -> None:
    """Relabel every row by a blend of its weak label and a probe.

    The probe never predicts a row that it has seen the label of. ACTS is an activation store.

    Example: probekit relabel acts.h5 --labels weak.parquet --probe logreg -o verdicts.parquet
    """
    from probekit.cleaning.predict import relabel
    from probekit.cli.cleaning_run import pick, run_cleaning

    how = pick(options, "blend", "threshold", "only_above")
    if (
        options["preset"] is not None
        and not options["hard"]
        and not {"blend", "threshold"} & {*how}
    ):
        how["blend"] = 1.0
    run_cleaning(relabel, options, hard=options["hard"], **how)
