"""Prefetching asks for rows that are not in memory, for no others, and changes no number."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations import prefetch as module
from probekit.activations.store import ActivationStore


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Places and sizes that are asked for; also where the system could not be."""
    places: list[tuple[int, int]] = []

    def note(*arguments: int) -> None:
        places.append(arguments[1:3])

    monkeypatch.setattr(module, "CAN_ASK", True)
    for name, value in {"RWF_NOWAIT": 8, "POSIX_FADV_WILLNEED": 3, "posix_fadvise": note}.items():
        monkeypatch.setattr(os, name, value, raising=False)
    return places


def cached(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    def preadv(*_: Any) -> int:
        if error is not None:
            raise error
        return 1

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (BlockingIOError(errno.EAGAIN, "not in memory"), 1),
        (None, 0),
        (OSError(errno.EOPNOTSUPP, "cannot tell"), 0),
    ],
)
def test_only_rows_that_are_not_in_memory_are_asked_for(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
    error: OSError | None,
    times: int,
) -> None:
    rows = example()
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        chosen = np.array([70, 3, 3, 99])
        store.read(3, chosen)
        with monkeypatch.context() as patch:
            cached(patch, error)
            read = store.read(3, chosen)
        place = store.info(3).offset
        assert asked == times * [(place + row * 64, 64) for row in chosen.tolist()]
        np.testing.assert_array_equal(read, rows.states[3][chosen])


def test_the_next_batch_is_asked_for_before_this_one_is_given(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
) -> None:
    rows = example()
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        batches = store.batches(3, 10, shuffle=True)
        store.layer(3)
        _ = store.done, store.complete
        with monkeypatch.context() as patch:
            cached(patch, BlockingIOError(errno.EAGAIN, "not in memory"))
            first, _ = next(batches)
        second, _ = next(batches)
        place = store.info(3).offset
        wanted = [place + row * 64 for row in [*first.tolist(), *second.tolist()]]
        assert [at for at, _ in asked] == wanted


def test_a_system_that_cannot_be_asked_reads_all_the_same(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
) -> None:
    rows = example()
    monkeypatch.setattr(module, "CAN_ASK", False)
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        np.testing.assert_array_equal(store.read(0, [5, 1]), rows.states[0][[5, 1]])
    assert asked == []
