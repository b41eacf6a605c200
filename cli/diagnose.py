"""``probekit diagnose``: what states and weak labels show without truth, and what follows."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Unpack

import click

from probekit.cli.labels import LabelledStoreOptions, read_labels
from probekit.cli.options import (
    AsJson,
    SectionedCommand,
    Seed,
    emit,
    option,
    options_of,
    typed_again,
)
from probekit.cli.student import StudentOptions, learner_of

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.diagnose import ClassFindings, Diagnosis, Null
    from probekit.cleaning.student import StudentAdvice

__all__ = ["DiagnosedOptions", "chosen_layers", "command"]


class DiagnosedOptions(LabelledStoreOptions):
    """What is diagnosed: a store, weak labels, and layers to choose from."""

    layers: Annotated[
        str | None, option("Layers to choose from: 4,5,6 or 3-6.  [default: all that are stored]")
    ]


class DiagnoseOptions(DiagnosedOptions, StudentOptions):
    """Options of ``probekit diagnose``."""

    trusted_accuracy: Annotated[
        float | None,
        option(
            "The supervisor's accuracy on rows whose truth you know, instead of its confidences."
        ),
    ]
    cautious: Annotated[
        bool, option("Use a stricter bound, for a strong model that is not clearly stronger.")
    ]
    seed: Seed
    as_json: AsJson


@click.command("diagnose", cls=SectionedCommand)
@options_of(DiagnoseOptions)
def command(**options: Unpack[DiagnoseOptions]) -> None:
    """Advise without ground truth: filter, relabel or leave labels.

    ACTS is an activation store; several layers (extract --layers all) are better evidence than
    one. At most 2,000 rows are read, in seconds.

    Example: probekit diagnose acts.h5 --labels weak.parquet
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.diagnose import diagnose
    from probekit.cleaning.student import after_diagnosis
    from probekit.reports.tables import finite

    with ActivationStore(options["acts"]) as store:
        layers = chosen_layers(store, options["layers"])
        labels = read_labels(options, store.keys)
        diagnosis = diagnose(
            store,
            labels,
            layers=layers,
            trusted_accuracy=options["trusted_accuracy"],
            cautious=options["cautious"],
            seed=options["seed"],
            only_labelled=options["only_labelled"],
        )
    advised = None
    if (learner := learner_of(options)) is not None:
        advised = after_diagnosis(learner, diagnosis.advice)
    text = _text(diagnosis, str(options["acts"]), advised)
    result = asdict(diagnosis) | {"student": None if advised is None else advised.record}
    emit(finite(result), text, as_json=options["as_json"])


def chosen_layers(store: ActivationStore, asked: str | None) -> tuple[int, ...] | None:
    """Layers that were asked for, by number, range or ``last``; None: all that are stored."""
    from probekit.activations.spec import parse_layers

    if asked is None or asked.strip() == "all":
        return None
    return parse_layers(asked, max(store.layers))


def _text(diagnosis: Diagnosis, acts: str, advised: StudentAdvice | None) -> str:
    parts = [
        _first(diagnosis)
        if advised is None
        else f"{_first(diagnosis)}\n{advised.line}{advised.hint}",
        _head(diagnosis, acts),
        _class_table(diagnosis.classes),
        _signals(diagnosis),
    ]
    if diagnosis.alarms:
        parts.append("\n".join(f"ALARM     {alarm}" for alarm in diagnosis.alarms))
    advice = diagnosis.advice
    close = "  (a close call: a bound lies within the interval of pc)" if advice.close else ""
    parts.append(f"filter    {advice.filter}{close}\nrelabel   {advice.relabel}")
    parts.append(_what_would(diagnosis))
    return "\n\n".join(parts)


def _first(diagnosis: Diagnosis) -> str:
    """What to do, in words that need no page of explanations."""
    what = {
        "leave": "leave these labels as they are: nothing here shows which of them are wrong",
        "filter": "filter: drop the labels that the states contradict most",
        "relabel": "relabel: let a probe of the states correct these labels",
    }[diagnosis.advice.action]
    return f"Advice: {what}. It rests on no true label; why, and what would settle it, is below."


def _head(diagnosis: Diagnosis, acts: str) -> str:
    read = ", ".join(str(part.layer) for part in diagnosis.layers)
    drawn = (
        "" if diagnosis.rows_read == diagnosis.rows else f", {diagnosis.rows_read:,} of them read"
    )
    ranks = [
        f"{part.effective_rank:.0f} of {part.width} (layer {part.layer})"
        for part in diagnosis.layers
        if math.isfinite(part.effective_rank)
    ]
    wrong = sum(part.nonfinite > 0 or part.constant for part in diagnosis.layers)
    states = (
        "finite, none constant" if not wrong else f"{wrong} of the layers are damaged, see below"
    )
    copies = "none"
    if diagnosis.duplicates:
        copies = f"{diagnosis.duplicates:,} rows share their text with another"
        copies += f", {diagnosis.duplicates_unequal:,} of them with unequal labels"
    return "\n".join(
        [
            f"{acts}: {diagnosis.rows:,} rows with a weak label{drawn}; layers {read}; no truth "
            "used",
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
        "Confident joint and HOC: share of the class that cannot be told from another; neither is",
        "a rate of wrong labels. Suspected: the probe gives another class. Expansion: share of a",
        "suspected row's neighbours whose weak label is the probe's class.",
    )
    return Table((*header, "expansion", "chance"), rows, notes).text(rule=False)


def _signals(diagnosis: Diagnosis) -> str:
    from probekit.cleaning.advice import confidence_allowed

    signals, margins = diagnosis.advice.signals, diagnosis.advice.margins
    lines = [
        f"predictable      AUROC of the weak labels out of fold {_against(diagnosis.predictable)}",
    ]
    if not math.isnan(signals.pc):
        low, high = signals.pc_interval
        lines += [
            f"probe agreement  {_against(diagnosis.concord)}; 95 % of draws {low:.2f} to "
            f"{high:.2f}",
            f"                   to the bound of filter {margins['pc_filter']:+.2f}, of relabel "
            f"{margins['pc_relabel']:+.2f}",
            f"label agreement  the probe agrees with {signals.agreement:.3f} of the weak labels",
        ]
    known = {
        "confidences": f"{signals.confidence:.3f}, the mean confidence of the weak labels",
        "trusted accuracy": f"{signals.confidence:.3f}, the trusted accuracy",
        "unknown": "unknown: the labels are hard, so it counts as 1",
    }[signals.confidence_from]
    lines.append(f"confidence       {known}")
    if signals.confidence_from == "unknown" and margins:
        allowed = confidence_allowed(signals.agreement, signals.n_classes)
        at_most = "no confidence would do" if math.isnan(allowed) else f"at most {allowed:.2f}"
        lines.append(f"                   relabel would need, at this label agreement: {at_most}")
    elif margins:
        lines.append(
            f"                   relabel needs a label agreement of "
            f"{diagnosis.agreement_needed:.3f}: "
            f"{margins['agreement_relabel']:+.3f}"
        )
        if "confidence" in margins:
            lines.append(f"                   to its own bound {margins['confidence']:+.2f}")
    return "\n".join(lines)


def _against(null: Null) -> str:
    if math.isnan(null.mean):
        return f"{null.value:.3f}"
    low, high = null.interval
    return f"{null.value:.3f}, shuffled labels {null.mean:.3f} [{low:.3f}, {high:.3f}]"


def _what_would(diagnosis: Diagnosis) -> str:
    source = diagnosis.advice.signals.confidence_from
    means = []
    if source == "unknown":
        means.append("the supervisor's confidences (a column prob instead of label)")
    if source != "trusted accuracy":
        means.append("its accuracy on rows whose truth you know (--trusted-accuracy)")
    means.append("best of all, some true labels of rows drawn at random")
    what = {
        "unknown": "Hard weak labels alone cannot settle this: wrong labels and a concept that the "
        "states do not hold look alike.",
        "confidences": "Weak labels cannot settle this; supervisors are often more confident "
        "than accurate.",
        "trusted accuracy": "The rule was measured on other tasks: it is advice, not proof.",
    }[source]
    return (
        f"{what} Leaving them alone is the default.\nWhat would: {'; '.join(means)}:\n"
        f"  {typed_again('audit')} -m 20"
    )
