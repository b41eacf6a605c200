from __future__ import annotations

import copy
from typing import Any

import pytest

from probekit.reports import Table, demo_table
from probekit.reports.tables import percent, points, recovered


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


def test_columns_are_aligned_text_to_the_left_and_numbers_to_the_right() -> None:
    table = Table(("name", "n"), (("a", "1"), ("longer", "1,000")), ("A note.",))
    assert table.text().splitlines() == [
        "name        n",
        "------  -----",
        "a           1",
        "longer  1,000",
        "",
        "A note.",
    ]


def test_markdown_has_the_same_cells_and_escapes_what_would_end_one() -> None:
    table = Table(("name", "n"), (("a|b", "1"),), ("One.", "Two."))
    assert table.markdown().splitlines() == [
        "| name | n |",
        "| --- | ---: |",
        "| a\\|b | 1 |",
        "",
        "One. Two.",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns cannot hold"):
        Table(("name", "n"), (("a", "1"), ("b",)))


def test_numbers_are_written_with_their_intervals() -> None:
    assert percent(0.12345) == "12.3"
    assert percent(None) == percent(float("nan")) == "-"
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
