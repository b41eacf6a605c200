"""Tables, figures and page of a run, from results as metrics.json holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from probekit.experiments.scores import Arm, combine_seeds, score_arms
from probekit.reports import figures
from probekit.reports.figures import write_figure
from probekit.reports.page import render_page
from probekit.reports.run import (
    brief_table,
    curve_table,
    draw_arms,
    draw_curves,
    draw_grid,
    rounds_table,
    run_figures,
    run_page,
    run_table,
    write_run_reports,
)

TRUTH = np.random.default_rng(0).integers(0, 2, 200)


def probs(strength: float, seed: int) -> np.ndarray[Any, Any]:
    logit = (2 * TRUTH - 1) * strength + np.random.default_rng(seed).normal(size=len(TRUTH))
    p = 1 / (1 + np.exp(-logit))
    return np.column_stack([1 - p, p])


def arms(seed: int, ceiling: float = 2.0) -> list[dict[str, Any]]:
    listed = [
        Arm("weak supervisor", "floor", [probs(0.5, seed)]),
        Arm("weak labels, xent", "plain", [probs(0.8, seed + 10)], 0.7, 90),
        Arm("filter | kNN", "filter", [probs(1.0, seed + 20)], 0.8, 72),
        Arm("ground truth", "ceiling", [probs(ceiling, seed + 30)], 1.0, 90),
    ]
    return score_arms(listed, truth=TRUTH, weak_prior=[0.5, 0.5], draws=300)


def group(seeds: int = 1, **more: Any) -> dict[str, Any]:
    judged = [arms(seed) for seed in range(seeds)]
    return {
        "task": "t",
        "weak": "small",
        "strong": "large",
        "parameters": {"weak": 10**6, "strong": 10**7},
        "seeds": list(range(seeds)),
        "arms": combine_seeds(judged),
        **more,
    }


def result(**more: Any) -> dict[str, Any]:
    return {
        "task": "t",
        "weak": "small",
        "strong": "large",
        "seed": 0,
        "arms": arms(0),
        "alarms": [],
        **more,
    }


ROUNDS = [
    {"before_round": 2, "weak": 0.8, "student": 0.85, "ceiling": 0.9, "pgr": 0.5, "reason": None},
    {"before_round": 3, "weak": 0.8, "student": 0.9, "ceiling": 0.8, "pgr": None, "reason": "x"},
]
CURVE = {
    "steps": [1, 2],
    "accuracy": [0.5, 0.75],
    "weak_agreement": [0.6, 0.5],
    "weak_log_loss": [0.7, 0.6],
    "stops": {
        "last": {"step": 2, "accuracy": 0.75, "pgr": 0.5},
        "weak_early_stop": {"step": 1, "accuracy": 0.5, "pgr": None},
        "oracle": {"step": 2, "accuracy": 0.75, "pgr": 0.5},
    },
    "reason": None,
}


def test_cells_are_the_figures() -> None:
    found = group()
    table = run_table(found)
    row = dict(zip(table.header, table.rows[2], strict=True))
    figures, pgr = found["arms"][2]["figures"], found["arms"][2]["pgr"]
    assert row["rows"] == "72"
    assert row["labels"] == "80.0"
    assert row["acc"] == f"{100 * figures['accuracy']['median']:.1f}"
    assert row["PGR"] == f"{pgr['median']:.2f} [{pgr['low']:.2f} {pgr['high']:.2f}]"
    assert row["gain"].startswith(f"{100 * found['arms'][2]['gain']['median']:+.1f} [")
    assert dict(zip(table.header, table.rows[0], strict=True))["PGR"] == "-"
    assert "filter \\| kNN" in table.markdown()


def test_several_seeds_show_their_standard_error() -> None:
    found = group(3)
    table = run_table(found)
    row = dict(zip(table.header, table.rows[1], strict=True))
    accuracy = found["arms"][1]["figures"]["accuracy"]
    assert row["acc"] == f"{100 * accuracy['median']:.1f} ± {100 * accuracy['sem']:.1f}"
    assert "Medians of 3 seeds" in table.text()


def with_failures() -> list[dict[str, Any]]:
    """Floor and one student failed, another student gives one class."""
    listed = [
        Arm("weak supervisor", "floor", [], alarms={"failed": "no memory"}),
        Arm("weak labels, xent", "plain", [], alarms={"failed": "its step 'a' failed"}),
        Arm("probe kNN", "probe", [np.tile([0.0, 1.0], (len(TRUTH), 1))]),
        Arm("ground truth", "ceiling", [probs(2, 30)], 1.0, 90),
    ]
    return score_arms(listed, truth=TRUTH, weak_prior=None, draws=300)


def test_alarms_stand_in_the_table_and_below(tmp_path: Path) -> None:
    judged = with_failures()
    found = group(arms=combine_seeds([judged]))
    table = run_table(found)
    cells = {row[0]: row[1:] for row in table.rows}
    assert set(cells["weak supervisor (failed)"]) == {"-"}
    assert set(cells["weak labels, xent (failed)"]) == {"-"}
    assert "probe kNN (collapsed)" in cells
    assert "ground truth" in cells
    assert "collapsed: one class for every test row" in table.text()
    failures = ["t, seed 0: probe kNN: collapsed: every test row gets the class '1'"]
    results = {
        "groups": [found],
        "results": [result(arms=judged, curves={"weak labels, xent": CURVE})],
        "failures": failures,
    }
    text = write_run_reports(results, tmp_path)
    assert f"Warning: {failures[0]}" in text
    for name in ("table.md", "report.html"):
        assert "collapsed: every test row gets the class" in (tmp_path / name).read_text()
    several = run_table(group(2, arms=combine_seeds([judged, arms(0)])))
    assert several.rows[0][0] == "weak supervisor (failed 1/2)"
    # The control: a run in which all went well says nothing of the kind.
    assert "failed" not in run_table(group()).text()


def test_figures_without_ends() -> None:
    broken = combine_seeds([with_failures()])
    first = group(arms=broken)
    assert draw_arms(first).axes
    grid = [first, group(strong="larger", parameters={"weak": 10**6, "strong": 10**8})]
    assert draw_grid(grid).axes
    nothing = [a for a in with_failures() if a["kind"] in ("floor", "plain")]
    nothing.append({**nothing[0], "name": "ground truth", "kind": "ceiling"})
    assert draw_arms(group(arms=combine_seeds([nothing]))).axes


def test_without_a_gap_points_stand_in_for_pgr() -> None:
    judged = arms(0, ceiling=0.1)
    table = run_table(group(arms=combine_seeds([judged])))
    row = dict(zip(table.header, table.rows[1], strict=True))
    gain = 100 * (judged[1]["accuracy"] - judged[0]["accuracy"])
    assert row["PGR"] == f"pt {gain:.1f}"
    assert "the gap is too small" in table.text()


def whole_group(**changes: Any) -> dict[str, Any]:
    """A group with an arm of every kind that the demo shows."""
    listed = [
        Arm("weak supervisor", "floor", [probs(0.5, 1)]),
        Arm("weak labels", "plain", [probs(0.8, 2)], 0.7, 90),
        Arm("random as kNN, logistic", "random", [probs(0.8, 3), probs(0.8, 4)], 0.7, 72),
        Arm("filter kNN", "filter", [probs(1.0, 5)], 0.8, 72),
        Arm("relabel kNN", "relabel", [probs(1.1, 6)], 0.75, 90),
        Arm("ground truth", "ceiling", [probs(3.0, 7)], 1.0, 90),
    ]
    judged = score_arms(listed, truth=TRUTH, weak_prior=[0.5, 0.5], draws=300)
    return group(arms=combine_seeds([judged]), **changes)


def test_the_brief_table_shows_what_the_results_hold() -> None:
    groups = {"words": whole_group(), "rules": whole_group()}
    table = brief_table(groups, "kNN")
    assert len(table.header) == 5
    names = ["weak labels", "random as kNN, logistic", "filter kNN", "relabel kNN"]
    names += ["weak labels", "filter kNN", "relabel kNN", "ground truth"]
    assert len(table.rows) == 8
    whole = run_table(groups["words"])
    cells = {row[0]: dict(zip(whole.header, row, strict=True)) for row in whole.rows}
    for row, name in zip(table.rows, names, strict=True):
        assert row[1:] == tuple(cells[name][column] for column in ("labels", "acc", "PGR", "gain"))
    assert [row[0] for row in table.rows[2:5]] == [
        "words, filtered by kNN",
        "words, relabelled by kNN",
        "rules, as they are",
    ]
    floor = groups["words"]["arms"][0]["figures"]["accuracy"]["median"]
    assert f"words {100 * floor:.1f} %" in table.text()
    assert max(map(len, table.text().splitlines())) <= 100


def pixels(figure: Any, path: Path) -> np.ndarray:
    write_figure(figure, path)
    return np.rint(255 * matplotlib.image.imread(path)[..., :3]).astype(int)


def has(image: np.ndarray, color: str) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((image == wanted).all(axis=-1).sum() > 20)


def test_the_figure_is_a_wide_light_png_with_every_kind_in_its_colour(tmp_path: Path) -> None:
    image = pixels(draw_arms(whole_group()), tmp_path / "arms.png")
    height, width, _ = image.shape
    assert 1400 < width < 2000
    assert 300 < height < width
    assert (image == 255).all(axis=-1).mean() > 0.8
    assert all(has(image, color) for color in figures.COLORS.values())
    assert [p.name for p in tmp_path.iterdir()] == ["arms.png"]


def test_a_kind_that_is_absent_is_not_drawn(tmp_path: Path) -> None:
    found = whole_group()
    found["arms"] = [arm for arm in found["arms"] if arm["kind"] != "filter"]
    image = pixels(draw_arms(found), tmp_path / "arms.png")
    assert not has(image, figures.COLORS["filter"])
    assert has(image, figures.COLORS["relabel"])


def test_the_same_results_give_the_same_picture_and_others_another(tmp_path: Path) -> None:
    found = whole_group()
    first = pixels(draw_arms(found), tmp_path / "a.png")
    stored = json.loads(json.dumps(found))
    assert np.array_equal(first, pixels(draw_arms(stored), tmp_path / "b.png"))
    stored["arms"][3]["figures"]["accuracy"]["median"] += 0.02
    assert not np.array_equal(first, pixels(draw_arms(stored), tmp_path / "c.png"))


def test_rounds_and_curves() -> None:
    rows = rounds_table(result(rounds=ROUNDS)).rows
    assert rows[0] == ("before round 2", "80.0", "85.0", "90.0", "0.50")
    assert rows[1][-1] == "-"
    (row,) = curve_table(result(curves={"weak labels": CURVE})).rows
    assert row == ("weak labels", "75.0 (0.50) @2", "50.0 (-) @1", "75.0 (0.50) @2")


def test_figures_show_what_is_in_the_results() -> None:
    axes = draw_arms(group(3)).axes[0]
    found = group(3)
    shown = {
        round(float(line.get_xdata()[0]), 6) for line in axes.lines if line.get_marker() == "o"
    }  # type: ignore[index]
    expected = {round(100 * arm["figures"]["accuracy"]["median"], 6) for arm in found["arms"][1:3]}
    assert expected <= shown
    panels = draw_curves(result(curves={"a": CURVE, "b": CURVE})).axes
    assert [axes.get_title(loc="left") for axes in panels[:2]] == ["a", "b"]
    sizes = [group(strong=f"m{n}", parameters={"weak": 1, "strong": n}) for n in (10, 100)]
    panels = draw_grid(sizes).axes
    assert len(panels) == 3
    assert list(panels[1].lines[0].get_xdata()) == [10, 100]


def test_the_grid_shows_no_pgr_that_the_table_refuses() -> None:
    """A gap so small that its interval is unbounded has a PGR, and a wild one."""
    sure, unsure = (
        group(
            strong=f"m{n}",
            parameters={"weak": 1, "strong": n},
            arms=combine_seeds([arms(0, ceiling=ceiling)]),
        )
        for n, ceiling in ((10, 2.0), (100, 0.55))
    )
    plain = next(arm for arm in unsure["arms"] if arm["kind"] == "plain")
    assert plain["pgr"]["median"] is not None
    assert plain["pgr"]["unbounded"]
    assert run_table(unsure).rows[1][4].startswith("pt ")
    panels = draw_grid([sure, unsure]).axes
    assert list(panels[1].lines[0].get_xdata()) == [10]
    assert list(panels[0].lines[0].get_xdata()) == [10, 100]  # the control: accuracy has no gap


def test_a_single_seeds_bar_is_the_interval_of_the_gain() -> None:
    found = group()
    plain, cleaned = found["arms"][1:3]
    bars = [line.get_xdata() for line in draw_arms(found).axes[0].lines if line.get_alpha() == 0.4]
    at = 100 * plain["figures"]["accuracy"]["median"]
    low, high = (at + 100 * cleaned["gain"][key] for key in ("low", "high"))
    assert list(bars[1]) == pytest.approx([low, high])
    assert list(bars[0]) == [at, at], "the plain student is what the others are compared with"


def test_curves_mark_both_stops() -> None:
    axes = draw_curves(result(curves={"a": CURVE})).axes[0]
    marks = {line.get_marker(): line for line in axes.lines}
    assert marks["v"].get_xydata().tolist() == [[1, 50]]  # type: ignore[union-attr]
    assert marks["*"].get_xydata().tolist() == [[2, 75]]  # type: ignore[union-attr]


def test_sizes_that_are_near_share_a_tick() -> None:
    sizes = [10**6, 10**6 + 10**4, 2 * 10**6, 3 * 10**9]
    groups = [group(strong=f"m{n}", parameters={"weak": 1, "strong": n}) for n in sizes]
    axes = draw_grid(groups).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1M", "3B"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_runs_folder(seeds: int, tmp_path: Path) -> None:
    results = {
        "groups": [group(seeds), group(seeds, strong="huge", parameters={"weak": 1, "strong": 9})],
        "results": [
            result(rounds=ROUNDS, curves={"weak labels": CURVE}, alarms=["Nothing changed."])
        ],
    }
    text = write_run_reports(results, tmp_path)
    assert "t: small → large" in text
    assert "Warning: Nothing changed." in text
    page = (tmp_path / "table.md").read_text()
    for name in ("arms-1.png", "arms-2.png", "curves.png", "grid-t.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        assert name in page


def plain_arms(seed: int = 0) -> list[dict[str, Any]]:
    def probs(strength: float) -> Any:
        noise = np.random.default_rng(seed).normal(size=len(TRUTH))
        p = 1 / (1 + np.exp(-(2 * TRUTH - 1) * strength - noise))
        return np.column_stack([1 - p, p])

    arms = [
        Arm("weak supervisor", "floor", [probs(0.5)]),
        Arm("weak labels, <xent>", "plain", [probs(0.8)], 0.7, 90),
        Arm("ground truth", "ceiling", [probs(2)], 1.0, 90),
    ]
    return score_arms(arms, truth=TRUTH, weak_prior=[0.5, 0.5], draws=200)


def run_results(strong: tuple[str, ...] = ("large",)) -> dict[str, Any]:
    groups = [
        {
            "task": "t",
            "weak": "small",
            "strong": name,
            "parameters": {"weak": 10**6, "strong": 10 ** (7 + i)},
            "seeds": [0],
            "arms": combine_seeds([plain_arms()]),
        }
        for i, name in enumerate(strong)
    ]
    results = [
        {
            "task": "t",
            "weak": "small",
            "strong": name,
            "seed": 0,
            "rows": {"test": 200},
            "arms": plain_arms(),
            "alarms": ["Mind that."],
            "seconds": {"step of all": 60.0, f"step of {name}": 30.0},
        }
        for name in strong
    ]
    return {
        "groups": groups,
        "results": results,
        "versions": {"probekit": "0.1.0"},
        "config": {"task": ["t"], "finetune": {"epochs": 2}, "chain": []},
    }


def test_every_cell_of_a_runs_table_is_on_its_page():
    results = run_results()
    html = render_page(run_page(results, folder=Path("runs/first <run>")))
    for row in run_table(results["groups"][0]).rows:
        for cell in row[1:]:
            assert f"<td>{cell}</td>" in html
    assert "weak labels, &lt;xent&gt;" in html
    assert "first &lt;run&gt;" in html
    assert "probekit run --config &#39;runs/first &lt;run&gt;/config.yaml&#39; -o again" in html
    assert "Mind that." in html
    assert "config.finetune.epochs" in html
    assert html.count("data:image/png") == 1


def test_several_pairs_have_a_figure_each_and_one_for_all():
    page = run_page(run_results(("large", "larger")), folder=Path("r"))
    assert [figure.caption.partition(":")[0] for figure in page.figures] == [
        "Test accuracy of every student",
        "Test accuracy of every student",
        "Students by size on t",
    ]
    facts = dict(page.facts)
    assert facts["Strong models"] == "large, larger"
    assert facts["Computed in"] == "2 min"  # 60 + 30 + 30: what is shared counts once


@pytest.mark.parametrize("kind", ["floor", "ceiling"])
def test_a_damaged_run_without_an_arm_has_no_figures(kind: str) -> None:
    """A LookupError, which the command makes a sentence of: no StopIteration in a generator."""
    whole = run_results(("large", "larger"))
    assert len(list(run_figures(whole))) > 1
    for group in whole["groups"]:
        group["arms"] = [arm for arm in group["arms"] if arm["kind"] != kind]
    with pytest.raises(LookupError):
        list(run_figures(whole))
