from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from probekit.cuts import by_id
from probekit.errors import UsageError
from probekit.groups import (
    duplicate_groups,
    joined,
    ordered_groups,
    row_digests,
    row_keys,
    shared,
    stratified_folds,
)


def test_copies_have_equal_numbers_or_equal_texts():
    X = np.array([[1, 2], [3, 4], [1, 2], [0.0, 1], [-0.0, 1]], dtype=np.float32)
    for states in (X, X[:, ::-1], X.astype(np.float64), X.astype(np.float16)):
        result = duplicate_groups(states)
        assert (result[:, None] == result).tolist() == [
            [i == j or {i, j} in ({0, 2}, {3, 4}) for j in range(5)] for i in range(5)
        ]
    assert duplicate_groups(hashes=["a", "a", "b", "c", "b"]).tolist() == [0, 0, 1, 2, 1]
    # 0 and 1 share a text, 0 and 2 states, 2 and 4 a text, 3 and 4 states: all are one.
    assert duplicate_groups(X, ["a", "a", "b", "c", "b"]).tolist() == [0] * 5
    assert duplicate_groups(X, ["e", "d", "c", "b", "a"]).tolist() == [1, 2, 1, 0, 0]


def test_what_is_not_known_is_shared_with_nobody():
    X = np.array([[np.nan], [np.nan], [1], [np.inf], [np.inf]])
    assert sorted(duplicate_groups(X).tolist()) == [0, 1, 2, 3, 4]
    assert duplicate_groups(hashes=["", "", "a", "a", ""]).tolist() == [1, 2, 0, 0, 3]
    assert duplicate_groups(groups=[None, None, "q", "", "q"]).tolist() == [1, 2, 0, 3, 0]


def test_keys_are_joined_as_by_hand():
    """Against joining pair after pair until nothing moves."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 30))
        keys = [[rng.choice(["", *"abcdefghij"]) for _ in range(n)] for _ in range(3)]
        number = np.arange(n)
        for _ in range(n):
            for key in keys:
                for i in range(n):
                    for j in range(i):
                        if key[i] and key[i] == key[j]:
                            number[[i, j]] = number[[i, j]].min()
        result = joined(*keys)
        assert np.array_equal(result[:, None] == result, number[:, None] == number)
        assert sorted(set(result.tolist())) == list(range(result.max() + 1))


def test_numbers_are_the_same_for_any_order_of_the_rows():
    rng = np.random.default_rng(0)
    texts = [f"{i:016x}" for i in rng.integers(0, 60, 80)]
    users = [rng.choice(["", *(f"user {i}" for i in range(70))]) for _ in range(80)]
    result = joined(texts, users)
    assert len(set(result.tolist())) < len(set(texts))
    for _ in range(5):
        order = rng.permutation(80)
        assert np.array_equal(
            joined([texts[i] for i in order], [users[i] for i in order]), result[order]
        )


def test_copies_across_blocks():
    X = np.arange(10_000, dtype=np.float64)[:, None] % 9_000
    groups = duplicate_groups(X)
    assert np.array_equal(groups[9_000:], groups[:1_000])
    assert len(set(groups)) == 9_000


def test_whole_numbers_are_states_too():
    assert row_digests(np.array([[1, 2], [1, 2]])) == [row_digests(np.array([[1, 2]]))[0]] * 2


def test_nothing_to_go_by_is_refused():
    with pytest.raises(UsageError, match="states, text hashes or groups"):
        duplicate_groups()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_only_rows_of_one_key_can_be_equal(dtype):
    """Digests are made of few rows only; a second way makes them of all."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 20)).astype(dtype)
    X[:40] = X[rng.integers(100, 300, 40)]  # copies
    X[40:60, 1:] = X[60:80, 1:]  # one number differs
    X[80], X[81] = 0.0, -0.0
    X[82:84, 5] = np.nan  # these are not copies, whatever their other numbers
    X[83] = X[82]
    known = [f"{i:016x}" for i in rng.permutation(300)]
    expected = joined(known, row_digests(X))
    assert np.array_equal(duplicate_groups(X, known), expected)
    assert expected[80] == expected[81]
    keys = row_keys(X)
    for i, j in combinations(range(300), 2):
        if np.array_equal(X[i], X[j]):
            assert keys[i] == keys[j]
    assert shared(keys).sum() < 150  # the control: keys tell most rows apart
    assert len(np.unique(keys)) > 200


def test_rows_without_columns_have_one_key():
    assert len(set(row_keys(np.zeros((3, 0))).tolist())) == 1


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
    for number, (_, held_out) in enumerate(splitter.split(hard, hard, groups)):
        theirs[held_out] = number
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
