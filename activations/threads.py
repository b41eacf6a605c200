"""Two helpers that overlap work: make the next item ahead, store the last one behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Ahead", "Behind"]

T = TypeVar("T")

POLL_SECONDS = 0.1
_END: Any = object()


class Ahead(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``depth`` finished ones ahead of the reader.

    What the source raises is raised at the reader's place. ``close`` ends the thread early.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 1) -> None:
        self._line = _Line(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while (item := self._line.get()) is not _END:
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop after the item that is being made."""
        self._stop.set()
        self._thread.join()

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            if self._line.put(item, timeout=POLL_SECONDS):
                return True
        return False


class _Line:
    """A queue of at most ``depth`` items that Ctrl-C cannot leave locked.

    ``queue.Queue`` takes and gives back its lock in Python, where a signal may come between.
    """

    def __init__(self, depth: int) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._places.put(None)

    def put(self, item: Any, *, timeout: float | None = None) -> bool:
        """Add an item where there is a place; False where there was none for so long."""
        try:
            self._places.get(timeout=timeout)
        except queue.Empty:
            return False
        self._items.put(item)
        return True

    def end(self) -> None:
        """Add the end, place or not: an interrupted ``put`` may have lost its own."""
        self._items.put(_END)

    def get(self) -> Any:
        """Take the oldest item."""
        item = self._items.get()
        self._places.put(None)
        return item


class Behind(Generic[T]):
    """Calls ``work`` on items in a thread, in order, at most ``depth`` items behind the giver.

    What ``work`` raises is raised at the giver's next ``put`` or at ``close``; later items are
    dropped.
    """

    def __init__(self, work: Callable[[T], None], *, depth: int = 2) -> None:
        self._work_on = work
        self._line = _Line(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand an item over; waits while ``depth`` items are waiting."""
        self._raise()
        self._line.put(item)

    def close(self) -> None:
        """Wait until every item is worked on."""
        self._line.end()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._line.get()) is not _END:
            if self._error is None:
                try:
                    self._work_on(item)
                except BaseException as error:
                    self._error = error
