"""Reports of verdicts: the tables that filter and relabel print, and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from probekit.cleaning.evaluate import evaluate, summarize
from probekit.cleaning.filter import TRUSTED
from probekit.reports.page import RECORDED, Page, PageTable, flat
from probekit.reports.rows import SHOWN_ROWS, rows_section
from probekit.reports.tables import MISSING, Table, finite, number, percent, share, share_of
from probekit.safe import plain_command

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.cleaning.evaluate import ClassSummary, Summary
    from probekit.cleaning.evidence import RowEvidence
    from probekit.verdicts import Verdicts

__all__ = ["figures_text", "verdicts_json", "verdicts_page", "verdicts_text"]

SCORES = {
    "accuracy": "at 0.5",
    "accuracy_prior_matched": "at weak prior",
    "auroc": "AUROC",
    "brier": "Brier",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
# Metrics that are not a share of rows or of pairs of rows.
NO_SHARE = ("log_loss", "brier", "ece", "calibration_error")
# Parameters of probes that the heading omits.
QUIET = (
    *("backend", "device", "dtype", "max_iter", "random_state", "tol", "penalties"),
    *("widths", "ridge", "knn"),
)


def verdicts_json(
    verdicts: Verdicts, summary: Summary, evaluation: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything that is printed, as JSON holds it; NaN and infinity are None."""
    result: dict[str, Any] = finite(
        {
            **dict(verdicts.provenance),
            "classes": list(verdicts.classes),
            "summary": asdict(summary),
            "evaluation": evaluation,
        }
    )
    return result


def figure(name: str, value: float | None) -> str:
    """A metric as text: losses as numbers, shares in percent."""
    return number(value) if name in NO_SHARE else share(value)


def figures_text(figures: Mapping[str, float | None]) -> str:
    """Metrics of predictions in one line, without the number of rows."""
    return ", ".join(f"{k} {figure(k, v)}" for k, v in figures.items() if k != "rows")


def verdicts_text(verdicts: Verdicts, summary: Summary, evaluation: dict[str, Any] | None) -> str:
    """The tables that filter and relabel print."""
    tables = [_summary_table(verdicts, summary)]
    if "estimates" in verdicts.provenance:
        tables.append(_estimates(verdicts))
    if evaluation is not None:
        tables += [_labels_table(evaluation), _predictions_table(evaluation)]
    return "\n\n".join([_heading(verdicts), *(table.text(rule=False) for table in tables)])


def _heading(verdicts: Verdicts) -> str:
    provenance = verdicts.provenance
    probe = provenance["probe"]
    shown = {k: v for k, v in probe["parameters"].items() if v is not None and v is not False}
    shown = {k: v for k, v in shown.items() if k not in QUIET}
    if "l2" in probe:
        chosen = " (chosen)" if shown.get("l2") == "auto" else ""
        shown["l2"] = f"{probe['l2']:.3g}{chosen}"
    parameters = ", ".join(f"{k} {v}" for k, v in shown.items())
    layer = "" if not verdicts.layers else f", layer{'s' * (len(verdicts.layers) > 1)} "
    layer += ", ".join(map(str, verdicts.layers))
    how = "in sample" if provenance["in_sample"] else "out of fold"
    lines = [f"{probe['name']} ({parameters}){layer}, {how}: {_action(provenance)}"]
    if verdicts.tied:
        by = "their row number" if provenance.get("ties_by") == "index" else "a hash of seed and id"
        dropped = provenance["ties"].get("taken")
        choice = "which class they get"
        if dropped is not None:
            choice = f"which {dropped:,} of them are dropped"
        lines.append(f"{verdicts.tied:,} rows are equal at the cut; {by} decided {choice}.")
    return "\n".join(lines)


def _action(provenance: Mapping[str, Any]) -> str:
    if provenance["action"] == "relabel":
        amount = provenance.get("blend", provenance.get("threshold"))
        text = f"relabel, {provenance['form']}" + ("" if amount is None else f" {amount:g}")
        if "flip" in provenance:
            text += f" {provenance['flip']:g} of each weak class"
        above = provenance.get("only_above")
        return text if above is None else f"{text}, where the disagreement is above {above:g}"
    if "threshold" in provenance:
        return f"filter, disagreement above {provenance['threshold']:g}"
    if "contamination" not in provenance:
        return "filter by its own rule"
    part = provenance["contamination"]
    if part == TRUSTED:
        return "filter, 0.2 of each weak class, or more as trusted labels have it"
    words = {"auto": "automatic share", "confident": "confident learning's count"}
    amount = words.get(part) or f"{part:.3g}"
    return f"filter, {amount} {'of each weak class' if provenance['per_class'] else 'of all rows'}"


def _summary_table(verdicts: Verdicts, summary: Summary) -> Table:
    relabels = verdicts.provenance["action"] == "relabel"
    acted = "changed" if relabels else "dropped"
    kept = [part.weak - part.dropped for part in summary.classes]
    moved = [part.shift for part in summary.classes]
    shift = sum(k * s for k, s in zip(kept, moved, strict=True) if k) / max(sum(kept), 1)
    rows = []
    for name, part, n, moved_by in _parts(summary, shift):
        count = part.changed if relabels else part.dropped
        row = (name, f"{n:,}", f"{count:,}", share_of(count, n), number(part.disagreement))
        rows.append((*row, number(moved_by)) if relabels else row)
    header = ("weak class", "rows", acted, "share", "disagreement")
    return Table((*header, "label moved by") if relabels else header, tuple(rows))


def _parts(
    summary: Summary, shift: float = math.nan
) -> list[tuple[str, ClassSummary | Summary, int, float]]:
    """Name, counts, rows and label shift of each weak class, then of all rows with ``shift``."""
    parts: list[tuple[str, ClassSummary | Summary, int, float]] = [
        (part.name, part, part.weak, part.shift) for part in summary.classes
    ]
    return [*parts, ("all", summary, summary.rows, shift)]


def _labels_table(evaluation: dict[str, Any]) -> Table:
    labels = evaluation["labels"]
    rows = [
        ("label accuracy before", share(labels["before"]), ""),
        ("label accuracy after", share(labels["after"]), share(labels["after_random"])),
    ]
    if dropped := evaluation.get("dropped"):
        rows += [
            (f"{key} of the drop", share(dropped[key]), share(dropped[f"{key}_random"]))
            for key in ("precision", "recall")
        ]
    return Table(("against the truth", "verdicts", "random choice"), tuple(rows))


def _predictions_table(evaluation: dict[str, Any]) -> Table:
    columns = SCORES
    if "pairwise_accuracy" in evaluation["probe"]:
        columns = {"pairwise_accuracy": "pairwise", **columns}
    rows = tuple(
        (name, *(figure(key, evaluation[name][key]) for key in columns))
        for name in ("weak", "probe")
    )
    return Table(("accuracy", *columns.values()), rows)


def _estimates(verdicts: Verdicts) -> Table:
    estimates = verdicts.provenance["estimates"]
    rows = tuple(
        (name, *map(share, estimates[key]))
        for key, name in (("hoc", "HOC"), ("confident_joint", "confident joint"))
    )
    notes = ("The smaller of the two is dropped; neither is a rate of wrong labels.",)
    return Table(("not to be told apart", *verdicts.classes), rows, notes)


def verdicts_page(
    verdicts: Verdicts,
    evidence: RowEvidence,
    *,
    title: str,
    notes: Sequence[str] = (),
    limit: int = SHOWN_ROWS,
) -> Page:
    """Describe verdicts as a page; ``title`` is the name of their file, ``notes`` come first."""
    summary = summarize(verdicts)
    tables = [PageTable("What the verdicts do", _class_table(summary))]
    if "certificate" in verdicts.provenance:
        tables.insert(0, _certificate(verdicts.provenance["certificate"]))
    if evidence.truth is not None:
        tables += _truth_tables(verdicts, evidence.truth)
    if "estimates" in verdicts.provenance:
        tables.append(PageTable("Estimated shares of doubtful rows", _estimates(verdicts)))
    provenance = dict(verdicts.provenance)
    command = plain_command(provenance.pop("command", None), "filter", "relabel")
    if {"readmitted", "reviewed"} & {*provenance}:
        command = None  # the verdicts were changed after it
    return Page(
        title=title,
        kind="verdicts",
        facts=_facts(verdicts, summary),
        alarms=(*summary.alarms, *provenance.get("notes", ())),
        notes=tuple(notes),
        tables=tuple(tables),
        rows=rows_section(verdicts, evidence, limit=limit),
        commands=() if command is None else ((RECORDED, command),),
        provenance=flat(provenance),
    )


def _facts(verdicts: Verdicts, summary: Summary) -> tuple[tuple[str, str], ...]:
    provenance, rows = verdicts.provenance, summary.rows
    facts = [("Rows", f"{rows:,}")]
    if summary.dropped or provenance.get("action") == "filter":
        facts.append(("Dropped", f"{summary.dropped:,} ({share_of(summary.dropped, rows)})"))
    if summary.changed or provenance.get("action") == "relabel":
        facts.append(("Changed", f"{summary.changed:,} ({share_of(summary.changed, rows)})"))
    facts.append(("Mean disagreement", number(summary.disagreement)))
    if "probe" in provenance:
        facts.append(("Probe", provenance["probe"]["name"].removesuffix("Probe")))
    if layers := verdicts.layers:
        facts.append(("Layers" if len(layers) > 1 else "Layer", ", ".join(map(str, layers))))
    if "in_sample" in provenance:
        facts.append(("Predicted", "in sample" if provenance["in_sample"] else "out of fold"))
    return tuple(facts)


def _class_table(summary: Summary) -> Table:
    columns = {
        "weak class": [name for name, *_ in _parts(summary)],
        "rows": [f"{n:,}" for _, _, n, _ in _parts(summary)],
    }
    for what in ("dropped", "changed"):
        if getattr(summary, what):
            columns[what] = [
                f"{getattr(part, what):,} ({share_of(getattr(part, what), n)})"
                for _, part, n, _ in _parts(summary)
            ]
    if any(part.shift > 0 for part in summary.classes):
        columns["label moved by"] = [number(moved_by) for *_, moved_by in _parts(summary)]
    columns["disagreement"] = [number(part.disagreement) for _, part, _, _ in _parts(summary)]
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _certificate(certificate: Mapping[str, Any]) -> PageTable:
    rows = (
        ("labels", f"{certificate['rows']:,}"),
        ("labelled by people", f"{certificate['labelled']:,}"),
        ("of them known beforehand", f"{certificate.get('trusted', 0):,}"),
        ("drawn at random", f"{certificate['sample']:,}"),
        ("wrong among those drawn", f"{certificate['wrong_in_sample']:,}"),
        ("corrected in all", f"{certificate['corrected']:,}"),
        ("left out, nobody could tell", f"{certificate['cannot_tell']:,}"),
        ("not reviewed", f"{certificate['unreviewed']:,}"),
        ("wrong at most", f"{certificate['max_wrong']:,}"),
        ("chance that more are wrong, at most, %", percent(certificate["failure"])),
    )
    share, sure = certificate["max_error"], certificate["confidence"]
    note = (
        f"At most {share:.4g} of the labels are wrong with confidence {sure:.4g}, if people are "
        f"right. Bound: {certificate['bound']}."
    )
    return PageTable("Certificate", Table(("", "rows"), rows, (note,)))


def _truth_tables(verdicts: Verdicts, truth: NDArray[Any]) -> list[PageTable]:
    evaluation = evaluate(verdicts, truth)
    labels = evaluation["labels"]
    rows = [
        ("labels right before, %", percent(labels["before"]), MISSING),
        ("labels right after, %", percent(labels["after"]), percent(labels["after_random"])),
    ]
    if dropped := evaluation.get("dropped"):
        rows += [
            (name, percent(dropped[key]), percent(dropped[f"{key}_random"]))
            for key, name in (
                ("precision", "dropped labels that are wrong, %"),
                ("recall", "wrong labels that are dropped, %"),
            )
        ]
    notes = ("Random choice: as many rows of each weak class, exact expectation.",)
    written = {key: number if key in NO_SHARE else percent for key in SCORES}
    header = (text if key in NO_SHARE else f"{text}, %" for key, text in SCORES.items())
    scores = tuple(
        (name, *(write(evaluation[name][key]) for key, write in written.items()))
        for name in ("weak", "probe")
    )
    return [
        PageTable(
            "Against the truth", Table(("", "verdicts", "random choice"), tuple(rows), notes)
        ),
        PageTable("Weak labels and probe as predictions", Table(("", *header), scores)),
    ]
