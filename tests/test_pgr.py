from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import DataError
from probekit.metrics import auroc, paired_bootstrap, pgr, pgr_undefined


def rightness(rng, n, *shares):
    return [rng.random(n) < share for share in shares]


def plain_bootstrap(columns, draws, seed, metric):
    """PGR and gain of every draw, one at a time, by row indices."""
    rng = np.random.default_rng(seed)
    n = len(columns[0])
    out = []
    for _ in range(draws):
        rows = rng.integers(0, n, n)
        w, s, c = (metric(column, rows) for column in columns)
        out.append(((s - w) / (c - w), s - w))
    return np.percentile(np.array(out), [2.5, 97.5], axis=0)


def test_pgr_is_not_clipped_and_undefined_without_a_gap():
    assert pgr(0.6, 0.7, 0.8) == pytest.approx(0.5)
    assert pgr(0.6, 0.9, 0.8) == pytest.approx(1.5)
    assert pgr(0.6, 0.5, 0.8) == pytest.approx(-0.5)
    assert np.isnan(pgr(0.8, 0.9, 0.8))
    assert np.isnan(pgr(0.9, 0.9, 0.8))
    assert "0.8000) is not above the weak supervisor (0.9000" in pgr_undefined(0.9, 0.8)
    assert "NaN" in pgr_undefined(float("nan"), 0.8)
    assert pgr_undefined(0.6, 0.8) is None


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    columns = rightness(rng, 800, 0.6, 0.7, 0.85)
    result = paired_bootstrap(*columns, seed=1)
    plain = plain_bootstrap(columns, 4000, 2, lambda column, rows: column[rows].mean())
    # Percentiles of 10,000 and 4,000 draws: standard error of each about 3 % of the interval.
    width = plain[1] - plain[0]
    assert abs(result.pgr_low - plain[0, 0]) < 0.1 * width[0]
    assert abs(result.pgr_high - plain[1, 0]) < 0.1 * width[0]
    assert abs(result.gain_low - plain[0, 1]) < 0.1 * width[1]
    assert abs(result.gain_high - plain[1, 1]) < 0.1 * width[1]
    assert result.pgr == pytest.approx(pgr(*(c.mean() for c in columns)))
    assert not result.unbounded
    assert result.reason is None


def test_the_pairing_matters():
    rng = np.random.default_rng(3)
    weak, ceiling = rightness(rng, 500, 0.6, 0.9)
    student = weak.copy()
    student[np.flatnonzero(~weak)[:20]] = True  # never worse than weak on any row
    paired = paired_bootstrap(weak, student, ceiling)
    shuffled = paired_bootstrap(weak, rng.permutation(student), ceiling)
    assert paired.gain == pytest.approx(shuffled.gain)
    assert paired.gain_low > 0 > shuffled.gain_low


def test_auroc_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 150)
    # Rounded: ties within and between the classes.
    columns = [np.round(rng.normal(size=150) + a * truth, 1) for a in (0.4, 1.2, 2.5)]
    result = paired_bootstrap(*columns, truth=truth, draws=4000, seed=0)
    plain = plain_bootstrap(columns, 800, 5, lambda column, rows: auroc(truth[rows], column[rows]))
    width = plain[1] - plain[0]
    # 800 draws give their percentiles within about 6 % of the interval.
    assert (np.abs([result.pgr_low, result.gain_low] - plain[0]) < 0.2 * width).all()
    assert (np.abs([result.pgr_high, result.gain_high] - plain[1]) < 0.2 * width).all()
    expected = pgr(*(auroc(truth, c) for c in columns))
    assert result.pgr == pytest.approx(expected, abs=1e-12)


def test_few_draws_without_a_gap_leave_the_interval_bounded():
    rng = np.random.default_rng(5)
    weak, student, ceiling = rightness(rng, 250, 0.70, 0.74, 0.78)
    result = paired_bootstrap(weak, student, ceiling)
    assert 0 < result.no_gap <= 0.025
    assert not result.unbounded
    assert np.isfinite([result.pgr_low, result.pgr_high]).all()


def test_without_a_gap_the_interval_is_unbounded_and_the_gain_is_reported():
    rng = np.random.default_rng(1)
    weak, student, ceiling = rightness(rng, 300, 0.75, 0.9, 0.76)
    result = paired_bootstrap(weak, student, ceiling)
    assert result.unbounded
    assert (result.pgr_low, result.pgr_high) == (-np.inf, np.inf)
    assert result.no_gap > 0.025
    assert "draws have no gap" in result.reason or "not above" in result.reason
    assert result.gain_low < result.gain < result.gain_high
    assert np.isfinite([result.gain_low, result.gain_high]).all()


def test_seed_decides():
    columns = rightness(np.random.default_rng(0), 100, 0.5, 0.7, 0.9)
    assert paired_bootstrap(*columns, seed=1) == paired_bootstrap(*columns, seed=1)
    assert paired_bootstrap(*columns, seed=1) != paired_bootstrap(*columns, seed=2)


def test_nothing_to_draw_from():
    with pytest.raises(DataError, match="needs rows"):
        paired_bootstrap([], [], [])
    with pytest.raises(DataError, match="not NaN"):
        paired_bootstrap([1.0, np.nan], [1, 0], [1, 1])
