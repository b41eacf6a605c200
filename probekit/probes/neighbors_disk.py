"""Rows that are larger than memory: what is copied, and what is read again block by block."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PickedRows", "block_rows", "fits"]

# A float32 copy of all rows may take this share of the machine's memory.
COPY_SHARE = 0.25
# Rows that are searched, and rows that are searched for, at a time. Every block of the latter
# reads all of the former again, so it is large; centring costs 2 % of the products then.
BLOCK_BYTES = 1 << 28


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a float32 copy of rows (n, d) may be kept in memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * shape[0] * shape[1] <= COPY_SHARE * memory


def block_rows(d: int) -> int:
    """Rows of d columns in a block."""
    return max(1, BLOCK_BYTES // (4 * d))


class PickedRows:
    """Some rows of X (n, d), read when asked for: ``X[chosen]`` without its copy."""

    def __init__(self, X: Any, chosen: NDArray[np.int64]) -> None:
        self._X, self._chosen = X, chosen
        self.shape = (len(chosen), X.shape[1])
        self.dtype = X.dtype

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        found: NDArray[Any] = self._X[self._chosen[rows]]
        return found
