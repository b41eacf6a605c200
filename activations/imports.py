"""Import large libraries without looking for garbage all the while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rare_collection"]

# Importing torch and transformers makes some million objects that stay. To look through them again
# and again takes a sixth of the time to the first batch of an extraction.
THRESHOLD = 100_000


@contextmanager
def rare_collection() -> Iterator[None]:
    """Collect garbage seldom. Around imports only: batches may leave cycles that hold tensors."""
    usual = gc.get_threshold()
    gc.set_threshold(max(THRESHOLD, usual[0]) if usual[0] else 0, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
