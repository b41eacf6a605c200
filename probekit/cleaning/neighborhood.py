"""Rows among their neighbours: the nearest rows of each row, and a map of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.probes.neighbors import Metric

__all__ = ["Nearest", "StateMap", "map_states", "nearest_rows"]

# A few outliers, which some models' states have, would squeeze all other rows into one dot.
MAP_TAIL = 0.002


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest other rows of each of n rows, nearest first; duplicates are left out."""

    index: NDArray[np.int64]
    """Row numbers (n, k)."""
    value: NDArray[np.floating[Any]]
    """Cosine of centred rows or Euclidean distance (n, k)."""
    measure: str
    """The name of the measure."""


@dataclass(frozen=True, eq=False)
class StateMap:
    """Two principal components of n rows."""

    x: NDArray[np.float64]
    """First component (n,), scaled to [0, 1]."""
    y: NDArray[np.float64]
    """Second component (n,), scaled to [0, 1]."""
    share: tuple[float, float]
    """Share of the variance that each explains."""
    outside: int
    """Number of outliers that are drawn at the edge."""


def nearest_rows(
    X: NDArray[np.float32], k: int, *, groups: NDArray[np.int64], metric: Metric = "cosine"
) -> Nearest | None:
    """Find the ``k`` nearest rows of every row of X (n, d), or as many as every row has.

    None if some row has no other row. Rows with the same number in ``groups`` (n,) are duplicates
    and not neighbours of each other.
    """
    from probekit.probes.neighbors import nearest_others

    k = min(k, len(X) - int(np.bincount(groups).max()))
    if k < 1:
        return None
    near = nearest_others(X, k, groups=groups, metric=metric)
    if metric == "euclidean":
        return Nearest(near.index, near.distance, "Euclidean distance")
    # The search measures the chord between unit rows.
    return Nearest(near.index, 1 - near.distance**2 / 2, "cosine of the centred states")


def map_states(X: NDArray[np.float32]) -> StateMap | None:
    """Project X (n, d) onto its first two principal components; None if it has fewer."""
    from sklearn.decomposition import PCA

    if min(X.shape) < 2 or not np.ptp(X, axis=0).any():
        return None
    pca = PCA(n_components=2, random_state=0)
    Z = np.asarray(pca.fit_transform(np.asarray(X, dtype=np.float32)), dtype=np.float64)
    low, high = np.quantile(Z, [MAP_TAIL, 1 - MAP_TAIL], axis=0)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    clipped = np.clip(Z, low, high)
    outside = (clipped != Z).any(axis=1)
    Z = (clipped - low) / np.where(high > low, high - low, 1)
    first, second = (float(share) for share in pca.explained_variance_ratio_)
    return StateMap(Z[:, 0], Z[:, 1], (first, second), int(outside.sum()))
