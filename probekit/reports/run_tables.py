"""Tables of ``probekit run``, from what its metrics.json holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probekit.experiments.judge import ALARMS, PERPLEXITY
from probekit.reports.tables import MISSING, Table, percent

__all__ = ["curve_table", "rounds_table", "run_table", "run_title", "shown_pgr"]


def run_title(group: Mapping[str, Any]) -> str:
    """Task and models of a table."""
    seeds = len(group["seeds"])
    return f"{group['task']}: {group['weak']} → {group['strong']}, {seeds} seed{'s'[: seeds != 1]}"


def run_table(group: Mapping[str, Any]) -> Table:
    """One row per arm, floor first, ceiling last; of several seeds the medians.

    ``group`` is an entry of ``groups`` in metrics.json.
    """
    header = ("trained on", "rows", "labels", "acc", "PGR", "gain", "acc*", "PGR*", "AUROC", "A_w")
    rows = tuple(_row(arm) for arm in group["arms"])
    return Table(header, rows, tuple(_notes(group)))


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    figures = arm["figures"]
    rows = figures["rows"]["median"]
    return (
        arm["name"] + _alarmed(arm),
        MISSING if rows is None else f"{rows:,.0f}",
        percent(figures["label_accuracy"]["median"]),
        _spread(figures["accuracy"], 100, 1),
        _recovered(arm["pgr"]),
        _gain(arm["gain"]),
        percent(figures["accuracy_prior_matched"]["median"]),
        _short(arm["pgr_prior_matched"]),
        percent(figures["auroc"]["median"]),
        MISSING if arm["agreement"] is None else percent(arm["agreement"]["wrong"]["median"]),
    )


def _alarmed(arm: Mapping[str, Any]) -> str:
    """What is wrong with an arm, and in how many of several seeds."""
    raised, seeds = arm.get("alarms", {}), arm["seeds"]
    shown = [name if seeds == 1 else f"{name} {n}/{seeds}" for name, n in raised.items()]
    return f" ({', '.join(shown)})" if shown else ""


def _spread(found: Mapping[str, Any], scale: float, digits: int) -> str:
    if found["median"] is None:
        return MISSING
    text = f"{scale * found['median']:.{digits}f}"
    return text if found["sem"] is None else f"{text} ± {scale * found['sem']:.{digits}f}"


def shown_pgr(found: Mapping[str, Any] | None) -> float | None:
    """The PGR to show, in tables and figures alike; None without a gap that one can be sure of."""
    if found is None or found["median"] is None or ("low" in found and found["unbounded"]):
        return None
    return float(found["median"])


def _recovered(found: Mapping[str, Any] | None) -> str:
    """PGR with its interval or standard error; where it has none, student − weak in points."""
    if found is None:
        return MISSING
    if shown_pgr(found) is None:
        gained = _spread(found["over_weak"], 100, 1)
        return gained if gained == MISSING else f"pt {gained}"
    if found.get("low") is not None:
        return f"{found['median']:.2f} [{found['low']:.2f} {found['high']:.2f}]"
    return _spread(found, 1, 2) + ("†" if found["undefined"] else "")


def _short(found: Mapping[str, Any] | None) -> str:
    value = shown_pgr(found)
    return MISSING if value is None else f"{value:.2f}"


def _gain(found: Mapping[str, Any] | None) -> str:
    if found is None or found["median"] is None:
        return MISSING
    text = f"{100 * found['median']:+.1f}"
    if "low" in found:
        return f"{text} [{100 * found['low']:+.1f} {100 * found['high']:+.1f}]"
    return text if found["sem"] is None else f"{text} ± {100 * found['sem']:.1f}"


def _notes(group: Mapping[str, Any]) -> Iterator[str]:
    several = len(group["seeds"]) > 1
    yield "labels: training labels that are right, %. acc: test rows right at 0.5, %; acc*, PGR*:"
    yield "with the class shares of the weak labels. PGR: recovered share of the gap between weak"
    yield "supervisor and ceiling. gain: points over the student on plain weak labels. A_w: of the"
    yield "rows where the supervisor is wrong those where the student repeats it, %."
    if several:
        yield f"Medians of {len(group['seeds'])} seeds ± standard error of the mean."
    else:
        yield "[95 % interval]: paired bootstrap over test rows; another seed moves it too."
    found = [arm[key] for arm in group["arms"] for key in ("pgr", "pgr_prior_matched")]
    if any(pgr is not None and pgr["reasons"] for pgr in found):
        yield "pt: student − weak supervisor in points, where the gap is too small for a PGR."
    if (language := group.get("language_model")) is not None:
        before, after = (_spread(language[key], 1, 2) for key in PERPLEXITY)
        yield f"Language-model step: perplexity of held-out texts {before} before, {after} after."
    alarms = {name for arm in group["arms"] for name in arm.get("alarms", {})}
    for name in (name for name in ALARMS if name in alarms):
        yield f"{name}: {ALARMS[name]}; there is no PGR, and the reason stands below."
    if any(pgr is not None and pgr["undefined"] for pgr in found) and several:
        yield "†: the median of the seeds that have a gap."


def rounds_table(result: Mapping[str, Any]) -> Table:
    """How right the labels of each strong-to-strong round are; ``result`` has ``rounds``."""
    rows = tuple(
        (
            f"before round {each['before_round']}",
            percent(each["weak"]),
            percent(each["student"]),
            percent(each["ceiling"]),
            MISSING if each["pgr"] is None else f"{each['pgr']:.2f}",
        )
        for each in result["rounds"]
    )
    header = ("training set", "weak labels", "student's", "ceiling's", "PGR")
    return Table(header, rows, ("Labels of the training rows that are right, %.",))


def curve_table(result: Mapping[str, Any]) -> Table:
    """Accuracy and PGR at the last step, at the weak early stop and at the oracle."""

    def cell(stop: Mapping[str, Any]) -> str:
        recovered = MISSING if stop["pgr"] is None else f"{stop['pgr']:.2f}"
        return f"{percent(stop['accuracy'])} ({recovered}) @{stop['step']}"

    names = ("last", "weak_early_stop", "oracle")
    rows = tuple(
        (name, *(cell(curve["stops"][stop]) for stop in names))
        for name, curve in result["curves"].items()
    )
    notes = ("Accuracy, % (PGR) @step. The oracle looks at ground truth.",)
    return Table(("student", "last", "weak early stop", "oracle"), rows, notes)
