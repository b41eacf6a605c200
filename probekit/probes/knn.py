"""The k-nearest-neighbour probe: class probabilities are the mean label of the nearest rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from probekit.errors import ProbeError
from probekit.kinds import BACKEND, COUNT, FLAG, METRIC, Choice, Kind
from probekit.probes.base import BaseProbe, Training
from probekit.probes.neighbors import Metric, NeighborIndex, Neighbors, recall_notes
from probekit.states import row_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["KNNProbe", "neighbor_means"]

Weights = Literal["uniform", "cosine"]
WEIGHTS = ("uniform", "cosine")
# Float32 distances of rows at a right angle give cosines up to this size, of either sign.
COSINE_NOISE = 1e-6


def neighbor_means(
    index: NDArray[np.int64],
    Y: NDArray[np.float64],
    ks: Sequence[int],
    *,
    weight: NDArray[np.float64] | None = None,
    distance: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Mean label of the k nearest neighbours, for every k of ``ks``.

    Parameters
    ----------
    index : ndarray of shape (m, w)
        Row numbers of neighbours, nearest first, w ≥ max(ks).
    Y : ndarray of shape (n, C)
        Labels.
    ks : sequence of int
        Numbers of neighbours.
    weight : ndarray of shape (n,), default=None
        Sample weights of the votes; neighbours whose weights are all 0 have equal votes.
    distance : ndarray of shape (m, w), default=None
        Distances between unit rows; with them a vote is also weighted by max(cos, 0).

    Returns
    -------
    ndarray of shape (len(ks), m, C)
    """
    means = np.empty((len(ks), len(index), Y.shape[1]))
    width = max(ks)
    for rows in row_chunks(len(index), 24 * width * Y.shape[1]):
        near = index[rows, :width]
        labels = Y[near]
        votes = None if weight is None else weight[near]
        if distance is not None:
            # cos = 1 − ½ ‖a − b‖² of unit rows a and b
            cosine = 1 - 0.5 * distance[rows, :width].astype(np.float64) ** 2
            cosine[cosine < COSINE_NOISE] = 0
            votes = cosine if votes is None else votes * cosine
        for place, k in enumerate(ks):
            # Not a running sum over k: each mean must be the same for any other ks.
            means[place, rows] = _mean(labels[:, :k], None if votes is None else votes[:, :k])
    return means


def _mean(labels: NDArray[np.float64], votes: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if votes is None:
        return np.asarray(labels.mean(axis=1))
    total = votes.sum(axis=1, keepdims=True)
    share = np.where(total > 0, votes, 1.0) / np.where(total > 0, total, votes.shape[1])
    return np.asarray(np.einsum("ik,ikc->ic", share, labels))


class KNNProbe(BaseProbe):
    """k-nearest-neighbour probe: class probabilities are the mean label of the k nearest rows.

    Parameters
    ----------
    k : int, default=30
        Number of neighbours. Smaller values follow local structure, larger ones average out more
        label noise: on sentence states 30 did better than 10; [1]_ used 50.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance: Euclidean between centred rows, which ``"cosine"`` also scales to unit length. In
        Euclidean distance a few rows of real hidden states are neighbours of almost all others.
    weights : {"uniform", "cosine"}, default="uniform"
        Weights of the neighbours' votes.

        - ``"uniform"``: all neighbours have equal votes.
        - ``"cosine"``: votes are max(cos, 0), cos being the cosine between the centred rows; if all
          are 0, votes are equal. Requires ``metric="cosine"``. Unlike ``weights="distance"`` of
          scikit-learn, where votes are 1 / distance and a copy of the row decides alone, a copy has
          one vote here, and a row at a right angle or beyond none.
    self_neighbor : bool, default=False
        Let each row vote for itself in ``oof_proba_``, to reproduce EleutherAI's numbers.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Library of the neighbour search; all give the same neighbours.
    approximate : bool, default=False
        Search neighbours of the fitted rows in inverted lists: faster from some 100,000 rows on,
        with about 95 % of the exact neighbours (``recall_``). New rows are searched exactly.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Number of columns d of X.
    oof_proba_ : ndarray of shape (n, C)
        Leave-one-out class probabilities: neither a row nor its group votes for it.
    recall_ : float or None
        Share of the exact neighbours that an approximate search found, measured on 512 rows.

    See Also
    --------
    TopoFilterProbe : Only neighbours in the largest component of their class vote.
    EnsembleProbe : kNN votes and ridge fits over several layers.
    sklearn.neighbors.KNeighborsClassifier : Hard labels, without leave-one-out predictions.

    Notes
    -----
    Neighbours are exact unless ``approximate`` is set: equal distances in float32 go to the smaller
    row number.

    References
    ----------
    .. [1] https://blog.eleuther.ai/weak-to-strong/ and https://github.com/EleutherAI/w2s

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import KNNProbe
    >>> X = np.array([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]])
    >>> probe = KNNProbe(k=2, metric="euclidean").fit(X, [0, 0, 0, 1, 1, 0])
    >>> probe.predict_proba([[1.2], [8.8]]).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    >>> probe.oof_proba_[:, 1].tolist()  # the last row alone has a label its neighbours have not
    [0.0, 0.0, 0.0, 0.5, 0.5, 1.0]
    """

    leave_one_out = True
    streams = True

    kinds: ClassVar[Mapping[str, Kind]] = {
        "k": COUNT,
        "metric": METRIC,
        "weights": Choice(*WEIGHTS),
        "self_neighbor": FLAG,
        "backend": BACKEND,
        "approximate": FLAG,
    }

    def __init__(
        self,
        k: int = 30,
        *,
        metric: Metric = "cosine",
        weights: Weights = "uniform",
        self_neighbor: bool = False,
        backend: str = "auto",
        approximate: bool = False,
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.self_neighbor = self_neighbor
        self.backend = backend
        self.approximate = approximate

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Store the rows and labels, and predict every row without itself.

        Parameters
        ----------
        X : array-like of shape (n, d)
            States.
        y : array-like of shape (n,) or (n, C)
            Hard labels, P(second class), or class probabilities.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows' votes; None: 1.
        groups : array-like of shape (n,), default=None
            Rows of one group never vote for each other in ``oof_proba_``; None: rows with equal
            states.

        Returns
        -------
        self : KNNProbe

        Raises
        ------
        ProbeError
            If a parameter, X or y is wrong, or a row has fewer than k others outside its group.
        """
        self._check_parameters()
        if self.weights == "cosine" and self.metric != "cosine":
            raise ProbeError(f"weights='cosine' needs metric='cosine', got metric={self.metric!r}.")
        data = self._check_fit(X, y, sample_weight, groups)
        self._store(data)
        self.oof_proba_ = self.oof_path([self.k])[0]
        return self

    def _store(self, data: Training) -> None:
        self._data = data
        self._index = NeighborIndex(
            data.X, metric=self.metric, backend=self.backend, approximate=self.approximate
        )

    @property
    def recall_(self) -> float | None:
        """Share of the exact neighbours that an approximate search found."""
        return self._index.recall

    def notes_for(self, *_: Any) -> list[str]:
        """A sentence for the user about an approximate search."""
        return recall_notes([self._index])

    def oof_path(self, ks: Sequence[int]) -> NDArray[np.float64]:
        """Leave-one-out class probabilities for several k, from one search.

        Parameters
        ----------
        ks : sequence of int
            Numbers of neighbours.

        Returns
        -------
        ndarray of shape (len(ks), n, C)
            For each k what ``oof_proba_`` is for it.

        Raises
        ------
        ProbeError
            If a row has fewer than max(ks) others outside its group.
        """
        check_is_fitted(self)
        if not len(ks):
            raise ProbeError("ks must name at least one k.")
        if self.self_neighbor:
            return self._means(self._index.query(self._data.X, max(ks)), ks)
        means = np.empty((len(ks), *self._data.Y.shape))
        for rows, nearest in self._index.blocks(max(ks), groups=self._data.groups):
            means[:, rows] = self._means(nearest, ks)
            del nearest
        return means

    def _means(self, nearest: Neighbors, ks: Sequence[int]) -> NDArray[np.float64]:
        distance = nearest.distance if self.weights == "cosine" else None
        return neighbor_means(
            nearest.index, self._data.Y, ks, weight=self._data.weight, distance=distance
        )

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict class probabilities of new rows.

        Parameters
        ----------
        X : array-like of shape (m, d)
            States. All are new rows: one that was fitted is its own nearest neighbour.

        Returns
        -------
        ndarray of shape (m, C)
            Class probabilities, columns as in ``classes_``.
        """
        states = self._check_predict(X)
        means: NDArray[np.float64] = self._means(self._index.query(states, self.k), [self.k])[0]
        return means

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self._data.to_arrays(), "oof_proba": self.oof_proba_}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.oof_proba_ = arrays["oof_proba"]
        self._store(Training.from_arrays(arrays))
