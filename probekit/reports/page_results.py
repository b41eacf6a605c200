"""Pages of other results: a saliency comparison, and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.reports.figures import draw_demo
from probekit.reports.page import Page, PageTable
from probekit.reports.page_run import embedded, flat, replay
from probekit.reports.saliency_figures import draw_bars, draw_layers
from probekit.reports.saliency_tables import layers_table, saliency_table, saliency_title
from probekit.reports.tables import demo_table

__all__ = ["demo_page", "saliency_page"]


def saliency_page(results: Mapping[str, Any], *, folder: Path) -> Page:
    """Describe a comparison of probes with finetuning; ``results`` is what metrics.json holds."""
    tables, figures = [], []
    for pair in results["pairs"]:
        overall = [pair["overall"]] if pair["overall"] is not None else []
        for summary in [*overall, *pair["tasks"]]:
            heading = saliency_title(pair, summary)
            tables += [
                PageTable(heading, saliency_table(summary)),
                PageTable(f"By layer: {heading}", layers_table(summary)),
            ]
        where = f": {pair['weak']} → {pair['strong']}" if len(results["pairs"]) > 1 else ""
        figures += [
            embedded(draw_bars(pair), f"Probe against finetune{where}"),
            embedded(draw_layers(pair), f"Accuracy of linear probes by layer{where}"),
        ]
    return Page(
        title=folder.absolute().name,
        kind="saliency",
        tables=tuple(tables),
        figures=tuple(figures),
        commands=(replay("saliency", folder),),
        provenance=_lines(results, "versions", "hardware", "config"),
    )


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
        figures=(embedded(draw_demo(results), caption),),
        # commands.sh in the folder repeats it word for word; a page names no script of a folder
        # that may be anybody's as something to run.
        commands=(
            (
                "With the usual model and seed, this makes it again in a folder of its own:",
                f"probekit demo --student-rows {int(results['student_rows'])} --test-rows "
                f"{int(results['test_rows'])} -o again",
            ),
        ),
        provenance=_lines(results, "versions", "hardware"),
    )


def _lines(results: Mapping[str, Any], *parts: str) -> tuple[tuple[str, str], ...]:
    return tuple(line for part in parts for line in flat(results.get(part, {}), f"{part}."))
