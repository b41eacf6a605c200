"""The demo's report: its table, its figure and its page, from what results.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.reports.figures import (
    COLORS,
    FAINT,
    INK,
    WIDTH_INCHES,
    above,
    below,
    blank,
    plain_axes,
    png,
    write,
    write_figure,
)
from probekit.reports.page import Figure, Page, PageTable, settings
from probekit.reports.tables import MISSING, Table, difference, interval, percent

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

__all__ = ["demo_figure", "demo_page", "demo_table", "draw_demo", "points", "recovered"]

PGR_AT = 1.08  # of the width of the students' panel


def recovered(result: Mapping[str, Any] | None) -> str:
    """PGR with its interval; student − weak in points where PGR's interval has no bounds."""
    if result is None:
        return MISSING
    if result["pgr"] is None or result["unbounded"]:
        return "pt " + points(result)
    return interval(result["pgr"], result["pgr_low"], result["pgr_high"])


def points(result: Mapping[str, Any] | None) -> str:
    """A difference of two accuracies in percentage points, with its interval."""
    if result is None:
        return MISSING
    return difference(result["gain"], result["gain_low"], result["gain_high"])


def demo_table(results: Mapping[str, Any]) -> Table:
    """The table of `probekit demo`: one row per training set, floor first, ceiling last.

    ``results`` is what :func:`probekit.experiments.demo.judge_students` returned, or its file.
    """
    header = ("training set", "rows", "labels", "acc", "PGR", "gain", "acc*", "PGR*", "AUROC")
    rows = tuple(_row(arm) for arm in results["arms"])
    return Table(header, rows, _notes(results))


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    matched = arm["pgr_prior_matched"]
    bounded = matched is not None and matched["pgr"] is not None and not matched["unbounded"]
    return (
        arm["name"],
        MISSING if arm["rows"] is None else f"{arm['rows']:,}",
        percent(arm["label_accuracy"]),
        percent(arm["accuracy"]),
        recovered(arm["pgr"]),
        points(arm["gain"]),
        percent(arm["accuracy_prior_matched"]),
        f"{matched['pgr']:.2f}" if bounded else MISSING,
        percent(arm["auroc"]),
    )


def _notes(results: Mapping[str, Any]) -> tuple[str, ...]:
    shares = " / ".join(percent(share) for share in results["weak_prior"])
    notes = [
        "labels: training labels that are right, %. acc: test rows right at 0.5, %, of "
        f"{results['test_rows']:,}; acc*, PGR*:",
        f"with the class shares of the weak labels ({shares} %). PGR: recovered share of the gap",
        "between weak supervisor and ceiling. gain: points over the student on plain weak labels.",
        "[95 % interval]: paired bootstrap over test rows; another training half moves it too.",
        "Students: logistic on the last layer, L2 chosen out of fold on the labels they train on.",
    ]
    draws = results["random_draws"]
    if draws > 1:
        notes.append(f"random: as many rows of each weak class dropped, mean of {draws} draws.")
    recoveries = [arm[key] for arm in results["arms"] for key in ("pgr", "pgr_prior_matched")]
    if any(pgr is not None and pgr["reason"] for pgr in recoveries):
        notes.append("pt: student − weak supervisor in points; the gap is too small for a PGR.")
    return tuple(notes)


def demo_figure(results: Mapping[str, Any], path: str | Path) -> None:
    """Write :func:`draw_demo` as a PNG."""
    write_figure(draw_demo(results), path)


def draw_demo(results: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Draw how right each training set is, and how far its student gets.

    ``results`` as in :func:`demo_table`.
    """
    arms = [arm for arm in results["arms"] if arm["kind"] in COLORS]
    figure = blank(WIDTH_INCHES, 1.9 + 0.34 * len(arms))
    left, right = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": [1, 2], "wspace": 0.06}
    )
    for axes in (left, right):
        plain_axes(axes, len(arms))
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    for tick, arm in zip(left.get_yticklabels(), arms, strict=True):
        tick.set_color(COLORS[arm["kind"]])
    _labels_panel(left, arms)
    _students_panel(right, arms, results)
    below(
        left,
        f"{results['test_rows']:,} test rows; filled: at 0.5, hollow: with the class shares of the "
        "weak labels. Bars: 95 % interval of the\n"
        "difference from plain weak labels (dotted), paired over test rows. PGR: at 0.5, between "
        "weak supervisor and ground truth.",
        points=52,
    )
    return figure


def _labels_panel(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("training labels right, %", fontsize=11, color=INK, labelpad=6)
    values = [100 * arm["label_accuracy"] for arm in arms]
    axes.axvline(values[0], color=FAINT, linewidth=1, linestyle=":")
    for row, (arm, value) in enumerate(zip(arms, values, strict=True)):
        axes.plot(value, row, "o", markersize=7, color=COLORS[arm["kind"]])
        write(axes, f"{value:.1f}", (value, row), (8, 0), va="center")
    span = max(max(values) - min(values), 2)
    axes.set_xlim(min(values) - 0.15 * span, max(values) + 0.45 * span)


def _students_panel(
    axes: Axes, arms: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> None:
    axes.set_xlabel("test rows its student gets right, %", fontsize=11, color=INK, labelpad=6)
    floor, top = (100 * results["arms"][end]["accuracy"] for end in (0, -1))
    plain = 100 * arms[0]["accuracy"]
    axes.axvline(plain, color=FAINT, linewidth=1, linestyle=":")
    seen = [floor, top]
    for row, arm in enumerate(arms):
        color, value = COLORS[arm["kind"]], 100 * arm["accuracy"]
        if arm["gain"] is not None:
            # The interval is of a difference from the dotted line.
            ends = [plain + 100 * arm["gain"][key] for key in ("gain_low", "gain_high")]
            axes.plot(ends, [row, row], color=color, linewidth=2.5, alpha=0.4)
            seen += ends
        matched = 100 * arm["accuracy_prior_matched"]
        axes.plot(matched, row, "o", markersize=7, color=color, markerfacecolor="white")
        axes.plot(value, row, "o", markersize=7, color=color)
        seen += [value, matched]
        coords = ("axes fraction", "data")
        write(axes, recovered(arm["pgr"]), (PGR_AT, row), coords=coords, va="center")
    for value, name in ((floor, "weak supervisor"), (top, "ground truth")):
        axes.axvline(value, color=INK, linewidth=1.2, zorder=1)
        above(axes, f"{name}\n{value:.1f}", value)
    above(axes, "PGR [95 %]", PGR_AT, left=True)
    span = max(seen) - min(seen)
    axes.set_xlim(min(seen) - 0.06 * span, max(seen) + 0.06 * span)


def demo_page(results: Mapping[str, Any], *, title: str) -> Page:
    """Describe what `probekit demo` found; ``results`` is what results.json holds."""
    caption = "How right each training set is, and how far its student gets"
    return Page(
        title=title,
        kind="demo",
        facts=(
            ("Task", str(results["task"])),
            ("Model", str(results["model"])),
            ("Layer", str(results["layer"])),
            ("Student rows", f"{results['student_rows']:,}"),
            ("Test rows", f"{results['test_rows']:,}"),
        ),
        tables=(PageTable("Students by training set", demo_table(results)),),
        figures=(Figure(caption, png(draw_demo(results))),),
        # commands.sh in the folder repeats it word for word; a page names no script of a folder
        # that may be anybody's as something to run.
        commands=(
            (
                "With the usual model and seed, this makes it again in a folder of its own:",
                f"probekit demo --student-rows {int(results['student_rows'])} --test-rows "
                f"{int(results['test_rows'])} -o again",
            ),
        ),
        provenance=settings(results, "versions", "hardware"),
    )
