"""Rows of a sweep: who takes part, their weak labels, truth and duplicates; one layer's states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probekit.cleaning.scoring import read_states
from probekit.cuts import by_key
from probekit.errors import LabelsError, UsageError
from probekit.groups import ordered_groups
from probekit.probes.neighbors import Metric, NeighborIndex, Neighbors
from probekit.probes.pairs import mirrored
from probekit.states import check_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = ["LayerStates", "SweepRows", "join_rows"]


@dataclass(frozen=True, eq=False)
class SweepRows:
    """The n rows that take part, in the order of the store."""

    store: ActivationStore
    numbers: NDArray[np.int64]
    """Their numbers in the store (n,)."""
    labels: WeakLabels
    """Weak labels in their order."""
    groups: NDArray[np.int64]
    """Rows of one number are copies (n,)."""
    truth: NDArray[np.int64] | None = None
    """True class numbers (n,), for judging only."""

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def ties(self) -> NDArray[np.uint64]:
        """Order of equal rows (n,), as filter and relabel have it with seed 0."""
        return by_key(self.labels.keys)

    @property
    def most_neighbors(self) -> int:
        """Largest k that every row has others for, duplicates left out."""
        largest = int(np.bincount(self.groups).max())
        return (2 if self.store.differences else 1) * (len(self) - largest)


def join_rows(
    store: ActivationStore,
    labels: WeakLabels,
    truth: WeakLabels | None = None,
    *,
    only_labelled: bool = False,
) -> SweepRows:
    """Join a store with weak labels and truth by id.

    Raises
    ------
    LabelsError
        Where either does not fit the rows, or the weak labels are of one class.
    """
    numbers, aligned = labels.align(store.keys, only_labelled=only_labelled)
    held = np.flatnonzero(aligned.probs.max(axis=0) > 0)
    if len(held) < 2:
        raise LabelsError(
            f"{labels.source} holds one class only ({aligned.classes[held[0]]!r} in all "
            f"{len(aligned)} rows of {store.path}); a sweep needs labels of at least two classes."
        )
    if store.differences and len(aligned.classes) != 2:
        raise UsageError(
            f"{store.path} holds differences of pairs, whose classes are first and second, and the "
            f"labels have {len(aligned.classes)}."
        )
    codes = None
    if truth is not None:
        right = truth.align(aligned.keys, rows_name=f"the labelled rows of {store.path}")
        codes = right.labels.codes(aligned.classes)
    groups = store.copies(numbers)
    if not all(store.hashes[i] for i in numbers):
        groups = ordered_groups(groups, by_key(aligned.keys))  # the folds of `filter`
    return SweepRows(store, numbers, aligned, groups, codes)


class Searched(NamedTuple):
    """States (m, d), weak labels (m, C) and groups (m,); m is n, or 2n of pairs."""

    X: NDArray[Any]
    Y: NDArray[np.float64]
    groups: NDArray[np.int64]


class LayerStates:
    """States of one layer, read when asked for, and their nearest rows, searched once.

    Where the store holds differences of pairs, neighbours are searched among the n rows and their
    mirror images behind them, as :class:`probekit.probes.PairProbe` does.
    """

    def __init__(self, rows: SweepRows, layer: int, *, metric: Metric = "cosine") -> None:
        self.rows, self.layer, self.metric = rows, layer, metric
        self._found: dict[bool, Neighbors] = {}

    @cached_property
    def X(self) -> NDArray[Any]:  # noqa: N802 (the field's name for states)
        """States (n, d), finite."""
        whole = len(self.rows) == len(self.rows.store)
        X = read_states(self.rows.store, self.layer, None if whole else self.rows.numbers)
        check_finite(X, self.rows.labels.ids, name=f"Layer {self.layer}")
        return X

    @cached_property
    def searched(self) -> Searched:
        """Rows that are searched for neighbours."""
        plain = self.X, self.rows.labels.probs, self.rows.groups
        return Searched(*(mirrored(*plain) if self.rows.store.differences else plain))

    @cached_property
    def index(self) -> NeighborIndex:
        """Index over the states of :attr:`searched`."""
        return NeighborIndex(self.searched.X, metric=self.metric)

    def neighbors(self, k: int, *, copies: bool = False) -> Neighbors:
        """Return at least the k nearest others of every row, with or without its copies.

        A search is made only where k has grown.
        """
        found = self._found.get(copies)
        if found is None or found.index.shape[1] < k:
            found = self.index.others(k, groups=None if copies else self.searched.groups)
            self._found[copies] = found
        return found
