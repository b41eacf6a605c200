"""The page of verdicts: what they do, what made them, and the rows themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from probekit.cleaning.evaluate import evaluate, summarize
from probekit.reports.page import Page, PageTable, RowsSection
from probekit.reports.page_rows import SHOWN_ROWS, Evidence, rows_payload
from probekit.reports.page_run import flat
from probekit.reports.replay import replay_command
from probekit.reports.tables import MISSING, Table, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.cleaning.evaluate import Summary
    from probekit.verdicts import Verdicts

__all__ = ["rows_section", "verdicts_page"]

REPLAY = "Run where the store and the weak labels lie, this makes the verdicts again:"
SCORES = {
    "accuracy": "at 0.5, %",
    "accuracy_prior_matched": "at weak prior, %",
    "auroc": "AUROC, %",
    "brier": "Brier",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}


def verdicts_page(
    verdicts: Verdicts, evidence: Evidence, *, title: str, limit: int = SHOWN_ROWS
) -> Page:
    """Describe verdicts as a page; ``title`` is how their file is called."""
    summary = summarize(verdicts)
    tables = [PageTable("What the verdicts do", _class_table(summary))]
    if evidence.truth is not None:
        tables += _truth_tables(verdicts, evidence.truth)
    if "estimates" in verdicts.provenance:
        tables.append(PageTable("Estimated shares of doubtful rows", _estimates(verdicts)))
    command = replay_command(verdicts.provenance, title)
    return Page(
        title=title,
        kind="verdicts",
        facts=_facts(verdicts, summary),
        alarms=(*summary.alarms, *verdicts.provenance.get("notes", ())),
        tables=tuple(tables),
        rows=rows_section(verdicts, evidence, limit=limit),
        commands=() if command is None else ((REPLAY, command),),
        provenance=tuple(flat(verdicts.provenance)),
    )


def rows_section(
    verdicts: Verdicts, evidence: Evidence, *, title: str = "Rows", limit: int = SHOWN_ROWS
) -> RowsSection:
    """The rows of verdicts, most disagreeing first, with what is known of them."""
    more = ", all probabilities and its nearest rows" if evidence.nearest else " and probabilities"
    # Files of before say nothing: theirs is the distance.
    distance = verdicts.provenance.get("disagreement", "distance") == "distance"
    meaning = (
        "half the absolute difference of probe and weak label"
        if distance
        else "1 less the probe's probability of the weak label's class"
    )
    notes = [
        f"Most disagreeing first: disagreement is {meaning}. Open a row for its whole text{more}."
    ]
    if evidence.texts is None:
        notes.append("This page was made without the rows' texts.")
    if evidence.nearest is None:
        notes.append("No stored states were at hand for nearest rows and a map: see --acts.")
    map_notes = []
    if evidence.map is not None:
        first, second = evidence.map.share
        layer = "" if evidence.layer is None else f" of layer {evidence.layer}"
        map_notes.append(
            f"The first two principal components of the states{layer}, of all rows; they hold "
            f"{first:.1%} and {second:.1%} of the variance. What lies together here may lie apart "
            "in the other dimensions. Rows that the filters above leave out are pale; point at a "
            "dot to read it, click (tap twice) to open its row."
        )
        if evidence.map.outside:
            map_notes.append(f"{evidence.map.outside:,} rows farther out are drawn at the edge.")
        if limit < len(verdicts):
            map_notes.append("Only listed rows and their neighbours are drawn.")
    return RowsSection(
        rows_payload(verdicts, evidence, limit=limit), title, tuple(notes), tuple(map_notes)
    )


def _facts(verdicts: Verdicts, summary: Summary) -> tuple[tuple[str, str], ...]:
    said, rows = verdicts.provenance, summary.rows
    facts = [("Rows", f"{rows:,}")]
    if summary.dropped or said.get("action") == "filter":
        facts.append(("Dropped", f"{summary.dropped:,} ({_share(summary.dropped, rows)})"))
    if summary.changed or said.get("action") == "relabel":
        facts.append(("Changed", f"{summary.changed:,} ({_share(summary.changed, rows)})"))
    facts.append(("Mean disagreement", _number(summary.disagreement)))
    if "probe" in said:
        facts.append(("Probe", said["probe"]["name"].removesuffix("Probe")))
    if layers := verdicts.layers:
        facts.append(("Layers" if len(layers) > 1 else "Layer", ", ".join(map(str, layers))))
    if "in_sample" in said:
        facts.append(("Predicted", "in sample" if said["in_sample"] else "out of fold"))
    return tuple(facts)


def _class_table(summary: Summary) -> Table:
    header = ("weak class", "rows", "dropped", "changed", "label moved by", "disagreement")
    rows = [
        (
            part.name,
            f"{part.weak:,}",
            f"{part.dropped:,} ({_share(part.dropped, part.weak)})",
            f"{part.changed:,} ({_share(part.changed, part.weak)})",
            _number(part.shift),
            _number(part.disagreement),
        )
        for part in summary.classes
    ]
    everything = (
        "all",
        f"{summary.rows:,}",
        f"{summary.dropped:,} ({_share(summary.dropped, summary.rows)})",
        f"{summary.changed:,} ({_share(summary.changed, summary.rows)})",
        MISSING,
        _number(summary.disagreement),
    )
    return Table(header, (*rows, everything))


def _truth_tables(verdicts: Verdicts, truth: NDArray[Any]) -> list[PageTable]:
    found = evaluate(verdicts, truth)
    labels = found["labels"]
    rows = [
        ("labels right before, %", percent(labels["before"]), MISSING),
        ("labels right after, %", percent(labels["after"]), percent(labels["after_random"])),
    ]
    if "dropped" in found:
        dropped = found["dropped"]
        rows += [
            (what, percent(dropped[key]), percent(dropped[f"{key}_random"]))
            for key, what in (
                ("precision", "dropped labels that are wrong, %"),
                ("recall", "wrong labels that are dropped, %"),
            )
        ]
    notes = ("Random choice: as many rows of each weak class dropped or moved, exact expectation.",)
    scores = tuple(
        (
            name,
            *(percent(found[name][key]) for key in list(SCORES)[:3]),
            *(_number(found[name][key]) for key in list(SCORES)[3:]),
        )
        for name in ("weak", "probe")
    )
    return [
        PageTable(
            "Against the truth", Table(("", "verdicts", "random choice"), tuple(rows), notes)
        ),
        PageTable("Weak labels and probe as predictions", Table(("", *SCORES.values()), scores)),
    ]


def _estimates(verdicts: Verdicts) -> Table:
    estimates = verdicts.provenance["estimates"]
    rows = tuple(
        (name, *(f"{percent(share)} %" for share in estimates[key]))
        for key, name in (("hoc", "HOC"), ("confident_joint", "confident joint"))
    )
    notes = ("The smaller of the two is dropped; neither is a rate of wrong labels.",)
    return Table(("not to be told apart", *verdicts.classes), rows, notes)


def _share(part: int, whole: int) -> str:
    return f"{percent(part / whole)} %" if whole else MISSING


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else MISSING
