"""Tables of a sweep: the strength chosen for each layer and probe, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from probekit.probes.registry import STRENGTHS
from probekit.reports.tables import Table

__all__ = ["cell", "choice_text", "in_percent", "measure_name", "strength_text", "sweep_table"]

# Column -> heading; those of the truth are left out where it is not given.
COLUMNS = {
    "weak_log_loss": "log-loss",
    "weak_log_loss_se": "± s.e.",
    "weak_accuracy": "acc weak",
    "weak_auroc": "AUROC weak",
    "changed": "changed",
    "accuracy": "acc",
    "auroc": "AUROC",
    "auroc_gain": "gain",
    "relabelled_soft": "soft",
    "relabelled_hard": "hard",
}
# In percent, as in every table; files hold fractions.
PERCENT = (
    *("weak_accuracy", "weak_auroc", "changed", "accuracy", "auroc"),
    *("relabelled_soft", "relabelled_hard", "kept_own"),
)
USUAL_SHARE = 0.2


def strength_text(row: Mapping[str, Any]) -> str:
    """A strength as people write it: ``k 50``, ``k_zeta 32, k_cc 4, zeta 0.5``; "" for none."""
    return ", ".join(f"{n} {row[n]:.3g}" for n in STRENGTHS if row.get(n) is not None)


def measure_name(column: str) -> str:
    """What a column of the truth is called in a sentence."""
    kind, _, share = column.partition("_")
    if kind == "filtered":
        rest = "its own rule" if share == "own" else f"dropping {100 * float(share):g} %"
        return f"label accuracy after filter, {rest}"
    if kind == "relabelled":
        return f"label accuracy after relabel, {share}"
    return {"auroc": "AUROC", "auroc_gain": "AUROC less the weak labels'"}.get(column, column)


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """One row for each layer and probe, at the strength chosen without the truth."""
    best = sweep["best"]
    shown = [name for name in COLUMNS if any(row[name] is not None for row in best)]
    dropped = _usual_filter(best)
    names = [*shown, *([dropped] if dropped else [])]
    header = (
        "layer",
        "probe",
        "strength",
        *(COLUMNS.get(name) or f"drop {name.removeprefix('filtered_')}" for name in names),
    )
    rows = tuple(
        (
            "all" if row["layer"] is None else str(row["layer"]),
            row["probe"] + (" *" if _is(row, sweep["choice"]) else ""),
            strength_text(row) or "-",
            *(cell(name, row[name]) for name in names),
        )
        for row in best
    )
    return Table(header, rows, _notes(sweep, dropped))


def choice_text(sweep: Mapping[str, Any]) -> str:
    """The choice and, where the truth is known, what it lost to the best row."""
    choice = sweep["choice"]
    where = "all stored layers" if "layer" not in choice else f"layer {choice['layer']}"
    strength = strength_text(choice)
    lines = [
        f"Choice without ground truth: {choice['probe']} on {where}"
        + (f", {strength}" if strength else "")
        + f" (out-of-fold weak log-loss {choice['weak_log_loss']:.4f} "
        f"± {choice['weak_log_loss_se']:.4f}, least {choice['least']:.4f})."
    ]
    if len({row["layer"] for row in sweep["best"]}) > 1:
        lines.append(
            "Trust the strength more than the layer: weak labels are easiest to predict from "
            "states like those\ntheir supervisor read; --layers last leaves that question out."
        )
    for measure, found in sweep["regret"].items():
        if measure == "auroc_gain":
            continue  # AUROC less a constant
        at = found["at"]
        layer = "all layers" if "layer" not in at else f"layer {at['layer']}"
        oracle = ", ".join(filter(None, [at["probe"], layer, strength_text(at)]))
        lines.append(
            f"  regret {100 * found['regret']:.2f} points in {measure_name(measure)}, "
            f"{100 * found['by_strength']:.2f} of it by the strength: "
            f"{100 * found['chosen']:.2f} %, best {100 * found['oracle']:.2f} % ({oracle})"
        )
    return "\n".join(lines)


def _usual_filter(best: Sequence[Mapping[str, Any]]) -> str | None:
    """Column of the filter whose share is nearest to the usual one."""
    names = [
        name
        for name in best[0]
        if name.startswith("filtered_")
        and name != "filtered_own"
        and any(row[name] is not None for row in best)
    ]
    if not names:
        return None
    return min(names, key=lambda n: abs(float(n.removeprefix("filtered_")) - USUAL_SHARE))


def _notes(sweep: Mapping[str, Any], dropped: str | None) -> tuple[str, ...]:
    notes = [
        "Each layer and probe at the strength of the one-standard-error rule; * the choice. "
        "log-loss, acc weak,",
        "AUROC weak: out of fold, against the weak labels, %. changed: rows, %, that hard "
        "relabelling changes.",
    ]
    weak = sweep["weak_labels"]
    if weak["accuracy"] is not None:
        notes += [
            "acc, AUROC: against ground truth, %; gain: AUROC less the weak labels' own "
            f"({_number(weak['auroc'])}), points. soft, hard"
            f"{', drop' if dropped else ''}: label accuracy, %, after",
            f"relabel{' and filter' if dropped else ''}; the weak labels': "
            f"{100 * weak['accuracy']:.1f} %.",
        ]
    return tuple(notes)


def _is(row: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    return all(row[name] == choice.get(name) for name in ("layer", "probe", *STRENGTHS))


def in_percent(name: str) -> bool:
    """Whether a column of the file holds shares, which tables show in percent."""
    return name in PERCENT or name.startswith("filtered")


def cell(name: str, value: float | None) -> str:
    """A value of a column of the file as tables show it."""
    if value is None or not math.isfinite(value):
        return "-"
    if in_percent(name):
        return f"{100 * value:.1f}"
    return f"{100 * value:+.1f}" if name == "auroc_gain" else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"
