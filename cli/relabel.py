"""``probekit relabel``: blend weak labels with a probe's predictions."""

from __future__ import annotations

from typing import Annotated, TypedDict, Unpack

import click

from probekit.cli.engine import EngineOptions
from probekit.cli.options import SectionedCommand, option, options_of, pick
from probekit.cli.verdicts import CleanedOptions, ProbeOptions, ResultOptions, clean

__all__ = ["command"]


def _shares(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(map(float, value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.3,0.7.") from None


class FormOptions(TypedDict):
    """What the new labels are."""

    blend: Annotated[
        float | None,
        option("Soft labels: share of the probe, the rest being the weak label.  [default: 0.75]"),
    ]
    hard: Annotated[bool, option("Hard labels, with the class shares of the weak ones.")]
    threshold: Annotated[
        float | None, option("Hard labels: the second of two classes above this probability.")
    ]
    prior: Annotated[
        tuple[float, ...] | None,
        option(
            "Hard labels, with these class shares instead of the weak labels': 0.3,0.7.",
            callback=_shares,
            type=str,
            multiple=False,
            metavar="A,B,…",
        ),
    ]
    flip: Annotated[
        float | None,
        option(
            "Hard labels: flip this share of each weak class, those that a filter would drop.",
            metavar="SHARE",
        ),
    ]
    only_above: Annotated[
        float | None, option("Leave labels whose disagreement is not above this.")
    ]


class RelabelOptions(CleanedOptions, ProbeOptions, FormOptions, EngineOptions, ResultOptions):
    """Options of ``probekit relabel``."""


@click.command("relabel", cls=SectionedCommand)
@options_of(RelabelOptions, Probe=ProbeOptions, Form=FormOptions)
def command(**options: Unpack[RelabelOptions]) -> None:
    """Relabel every row by a blend of its weak label and a probe.

    The probe never predicts a row whose label it was fitted on. ACTS is an activation store.

    Example: probekit relabel acts.h5 --labels weak.parquet --probe logreg -o verdicts.parquet
    """
    from probekit.cleaning.predict import ELEUTHER, relabel

    form = pick(options, "blend", "threshold", "only_above", "prior", "flip")
    soft = not options["hard"] and not {"blend", "threshold", "prior", "flip"} & {*form}
    if options["preset"] is not None and soft:
        form |= ELEUTHER["relabel"]
    clean(relabel, options, hard=options["hard"], **form)
