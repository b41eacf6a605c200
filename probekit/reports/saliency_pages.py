"""What a saliency comparison leaves for people: tables as text and Markdown, figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.files import atomic_write
from probekit.reports.figures import write_figure
from probekit.reports.saliency_figures import draw_bars, draw_layers
from probekit.reports.saliency_tables import layers_table, saliency_table, saliency_title

__all__ = ["write_saliency_reports"]


def write_saliency_reports(results: Mapping[str, Any], folder: Path) -> str:
    """Write table.md, bars.png and layers.png of a comparison; returns its tables as text.

    ``results`` is what metrics.json holds; of several pairs of models the figures are numbered.
    """
    text: list[str] = []
    page: list[str] = []
    several = len(results["pairs"]) > 1
    for number, pair in enumerate(results["pairs"], 1):
        overall = [pair["overall"]] if pair["overall"] is not None else []
        for summary in [*overall, *pair["tasks"]]:
            title = saliency_title(pair, summary)
            bars, layers = saliency_table(summary), layers_table(summary)
            text += [title, "", bars.text(), "", layers.text(), ""]
            page += [f"## {title}", "", bars.markdown(), "", layers.markdown(), ""]
        for name, draw, what in (
            ("bars", draw_bars, "Probe against finetune"),
            ("layers", draw_layers, "Accuracy of linear probes by layer"),
        ):
            figure = f"{name}-{number}.png" if several else f"{name}.png"
            write_figure(draw(pair), folder / figure)
            page += [f"![{what}]({figure})", ""]
    for failure in results.get("failures", ()):
        text.append(f"Warning: {failure}")
        page += [f"**Warning**: {failure}", ""]
    with atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join(page))
    return "\n".join(text).rstrip()
