"""What a finished run leaves for people: tables as text and Markdown, figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.files import atomic_write
from probekit.reports.figures import write_figure
from probekit.reports.run_figures import draw_arms, draw_curves, draw_grid
from probekit.reports.run_tables import curve_table, rounds_table, run_table, run_title

__all__ = ["write_run_reports"]


def write_run_reports(results: Mapping[str, Any], folder: Path) -> str:
    """Write table.md and the figures of a run; returns its tables as text.

    ``results`` is what metrics.json holds.
    """
    text: list[str] = []
    page: list[str] = []
    several = len(results["groups"]) > 1
    for number, group in enumerate(results["groups"], 1):
        table = run_table(group)
        text += [run_title(group), "", table.text(), ""]
        page += [f"## {run_title(group)}", "", table.markdown(), ""]
        figure = f"arms-{number}.png" if several else "arms.png"
        write_figure(draw_arms(group), folder / figure)
        page += [f"![Test accuracy of every student]({figure})", ""]
    for result in results["results"]:
        where = f"{result['task']}, {result['weak']} → {result['strong']}, seed {result['seed']}"
        for name, make in (("rounds", rounds_table), ("curves", curve_table)):
            if result.get(name):
                table = make(result)
                text += [f"{name}, {where}", "", table.text(), ""]
                page += [f"## {name.capitalize()}: {where}", "", table.markdown(), ""]
        for alarm in result["alarms"]:
            text.append(f"Warning: {alarm}")
            page += [f"**Warning**: {alarm}", ""]
    curved = next((result for result in results["results"] if result.get("curves")), None)
    if curved is not None:
        write_figure(draw_curves(curved), folder / "curves.png")
        page += ["![Overfitting curves](curves.png)", ""]
    grids = [g for g in results["groups"] if any(arm["kind"] == "plain" for arm in g["arms"])]
    if len({g["strong"] for g in grids}) > 1:
        for task in sorted({g["task"] for g in grids}):
            name = f"grid-{task.replace('/', '-')}.png"
            write_figure(draw_grid([g for g in grids if g["task"] == task]), folder / name)
            page += [f"![Students by size on {task}]({name})", ""]
    with atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join(page))
    return "\n".join(text).rstrip()
