"""Evidence on the rows of verdicts: texts, ground truth, nearest rows and a map of the states."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.activations.store import ActivationStore
from probekit.cleaning.source_rows import places_in, row_texts, store_beside
from probekit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from probekit.probes.neighbors import Metric
    from probekit.verdicts import Verdicts

__all__ = [
    "NEIGHBORS",
    "Nearest",
    "RowEvidence",
    "StateMap",
    "map_states",
    "nearest_rows",
    "verdict_evidence",
    "with_states",
]

NEIGHBORS = 8
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
    """Find the ``k`` nearest rows of every row of X (n, d); fewer if some row has fewer others.

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


@dataclass(frozen=True, eq=False)
class RowEvidence:
    """What is known about the rows of verdicts beyond the verdicts, in their order."""

    texts: Sequence[str] | None = None
    """n texts, or None to leave them out."""
    truth: NDArray[np.int64] | None = None
    """True class numbers (n,), as in the verdicts' classes."""
    nearest: Nearest | None = None
    map: StateMap | None = None
    layer: int | None = None
    """Layer of the states that neighbours and map were computed from."""


def verdict_evidence(
    verdicts: Verdicts,
    path: Path,
    *,
    acts: Path | None = None,
    source: str | None = None,
    texts: bool = True,
    truth: NDArray[np.int64] | None = None,
    layer: int | None = None,
    neighbors: int = NEIGHBORS,
    text_column: str | None = None,
    id_column: str | None = None,
) -> RowEvidence:
    """Collect what is known about the rows of the verdicts in ``path``, in their order.

    Parameters
    ----------
    acts
        The store that they were made from; by default the one that they name, if it is in the
        same folder.
    source
        The rows, for their texts; by default those that the store names.
    texts
        Whether to show texts at all.
    truth
        True class numbers (n,).
    layer
        Layer for nearest rows and map; by default the last one that the verdicts' probe read.
    """
    acts = acts or store_beside(verdicts, path)
    if acts is None and layer is not None:
        raise UsageError("--layer chooses among the layers of a store; name the store with --acts.")
    columns = {"text_column": text_column, "id_column": id_column}
    with ExitStack() as stack:
        store = None if acts is None else stack.enter_context(ActivationStore(acts))
        shown = row_texts(verdicts, store, source, **columns) if texts else None
        evidence = RowEvidence(texts=shown, truth=truth)
        if store is None:
            return evidence
        return with_states(evidence, verdicts, store, layer=layer, neighbors=neighbors)


def with_states(
    evidence: RowEvidence,
    verdicts: Verdicts,
    store: ActivationStore,
    *,
    layer: int | None = None,
    neighbors: int = NEIGHBORS,
) -> RowEvidence:
    """Add nearest rows, by the probe's own metric if it has one, and the map of one layer."""
    rows = places_in(store, verdicts)
    if layer is None:
        layer = next(reversed(verdicts.layers), store.layers[-1])
    X = store.read(layer, rows)
    probe = verdicts.provenance.get("probe", {})
    euclidean = probe.get("parameters", {}).get("metric") == "euclidean"
    nearest = nearest_rows(
        X, neighbors, groups=store.copies(rows), metric="euclidean" if euclidean else "cosine"
    )
    return replace(evidence, nearest=nearest, map=map_states(X), layer=layer)
