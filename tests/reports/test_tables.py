"""One table as text and Markdown, and numbers in cells."""

from __future__ import annotations

import pytest

from probekit.reports import Table
from probekit.reports.tables import (
    difference,
    finite,
    interval,
    number,
    percent,
    share,
    share_of,
)


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


def test_without_a_rule_the_notes_follow_at_once() -> None:
    table = Table(("name", "n"), (("a", "1"), ("longer", "1,000")), ("A note.",))
    assert table.text(rule=False).splitlines() == [
        "name        n",
        "a           1",
        "longer  1,000",
        "A note.",
    ]


def test_a_cell_is_one_line_that_steers_no_terminal() -> None:
    table = Table(("name", "n"), (("a\nb\tc\x1b[2J", "1"),))
    assert table.text(rule=False).splitlines()[1] == "a b c\ufffd[2J  1"


def test_numbers_are_written() -> None:
    assert percent(0.12345) == "12.3"
    assert share(0.12345) == "12.3 %"
    assert share_of(1, 3) == "33.3 %"
    assert number(0.5) == "0.5000"
    assert difference(0.02, -0.005, 0.045) == "+2.0 [-0.5 +4.5]"
    assert interval(0.5, -0.125, 1.004) == "0.50 [-0.12 1.00]"
    for write in (percent, share, number):
        assert write(None) == write(float("nan")) == "-"
    assert share_of(0, 0) == "-"
    nested = {"a": [1.5, float("inf")], "b": {"c": (float("nan"), "x")}}
    assert finite(nested) == {"a": [1.5, None], "b": {"c": [None, "x"]}}
