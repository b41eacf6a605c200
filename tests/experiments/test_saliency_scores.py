"""Five bars as figures: against hand-computed values and a second bootstrap."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from probekit.experiments.saliency_scores import (
    COLUMNS,
    Judged,
    combine,
    curve,
    drawn_means,
    emerges,
    gap_closed,
)

PRINT = "00000000000000ab"


def judged(seed: int, accuracy: dict[str, float], *, n: int = 200, rows: str = PRINT) -> Judged:
    """Rightness with these accuracies exactly, the columns correlated as models on one task are."""
    rng = np.random.default_rng(seed)
    ease = rng.random(n)
    columns = []
    for name in COLUMNS:
        many = round(accuracy.get(name, accuracy["probe_truth"]) * n)
        easiest = np.argsort(ease + 0.1 * rng.random(n))[:many]
        columns.append(np.isin(np.arange(n), easiest))
    return Judged(np.column_stack(columns).astype(float), rows)


FIRST = {
    "probe_weak": 0.60,
    "probe_truth": 0.70,
    "finetune_weak": 0.72,
    "finetune_weak_probe_truth": 0.76,
    "finetune_truth": 0.82,
    "finetune_weak_probe_truth@chosen": 0.79,
}
SECOND = {**FIRST, "probe_truth": 0.74, "finetune_weak_probe_truth": 0.77, "finetune_truth": 0.80}


def bar(found: dict[str, Any], key: str) -> dict[str, Any]:
    return next(each for each in found["bars"] if each["key"] == key)


class TestGapClosed:
    def test_by_hand(self) -> None:
        """The published means, 72, 78 and 82 %: 6 of 10 points."""
        found = gap_closed([0.72, 0.78, 0.82], np.tile([0.72, 0.78, 0.82], (100, 1)))
        assert found["value"] == pytest.approx(0.6)
        assert found["low"] == pytest.approx(0.6)
        assert found["reason"] is None

    def test_it_is_not_clipped(self) -> None:
        drawn = np.tile([0.7, 0.9, 0.8], (100, 1))
        assert gap_closed([0.7, 0.9, 0.8], drawn)["value"] == pytest.approx(2.0)
        assert gap_closed([0.7, 0.6, 0.8], drawn)["value"] == pytest.approx(-1.0)

    def test_without_a_gap(self) -> None:
        found = gap_closed([0.8, 0.9, 0.8], np.tile([0.8, 0.9, 0.8], (100, 1)))
        assert math.isnan(found["value"])
        assert "not above the linear probe" in found["reason"]

    @pytest.mark.parametrize(("without", "unbounded"), [(25, False), (26, True)])
    def test_more_than_a_fortieth_of_draws_without_a_gap(
        self, without: int, unbounded: bool
    ) -> None:
        drawn = np.tile([0.7, 0.75, 0.8], (1000, 1))
        drawn[:without, 2] = 0.6
        found = gap_closed([0.7, 0.75, 0.8], drawn)
        assert found["unbounded"] is unbounded
        assert math.isinf(found["high"]) is unbounded
        assert (found["reason"] is not None) is unbounded


class TestDraws:
    def test_the_same_rows_are_drawn_alike(self) -> None:
        values = np.random.default_rng(0).random((50, 2))
        both = drawn_means(values, PRINT, draws=200)
        alone = drawn_means(values[:, :1], PRINT, draws=200)
        # But for the order of additions.
        assert np.allclose(both[:, 0], alone[:, 0], rtol=1e-12)
        assert not np.allclose(both, drawn_means(values, "00000000000000ac", draws=200))

    def test_in_chunks_as_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(0).random((50, 2))
        whole = drawn_means(values, PRINT, draws=200)
        monkeypatch.setattr("probekit.experiments.saliency_scores.CHUNK_NUMBERS", 50 * 7)
        assert np.allclose(whole, drawn_means(values, PRINT, draws=200))

    def test_spread_of_a_mean(self) -> None:
        """Standard deviation √(p (1 − p) / n); 10,000 draws know it to 1 %, so 4 % is ample."""
        values = np.array([[1.0]] * 30 + [[0.0]] * 70)
        found = drawn_means(values, PRINT)
        assert found.mean() == pytest.approx(0.3, abs=0.002)
        assert found.std() == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.04)


class TestCombine:
    def test_one_task_and_seed(self) -> None:
        found = combine({"a": [judged(0, FIRST)]})
        assert found["over"] is None
        assert bar(found, "probe_weak")["mean"] == pytest.approx(0.6)
        assert bar(found, "probe_weak")["sem"] is None
        assert bar(found, "finetune_weak")["chosen"] is None
        assert found["gap_closed"]["value"] == pytest.approx(0.06 / 0.12)
        assert found["gap_closed_chosen"]["value"] == pytest.approx(0.09 / 0.12)

    def test_seeds(self) -> None:
        found = combine({"a": [judged(0, FIRST), judged(1, SECOND)]})
        assert found["over"] == "seeds"
        truth = bar(found, "probe_truth")
        assert truth["mean"] == pytest.approx(0.72)
        assert truth["values"] == pytest.approx([0.70, 0.74])
        assert truth["sem"] == pytest.approx(statistics.stdev([0.70, 0.74]) / math.sqrt(2))
        # Of the mean bars, not the mean of the single ones: (0.765 - 0.72) / (0.81 - 0.72).
        assert found["gap_closed"]["value"] == pytest.approx(0.5)
        assert found["gap_closed"]["values"] == pytest.approx([0.5, 0.5])
        assert found["gap_closed"]["sem"] == pytest.approx(0, abs=1e-12)

    def test_tasks_weigh_alike_however_many_seeds_they_have(self) -> None:
        found = combine({"a": [judged(0, FIRST), judged(1, FIRST)], "b": [judged(2, SECOND)]})
        assert found["over"] == "tasks"
        truth = bar(found, "probe_truth")
        assert truth["mean"] == pytest.approx((0.70 + 0.74) / 2)
        assert truth["values"] == pytest.approx([0.70, 0.74])
        assert truth["sem"] == pytest.approx(0.02)

    def test_a_task_without_a_gap_has_no_value_of_its_own(self) -> None:
        worse = {**FIRST, "finetune_truth": 0.65}
        found = combine({"a": [judged(0, FIRST)], "b": [judged(1, worse)]})
        assert found["gap_closed"]["values"] == [pytest.approx(0.5), None]
        assert found["gap_closed"]["sem"] is None

    def test_intervals_against_a_second_bootstrap(self) -> None:
        """Rows drawn one draw at a time with another generator; ends of 95 % within a few rows."""
        given = judged(3, FIRST, n=300)
        found = combine({"a": [given]})
        rng = np.random.default_rng(99)
        drawn = np.array(
            [given.right[rng.integers(300, size=300)].mean(axis=0) for _ in range(4000)]
        )
        places = {name: i for i, name in enumerate(COLUMNS)}
        low, high = np.quantile(drawn[:, places["probe_weak"]], [0.025, 0.975])
        assert bar(found, "probe_weak")["low"] == pytest.approx(low, abs=0.007)
        assert bar(found, "probe_weak")["high"] == pytest.approx(high, abs=0.007)
        first, second = "finetune_weak_probe_truth", "probe_truth"
        paired = drawn[:, places[first]] - drawn[:, places[second]]
        each = next(c for c in found["compared"] if (c["first"], c["second"]) == (first, second))
        low, high = np.quantile(paired, [0.025, 0.975])
        assert each["low"] == pytest.approx(low, abs=0.007)
        assert each["high"] == pytest.approx(high, abs=0.007)
        # Control: unpaired draws would give a far wider interval.
        unpaired = drawn[:, places[first]] - drawn[::-1, places[second]]
        wide = np.subtract(*np.quantile(unpaired, [0.975, 0.025]))
        assert each["high"] - each["low"] < 0.8 * wide
        share = paired / (drawn[:, places["finetune_truth"]] - drawn[:, places[second]])
        low, high = np.quantile(share, [0.025, 0.975])
        # A ratio of few rows: its ends are known to about a tenth.
        assert found["gap_closed"]["low"] == pytest.approx(low, abs=0.1)
        assert found["gap_closed"]["high"] == pytest.approx(high, abs=0.1)

    def test_seeds_on_the_same_rows_are_no_independent_rows(self) -> None:
        """Two identical seeds on one test set know no more than one; on two test sets they do."""
        one = judged(0, FIRST)
        other = Judged(one.right, "00000000000000ff")
        widths = [
            bar(found, "probe_weak")["high"] - bar(found, "probe_weak")["low"]
            for found in (
                combine({"a": [one]}),
                combine({"a": [one, one]}),
                combine({"a": [one, other]}),
            )
        ]
        assert widths[0] == pytest.approx(widths[1])
        # Half the variance, ends in steps of half a row.
        assert widths[2] == pytest.approx(widths[0] / math.sqrt(2), rel=0.1)


class TestLayers:
    def test_emerges(self) -> None:
        # 90 % of the way from 0.5 to 0.9 is 0.86.
        assert emerges([0, 2, 4, 6], [0.5, 0.85, 0.87, 0.9], 0.5) == 4
        assert emerges([0, 2], [0.9, 0.9], 0.5) == 0
        assert emerges([0, 2], [0.4, 0.5], 0.5) is None

    def test_curve(self) -> None:
        found = curve([0, 1], [[0.5, 0.7], [0.6, 0.9]], 0.5)
        assert found["mean"] == pytest.approx([0.55, 0.8])
        assert found["sem"] == pytest.approx([0.05, 0.1])
        assert found["emerges"] == 1
        assert curve([0], [[0.7]], 0.5)["sem"] == [None]
