"""The k-nearest-neighbour probe: a row's probability is the mean label of its nearest rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from probekit.errors import ProbeError
from probekit.kinds import BACKEND, COUNT, FLAG, METRIC, Choice, Kind
from probekit.probes.base import BaseProbe, Training
from probekit.probes.neighbors import Metric, NeighborIndex, Neighbors
from probekit.states import row_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["KNNProbe", "neighbor_means"]

Weights = Literal["uniform", "cosine"]
WEIGHTS = ("uniform", "cosine")
# A right angle comes out of float32 distances as a cosine of this size, of either sign.
COSINE_NOISE = 1e-6


def neighbor_means(
    index: NDArray[np.int64],
    Y: NDArray[np.float64],
    ks: Sequence[int],
    *,
    weight: NDArray[np.float64] | None = None,
    distance: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Return the mean label of the first k neighbours for every k: (len(ks), m, C).

    ``index`` (m, w) numbers neighbours, nearest first, and ``weight`` (n,) are sample weights. With
    ``distance`` (m, w) between unit rows, a neighbour's vote is also weighed by max(cos, 0). Where
    all weights are zero, the neighbours count alike.
    """
    out = np.empty((len(ks), len(index), Y.shape[1]))
    width = max(ks)
    for rows in row_chunks(len(index), 24 * width * Y.shape[1]):
        near = index[rows, :width]
        voted = Y[near]
        votes = None if weight is None else weight[near]
        if distance is not None:
            cosine = 1 - 0.5 * distance[rows, :width].astype(np.float64) ** 2
            cosine[cosine < COSINE_NOISE] = 0
            votes = cosine if votes is None else votes * cosine
        for place, k in enumerate(ks):
            # Not a running sum over k: each mean must be the same whichever ks are asked for.
            out[place, rows] = _mean(voted[:, :k], None if votes is None else votes[:, :k])
    return out


def _mean(voted: NDArray[np.float64], votes: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if votes is None:
        return np.asarray(voted.mean(axis=1))
    total = votes.sum(axis=1, keepdims=True)
    share = np.where(total > 0, votes, 1.0) / np.where(total > 0, total, votes.shape[1])
    return np.asarray(np.einsum("ik,ikc->ic", share, voted))


class KNNProbe(BaseProbe):
    """Mean label of the k nearest rows.

    Parameters
    ----------
    k : int, default=30
        Number of neighbours. On sentence states 30 did better than 10; [1]_ used 50.
    metric : {"cosine", "euclidean"}, default="cosine"
        Euclidean distance between centred rows, for ``"cosine"`` scaled to unit length.
    weights : {"uniform", "cosine"}, default="uniform"
        ``"uniform"``: all neighbours count alike. ``"cosine"`` (needs ``metric="cosine"``): a
        neighbour counts max(cos, 0), cos being the cosine between the centred rows; where all
        count 0, they count alike. scikit-learn's ``weights="distance"`` is something else: there a
        neighbour counts 1 / distance, which has no bound, so that a copy of the row decides alone;
        here a copy counts 1, and a row at a right angle or beyond nothing.
    self_neighbor : bool, default=False
        Let each row vote for itself in ``oof_proba_``, to reproduce EleutherAI's numbers.
    backend : {"auto", "faiss", "torch"}, default="auto"
        What searches; all give the same neighbours.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Width d of X.
    oof_proba_ : ndarray of shape (n, C)
        Leave-one-out P: without the row, by its number, and without its duplicates.

    See Also
    --------
    TopoFilterProbe : Votes of the neighbours in the largest component of their class only.
    EnsembleProbe : kNN votes and ridge fits over several layers.
    sklearn.neighbors.KNeighborsClassifier : Hard labels, no leave-one-out predictions.

    Notes
    -----
    ``fit(X, y, sample_weight=None, groups=None)``: weights weigh the votes; rows of one group never
    vote for each other in ``oof_proba_`` (by default rows with the very same states form a group).
    ``predict_proba`` treats all rows as new: a stored row that is asked for votes for itself.

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

    kinds: ClassVar[Mapping[str, Kind]] = {
        "k": COUNT,
        "metric": METRIC,
        "weights": Choice(*WEIGHTS),
        "self_neighbor": FLAG,
        "backend": BACKEND,
    }

    def __init__(
        self,
        k: int = 30,
        *,
        metric: Metric = "cosine",
        weights: Weights = "uniform",
        self_neighbor: bool = False,
        backend: str = "auto",
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.self_neighbor = self_neighbor
        self.backend = backend

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Store the rows and their labels; compute the leave-one-out probabilities."""
        self._check_parameters()
        if self.weights == "cosine" and self.metric != "cosine":
            raise ProbeError(f"weights='cosine' needs metric='cosine', got metric={self.metric!r}.")
        data = self._check_fit(X, y, sample_weight, groups)
        self._store(data)
        self.oof_proba_ = self.oof_path([self.k])[0]
        return self

    def _store(self, data: Training) -> None:
        self._data = data
        self._index = NeighborIndex(data.X, metric=self.metric, backend=self.backend)

    def oof_path(self, ks: Sequence[int]) -> NDArray[np.float64]:
        """Return what ``oof_proba_`` would be for every k of ``ks``: (len(ks), n, C), one search.

        Raises
        ------
        ProbeError
            The largest k exceeds n - 1, or what a group of duplicates leaves.
        """
        check_is_fitted(self)
        if not len(ks):
            raise ProbeError("ks must name at least one k.")
        if self.self_neighbor:
            nearest = self._index.query(self._data.X, max(ks))
        else:
            nearest = self._index.others(max(ks), groups=self._data.groups)
        return self._means(nearest, ks)

    def _means(self, nearest: Neighbors, ks: Sequence[int]) -> NDArray[np.float64]:
        distance = nearest.distance if self.weights == "cosine" else None
        return neighbor_means(
            nearest.index, self._data.Y, ks, weight=self._data.weight, distance=distance
        )

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the mean label (m, C) of the k nearest stored rows of each row of X (m, d)."""
        states = self._check_predict(X)
        means: NDArray[np.float64] = self._means(self._index.query(states, self.k), [self.k])[0]
        return means

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self._data.to_arrays(), "oof_proba": self.oof_proba_}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.oof_proba_ = arrays["oof_proba"]
        self._store(Training.from_arrays(arrays))
