from __future__ import annotations

import numpy as np
import pytest

from probekit.cli.checked import parse_grid, parse_numbers
from probekit.errors import UsageError


def test_a_grid_of_penalties_has_two_values_for_each_factor_of_ten():
    values = parse_grid("1e-4:1e1:log", name="--l2")
    np.testing.assert_allclose(values, np.logspace(-4, 1, 11), rtol=1e-11)
    assert 0.1 in values


def test_a_grid_of_whole_numbers_is_rounded_and_holds_each_once():
    values = parse_grid("1:500:log", name="--k", whole=True)
    assert (values[0], values[-1]) == (1, 500)
    assert all(isinstance(v, int) for v in values)
    assert list(values) == sorted(set(values))
    # 2.7 decades of 4: 12 points.
    assert values == tuple(sorted({round(500 ** (i / 11)) for i in range(12)}))


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        ("1,5,10", True, (1, 5, 10)),
        ("10, 5,5", True, (5, 10)),
        ("7", True, (7,)),
        ("0,0.5", False, (0.0, 0.5)),
        ("1:9:3:lin", True, (1, 5, 9)),
        ("1:100:3:log", True, (1, 10, 100)),
        ("4:4:log", True, (4,)),
        ("0:1:lin", False, tuple(round(0.1 * i, 12) for i in range(11))),
    ],
)
def test_lists_and_ranges(text, whole, expected):
    assert parse_grid(text, name="--k", whole=whole) == expected


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, ("--k", "empty")),
        (",", {}, ("empty",)),
        ("500:1:log", {}, ("empty range", "500", "exchange")),
        ("0:10:log", {}, ("log range begins above 0", "lin")),
        ("1:10", {}, ("LOW:HIGH",)),
        ("1:10:cubic", {}, ("not a range",)),
        ("1:10:5:6:log", {}, ("not a range",)),
        ("1:ten:log", {}, ("'ten'", "not a number")),
        ("1:10:0:log", {}, ("0 values",)),
        ("1:10:2000:log", {}, ("2000 values", "1000")),
        ("nan", {}, ("not a number",)),
        ("1.5", {"whole": True}, ("whole numbers",)),
        ("0,5", {"whole": True, "low": 1}, ("holds 0", "1 or more")),
        ("-1e-3,1", {}, ("holds -0.001", "0 or more")),
        ("0.2,1", {"high": 1, "open_ends": True}, ("holds 1", "0 to 1, both excluded")),
    ],
)
def test_what_cannot_be_a_grid_is_refused(text, options, words):
    with pytest.raises(UsageError) as refused:
        parse_grid(text, name="--k", **options)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", (0, 3, 6)),
        ("last", (6,)),
        ("-1", (6,)),
        ("6,0", (0, 6)),
        ("-3", (0,)),
        ("3,last", (3, 6)),
    ],
)
def test_layers_that_are_stored(text, expected):
    assert parse_numbers(text, [0, 3, 6], name="--layers", place="acts.h5") == expected


def test_a_range_of_layers():
    assert parse_numbers("2-4", range(7), name="--layers", place="acts.h5") == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5", ("acts.h5 holds no 5", "0, 3, 6")),
        ("0-3", ("holds no 1",)),
        ("-4", ("holds no -4",)),
        ("6-3", ("backwards",)),
        ("first", ("cannot be read", "2-5")),
        (" ,", ("empty",)),
    ],
)
def test_layers_that_are_not_stored_are_refused(text, words):
    with pytest.raises(UsageError) as refused:
        parse_numbers(text, [0, 3, 6], name="--layers", place="acts.h5")
    assert all(word in str(refused.value) for word in words), refused.value


def test_ends_too_far_apart_for_a_quotient() -> None:
    """1 / 1e-320 is inf, whose logarithm counts no values."""
    assert len(parse_grid("1e-320:1:log", name="--l2")) == 641
