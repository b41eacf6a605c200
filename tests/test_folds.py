from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from probekit.cuts import by_id
from probekit.errors import UsageError
from probekit.folds import stratified_folds
from probekit.groups import duplicate_groups, ordered_groups


def class_table(fold, hard, n_folds=5):
    table = np.zeros((n_folds, hard.max() + 1), dtype=int)
    np.add.at(table, (fold, hard), 1)
    return table


def together(fold, groups):
    """Whether every group lies in one fold."""
    pairs = np.unique(np.column_stack([groups, fold]), axis=0)
    return len(pairs) == len(np.unique(groups))


@pytest.mark.parametrize(("n", "n_classes", "n_folds"), [(1000, 2, 5), (997, 7, 4), (23, 3, 5)])
def test_without_groups_sizes_and_class_counts_differ_by_at_most_one(n, n_classes, n_folds):
    rng = np.random.default_rng(n)
    hard = rng.choice(n_classes, n, p=rng.dirichlet(np.ones(n_classes)))
    fold = stratified_folds(hard, n_folds=n_folds, seed=3)
    assert np.ptp(np.bincount(fold, minlength=n_folds)) <= 1
    assert np.ptp(class_table(fold, hard, n_folds), axis=0).max() <= 1


def test_a_random_assignment_would_fail_that():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 2, 1000)
    assert np.ptp(class_table(rng.integers(0, 5, 1000), hard), axis=0).max() > 1


def test_groups_stay_together_and_single_rows_even_them_out():
    rng = np.random.default_rng(1)
    hard = rng.choice(3, 3000, p=[0.1, 0.3, 0.6])
    groups = np.arange(3000)
    copies = rng.integers(0, 3000, 900)  # groups of many sizes, of mixed classes
    groups[copies] = rng.integers(0, 60, 900) * 7
    fold = stratified_folds(hard, groups=groups, seed=0)
    assert together(fold, groups)
    assert np.ptp(class_table(fold, hard), axis=0).max() <= 2
    assert not together(stratified_folds(hard, seed=0), groups)


def test_no_worse_than_scikit_learn_where_groups_are_all_there_is():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 80, 2000)
    hard = (rng.random(2000) < rng.random(80)[groups]).astype(int)  # shares differ by group
    ours = stratified_folds(hard, groups=groups, seed=0)
    theirs = np.empty(2000, dtype=int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for number, (_, held) in enumerate(splitter.split(hard, hard, groups)):
        theirs[held] = number
    assert together(ours, groups)

    def spread(fold):
        return np.ptp(class_table(fold, hard), axis=0).max()

    assert spread(ours) <= 1.5 * spread(theirs)


def test_seed_decides():
    hard = np.arange(200) % 2
    first = stratified_folds(hard, seed=1)
    assert np.array_equal(first, stratified_folds(hard, seed=1))
    assert not np.array_equal(first, stratified_folds(hard, seed=2))
    assert first.dtype == np.int16


def test_group_names_mean_nothing():
    hard = np.arange(60) % 2
    groups = np.arange(60) // 3
    fold = stratified_folds(hard, groups=groups)
    assert np.array_equal(fold, stratified_folds(hard, groups=groups * 10 - 500))


def test_a_class_with_fewer_rows_than_folds_is_spread():
    hard = np.array([0] * 20 + [1] * 3)
    fold = stratified_folds(hard, n_folds=5)
    assert len(set(fold[20:])) == 3
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1


def test_few_rows_and_none():
    assert stratified_folds(np.array([0, 1]), n_folds=5).tolist() != [0, 0]
    assert len(stratified_folds(np.array([], dtype=int))) == 0


def test_one_group_is_one_fold():
    assert len(set(stratified_folds(np.array([0, 1, 0, 1]), groups=np.zeros(4)))) == 1


def test_wrong_arguments():
    with pytest.raises(UsageError, match="at least 2 folds, got 1"):
        stratified_folds(np.array([0, 1]), n_folds=1)
    with pytest.raises(UsageError, match="one entry for each of 2 rows"):
        stratified_folds(np.array([0, 1]), groups=np.zeros(3))
    with pytest.raises(UsageError, match="class numbers"):
        stratified_folds(np.array([-1, 1]))


@pytest.mark.parametrize("seed", range(20))
def test_folds_are_those_of_the_rows_in_any_order_and_whatever_the_classes_are_called(seed):
    rng = np.random.default_rng(seed)
    n, n_classes, n_folds = int(rng.integers(5, 300)), int(rng.integers(2, 6)), 2 + seed % 5
    hard = rng.choice(n_classes, n, p=rng.dirichlet(np.ones(n_classes)))
    texts = [f"text {i}" for i in rng.integers(0, 1 + n // (1 + seed % 3), n)]
    names = [f"row {i}" for i in range(n)]

    def folds(order, hard, seed=seed):
        groups = duplicate_groups(hashes=[texts[i] for i in order])
        if seed % 2:
            groups = ordered_groups(groups, by_id(names[i] for i in order))
        return stratified_folds(hard[order], n_folds=n_folds, groups=groups, seed=seed)

    as_given = folds(range(n), hard)
    assert together(as_given, duplicate_groups(hashes=texts))
    for _ in range(3):
        order = rng.permutation(n)
        assert np.array_equal(folds(order, hard), as_given[order])
    assert np.array_equal(folds(range(n), rng.permutation(n_classes)[hard]), as_given)
    # The control: groups numbered by place depend on it.
    order = rng.permutation(n)
    placed = stratified_folds(hard[order], n_folds=n_folds, seed=seed)
    assert n < 30 or not np.array_equal(
        placed, stratified_folds(hard, n_folds=n_folds, seed=seed)[order]
    )


def test_ordered_groups_go_by_the_smallest_of_their_rows():
    groups = ordered_groups([7, 3, 7, 9], np.array([5, 2, 1, 9]))
    assert groups.tolist() == [0, 1, 0, 2]
    assert ordered_groups([], np.array([])).tolist() == []
