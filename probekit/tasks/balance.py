"""Draws that depend on a seed and a row's own key alone, and classes of equal size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

__all__ = ["balanced", "draw"]


def draw(key: str, *, seed: int, use: str) -> int:
    """64 bits from a key: the same wherever the row stands and however many there are."""
    text = f"{use}\x1f{seed}\x1f{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def balanced(labels: Sequence[int], *, n_classes: int) -> list[int]:
    """Places of the first rows of each class, as many of every class as the smallest has.

    Undersampling: given in random order, what is left out is random; the order stays.
    """
    counts = Counter(labels)
    most = min(counts[label] for label in range(n_classes))
    seen: Counter[int] = Counter()
    kept = []
    for place, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= most:
            kept.append(place)
    return kept
