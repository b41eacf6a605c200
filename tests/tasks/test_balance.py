from __future__ import annotations

import numpy as np

from probekit.tasks.balance import balanced, draw


def test_every_class_keeps_as_many_rows_as_the_smallest_and_its_first_ones() -> None:
    labels = [0, 0, 1, 0, 2, 1, 0, 2, 2, 1]
    kept = balanced(labels, n_classes=3)
    assert kept == [0, 1, 2, 3, 4, 5, 7, 8, 9]  # of class 0 the fourth row is left out
    assert balanced([0, 0, 0], n_classes=2) == []


def test_a_draw_depends_on_key_seed_and_use_and_on_nothing_else() -> None:
    assert draw("a", seed=0, use="order") == draw("a", seed=0, use="order")
    others = [
        draw("b", seed=0, use="order"),
        draw("a", seed=1, use="order"),
        draw("a", seed=0, use="label"),
    ]
    assert len({draw("a", seed=0, use="order"), *others}) == 4


def test_draws_are_uniform() -> None:
    # The lowest bit decides labels: of 10,000, four standard errors are 200.
    draws = [draw(str(i), seed=3, use="label") for i in range(10_000)]
    assert abs(sum(d % 2 for d in draws) - 5000) < 200
    shares = np.histogram(np.array(draws) / 2**64, bins=10, range=(0, 1))[0]
    assert np.all(np.abs(shares - 1000) < 4 * 30)  # sqrt(10000 * .1 * .9) = 30


def test_a_lone_surrogate_is_a_key_too() -> None:
    assert draw("\ud800", seed=0, use="order") != draw("", seed=0, use="order")
