"""Sequences of which rows are made slice by slice, and the parts in which a slice lies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sliced(Sequence[Any]):
    """A sequence that makes its values when rows are asked for."""

    @abstractmethod
    def values(self, start: int, stop: int) -> list[Any]:
        """Values of rows ``start`` to ``stop``, which exist."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            row = range(len(self))[index]
            return self.values(row, row + 1)[0]
        start, stop, step = index.indices(len(self))
        if step != 1:
            return self.values(0, len(self))[index]
        return self.values(start, max(start, stop))


def spans(starts: NDArray[np.int64], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each part in which rows lie, and the first and last of its rows.

    ``starts`` are the rows with which the parts begin, and the end of the last.
    """
    number = int(np.searchsorted(starts, start, "right")) - 1
    while start < stop:
        first, last = starts[number : number + 2].tolist()
        end = min(stop, last)
        yield number, start - first, end - first
        start, number = end, number + 1
