"""Wrong labels of the benchmarks: as many as said, where they are said to be."""

from types import SimpleNamespace

import numpy as np
import pytest
from label_noise import BY_CLASS, KINDS, RULED, SYMMETRIC, TRAINED, weak_labels

N = 6000
WORDS = ("lamp", "river", "stone", "cloud")


@pytest.fixture(scope="module")
def task():
    """Texts, truth, and states of which layers 1 and 3 tell the classes apart in part."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, N)
    states = rng.normal(size=(N, 64)) + 0.175 * truth[:, None]
    drawn = rng.random((N, len(WORDS))) < np.array([0.3, 0.5, 0.5, 0.9])
    drawn[:, 1] = rng.random(N) < 0.3 + 0.4 * truth  # a word that says something of the class
    texts = [" ".join(w for w, there in zip(WORDS, row, strict=True) if there) for row in drawn]
    return texts, truth, SimpleNamespace(layer=lambda _: states)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_distributions_drawn_from_the_seed(task, kind):
    first, again, other = (weak_labels(kind, *task, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.weak, again.weak)
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)
    assert len(first.rows) == N - TRAINED
    np.testing.assert_allclose(first.weak.sum(axis=1), 1)
    wrong = first.hard != task[1][first.rows]
    assert 0.05 < wrong.mean() < 0.45


def shares(task, kind, seed=0):
    labels = weak_labels(kind, *task, seed)
    truth = task[1][labels.rows]
    wrong = labels.hard != truth
    return [wrong[truth == c].mean() for c in range(2)], labels, truth, wrong


# Standard error of a share of 2,850 rows: below 0.01, so 0.04 is over four of them.
def test_planted_shares_are_those_of_the_kind(task):
    assert shares(task, "symmetric")[0] == pytest.approx([SYMMETRIC, SYMMETRIC], abs=0.04)
    assert shares(task, "class")[0] == pytest.approx(list(BY_CLASS), abs=0.04)


def test_unsure_errors_are_where_the_weaker_model_is_unsure(task):
    # The classes' states differ by 0.175 in each of 64 columns: unsure is a sum near 5.6.
    score = np.abs(task[2].layer(1).sum(axis=1) - 5.6)
    share = {}
    for kind in ("unsure", "symmetric"):
        _, labels, _, wrong = shares(task, kind)
        near = score[labels.rows] < np.median(score[labels.rows])
        share[kind] = wrong[near].sum() / wrong.sum()
    assert share["unsure"] > 0.65  # 7/8 for a weaker model that knows the sum
    assert share["symmetric"] == pytest.approx(0.5, abs=0.06)  # over four standard errors


def test_a_rule_errs_in_its_rows_alone(task):
    _, labels, truth, wrong = shares(task, "rule", seed=0)
    ruled = np.array(["lamp" in task[0][i] for i in labels.rows])  # in nearest to 30 % of the texts
    assert np.array_equal(wrong, ruled & (truth == 1))
    _, labels, truth, wrong = shares(task, "rule", seed=1)
    length = np.array([len(task[0][i]) for i in labels.rows])
    assert length[wrong].min() > np.quantile(length, 0.9 - RULED)
    assert set(truth[wrong]) == {0}


def test_more_than_two_classes(task):
    texts, _, weaker = task
    truth = np.random.default_rng(1).integers(0, 3, N)
    for kind in ("symmetric", "class", "rule"):
        labels = weak_labels(kind, texts, truth, weaker, 0)
        assert labels.weak.shape == (N - TRAINED, 3)
        wrong = labels.hard != truth[labels.rows]
        assert wrong.any()
        if kind == "class":
            rates = [wrong[truth[labels.rows] == c].mean() for c in range(3)]
            assert rates == pytest.approx([0.10, 0.35, 0.10], abs=0.05)


def test_a_supervisor_that_cannot_tell_the_classes_is_refused(task):
    texts, truth, _ = task
    nothing = SimpleNamespace(layer=lambda _: np.zeros((N, 2)))
    with pytest.raises(SystemExit, match="no supervisor tells the classes apart"):
        weak_labels("model", texts, truth, nothing, 0)
