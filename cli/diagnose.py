"""``probekit diagnose``: what states and weak labels show without truth, and what follows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.again import typed_again
from probekit.cli.labels import LABELS_HELP, labels_options, read_labels
from probekit.cli.options import emit, json_option, seed_option

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.diagnose import ClassFindings, Diagnosis, Null

__all__ = ["chosen_layers", "command"]


@click.command("diagnose")
@click.argument("acts", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    required=True,
    help=LABELS_HELP,
)
@labels_options
@click.option(
    "--layers", help="Layers to choose from: 4,5,6 or 3-6.  [default: all that are stored]"
)
@click.option(
    "--trusted-accuracy",
    type=float,
    help="The supervisor's accuracy on rows whose truth you know, instead of its confidences.",
)
@click.option(
    "--cautious", is_flag=True, help="The strong model is not clearly stronger: ask for more."
)
@seed_option
@json_option
def command(**options: Any) -> None:
    """Tell, without any truth, whether to filter, to relabel or to leave the labels alone.

    ACTS is an activation store; several layers (extract --layers all) tell more than one. At most
    2,000 rows are read, in seconds.

    Example: probekit diagnose acts.h5 --labels weak.parquet
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.diagnose import diagnose
    from probekit.cli.cleaning_run import pick

    with ActivationStore(options["acts"]) as store:
        layers = chosen_layers(store, options["layers"])
        labels = read_labels(options, store.keys)
        found = diagnose(
            store,
            labels,
            layers=layers,
            **pick(options, "trusted_accuracy", "cautious", "seed", "only_labelled"),
        )
    emit(_as_json(found), _text(found, str(options["acts"])), as_json=options["as_json"])


def chosen_layers(store: ActivationStore, asked: str | None) -> tuple[int, ...] | None:
    """Layers that were asked for, by number, range or ``last``; None: all that are stored."""
    from probekit.activations.spec import parse_layers

    if asked is None or asked.strip() == "all":
        return None
    return parse_layers(asked, max(store.layers))


def _as_json(found: Diagnosis) -> dict[str, Any]:
    from dataclasses import asdict

    from probekit.reports.tables import finite

    result: dict[str, Any] = finite(asdict(found))
    return result


def _text(found: Diagnosis, acts: str) -> str:
    parts = [_head(found, acts), _class_table(found.classes), _signals(found)]
    if found.alarms:
        parts.append("\n".join(f"ALARM     {alarm}" for alarm in found.alarms))
    advice = found.advice
    close = "  (a close call: a bound lies within the interval of pc)" if advice.close else ""
    parts.append(f"filter    {advice.filter}{close}\nrelabel   {advice.relabel}")
    parts.append(_what_would(found))
    return "\n\n".join(parts)


def _head(found: Diagnosis, acts: str) -> str:
    read = ", ".join(str(part.layer) for part in found.layers)
    drawn = "" if found.rows_read == found.rows else f", {found.rows_read:,} of them read"
    ranks = [
        f"{part.effective_rank:.0f} of {part.width} (layer {part.layer})"
        for part in found.layers
        if math.isfinite(part.effective_rank)
    ]
    wrong = sum(part.nonfinite > 0 or part.constant for part in found.layers)
    states = (
        "finite, none constant" if not wrong else f"{wrong} of the layers are damaged, see below"
    )
    copies = "none"
    if found.duplicates:
        copies = f"{found.duplicates:,} rows share their text with another"
        copies += f", {found.duplicates_unequal:,} of them with unequal labels"
    return "\n".join(
        [
            f"{acts}: {found.rows:,} rows with a weak label{drawn}; layers {read}; no truth used",
            f"states    {states}; effective rank {', '.join(ranks)}",
            f"copies    {copies}",
        ]
    )


def _class_table(classes: tuple[ClassFindings, ...]) -> str:
    from probekit.reports.tables import Table, share

    header = ("weak class", "rows", "share", "confident joint", "HOC", "suspected")
    rows = tuple(
        (
            part.name,
            f"{part.rows:,}",
            share(part.share),
            share(part.confident_joint),
            share(part.hoc),
            f"{part.suspected:,}",
            share(part.expansion),
            share(part.expansion_by_chance),
        )
        for part in classes
    )
    notes = (
        "Confident joint and HOC: how much of the class cannot be told from another; neither is a",
        "rate of wrong labels. Suspected: the probe says another class. Expansion: share of a",
        "suspected row's neighbours that are labelled as the probe says.",
    )
    return Table((*header, "expansion", "chance"), rows, notes).text(rule=False)


def _signals(found: Diagnosis) -> str:
    from probekit.cleaning.advice import confidence_allowed

    signals, margins = found.advice.signals, found.advice.margins
    lines = [
        f"predictable  AUROC of the weak labels out of fold {_against(found.predictable)}",
    ]
    if not math.isnan(signals.pc):
        low, high = signals.pc_interval
        lines += [
            f"pc           {_against(found.concord)}; 95 % of draws {low:.2f} to {high:.2f}",
            f"               to the bound of filter {margins['pc_filter']:+.2f}, of relabel "
            f"{margins['pc_relabel']:+.2f}",
            f"A            the probe agrees with {signals.agreement:.3f} of the weak labels",
        ]
    known = {
        "confidences": f"{signals.confidence:.3f}, the mean confidence of the weak labels",
        "trusted accuracy": f"{signals.confidence:.3f}, the trusted accuracy",
        "unknown": "unknown: the labels are hard, so it counts as 1",
    }[signals.confidence_from]
    lines.append(f"c            {known}")
    if signals.confidence_from == "unknown" and margins:
        allowed = confidence_allowed(signals.agreement)
        at_most = "no c would do" if math.isnan(allowed) else f"c of at most {allowed:.2f}"
        lines.append(f"               relabel would need, at this A: {at_most}")
    elif margins:
        lines.append(
            f"               relabel needs A of {found.agreement_needed:.3f}: "
            f"{margins['agreement_relabel']:+.3f}"
        )
        if "confidence" in margins:
            lines.append(f"               to its own bound {margins['confidence']:+.2f}")
    return "\n".join(lines)


def _against(null: Null) -> str:
    if math.isnan(null.mean):
        return f"{null.value:.3f}"
    low, high = null.interval
    return f"{null.value:.3f}, shuffled labels {null.mean:.3f} [{low:.3f}, {high:.3f}]"


def _what_would(found: Diagnosis) -> str:
    source = found.advice.signals.confidence_from
    means = []
    if source == "unknown":
        means.append("the supervisor's confidences (a column prob instead of label)")
    if source != "trusted accuracy":
        means.append("its accuracy on rows whose truth you know (--trusted-accuracy)")
    means.append("best of all, twenty true labels where probe and weak label disagree")
    what = {
        "unknown": "Hard weak labels alone cannot settle this: wrong labels and a concept that the "
        "states do not hold look alike.",
        "confidences": "Weak labels cannot settle this; supervisors are often surer than right.",
        "trusted accuracy": "A rule that was measured on other tasks advises; it does not settle.",
    }[source]
    return (
        f"{what} Leaving them alone is the default.\nWhat would: {'; '.join(means)}:\n"
        f"  {typed_again('audit')} -m 20"
    )
