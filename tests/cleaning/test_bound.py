from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from probekit.cleaning import bound
from probekit.cleaning.bound import (
    allowed_in_sample,
    expected_reviews,
    failure,
    least_wrong,
    plan_sample,
    smallest_samples,
)

ALPHA = 0.05
FILES = 1000
# Violations of a bound that holds stay below this in all but one of 10,000 runs.
MOST = binom.ppf(0.9999, FILES, ALPHA)


def left_over(wrong, drawn, allowed):
    """Wrong labels (k,) that are left in k files (k, n), rows leaving from the last one on."""
    hits = np.cumsum(wrong & drawn, axis=1)
    return (wrong & ~drawn & (hits <= allowed)).sum(axis=1)


def samples(rng, files, n, m, weight=None):
    """Masks (files, n) of m rows each; without weights uniform."""
    keys = rng.random((files, n)) if weight is None else rng.random((files, n)) ** (1 / weight)
    drawn = np.zeros((files, n), bool)
    np.put_along_axis(drawn, np.argsort(-keys, axis=1)[:, :m], True, axis=1)
    return drawn


@pytest.mark.parametrize(("max_wrong", "allowed"), [(0, 0), (1, 0), (2, 1), (2, 3)])
def test_the_chance_is_that_of_all_samples_counted(max_wrong, allowed):
    n, m = 11, 5
    drawn = np.array([[i in rows for i in range(n)] for rows in combinations(range(n), m)])
    for errors in range(n + 1):
        for wrong in (np.arange(n) < errors, np.arange(n) >= n - errors):
            found = (left_over(wrong[None], drawn, allowed) > max_wrong).mean()
            exact = float(failure(n, m, max_wrong, allowed))
            # As many errors as the bound speaks of make it exact.
            if errors > max_wrong + allowed:
                assert found == pytest.approx(exact)
            assert found <= exact + 1e-12


def test_the_chance_is_scipys_distribution():
    n, m, max_wrong, allowed = 2000, 200, 100, 5
    pmf = hypergeom(n, max_wrong + 1 + allowed, m).pmf(np.arange(allowed + 1))
    assert failure(n, m, max_wrong, allowed) == pytest.approx(pmf.sum())


@pytest.mark.parametrize(("n", "max_wrong"), [(100, 1), (500, 5), (2000, 100), (2000, 1500)])
def test_as_many_errors_are_allowed_as_the_chance_admits(n, max_wrong):
    sizes = np.array([1, 10, n // 4, n // 2, n - 1, n])
    for m, s in zip(sizes, allowed_in_sample(n, sizes, max_wrong, ALPHA), strict=True):
        every = failure(n, m, max_wrong, np.arange(min(m, n - max_wrong - 1) + 1)) <= ALPHA
        assert s == every.sum() - 1
        assert np.all(every[: s + 1])


def test_smaller_samples_allow_less():
    sizes = smallest_samples(700, 35, ALPHA)
    s = np.arange(len(sizes))
    assert np.all(failure(700, sizes, 35, s) <= ALPHA)
    assert np.all(failure(700, sizes - 1, 35, s) > ALPHA)


@pytest.mark.parametrize(("n", "m"), [(100, 30), (2000, 50), (2000, 1990)])
def test_the_least_certifiable_error_is_the_least(n, m):
    least = least_wrong(n, m, ALPHA)
    assert failure(n, m, least, 0) <= ALPHA
    assert least == 0 or failure(n, m, least - 1, 0) > ALPHA


@pytest.mark.parametrize("share", [0.2, 0.35])
@pytest.mark.parametrize(("m", "max_wrong"), [(60, 50), (200, 50), (150, 25)])
def test_files_rarely_keep_more_wrong_labels(share, m, max_wrong):
    rng = np.random.default_rng(m)
    n = 500
    # Errors mostly late in the order, as a probe has them.
    wrong = rng.random((FILES, n)) < 2 * share * np.linspace(0, 1, n)
    (allowed,) = allowed_in_sample(n, m, max_wrong, ALPHA)
    drawn = samples(rng, FILES, n, m)
    assert (left_over(wrong, drawn, allowed) > max_wrong).sum() <= MOST
    # Controls: a quarter more errors than allowed, and a sample that has wrong rows half as often.
    assert (left_over(wrong, drawn, allowed * 5 // 4 + 2) > max_wrong).sum() > MOST
    biased = samples(rng, FILES, n, m, weight=np.where(wrong, 0.5, 1))
    assert (left_over(wrong, biased, allowed) > max_wrong).sum() > MOST


def reordered(wrong, drawn, allowed, doubt):
    """Wrong labels left if the order is chosen row by row: ``doubt(left, inside)`` (n,)."""
    inside = np.ones(len(wrong), bool)
    while (wrong & drawn & inside).sum() > allowed:
        rows = np.flatnonzero(inside)
        inside[rows[np.argmax(doubt(~inside)[rows])]] = False
    return (wrong & ~drawn & inside).sum()


def test_the_order_may_follow_the_rows_that_have_left_but_not_the_sample():
    rng = np.random.default_rng(1)
    n, m, max_wrong = 80, 24, 12
    (allowed,) = allowed_in_sample(n, m, max_wrong, ALPHA)
    groups = np.arange(n) % 8
    fair = cheating = 0
    files = 400
    for _ in range(files):
        wrong = rng.random(n) < rng.random(8)[groups]
        drawn = samples(rng, 1, n, m)[0]

        def of_groups(gone, wrong=wrong, drawn=drawn):
            # The share of wrong labels of each group among the rows that have left, drawn or not;
            # and, to be malicious, where errors turned out to be drawn.
            seen = np.bincount(groups[gone], minlength=8) + 2
            hits = np.bincount(groups[gone & wrong], weights=1.0 + drawn[gone & wrong], minlength=8)
            return ((hits + 1) / seen)[groups]

        def of_sample(gone, wrong=wrong, drawn=drawn):
            return np.where(wrong & drawn, 1.0, 0.5 * ~gone)

        fair += reordered(wrong, drawn, allowed, of_groups) > max_wrong
        cheating += reordered(wrong, drawn, allowed, of_sample) > max_wrong
    most = binom.ppf(0.9999, files, ALPHA)
    assert fair <= most
    assert cheating > most


def test_the_expected_cost_is_that_of_simulated_files():
    rng = np.random.default_rng(0)
    n, max_wrong = 1000, 50
    q = 0.6 * np.linspace(0, 1, n) ** 2
    sizes = smallest_samples(n, max_wrong, ALPHA)[[1, 5, 12]]
    allowed = allowed_in_sample(n, sizes, max_wrong, ALPHA)
    for m, s, expected in zip(sizes, allowed, expected_reviews(q, sizes, allowed), strict=True):
        wrong, drawn = rng.random((400, n)) < q, samples(rng, 400, n, m)
        inside = np.cumsum(wrong & drawn, axis=1) <= s
        # 400 files: a standard error is below 8 rows; the approximation is worth as much.
        assert (drawn | ~inside).sum(axis=1).mean() == pytest.approx(expected, abs=30)


def test_a_plan_costs_no_more_than_other_samples():
    q = np.sort(np.random.default_rng(0).beta(0.3, 2, 2000))
    plan = plan_sample([q], 100, ALPHA)
    assert plan.low < plan.expected < plan.high
    assert plan.expected < plan.by_chance
    assert failure(2000, plan.sample, 100, plan.allowed) <= ALPHA
    for sample in (60, 300, 900):
        other = plan_sample([q], 100, ALPHA, sample)
        assert other.sample == sample
        assert 2 * plan.expected + plan.high <= 2 * other.expected + other.high


def test_a_small_sample_is_a_lottery():
    # Of the errors that it allows, one or two decide when the review stops.
    q = np.sort(np.random.default_rng(0).beta(0.3, 2, 2000))
    sizes = smallest_samples(2000, 100, ALPHA)
    small, large = (plan_sample([q], 100, ALPHA, int(sizes[s])) for s in (0, 8))
    assert small.high / small.low > 1.5 * large.high / large.low


def test_guesses_that_differ_widen_the_range_and_are_averaged():
    q = np.sort(np.random.default_rng(0).beta(0.3, 2, 2000))
    few, many = (plan_sample([part], 100, ALPHA, 300) for part in (0.8 * q, np.minimum(1.5 * q, 1)))
    both = plan_sample([0.8 * q, np.minimum(1.5 * q, 1)], 100, ALPHA, 300)
    assert both.expected == pytest.approx((few.expected + many.expected) / 2, abs=1)
    assert few.high - few.low < both.high - both.low
    assert few.low <= both.low < both.high <= many.high


def test_the_examples_print_what_they_say():
    result = doctest.testmod(bound)
    assert result.attempted > 0
    assert result.failed == 0
