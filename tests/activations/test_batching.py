"""Windows, batches and padding: every row once, within the budget, always the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from probekit.activations import batching
from probekit.activations.batching import (
    Batch,
    Encoded,
    cut_batches,
    default_batch_tokens,
    pad,
    windows,
)
from probekit.data import Rows
from probekit.errors import UsageError


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60, 500)


@pytest.mark.parametrize("budget", [1, 59, 60, 700, 10**6])
def test_every_row_is_in_one_batch_within_the_budget(lengths: np.ndarray, budget: int) -> None:
    batches = cut_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= budget or len(batch) == 1
    for batch, after in itertools.pairwise(batches):
        assert lengths[after[0]] <= lengths[batch[-1]]


def cost(batches: list[np.ndarray], lengths: np.ndarray, overhead: int) -> int:
    return sum(len(b) * int(lengths[b].max()) + overhead for b in batches)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_between_lengths_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice(rng.integers(1, 40, 7), 14)
    budget, overhead = 256, 256 // batching.OVERHEAD_SHARE
    found = cost(cut_batches(lengths, budget), lengths, overhead)
    order = np.argsort(-lengths, kind="stable")
    steps = np.flatnonzero(np.diff(lengths[order])) + 1
    # All ways to part seven lengths, each run cut into as few batches as the budget allows.
    others = []
    for count in range(len(steps) + 1):
        for chosen in itertools.combinations(steps.tolist(), count):
            batches = []
            for run in np.split(order, chosen):
                batches += np.array_split(run, -(-len(run) // (budget // lengths[run[0]])))
            others.append(cost(batches, lengths, overhead))
    assert found == min(others) < max(others)


def test_longest_first_and_equal_ones_in_their_order() -> None:
    order = np.concatenate(cut_batches(np.array([2, 5, 2, 5, 3]), 1000))
    assert order.tolist() == [1, 3, 4, 0, 2]


def test_sorted_batches_hold_little_padding(lengths: np.ndarray) -> None:
    def padded(batches: list[np.ndarray]) -> int:
        return sum(len(b) * int(lengths[b].max()) for b in batches)

    assert padded(cut_batches(lengths, 700)) < 1.02 * lengths.sum()
    unsorted = [np.arange(500)[i : i + 20] for i in range(0, 500, 20)]
    assert padded(unsorted) > 1.5 * lengths.sum()  # control


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one token, not 0"):
        cut_batches(np.array([1]), 0)


def test_pieces_of_a_batch_are_its_rows() -> None:
    batch = Batch(np.array([9, 4, 7]), np.array([2, 0, 1]), np.array([6, 5, 5]))
    assert batch.padded_tokens == 18
    pieces = batch.split(cut_batches(batch.lengths, 9))
    assert [p.rows.tolist() for p in pieces] == [[9], [4], [7]]
    assert [p.positions.tolist() for p in pieces] == [[2], [0], [1]]


def sizes(rows: Rows) -> list[int]:
    found = []
    expected = 0
    for start, contents in windows(rows):
        assert start == expected
        assert contents == rows.contents(start, start + len(contents))
        expected = start + len(contents)
        found.append(len(contents))
    assert expected == len(rows)
    return found


def test_windows_hold_every_row_once_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "FIRST_ROWS", 10)
    monkeypatch.setattr(batching, "WINDOW_ROWS", 40)
    monkeypatch.setattr(batching, "WINDOW_CHARACTERS", 1000)
    assert sizes(Rows({"text": ["short"] * 95})) == [10, 40, 40, 5]
    assert sizes(Rows({"text": ["x" * 300] * 7})) == [3, 3, 1]
    assert sizes(Rows({"text": ["x" * 5000, "a", "y" * 2000]})) == [1, 1, 1]
    pairs = Rows({"text": ["x" * 300] * 4, "text_pair": ["y" * 300] * 4})
    assert sizes(pairs) == [1, 1, 1, 1]
    message = [{"role": "user", "content": "x" * 450}]
    assert sizes(Rows({"messages": [message] * 5})) == [2, 2, 1]


def encoded() -> Encoded:
    return Encoded(
        flat=np.array([1, 2, 3, 4, 5, 6], np.int32),
        lengths=np.array([3, 1, 2]),
        truncated=np.zeros(3, bool),
        types=np.array([0, 0, 1, 0, 0, 1], np.int32),
    )


def test_padding_on_the_right() -> None:
    places = np.array([0, 2, 1])
    ids, mask, types = pad(encoded(), places, pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [5, 6, 9], [4, 9, 9]]
    assert mask is not None
    assert mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert types is not None
    assert types.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_no_mask_where_nothing_is_padded() -> None:
    ids, mask, _ = pad(encoded(), np.array([2]), pad_id=9)
    assert ids.tolist() == [[5, 6]]
    assert mask is None


def test_default_budgets() -> None:
    assert default_batch_tokens("cpu") < default_batch_tokens("cuda")
