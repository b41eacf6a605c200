from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from probekit.reports import figures
from probekit.reports.figures import demo_figure, draw_demo


@pytest.fixture
def results() -> dict[str, Any]:
    pgr = {"pgr": 0.5, "pgr_low": 0.4, "pgr_high": 0.6, "unbounded": False, "reason": None}
    gain = {"gain": 0.01, "gain_low": -0.005, "gain_high": 0.025}

    def arm(name: str, kind: str, accuracy: float, *, plain: bool = False) -> dict[str, Any]:
        return {
            "name": name,
            "kind": kind,
            "label_accuracy": None if kind == "floor" else accuracy,
            "accuracy": accuracy,
            "accuracy_prior_matched": accuracy - 0.01,
            "pgr": None if kind in ("floor", "ceiling") else {**pgr, **gain},
            "gain": None if plain else gain,
        }

    return {
        "test_rows": 2000,
        "arms": [
            arm("weak supervisor", "floor", 0.80, plain=True),
            arm("weak labels", "plain", 0.82, plain=True),
            arm("random as kNN", "random", 0.821),
            arm("filter kNN", "filter", 0.84),
            arm("relabel soft kNN", "relabel", 0.85),
            arm("ground truth", "ceiling", 0.90),
        ],
    }


def pixels(path: Path) -> np.ndarray:
    return np.rint(255 * matplotlib.image.imread(path)[..., :3]).astype(int)


def has(image: np.ndarray, color: str) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((image == wanted).all(axis=-1).sum() > 20)


def test_the_figure_is_a_wide_light_png_with_every_kind_in_its_colour(
    results: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "demo.png"
    demo_figure(results, path)
    image = pixels(path)
    height, width, _ = image.shape
    assert 1400 < width < 2000
    assert 500 < height < width
    assert (image == 255).all(axis=-1).mean() > 0.8
    assert all(has(image, color) for color in figures.COLORS.values())
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]


def test_marks_stand_where_the_numbers_say(results: dict[str, Any]) -> None:
    left, right = draw_demo(results).axes
    arms = results["arms"][1:-1]
    assert [tick.get_text() for tick in left.get_yticklabels()] == [arm["name"] for arm in arms]
    marks: dict[str, list[float]] = {"filled": [], "hollow": [], "label": []}
    bars, lines = {}, []
    for axes, line in [(panel, line) for panel in (left, right) for line in panel.lines]:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        if line.get_marker() == "o":
            hollow = line.get_markerfacecolor() == "white"
            marks["label" if axes is left else "hollow" if hollow else "filled"].append(x[0])
        elif len(x) == 2 and x[0] == x[1] and axes is right:
            lines.append(x[0])
        elif axes is right:
            bars[int(y[0])] = tuple(x)
    assert marks["label"] == pytest.approx([100 * arm["label_accuracy"] for arm in arms])
    assert marks["filled"] == pytest.approx([100 * arm["accuracy"] for arm in arms])
    assert marks["hollow"] == pytest.approx([100 * arm["accuracy_prior_matched"] for arm in arms])
    # Plain weak labels stand at 82 %, and have no bar: the interval of gain is around them.
    assert sorted(bars) == [1, 2, 3]
    assert all(ends == pytest.approx((81.5, 84.5)) for ends in bars.values())
    assert sorted(lines) == pytest.approx([80, 82, 90])
    assert all(left.get_xlim()[0] < x < left.get_xlim()[1] for x in marks["label"])
    assert right.get_xlim()[0] < 80 < 90 < right.get_xlim()[1]


def test_a_kind_that_is_absent_is_not_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    results["arms"] = [arm for arm in results["arms"] if arm["kind"] != "filter"]
    demo_figure(results, tmp_path / "demo.png")
    image = pixels(tmp_path / "demo.png")
    assert not has(image, figures.COLORS["filter"])
    assert has(image, figures.COLORS["relabel"])


def test_the_same_results_give_the_same_picture_and_others_another(
    results: dict[str, Any], tmp_path: Path
) -> None:
    stored = json.loads(json.dumps(results))
    demo_figure(results, tmp_path / "a.png")
    demo_figure(stored, tmp_path / "b.png")
    stored["arms"][3]["accuracy"] += 0.02
    demo_figure(stored, tmp_path / "c.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))
