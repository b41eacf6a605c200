"""Work on parts of the rows in threads; numpy lets go of the interpreter while it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

__all__ = ["in_parallel"]

# A thread costs some tenths of a millisecond, so it gets at least so many rows.
LEAST_ROWS = 1024


def in_parallel(work: Callable[[slice], None], n: int) -> None:
    """Call ``work`` with slices that make up n rows, as many at once as FAISS has threads."""
    import faiss

    parts = max(1, min(faiss.omp_get_max_threads(), n // LEAST_ROWS))
    if parts == 1:
        work(slice(0, n))
        return
    edges = [n * i // parts for i in range(parts + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(edges)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, slices))  # raises what a thread raised
