"""Work and memory grow with the rows, not faster: counted, not timed."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel, AutoTokenizer

from probekit.activations import batching, create
from probekit.activations.batching import Batch, cut_batches, pad
from probekit.activations.encoding import Encoder
from probekit.activations.extraction import prepare, run
from probekit.activations.forward import Window, read_windows
from probekit.activations.job import Request
from probekit.data import Rows

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]
BUDGET = 512


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows at sizes that a test can afford."""
    monkeypatch.setattr(batching, "FIRST_ROWS", 16)
    monkeypatch.setattr(batching, "WINDOW_ROWS", 64)
    monkeypatch.setattr(batching, "WINDOW_CHARACTERS", 1 << 15)


class Words:
    """A tokenizer that gives a token a word: lengths are exactly what a test says."""

    chat_template = None

    def num_special_tokens_to_add(self, **_: Any) -> int:
        return 0

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[1] * len(text.split()) for text in texts]}


def short(n: int) -> list[int]:
    return (np.arange(n) % 6 + 3).tolist()


def mixed(n: int) -> list[int]:
    """1 to 8,000 tokens, log-uniform."""
    return np.exp(np.random.default_rng(0).uniform(0, np.log(8000), n)).astype(int).tolist()


def plan(lengths: list[int]) -> Iterator[Window]:
    rows = Rows({"text": ["w " * length for length in lengths]})
    encoder = Encoder(Words(), kind="text", max_length=None)
    done = np.zeros(len(rows), bool)
    return read_windows(rows, encoder, done, batch_tokens=BUDGET, vocabulary=2)


def calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions."""
    count = 0

    def see(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def peak(work: Callable[[], object]) -> int:
    """Most bytes that Python and numpy held at once, beyond what was there before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most - before


def slope(few: int, many: int, values: tuple[int, int]) -> float:
    """1: linear, 2: quadratic."""
    return float(np.log(values[1] / values[0]) / np.log(many / few))


def padded(lengths: list[int]) -> int:
    return sum(
        pad(window.encoded, batch.positions, pad_id=0)[0].size
        for window in plan(lengths)
        for batch in window.batches
    )


@pytest.mark.parametrize(("lengths", "few", "many"), [(short, 400, 1600), (mixed, 100, 400)])
def test_planning_takes_as_many_steps_per_row_at_any_size(
    lengths: Callable[[int], list[int]], few: int, many: int
) -> None:
    counted = tuple(calls(lambda n=n: padded(lengths(n))) for n in (few, many))
    assert 0.7 < slope(few, many, (counted[0], counted[1])) < 1.1

    def quadratic(n: int) -> None:
        for i in range(n):
            for j in range(n):
                max(i, j)

    control = tuple(calls(lambda n=n: quadratic(n)) for n in (100, 400))
    assert slope(100, 400, (control[0], control[1])) > 1.8


def test_the_search_for_cuts_looks_back_at_a_bounded_number_of_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 8,000 different lengths in one window: what is looked at is vectorised, so calls do not show.
    looked: list[int] = []
    plain = np.arange

    def arange(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        looked.append(len(found))
        return found

    monkeypatch.setattr(batching.np, "arange", arange)
    totals = []
    for n in (1000, 4000):
        looked.clear()
        cut_batches(plain(1, n + 1), BUDGET)
        totals.append(sum(looked))
    assert slope(1000, 4000, (totals[0], totals[1])) < 1.15
    assert max(looked) <= batching.LOOKBACK


def test_mixed_lengths_are_hardly_padded_however_long_they_are() -> None:
    lengths = mixed(1000)
    # In small windows of 64 rows at that; rows in sequence would be padded fourfold.
    assert padded(lengths) < 1.1 * sum(lengths)
    assert 64 * sum(max(lengths[i : i + 64]) for i in range(0, 960, 64)) > 4 * sum(lengths[:960])


@pytest.mark.parametrize(("lengths", "few", "many"), [(short, 300, 1200), (mixed, 60, 240)])
def test_planning_holds_two_windows_and_no_more(
    lengths: Callable[[int], list[int]], few: int, many: int
) -> None:
    sizes = {n: lengths(n) for n in (few, many)}
    # Ids, hashes and texts are the rows' own, and made before.
    streams = {n: plan(found) for n, found in sizes.items()}
    small, large = (
        peak(lambda n=n: [None for _ in streams[n]])
        for n in sizes  # drops each window at once
    )
    assert large < 1.3 * small

    kept = {n: plan(found) for n, found in sizes.items()}
    control = [peak(lambda n=n: list(kept[n])) for n in sizes]
    assert control[1] > 2 * control[0]


def test_an_extraction_holds_the_same_memory_whatever_the_rows(
    tiny_model: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("bert")
    pair = (AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    monkeypatch.setattr(create, "STRINGS_AT_ONCE", 64)
    found = []

    def collect(_: Batch) -> None:
        gc.collect()  # what models leave in cycles waits for its turn

    gc.freeze()  # what is there already need not be looked through each time
    for n in (256, 1024):
        texts = [f"heron {i:05d} " * (1 + i % 7) for i in range(n)]
        path = tmp_path / f"{n}.h5"
        job = prepare(Request(texts, pair, path, layers="all", batch_tokens=BUDGET, flush_rows=64))
        if n == 256:
            run(job, show=False)  # imports
            path.unlink()
        found.append(peak(lambda job=job: run(job, show=False, on_batch=collect)))
    gc.unfreeze()
    per_row = (found[1] - found[0]) / (1024 - 256)
    # Of a row only its marks stay (tokens, cut, done: 6 bytes); its states are 512 bytes, and its
    # id and hash some hundred as Python strings.
    assert per_row < 64
