"""The demo's table, figure and page, from results as results.json holds them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from probekit.reports import demo_table, figures
from probekit.reports.demo import demo_figure, demo_page, draw_demo, points, recovered
from probekit.reports.page import render_page


@pytest.fixture
def drawn() -> dict[str, Any]:
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
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "demo.png"
    demo_figure(drawn, path)
    image = pixels(path)
    height, width, _ = image.shape
    assert 1400 < width < 2000
    assert 500 < height < width
    assert (image == 255).all(axis=-1).mean() > 0.8
    assert all(has(image, color) for color in figures.COLORS.values())
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]


def test_marks_stand_where_the_numbers_say(drawn: dict[str, Any]) -> None:
    left, right = draw_demo(drawn).axes
    arms = drawn["arms"][1:-1]
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


def test_a_kind_that_is_absent_is_not_drawn(drawn: dict[str, Any], tmp_path: Path) -> None:
    drawn["arms"] = [arm for arm in drawn["arms"] if arm["kind"] != "filter"]
    demo_figure(drawn, tmp_path / "demo.png")
    image = pixels(tmp_path / "demo.png")
    assert not has(image, figures.COLORS["filter"])
    assert has(image, figures.COLORS["relabel"])


def test_the_same_results_give_the_same_picture_and_others_another(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    stored = json.loads(json.dumps(drawn))
    demo_figure(drawn, tmp_path / "a.png")
    demo_figure(stored, tmp_path / "b.png")
    stored["arms"][3]["accuracy"] += 0.02
    demo_figure(stored, tmp_path / "c.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def recovery(**changes: Any) -> dict[str, Any]:
    return {
        "pgr": 0.5,
        "pgr_low": -0.125,
        "pgr_high": 1.004,
        "gain": 0.02,
        "gain_low": -0.005,
        "gain_high": 0.045,
        "no_gap": 0.0,
        "unbounded": False,
        "reason": None,
        **changes,
    }


def arm(name: str, kind: str, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "draws": 1,
        "rows": 1600,
        "label_accuracy": 0.9,
        "l2": 0.01,
        "auroc": 0.951,
        "accuracy": accuracy,
        "accuracy_prior_matched": accuracy + 0.01,
        "pgr": recovery(),
        "pgr_prior_matched": recovery(pgr=0.25),
        "gain": {"gain": 0.01, "gain_low": 0.002, "gain_high": 0.018},
        "gain_prior_matched": {"gain": 0.01, "gain_low": 0.002, "gain_high": 0.018},
        **changes,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    none = {"pgr": None, "pgr_prior_matched": None}
    return {
        "test_rows": 2000,
        "weak_prior": [0.4, 0.6],
        "random_draws": 3,
        "arms": [
            arm("weak supervisor", "floor", 0.8, rows=None, label_accuracy=None, gain=None, **none),
            arm("weak labels", "plain", 0.82, gain=None),
            arm("filter kNN", "filter", 0.85),
            arm("ground truth", "ceiling", 0.9, label_accuracy=1.0, **none),
        ],
    }


def test_numbers_are_written_with_their_intervals() -> None:
    assert recovered(recovery()) == "0.50 [-0.12 1.00]"
    assert points(recovery()) == "+2.0 [-0.5 +4.5]"
    assert recovered(None) == points(None) == "-"


@pytest.mark.parametrize(
    "changes",
    [
        {"unbounded": True, "pgr_low": None, "pgr_high": None},
        {"pgr": None},
    ],
)
def test_without_a_gap_the_difference_is_shown(changes: dict[str, Any]) -> None:
    assert recovered(recovery(**changes)) == "pt +2.0 [-0.5 +4.5]"


def test_the_demo_s_table_shows_what_the_results_hold(results: dict[str, Any]) -> None:
    table = demo_table(results)
    cells = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(cells) == ["weak supervisor", "weak labels", "filter kNN", "ground truth"]
    assert cells["filter kNN"] == {
        "training set": "filter kNN",
        "rows": "1,600",
        "labels": "90.0",
        "acc": "85.0",
        "PGR": "0.50 [-0.12 1.00]",
        "gain": "+1.0 [+0.2 +1.8]",
        "acc*": "86.0",
        "PGR*": "0.25",
        "AUROC": "95.1",
    }
    assert [cells["weak supervisor"][c] for c in ("rows", "labels", "PGR", "gain", "PGR*")] == [
        "-"
    ] * 5
    text = table.text()
    assert "2,000" in text
    assert "40.0 / 60.0 %" in text
    assert "mean of 3 draws" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "pt:" not in text


def test_a_gap_too_small_is_told_below(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["arms"][1]["pgr_prior_matched"] |= {"unbounded": True, "reason": "too small"}
    table = demo_table(changed)
    assert table.rows[1][table.header.index("PGR*")] == "-"
    assert "gap is too small for a PGR" in table.text()


def test_the_page_of_the_demo():
    none = {"gain": None, "pgr": None, "pgr_prior_matched": None}
    arms = [
        {
            "name": name,
            "kind": kind,
            "rows": 9,
            "label_accuracy": 0.9,
            "accuracy": value,
            "accuracy_prior_matched": value,
            "auroc": 0.9,
            **none,
        }
        for name, kind, value in (
            ("weak supervisor", "floor", 0.7),
            ("weak labels", "plain", 0.8),
            ("ground truth", "ceiling", 0.9),
        )
    ]
    results = {
        "task": "docstrings",
        "model": "model",
        "layer": 6,
        "student_rows": 2000,
        "test_rows": 1000,
        "weak_prior": [0.5, 0.5],
        "random_draws": 1,
        "arms": arms,
    }
    html = render_page(demo_page(results, title="demo"))
    for row in demo_table(results).rows:
        assert f">{row[0]}</th>" in html
    assert "probekit demo --student-rows 2000 --test-rows 1000 -o again" in html
    assert "commands.sh" not in html  # a script in a folder that may be anybody's
    assert html.count("data:image/png") == 1
