"""The page of a finished run: its tables with intervals, figures, and how to replay it."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.reports.page import Figure, Page, PageTable, RowsSection, picture
from probekit.reports.run_figures import draw_arms, draw_curves, draw_grid
from probekit.reports.run_tables import curve_table, rounds_table, run_table, run_title

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["embedded", "flat", "replay", "run_alarms", "run_figures", "run_page"]


def run_page(results: Mapping[str, Any], *, folder: Path, rows: RowsSection | None = None) -> Page:
    """Describe a run as a page; ``results`` is what metrics.json in its ``folder`` holds."""
    return Page(
        title=folder.absolute().name,
        kind="run",
        facts=tuple(_facts(results)),
        alarms=tuple(run_alarms(results)),
        tables=tuple(_tables(results)),
        figures=tuple(embedded(figure, text) for _, text, figure in run_figures(results)),
        rows=rows,
        commands=(replay("run", folder),),
        provenance=tuple(
            line
            for part in ("versions", "hardware", "config")
            for line in flat(results.get(part, {}), f"{part}.")
        ),
    )


def run_alarms(results: Mapping[str, Any]) -> list[str]:
    """What failed, collapsed or is suspicious."""
    suspicious = (alarm for result in results["results"] for alarm in result["alarms"])
    return [*results.get("failures", ()), *suspicious]


def run_figures(
    results: Mapping[str, Any],
) -> Iterator[tuple[str, str, matplotlib.figure.Figure]]:
    """File name, caption and figure of everything that is drawn of a run."""
    several = len(results["groups"]) > 1
    for number, group in enumerate(results["groups"], 1):
        name = f"arms-{number}.png" if several else "arms.png"
        where = f": {run_title(group)}" if several else ""
        yield name, f"Test accuracy of every student{where}", draw_arms(group)
    curved = next((result for result in results["results"] if result.get("curves")), None)
    if curved is not None:
        yield "curves.png", "Overfitting curves", draw_curves(curved)
    grids = [g for g in results["groups"] if any(arm["kind"] == "plain" for arm in g["arms"])]
    if len({g["strong"] for g in grids}) > 1:
        for task in sorted({g["task"] for g in grids}):
            name = f"grid-{task.replace('/', '-')}.png"
            figure = draw_grid([g for g in grids if g["task"] == task])
            yield name, f"Students by size on {task}", figure


def replay(command: str, folder: Path) -> tuple[str, str]:
    """A sentence and a command that compute a folder's results again, from nothing."""
    here = folder.absolute().name if folder.is_absolute() else str(folder)
    return (
        "Run where it was started (paths in config.yaml are from there), this computes all of it "
        "again:",
        f"probekit {command} --config {shlex.quote(f'{here}/config.yaml')} -o again "
        "--steps again-steps",
    )


def embedded(figure: matplotlib.figure.Figure, caption: str) -> Figure:
    """A figure as part of the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight", pad_inches=0.2)
    return Figure(caption, picture(stream.getvalue()))


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: ``probe.parameters.k`` and its value."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{before}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            lines.append((f"{before}{name}", ", ".join(map(str, value)) if listed else str(value)))
    return lines


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups, each = results["groups"], results["results"]
    for name, key in (("Task", "task"), ("Weak model", "weak"), ("Strong model", "strong")):
        found = list(dict.fromkeys(group[key] for group in groups))
        yield name if len(found) == 1 else f"{name}s", ", ".join(found)
    yield "Seeds", f"{len(groups[0]['seeds'])}"
    if test := each[0].get("rows", {}).get("test"):
        yield "Test rows", f"{test:,}"
    # A step that several arms share is told by each of them.
    seconds = {name: took for r in each for name, took in r.get("seconds", {}).items()}
    if seconds:
        yield "Computed in", _duration(sum(seconds.values()))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _tables(results: Mapping[str, Any]) -> Iterator[PageTable]:
    for group in results["groups"]:
        yield PageTable(run_title(group), run_table(group))
    for result in results["results"]:
        where = f"{result['task']}, {result['weak']} → {result['strong']}, seed {result['seed']}"
        for name, table in (("rounds", rounds_table), ("curves", curve_table)):
            if result.get(name):
                yield PageTable(f"{name.capitalize()}: {where}", table(result))
