"""What filter and relabel print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from probekit.safe import printable

if TYPE_CHECKING:
    from probekit.cleaning.evaluate import Summary
    from probekit.verdicts import Verdicts

__all__ = ["as_json", "as_text", "figures_text", "table"]


# Figures that are no shares of rows or of pairs of rows.
NO_SHARE = ("log_loss", "brier", "ece", "calibration_error")


def as_json(
    verdicts: Verdicts, summary: Summary, evaluation: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything that is printed, for machines; what is not a number is null."""
    whole = {
        **dict(verdicts.provenance),
        "classes": list(verdicts.classes),
        "summary": asdict(summary),
        "evaluation": evaluation,
    }
    result: dict[str, Any] = _finite(whole)
    return result


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_text(verdicts: Verdicts, summary: Summary, evaluation: dict[str, Any] | None) -> str:
    """Tables for people."""
    parts = [_heading(verdicts), _summary_table(verdicts, summary)]
    if "estimates" in verdicts.provenance:
        parts.append(_estimates_table(verdicts))
    if evaluation is not None:
        parts += [_labels_table(evaluation), _predictions_table(evaluation)]
    return "\n\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, numbers to the right; a cell is one line."""
    rows = [[printable(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _heading(verdicts: Verdicts) -> str:
    said = verdicts.provenance
    probe = said["probe"]
    shown = {k: v for k, v in probe["parameters"].items() if v is not None and v is not False}
    shown = {k: v for k, v in shown.items() if k not in _QUIET}
    if "l2" in probe:
        chosen = " (chosen)" if shown.get("l2") == "auto" else ""
        shown["l2"] = f"{probe['l2']:.3g}{chosen}"
    parameters = ", ".join(f"{k} {v}" for k, v in shown.items())
    layer = "" if not verdicts.layers else f", layer{'s' * (len(verdicts.layers) > 1)} "
    layer += ", ".join(map(str, verdicts.layers))
    how = "in sample" if said["in_sample"] else "out of fold"
    lines = [f"{probe['name']} ({parameters}){layer}, {how}: {_action(said)}"]
    if verdicts.tied:
        by = "their row number" if said.get("ties_by") == "index" else "a hash of seed and id"
        taken = said["ties"].get("taken")
        what = "which class they get" if taken is None else f"which {taken:,} of them are dropped"
        lines.append(f"{verdicts.tied:,} rows are equal at the cut; {by} decided {what}.")
    return "\n".join(lines)


_QUIET = (
    *("backend", "device", "dtype", "max_iter", "random_state", "tol", "penalties"),
    *("widths", "ridge", "knn"),
)


def _action(said: Any) -> str:
    if said["action"] == "relabel":
        amount = said.get("blend", said.get("threshold"))
        text = f"relabel, {said['form']}" + ("" if amount is None else f" {amount:g}")
        above = said.get("only_above")
        return text if above is None else f"{text}, where the disagreement is above {above:g}"
    if "threshold" in said:
        return f"filter, disagreement above {said['threshold']:g}"
    if "contamination" not in said:
        return "filter by its own rule"
    share = said["contamination"]
    words = {"auto": "automatic share", "confident": "confident learning's count"}
    amount = words.get(share) or f"{share:.3g}"
    return f"filter, {amount} {'of each weak class' if said['per_class'] else 'of all rows'}"


def _summary_table(verdicts: Verdicts, summary: Summary) -> str:
    relabels = verdicts.provenance["action"] == "relabel"
    acted = "changed" if relabels else "dropped"
    head = ["weak class", "rows", acted, "share", "disagreement"]
    rows = [head + (["label moved by"] if relabels else [])]
    for part in summary.classes:
        many = part.changed if relabels else part.dropped
        row = [part.name, f"{part.weak:,}", f"{many:,}", percent(many, part.weak)]
        row.append(number(part.disagreement))
        rows.append(row + ([number(part.shift)] if relabels else []))
    many = summary.changed if relabels else summary.dropped
    row = ["all", f"{summary.rows:,}", f"{many:,}", percent(many, summary.rows)]
    row.append(number(summary.disagreement))
    kept = [part.weak - part.dropped for part in summary.classes]
    moved = [part.shift for part in summary.classes]
    shift = sum(k * s for k, s in zip(kept, moved, strict=True) if k) / max(sum(kept), 1)
    rows.append(row + ([number(shift)] if relabels else []))
    return table(rows)


def _estimates_table(verdicts: Verdicts) -> str:
    estimates = verdicts.provenance["estimates"]
    rows = [["not to be told apart", *verdicts.classes]]
    rows += [
        [name, *(part_of(share) for share in estimates[key])]
        for key, name in (("hoc", "HOC"), ("confident_joint", "confident joint"))
    ]
    return f"{table(rows)}\nThe smaller of the two is dropped; neither is a rate of wrong labels."


def _labels_table(evaluation: dict[str, Any]) -> str:
    labels = evaluation["labels"]
    rows = [["against the truth", "verdicts", "random choice"]]
    rows.append(["label accuracy before", part_of(labels["before"]), ""])
    rows.append(["label accuracy after", part_of(labels["after"]), part_of(labels["after_random"])])
    dropped = evaluation.get("dropped")
    if dropped is not None:
        rows += [
            [f"{key} of the drop", part_of(dropped[key]), part_of(dropped[f"{key}_random"])]
            for key in ("precision", "recall")
        ]
    return table(rows)


def _predictions_table(evaluation: dict[str, Any]) -> str:
    columns = {
        "accuracy": "at 0.5",
        "accuracy_prior_matched": "at weak prior",
        "auroc": "AUROC",
        "brier": "Brier",
        "log_loss": "log loss",
        "calibration_error": "calibration error",
    }
    if "pairwise_accuracy" in evaluation["probe"]:
        columns = {"pairwise_accuracy": "pairwise", **columns}
    rows = [["accuracy", *columns.values()]]
    rows += [
        [name, *(figure(key, evaluation[name][key]) for key in columns)]
        for name in ("weak", "probe")
    ]
    return table(rows)


def number(value: float) -> str:
    """Four digits, or a dash where there is no number."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def part_of(share: float) -> str:
    """A share in percent, or a dash where there is none; files hold shares as fractions."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def figure(name: str, value: float | None) -> str:
    """A figure of predictions: losses as they are, shares in percent."""
    known = float("nan") if value is None else value
    return number(known) if name in NO_SHARE else part_of(known)


def figures_text(figures: Mapping[str, float | None]) -> str:
    """Figures of predictions in a line, without the number of rows."""
    return ", ".join(f"{k} {figure(k, v)}" for k, v in figures.items() if k != "rows")


def percent(part: int, whole: int) -> str:
    """A share in percent, or a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
