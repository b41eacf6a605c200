"""Tables and figures of a sweep, from plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probekit.reports.sweep import (
    choice_text,
    draw_layers,
    draw_strengths,
    measure_name,
    strength_text,
    sweep_table,
    write_figures,
)

KEYS = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination")
FIGURES = ("accuracy", "auroc", "auroc_gain", "filtered_0.2", "filtered_own")
LAYERS, KS, PENALTIES = (0, 3, 6), (1, 10, 100), (1e-4, 1e-2, 1.0)


def gain_of(layer, strength):
    return 0.01 * layer - 0.02 * math.log10(strength) ** 2


def make_sweep(*, truth=True, probes=("knn", "logreg")):
    rows = []
    for layer in LAYERS:
        for probe in probes:
            name = {"knn": "k", "logreg": "l2", "topofilter": "k_zeta"}[probe]
            for strength in PENALTIES if probe == "logreg" else KS:
                gain = gain_of(layer, strength)
                row = {**dict.fromkeys(KEYS), "layer": layer, "probe": probe, name: strength}
                if probe == "topofilter":
                    row |= {"k_cc": 4, "zeta": 0.5}
                row |= {"strength": float(strength), "seed": None, "rows": 1234}
                row |= {"weak_accuracy": 0.8, "weak_auroc": 0.85, "changed": 0.1}
                row |= {"weak_log_loss": 0.5 - gain, "weak_log_loss_se": 0.01}
                known = {"accuracy": 0.7, "auroc": 0.75 + gain, "auroc_gain": gain}
                known |= {"filtered_0.05": 0.71, "filtered_0.2": 0.789, "filtered_own": None}
                known |= {"relabelled_soft": 0.72, "relabelled_hard": 0.73}
                rows.append(row | (known if truth else dict.fromkeys(known)))
    best = [
        max((r for r in rows if (r["layer"], r["probe"]) == (a, p)), key=lambda r: r["strength"])
        for a in LAYERS
        for p in probes
    ]
    chosen = next(r for r in best if (r["layer"], r["probe"]) == (3, probes[0]))
    choice = {n: chosen[n] for n in (*KEYS, "weak_log_loss", "weak_log_loss_se")}
    choice = {n: v for n, v in choice.items() if v is not None} | {"least": 0.4}
    at = {"layer": 6, "probe": "knn", "k": 1}
    regret = {
        "auroc": {"chosen": 0.7, "oracle": 0.8125, "regret": 0.1125, "by_strength": 0.01, "at": at},
        "auroc_gain": {
            "chosen": 0.0,
            "oracle": 0.1125,
            "regret": 0.1125,
            "by_strength": 0.01,
            "at": at,
        },
        "filtered_0.2": {
            "chosen": 0.7,
            "oracle": 0.75,
            "regret": 0.05,
            "by_strength": 0.02,
            "at": at,
        },
    }
    return {
        "rows": rows,
        "best": best,
        "choice": choice,
        "regret": regret if truth else {},
        "weak_labels": {"accuracy": 0.77, "auroc": 0.75}
        if truth
        else {"accuracy": None, "auroc": None},
        "notes": [],
    }


def test_the_table_has_the_chosen_strength_of_each_layer_and_probe():
    table = sweep_table(make_sweep())
    assert table.header[:3] == ("layer", "probe", "strength")
    assert table.header[-1] == "drop 0.2"
    assert [row[:3] for row in table.rows][:4] == [
        ("0", "knn", "k 100"),
        ("0", "logreg", "l2 1"),
        ("3", "knn *", "k 100"),
        ("3", "logreg", "l2 1"),
    ]
    assert table.rows[0][-1] == "78.9"
    assert table.rows[0][table.header.index("gain")] == "-8.0"
    assert "77.0 %" in " ".join(table.notes)


def test_without_truth_no_column_of_it_is_shown():
    table = sweep_table(make_sweep(truth=False))
    assert not {"AUROC", "gain", "soft", "hard"} & set(table.header)
    assert "log-loss" in table.header
    assert "ground truth" not in " ".join(table.notes)
    assert "regret" not in choice_text(make_sweep(truth=False))


def test_the_choice_and_its_regret_are_said_once_each():
    said = choice_text(make_sweep()).splitlines()
    assert said[0].startswith("Choice without ground truth: knn on layer 3, k 100 (out-of-fold")
    assert said[1].startswith("Trust the strength more than the layer")
    assert len(said) == 5  # AUROC less a constant is not said again
    assert said[3] == (
        "  regret 11.25 points in AUROC, 1.00 of it by the strength: 70.00 %, best 81.25 % "
        "(knn, layer 6, k 1)"
    )
    assert "label accuracy after filter, dropping 20 %" in said[4]


def test_of_one_layer_there_is_nothing_to_warn_of():
    sweep = make_sweep()
    sweep["best"] = [row for row in sweep["best"] if row["layer"] == 3]
    assert "Trust" not in choice_text(sweep)


def test_a_sweep_of_all_layers_at_once():
    sweep = make_sweep()
    row = {**sweep["rows"][0], "layer": None, "probe": "ensemble", "k": 30, "strength": 30.0}
    sweep["best"] = [row]
    sweep["choice"] = {"probe": "ensemble", "k": 30, "weak_log_loss": 0.4, "least": 0.4}
    sweep["choice"]["weak_log_loss_se"] = 0.01
    assert sweep_table(sweep).rows[0][:3] == ("all", "ensemble *", "k 30")
    assert "ensemble on all stored layers, k 30" in choice_text(sweep)
    sweep["rows"] = [*sweep["rows"], row]
    assert "The choice without ground truth was ensemble." in caption_of(draw_strengths(sweep))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"k": 50}, "k 50"),
        ({"l2": 0.0316227766}, "l2 0.0316"),
        ({"k_cc": 4, "k_zeta": 32, "zeta": 0.5}, "k_zeta 32, k_cc 4, zeta 0.5"),
        ({"k": None}, ""),
    ],
)
def test_strengths_as_people_write_them(row, text):
    assert strength_text(row) == text


def test_measures_in_words():
    assert measure_name("filtered_0.05") == "label accuracy after filter, dropping 5 %"
    assert measure_name("filtered_own") == "label accuracy after filter, its own rule"
    assert measure_name("relabelled_hard") == "label accuracy after relabel, hard"


def caption_of(figure):
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def curves(axes):
    """Lines through points in the data, by their figures."""
    return [
        (line.get_xdata(), line.get_ydata())
        for line in axes.lines
        if line.get_linestyle() == "-"
        and line.get_transform() == axes.transData
        and len(line.get_xdata()) == 3
    ]


def test_curves_are_the_rows_of_the_sweep():
    panels = draw_strengths(make_sweep()).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["kNN", "logistic"]
    for axes, strengths in zip(panels, (KS, PENALTIES), strict=True):
        drawn = curves(axes)
        assert len(drawn) == len(LAYERS)
        for layer, (x, y) in zip(LAYERS, drawn, strict=True):
            np.testing.assert_array_equal(x, strengths)
            np.testing.assert_allclose(y, [gain_of(layer, s) for s in strengths])
    assert "AUROC" in panels[0].get_ylabel()


def test_without_truth_the_weak_log_loss_is_drawn():
    panels = draw_strengths(make_sweep(truth=False)).axes
    assert panels[0].get_ylabel() == "out-of-fold weak log-loss"
    np.testing.assert_allclose(curves(panels[0])[2][1], [0.5 - gain_of(6, k) for k in KS])


def test_the_heat_map_has_layers_upwards_and_strengths_to_the_right():
    figure = draw_layers(make_sweep(probes=("knn", "logreg", "topofilter")))
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[gain_of(a, k) for k in KS] for a in LAYERS])
    assert figure.axes[0].images[0].origin == "lower"
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["0", "3", "6"]
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["1e-4", "0.01", "1"]
    frame = figure.axes[0].patches[0]
    assert (frame.get_x(), frame.get_y()) == (1.5, 0.5)  # k 100, layer 3
    assert not figure.axes[1].patches


def test_a_penalty_of_zero_has_a_place():
    sweep = make_sweep()
    for row in sweep["rows"]:
        if row["l2"] == 1e-4:
            row["l2"] = row["strength"] = 0.0
    axes = draw_strengths(sweep).axes[1]
    assert axes.get_xscale() == "symlog"


def test_a_single_strength_and_layer_can_be_drawn(tmp_path):
    sweep = make_sweep(probes=("knn",))
    sweep["rows"] = [row for row in sweep["rows"] if row["k"] == 100 and row["layer"] == 3]
    written = write_figures(sweep, tmp_path)
    assert [path.name for path in written] == ["strengths.png", "layers.png"]
    assert all(path.stat().st_size > 5000 for path in written)


def test_probes_without_a_strength_have_no_figure(tmp_path):
    sweep = make_sweep()
    sweep["rows"] = [{**row, "probe": "mass-mean", "strength": None} for row in sweep["rows"]]
    assert write_figures(sweep, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_means_of_several_sweeps_have_no_choice():
    sweep = make_sweep() | {"choice": None}
    for figure in (draw_strengths(sweep), draw_layers(sweep)):
        assert not any(axes.patches for axes in figure.axes[:2])
        assert "choice" not in caption_of(figure)
