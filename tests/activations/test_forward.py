"""Work ahead and behind: order, errors from the other thread, an early end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from probekit.activations.forward import Ahead, Behind


def test_ahead_gives_every_item_in_order_from_another_thread() -> None:
    threads: set[int] = set()

    def make() -> Iterator[int]:
        for i in range(50):
            threads.add(threading.get_ident())
            yield i

    assert list(Ahead(make())) == list(range(50))
    assert threads != {threading.get_ident()}


def test_ahead_makes_no_more_than_asked_in_advance() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    ahead = Ahead(make(), depth=1)
    assert next(iter(ahead)) == 0
    time.sleep(0.3)
    # One is taken, one waits in the queue, one is being handed over.
    assert len(made) <= 3
    ahead.close()
    assert len(made) <= 4


def test_an_error_of_the_source_reaches_the_reader_after_what_came_before() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    items = iter(Ahead(make()))
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_behind_works_in_order_and_close_waits() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.002)
        seen.append(item)

    behind = Behind(work)
    for i in range(30):
        behind.put(i)
    behind.close()
    assert seen == list(range(30))


def test_an_error_behind_reaches_the_giver_and_drops_the_rest() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        if item == 3:
            raise OSError("disk full")
        seen.append(item)

    behind = Behind(work)

    def give() -> None:
        for i in range(1000):
            behind.put(i)
            time.sleep(0.001)

    with pytest.raises(OSError, match="disk full"):
        give()
    with pytest.raises(OSError, match="disk full"):
        behind.close()
    assert seen == [0, 1, 2]
