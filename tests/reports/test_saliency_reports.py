"""Tables, figures and page of a saliency comparison, from results as metrics.json holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.experiments.saliency_scores import COLUMNS, PROBES, Judged, summarize_pairs
from probekit.reports.page import render_page
from probekit.reports.saliency import (
    draw_bars,
    draw_layers,
    gap_sentence,
    layers_table,
    saliency_page,
    saliency_table,
    write_saliency_reports,
)

MEANS = (0.60, 0.70, 0.72, 0.76, 0.82, 0.61, 0.71, 0.78)
LAYERS = (0, 1, 2)


def found(
    task: str, seed: int, means: tuple[float, ...] = MEANS, strong: str = "large"
) -> tuple[dict[str, Any], Judged]:
    n = 200
    ease = np.random.default_rng(seed).permutation(n)
    right = np.column_stack([ease < round(mean * n) for mean in means]).astype(float)
    probes = {
        key: {
            "chosen": {"layer": 1 + seed % 2, "l2": 0.1},
            "layers": [{"layer": layer} for layer in LAYERS],
        }
        for key in PROBES
    }
    record = {
        "task": task,
        "weak": "small",
        "strong": strong,
        "seed": seed,
        "rows": {"student": 90, "test": n},
        "chance": 0.5,
        "weak_accuracy": 0.65,
        "label_accuracy": 0.66,
        "accuracy": dict(zip(COLUMNS, means, strict=True)),
        "auroc": dict(zip(COLUMNS, (mean + 0.1 for mean in means), strict=True)),
        "probes": probes,
        "layers": {key: [0.5, 0.7 + 0.01 * seed, 0.75] for key in PROBES},
    }
    return record, Judged(right, f"{seed:016x}")


def results(*judged: tuple[dict[str, Any], Judged]) -> dict[str, Any]:
    pairs = list(summarize_pairs(judged))
    # As a file would give it back: what is not finite would not come through.
    return dict(json.loads(json.dumps({"pairs": pairs}, allow_nan=False)))


def test_cells_are_the_figures() -> None:
    (pair,) = results(found("t", 0))["pairs"]
    table = saliency_table(pair["tasks"][0])
    cells = {row[0]: row for row in table.rows}
    assert [row[0][:2] for row in table.rows] == ["1.", "2.", "3.", "4.", "5."]
    fourth = cells["4. finetune, weak labels, then linear probe, ground truth"]
    assert fourth[1].startswith("76.0 [")
    assert fourth[2].startswith("+6.0 [")
    assert fourth[3] == "86.0"
    assert fourth[4].startswith("78.0 [")
    assert fourth[5] == "1"
    assert cells["3. finetune, weak labels"][4:] == ("-", "-")
    assert cells["2. linear probe, ground truth"][2] == "-"
    assert "0.50 [" in gap_sentence(pair["tasks"][0])
    # (0.78 - 0.71) / (0.82 - 0.71)
    assert "0.64 [" in gap_sentence(pair["tasks"][0], chosen=True)
    assert any("on weak labels +12.0 [" in note for note in table.notes)


def test_seeds_and_tasks_show_standard_errors() -> None:
    other = (0.62, *MEANS[1:])
    (pair,) = results(found("t", 0), found("t", 1, other), found("u", 0))["pairs"]
    assert [summary["name"] for summary in pair["tasks"]] == ["t", "u"]
    first = saliency_table(pair["tasks"][0])
    # Half the difference of two values is the standard error of their mean.
    assert first.rows[0][1] == "61.0 ± 1.0"
    assert first.rows[0][5] == "1, 2"
    assert any("over seeds" in note for note in first.notes)
    overall = saliency_table(pair["overall"])
    assert overall.rows[0][1] == "60.5 ± 0.5"
    assert any("over tasks" in note for note in overall.notes)


@pytest.mark.parametrize(
    ("ceiling", "words"), [(0.70, "none to close"), (0.705, "no bounds"), (0.82, "0.50 [")]
)
def test_the_gap_in_words(ceiling: float, words: str) -> None:
    means = (*MEANS[:4], ceiling, *MEANS[5:])
    (pair,) = results(found("t", 0, means))["pairs"]
    sentence = gap_sentence(pair["tasks"][0])
    assert words in sentence
    # What can be told where there is no gap.
    assert ("bar 4 − bar 2 +6.0 [" in sentence) == (ceiling < 0.8)
    other = gap_sentence(pair["tasks"][0], chosen=True)
    assert ("bar 4 − bar 2 +7.0 [" in other) == (ceiling < 0.8)


def test_layers_of_a_deep_model_are_thinned() -> None:
    (pair,) = results(found("t", 0))["pairs"]
    summary = pair["tasks"][0]
    table = layers_table(summary)
    assert table.header == ("probe", "layer 0", "layer 1", "layer 2", "linear from")
    assert table.rows[0] == ("ground truth, before finetuning", "50.0", "70.0", "75.0", "layer 2")
    for curve in summary["curves"].values():
        curve["layers"] = list(range(33))
        curve["mean"] = [0.5 + 0.01 * i for i in range(33)]
        curve["sem"] = [None] * 33
    deep = layers_table(summary)
    assert deep.header[1] == "layer 0"
    assert deep.header[-2] == "layer 32"
    assert len(deep.header) == 11


def test_bars_are_drawn_at_the_figures() -> None:
    (pair,) = results(found("t", 0), found("u", 1))["pairs"]
    figure = draw_bars(pair)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    heights = [patch.get_height() for patch in panels[0].patches[:5]]  # type: ignore[attr-defined]
    assert heights == pytest.approx([100 * mean for mean in MEANS[:5]])
    assert len([axes for axes in draw_layers(pair).axes if axes.get_visible()]) == 3


def test_files_of_one_and_of_several_pairs(tmp_path: Path) -> None:
    text = write_saliency_reports(results(found("t", 0)), tmp_path)
    assert "t: small → large, 1 seed" in text
    assert {path.name for path in tmp_path.iterdir()} == {"bars.png", "layers.png", "table.md"}
    write_saliency_reports(results(found("t", 0), found("t", 0, strong="larger")), tmp_path)
    assert {"bars-1.png", "bars-2.png", "layers-2.png"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "table.md").read_text()
    assert "](bars-2.png)" in page
    assert "| 4. finetune, weak labels, then linear probe, ground truth |" in page


def test_the_page_of_a_comparison() -> None:
    page = saliency_page(results(found("t", 0)), folder=Path("/any/s"))
    html = render_page(page)
    assert page.tables[0].table.rows[0][0].startswith("1.")
    assert html.count("data:image/png") == 2
    assert "probekit saliency --config s/config.yaml -o again --steps again-steps" in html
