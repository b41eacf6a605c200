from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import UsageError
from probekit.groups import duplicate_groups, joined, row_digests


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
