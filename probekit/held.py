"""Rows in shares: all of them in this process, or one share with each worker of a cluster.

A fit asks for sums over its rows. Each worker reads its share once and keeps it for the whole fit;
what reaches the process that asks are the sums, and a few numbers for each row where it wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit import engine
from probekit.states import Streamed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.engine import RayTasks

__all__ = ["CELL", "Here", "OnWorkers", "Share", "hold"]

# Shares are multiples of so many rows, and float32 products never cross their bounds: shares then
# differ from one machine by the order of sums in float64 only. Fewer rows are not worth a cluster.
CELL = 1 << 14

# Work on a share returns arrays, or tensors.
Work = Callable[..., Sequence[Any]]


class Share:
    """Some rows of X (n, d), and what the process that holds them keeps between two calls.

    Parameters
    ----------
    X
        All rows: an array, or anything that returns rows for a slice.
    rows : slice
        The rows of this share.
    room : float, default=0
        Bytes that the share may occupy in memory beyond what one machine would copy.
    """

    def __init__(self, X: Any, rows: slice, room: float = 0.0) -> None:
        self.X, self.rows, self.room = X, rows, room
        self._kept: dict[str, tuple[str, Any]] = {}

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def __getitem__(self, part: slice) -> Any:
        """Rows of a slice that counts from the share's first row."""
        start, stop, _ = part.indices(len(self))
        return self.X[self.rows.start + start : self.rows.start + stop]

    def keep(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """Return what was made for this ``key``; make it if another was, or the worker is new."""
        if self._kept.get(name, ("",))[0] != key:
            self._kept.pop(name, None)  # first, as both may not fit into memory
            self._kept[name] = key, make()
        return self._kept[name][1]

    def drop(self, name: str) -> None:
        """Keep it no longer."""
        self._kept.pop(name, None)


class Here:
    """All rows as one share in this process.

    Parameters
    ----------
    X
        As :class:`Share`.

    Examples
    --------
    >>> X = np.arange(6.0).reshape(3, 2)
    >>> rows = Here(X)
    >>> rows.sum(lambda share, factor: [factor * share.X.sum()], 2.0)
    [30.0]
    """

    gpus: float | None = None

    def __init__(self, X: Any) -> None:
        self.X, self.share = X, Share(X, slice(0, X.shape[0]))

    def put(self, value: Any) -> Any:
        """Return what :meth:`each` and :meth:`sum` take for a value that several calls need."""
        return value

    def each(self, work: Work, *common: Any) -> Iterator[tuple[slice, Sequence[Any]]]:
        """Yield the rows of every share, in order, and ``work(share, *common)``."""
        yield self.share.rows, work(self.share, *common)

    def sum(self, work: Work, *common: Any) -> Sequence[Any]:
        """Sums over the shares of each array that ``work(share, *common)`` returns."""
        return work(self.share, *common)


class OnWorkers:
    """Rows in shares of about equal size, one with each worker of a cluster.

    A worker that is lost is started again, somewhere, and reads its share again.

    Parameters
    ----------
    X : ndarray or Streamed
        Rows (n, d): an array is sent to every node, states that are streamed are read there.
    tasks
        The cluster.
    """

    def __init__(self, X: Any, tasks: RayTasks) -> None:
        self.X, self._tasks, n = X, tasks, len(X)
        self.gpus: float | None = tasks.gpus
        cells = -(-n // CELL)
        count = min(tasks.workers, cells)
        edges = [min(n, cells * i // count * CELL) for i in range(count + 1)]
        self._rows = [slice(*edge) for edge in pairwise(edges)]
        self._sent = tasks.put(X)  # kept for workers that start again
        room = tasks.memory() / count
        self._workers = [tasks.hold(Share, [self._sent], rows, room) for rows in self._rows]

    def put(self, value: Any) -> Any:
        """As :meth:`Here.put`: it is sent to each node once."""
        return self._tasks.put(_plain(value))

    def each(self, work: Work, *common: Any) -> Iterator[tuple[slice, Sequence[Any]]]:
        """As :meth:`Here.each`."""
        sent = [self._tasks.put(_plain(value)) for value in common]
        replies = [self._tasks.ask(worker, _arrays, work, *sent) for worker in self._workers]
        for rows, reply in zip(self._rows, replies, strict=True):
            yield rows, self._tasks.result(reply)

    def sum(self, work: Work, *common: Any) -> Sequence[Any]:
        """As :meth:`Here.sum`."""
        total: list[NDArray[Any]] = []
        for _, found in self.each(work, *common):
            if not total:  # what comes from a worker cannot be written to
                total = [np.zeros_like(each) for each in found]
            for one, other in zip(total, found, strict=True):
                one += other
        return total


def hold(X: Any) -> Here | OnWorkers:
    """Rows in shares, with the workers of :func:`probekit.engine.on_ray` if that is worth it."""
    tasks = engine.ray_tasks()
    if tasks is None or not isinstance(X, np.ndarray | Streamed) or len(X) <= CELL:
        return Here(X)
    return OnWorkers(X, tasks)


def _arrays(share: Share, work: Work, *common: Any) -> list[Any]:
    """What ``work`` returns, as arrays, which need no library on the other side."""
    return [np.asarray(_plain(value)) for value in work(share, *common)]


def _plain(value: Any) -> Any:
    return value.cpu().numpy() if hasattr(value, "cpu") else value
