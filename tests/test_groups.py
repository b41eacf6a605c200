from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from probekit.errors import UsageError
from probekit.groups import duplicate_groups, joined, row_digests, row_keys, shared


def test_copies_have_equal_numbers_or_equal_texts():
    X = np.array([[1, 2], [3, 4], [1, 2], [0.0, 1], [-0.0, 1]], dtype=np.float32)
    for states in (X, X[:, ::-1], X.astype(np.float64), X.astype(np.float16)):
        found = duplicate_groups(states)
        assert (found[:, None] == found).tolist() == [
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
        found = joined(*keys)
        assert np.array_equal(found[:, None] == found, number[:, None] == number)
        assert sorted(set(found.tolist())) == list(range(found.max() + 1))


def test_numbers_are_the_same_for_any_order_of_the_rows():
    rng = np.random.default_rng(0)
    texts = [f"{i:016x}" for i in rng.integers(0, 60, 80)]
    users = [rng.choice(["", *(f"user {i}" for i in range(70))]) for _ in range(80)]
    found = joined(texts, users)
    assert len(set(found.tolist())) < len(set(texts))
    for _ in range(5):
        order = rng.permutation(80)
        assert np.array_equal(
            joined([texts[i] for i in order], [users[i] for i in order]), found[order]
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
    X[82:84, 5] = np.nan  # which are no copies, whatever else they hold
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
