"""FAISS's heaps: the smallest values of every row, filled piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.probes.ties import Found

__all__ = ["Heaps"]


class Heaps:
    """The ``k`` smallest values of n rows."""

    def __init__(self, n: int, k: int) -> None:
        import faiss

        self._pointer = faiss.swig_ptr
        self._value = np.empty((n, k), dtype=np.float32)
        self._index = np.empty((n, k), dtype=np.int64)
        self._heaps: Any = faiss.float_maxheap_array_t()
        self._heaps.nh, self._heaps.k = n, k
        self._heaps.val = faiss.swig_ptr(self._value)
        self._heaps.ids = faiss.swig_ptr(self._index)
        self._heaps.heapify()

    def add(self, tile: NDArray[np.float32], row: int, column: int = 0) -> None:
        """Offer the tile (r, c) of all values that begins at ``row`` and ``column``."""
        count, width = tile.shape
        self._heaps.addn(width, self._pointer(tile), column, row, count)

    def sorted(self) -> Found:
        """Values and column numbers, smallest first; -1 for none."""
        self._heaps.reorder()
        return self._value, self._index
