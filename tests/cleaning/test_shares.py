from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.stats import beta

from probekit.cleaning import shares as module
from probekit.cleaning.shares import Share, ask_order, asking_rates, chances, estimate_shares
from probekit.errors import DataError


@pytest.fixture
def population():
    """Suspicion and wrong labels (1,000,) of two classes, the suspicion off in the second."""
    rng = np.random.default_rng(0)
    q = rng.beta(0.5, 2, 1000)
    weak = rng.integers(0, 2, 1000)
    wrong = rng.random(1000) < np.where(weak == 0, q, q / 4)
    return q, weak, wrong


def draw(q, m, draws, seed=0, favour=None):
    """Rows and inclusion probabilities (draws, m); ``favour`` (n,) makes the draw a biased one."""
    rates, rng = asking_rates(q), np.random.default_rng(seed)
    asked, chance = [], []
    for _ in range(draws):
        u = rng.random(len(q))
        order, key = ask_order(rates if favour is None else rates * favour, u)
        asked.append(order[:m])
        chance.append(chances(rates[order[:m]], key[m]))
    return np.array(asked), np.array(chance)


def covered(found, share):
    return float(((found.low <= share) & (share <= found.high)).mean())


def test_rates_sum_to_one_and_no_row_is_asked_about_half_as_often_as_by_chance(population):
    rates = asking_rates(population[0])
    assert rates.sum() == pytest.approx(1)
    assert rates.min() >= 0.5 / 1000
    assert np.array_equal(np.argsort(rates, kind="stable"), np.argsort(population[0]))
    # Any other scale of the suspicion gives the same.
    assert np.allclose(asking_rates(np.exp(population[0])), rates)


def test_weighted_totals_of_every_beginning_are_unbiased(population):
    q, _, wrong = population
    for m in (5, 40):
        asked, chance = draw(q, m, 4000)
        totals = (wrong[asked] / chance).sum(axis=1)
        # Three standard errors of the mean of 4,000 draws.
        assert totals.mean() == pytest.approx(wrong.sum(), abs=3 * totals.std() / 4000**0.5)
        # And the number of rows, which the sample does not fix.
        assert (1 / chance).sum(axis=1).mean() == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("m", [20, 60, 120])
def test_intervals_hold_and_a_biased_draw_is_caught(population, m):
    q, weak, wrong = population
    asked, chance = draw(q, m, 1000)
    found = estimate_shares(wrong[asked], asked, chance, q, strata=weak)
    # 1,000 draws: two standard errors of a coverage of 0.95 are 0.014.
    assert covered(found, wrong.mean()) > 0.936
    assert found.value.mean() == pytest.approx(wrong.mean(), abs=0.01)
    one = estimate_shares(wrong[asked], asked, chance, q, weak == 0, strata=weak)
    assert covered(one, wrong[weak == 0].mean()) > 0.936
    # The control: wrong labels come up three times as often as their chances say.
    asked, chance = draw(q, m, 1000, favour=np.where(wrong, 3.0, 1.0))
    biased = estimate_shares(wrong[asked], asked, chance, q, strata=weak)
    assert covered(biased, wrong.mean()) < 0.85


def test_a_good_suspicion_makes_the_interval_narrower_and_a_bad_one_does_no_harm(population):
    q, _, wrong = population
    by = {}
    for name, suspicion in (("good", q), ("bad", np.random.default_rng(1).random(1000))):
        asked, chance = draw(suspicion, 100, 400)
        by[name] = estimate_shares(wrong[asked], asked, chance, suspicion)
        assert covered(by[name], wrong.mean()) > 0.92
    chance_width = 2 * 1.96 * (wrong.mean() * (1 - wrong.mean()) / 100) ** 0.5
    width = {name: float((found.high - found.low).mean()) for name, found in by.items()}
    assert width["good"] < 0.9 * chance_width < width["bad"] < 1.25 * chance_width


def test_a_stratum_where_the_suspicion_is_off_is_learnt(population):
    q, weak, _ = population
    wrong = np.random.default_rng(2).random(1000) < np.where(weak == 0, 0.5, 0.02)
    asked, chance = draw(q, 100, 400)
    plain = estimate_shares(wrong[asked], asked, chance, q)
    learnt = estimate_shares(wrong[asked], asked, chance, q, strata=weak)
    assert (learnt.high - learnt.low).mean() < 0.9 * (plain.high - plain.low).mean()
    assert covered(learnt, wrong.mean()) > 0.92


def test_few_answers_of_equal_weight_have_clopper_and_pearsons_interval():
    """At the size whose variance p (1 − p) / size is the one estimated; here it is uniform."""
    wrong = np.zeros(500)
    wrong[:100] = 1
    asked, q = np.arange(80, 120), np.zeros(500)
    found = estimate_shares(wrong[asked], asked, np.full(40, 40 / 500), q)
    assert found.value == pytest.approx(0.5)
    # Finite population; t(39) in place of the normal quantile, as Korn and Graubard have it.
    low, high = beta.ppf(0.025, 20, 21), beta.ppf(0.975, 21, 20)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_all_rows_asked_about_leave_no_doubt(population):
    q, weak, wrong = population
    every = np.arange(1000)
    found = estimate_shares(wrong, every, np.ones(1000), q, weak == 1)
    assert found.low == found.value == found.high == pytest.approx(wrong[weak == 1].mean())


def test_a_share_may_be_nothing_until_a_wrong_label_is_seen(population):
    q, _, _ = population
    asked, chance = draw(q, 60, 1)
    none = estimate_shares(np.zeros((1, 60)), asked, chance, q)
    assert none.low == 0
    assert 0.01 < none.high[0] < 0.12
    every = estimate_shares(np.ones((1, 60)), asked, chance, q)
    assert every.high == 1
    assert 0.88 < every.low[0] < 0.99
    within = np.ones(1000, bool)
    within[asked] = False
    unknown = estimate_shares(np.ones((1, 60)), asked, chance, q, within)
    assert (unknown.low, unknown.high, unknown.answers) == (0, 1, 0)
    assert np.isnan(unknown.value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="do not fit"):
        estimate_shares([1, 0], [0, 1], [0.5], np.zeros(4))
    with pytest.raises(DataError, match=r"in \(0, 1\]"):
        estimate_shares([1, 0], [0, 1], [0.5, 0], np.zeros(4))


def test_a_share_prints_in_percent():
    assert str(Share(0.1234, 0.081, 0.179, 40, 500)) == "12.3 % [8.1, 17.9]"
    assert str(Share(float("nan"), 0, 1, 0, 500)) == "no answer yet"


def test_the_example_prints_what_it_says():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
