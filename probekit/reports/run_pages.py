"""What a finished run leaves for people: tables as text and Markdown, figures, and one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.files import atomic_write
from probekit.reports.figures import write_figure
from probekit.reports.page import RowsSection, write_page
from probekit.reports.page_run import run_alarms, run_figures, run_page
from probekit.reports.run_tables import curve_table, rounds_table, run_table, run_title

__all__ = ["REPORT", "write_run_reports"]

REPORT = "report.html"


def write_run_reports(
    results: Mapping[str, Any], folder: Path, *, rows: RowsSection | None = None
) -> str:
    """Write table.md, the figures and report.html of a run; returns its tables as text.

    ``results`` is what metrics.json holds; ``rows`` are shown on the page.
    """
    figures = list(run_figures(results))
    for name, _, figure in figures:
        write_figure(figure, folder / name)
    pictures = [f"![{caption}]({name})" for name, caption, _ in figures]
    text: list[str] = []
    page: list[str] = []
    for group in results["groups"]:
        table = run_table(group)
        text += [run_title(group), "", table.text(), ""]
        page += [f"## {run_title(group)}", "", table.markdown(), "", pictures.pop(0), ""]
    for result in results["results"]:
        where = f"{result['task']}, {result['weak']} → {result['strong']}, seed {result['seed']}"
        for name, make in (("rounds", rounds_table), ("curves", curve_table)):
            if result.get(name):
                table = make(result)
                text += [f"{name}, {where}", "", table.text(), ""]
                page += [f"## {name.capitalize()}: {where}", "", table.markdown(), ""]
    for alarm in run_alarms(results):
        text.append(f"Warning: {alarm}")
        page += [f"**Warning**: {alarm}", ""]
    for line in pictures:
        page += [line, ""]
    with atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join(page))
    write_page(run_page(results, folder=folder, rows=rows), folder / REPORT)
    return "\n".join(text).rstrip()
