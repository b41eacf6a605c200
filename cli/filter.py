"""``probekit filter``: leave out rows whose weak label a probe disagrees with."""

from __future__ import annotations

from typing import Annotated, TypedDict, Unpack

import click

from probekit.cli.engine import EngineOptions
from probekit.cli.options import SectionedCommand, option, options_of, pick
from probekit.cli.verdicts import (
    CleanedOptions,
    ProbeOptions,
    ResultOptions,
    WordOrNumber,
    clean,
)

__all__ = ["command"]


class AmountOptions(TypedDict):
    """Which rows are dropped."""

    contamination: Annotated[
        float | str | None,
        option(
            "Share to drop, or estimated: auto for each class, confident for each pair of "
            "classes (confident learning).  [default: 0.2, which trusted labels may make up to "
            "0.5; with --global 0.1]",
            type=WordOrNumber("auto", "confident"),
        ),
    ]
    over_all: Annotated[
        bool, option("Drop among all rows, not within each weak class.", "--global")
    ]
    threshold: Annotated[
        float | None, option("Instead of a share: drop rows whose disagreement is above it.")
    ]
    zeta: Annotated[
        float | None, option("topofilter paper: share of votes needed.  [default: 0.5]")
    ]
    cap: Annotated[
        bool | None,
        option("topofilter eleuther: never drop more than the contamination.", default=None),
    ]
    rank: Annotated[
        bool | None,
        option("topofilter paper: drop exactly the contamination.  [default: off]", default=None),
    ]


class FilterOptions(CleanedOptions, ProbeOptions, AmountOptions, EngineOptions, ResultOptions):
    """Options of ``probekit filter``."""


@click.command("filter", cls=SectionedCommand)
@options_of(FilterOptions, Probe=ProbeOptions, Amount=AmountOptions)
def command(**options: Unpack[FilterOptions]) -> None:
    """Drop the rows whose label the probe disagrees with most.

    The probe never predicts a row whose label it was fitted on. ACTS is an activation store.

    Example: probekit filter acts.h5 --labels weak.parquet --probe knn -o verdicts.parquet
    """
    from probekit.cleaning.predict import ELEUTHER, filter_labels

    amount = pick(options, "contamination", "threshold")
    preset = options["preset"] is not None
    if preset and not amount:
        amount |= ELEUTHER["filter"]
    clean(filter_labels, options, per_class=not (options["over_all"] or preset), **amount)
