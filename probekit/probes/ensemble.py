"""Ensemble of ridge fits and kNN votes over several layers, in closed form.

Every member predicts a row exactly as without the row and its duplicates, without fits per fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import clone

from probekit.errors import ProbeError
from probekit.kinds import BACKEND, COUNT, FLAG, Kind, Listed, Maybe, Number, Whole
from probekit.probes.base import BaseProbe, Training
from probekit.probes.calibration import Calibration, calibrate
from probekit.probes.knn import neighbor_means
from probekit.probes.neighbors import NeighborIndex, recall_notes
from probekit.probes.ridge import PENALTIES, RidgeStates, choose_penalty
from probekit.states import Streamed, row_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore

__all__ = [
    "EnsembleProbe",
    "average",
    "ensemble_for",
    "plan_for",
    "plan_layers",
    "stack_layers",
]

# Depths as shares of the deepest stored layer: 4, 5, 6 and 3, 5, 6 of 6 were best on all-MiniLM.
RIDGE_DEPTHS = (4 / 6, 5 / 6, 1.0)
KNN_DEPTHS = (3 / 6, 5 / 6, 1.0)


class LayerPlan(NamedTuple):
    """Layers that the ensemble reads, and the places of those with a ridge fit and a kNN vote."""

    layers: tuple[int, ...]
    ridge: tuple[int, ...]
    knn: tuple[int, ...]


def plan_layers(stored: Sequence[int]) -> LayerPlan:
    """Choose the stored layers nearest to the depths that were best (docs/methods/probes.md)."""
    deepest = max(stored)

    def nearest(depths: Sequence[float]) -> list[int]:
        # Of two equally near layers the deeper one.
        return sorted({min(stored, key=lambda i: (abs(i - x * deepest), -i)) for x in depths})

    ridge, knn = nearest(RIDGE_DEPTHS), nearest(KNN_DEPTHS)
    layers = tuple(sorted({*ridge, *knn}))
    return LayerPlan(layers, tuple(map(layers.index, ridge)), tuple(map(layers.index, knn)))


def stack_layers(
    store: ActivationStore, layers: Sequence[int], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """States (n, Σ width) float32 of several layers side by side, of all rows or of ``rows``."""
    widths = [store.info(layer).width for layer in layers]
    out = np.empty((len(store) if rows is None else len(rows), sum(widths)), np.float32)
    for layer, part in zip(layers, _slices(widths), strict=True):
        out[:, part] = store.layer(layer) if rows is None else store.read(layer, rows)
    return out


def plan_for(store: ActivationStore, layers: Sequence[int] | None = None) -> LayerPlan:
    """Choose among these layers of a store (None: all).

    Raises
    ------
    UsageError
        If one of them is not stored.
    """
    for layer in layers or ():
        store.info(layer)
    return plan_layers(layers or store.layers)


def ensemble_for(store: ActivationStore, layers: Sequence[int] | None = None) -> EnsembleProbe:
    """Make the ensemble for ``stack_layers(store, plan_for(store, layers).layers)``."""
    plan = plan_for(store, layers)
    widths = tuple(store.info(layer).width for layer in plan.layers)
    return EnsembleProbe(widths=widths, ridge=plan.ridge, knn=plan.knn)


class Average(NamedTuple):
    """Calibrations of the members and of their mean, members' logits (m, n, C), and P (n, C)."""

    calibrations: list[Calibration]
    last: Calibration
    log_odds: NDArray[np.float64]
    proba: NDArray[np.float64]


def average(
    scores: Sequence[NDArray[np.float64]],
    Y: NDArray[np.float64],
    weight: NDArray[np.float64] | None = None,
) -> Average:
    """Calibrate members' scores (n, C) on labels Y (n, C), average logits, calibrate the mean."""
    calibrations = [calibrate(score, Y, weight) for score in scores]
    log_odds, mean = np.empty((len(scores), *Y.shape)), np.empty(Y.shape)
    parts = list(row_chunks(len(Y), 8 * Y.shape[1]))  # others would be as large as the scores
    for rows in parts:
        for own, calibration, score in zip(log_odds, calibrations, scores, strict=True):
            own[rows] = calibration.log_odds(score[rows])
        mean[rows] = log_odds[:, rows].mean(axis=0)
    last = calibrate(mean, Y, weight)
    for rows in parts:
        mean[rows] = softmax(last.log_odds(mean[rows]), axis=1)
    return Average(calibrations, last, log_odds, mean)


@dataclass(frozen=True, eq=False)
class Refits:
    """The members of a fitted ensemble, ready for other labels of its rows.

    States are decomposed and neighbours searched once; the penalties stay as they are.
    """

    states: list[RidgeStates]
    penalties: list[float]
    near: list[NDArray[np.int64]]
    k: int
    weight: NDArray[np.float64] | None

    def __call__(self, Y: NDArray[np.float64]) -> NDArray[np.float64]:
        """``oof_proba_`` (n, C) of a fit to labels Y (n, C)."""
        fits = zip(self.states, self.penalties, strict=True)
        scores = [part.leave_out(Y, penalty) for part, penalty in fits]
        scores += [neighbor_means(each, Y, [self.k], weight=self.weight)[0] for each in self.near]
        return average(scores, Y, self.weight).proba

    def components(self, count: int) -> NDArray[np.float64]:
        """Leading components (n, layers · count) of the states of each ridge fit.

        The standard deviations within a layer have the mean 1.
        """
        parts = []
        for layer in self.states:
            Z = layer.leading(count)
            parts.append(Z / max(float(Z.std(axis=0).mean()), 1e-12))
        return np.hstack(parts)


class EnsembleProbe(BaseProbe):
    """Ensemble of ridge fits and kNN votes: the mean of their calibrated logits, calibrated again.

    Parameters
    ----------
    widths : sequence of int, default=None
        Number of columns of each layer in X, side by side; None: X is one layer.
    ridge, knn : sequence of int, default=None
        Places, from 0, of the layers with a ridge fit, and with a kNN vote; None: all.
    k : int, default=30
        Number of neighbours that vote (cosine distance); fewer if duplicates leave fewer others.
    penalties : sequence of float, default=PENALTIES
        Candidates of the ridge penalty λ, in units of the states' mean variance; by default eight
        from 1e-3 to 3. Each layer has its own, chosen by the leave-one-out squared error and the
        one-standard-error rule.
    backend : {"auto", "faiss", "torch"}, default="auto"
        Library of the neighbour search; all give the same neighbours.
    approximate : bool, default=False
        Search neighbours of the fitted rows in inverted lists, as :class:`KNNProbe`.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Number of columns d of X.
    oof_proba_ : ndarray of shape (n, C)
        Class probabilities of every row, by members without the row and its group.
    member_log_odds_ : ndarray of shape (members, n, C)
        Calibrated logits, ridge first; not saved to disk.
    penalties_ : list of float
        Penalty chosen for each ridge fit.

    See Also
    --------
    KNNProbe : The votes of one layer alone.
    MassMeanProbe : Another closed form of a linear probe.

    Notes
    -----
    Any number of classes: a member scores each class (ridge on indicators, shares of votes) and is
    calibrated by one common slope and an intercept per class, for two classes Platt's calibration.
    The calibrations (two numbers each) and the penalties are fitted to all rows.

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import EnsembleProbe
    >>> X = np.random.default_rng(0).normal(size=(60, 5))  # layers of 2 and 3 columns
    >>> probe = EnsembleProbe(widths=(2, 3), k=5).fit(X, X[:, 0] > 0)
    >>> probe.predict([[-2.0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0]]).tolist()
    [False, True]
    >>> probe.member_log_odds_.shape  # two ridge fits, two kNN votes
    (4, 60, 2)
    """

    leave_one_out = True
    streams = True

    kinds: ClassVar[Mapping[str, Kind]] = {
        "widths": Maybe(Listed(COUNT, each_once=False)),
        "ridge": Maybe(Listed(Whole(0, 9999))),
        "knn": Maybe(Listed(Whole(0, 9999))),
        "k": COUNT,
        "penalties": Listed(Number(0, 1e12, above=True), least=1, each_once=False),
        "backend": BACKEND,
        "approximate": FLAG,
    }

    def __init__(
        self,
        *,
        widths: Sequence[int] | None = None,
        ridge: Sequence[int] | None = None,
        knn: Sequence[int] | None = None,
        k: int = 30,
        penalties: Sequence[float] = PENALTIES,
        backend: str = "auto",
        approximate: bool = False,
    ) -> None:
        self.widths = widths
        self.ridge = ridge
        self.knn = knn
        self.k = k
        self.penalties = penalties
        self.backend = backend
        self.approximate = approximate

    def for_store(self, store: ActivationStore) -> tuple[Self, tuple[int, ...] | None]:
        """Return the probe with the widths of the layers of a store that it reads, and these."""
        if len(store.layers) < 2:
            return self, None
        planned = plan_layers(store.layers).layers
        if self.widths is not None:
            return self, planned
        return self.for_layers(store), planned

    def for_layers(self, store: ActivationStore, layers: Sequence[int] | None = None) -> Self:
        """Return a clone that reads some layers of a store, as ``plan_for`` chooses them."""
        parts = ensemble_for(store, layers).get_params(deep=False)
        given = {name: parts[name] for name in ("widths", "ridge", "knn")}
        probe: Self = clone(self).set_params(**given)
        return probe

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit all members, and predict every row without itself.

        Parameters
        ----------
        X : array-like of shape (n, d)
            States, the layers side by side.
        y : array-like of shape (n,) or (n, C)
            Hard labels, P(second class), or class probabilities.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in fits, votes and calibrations; None: 1.
        groups : array-like of shape (n,), default=None
            Rows of one group never predict each other; None: rows with equal states.

        Returns
        -------
        self : EnsembleProbe
        """
        data = self._check_fit(X, y, sample_weight, groups)
        scores, self._coef, self._intercept, self.penalties_ = [], [], [], []
        for part in self._parts(data.X.shape[1])[0]:
            states = RidgeStates(data.X[:, part], groups=data.groups, weight=data.weight)
            penalty, score = choose_penalty(states, data.Y, self.penalties)
            coef, intercept = states.fit(data.Y, penalty)
            scores.append(score)
            self.penalties_.append(float(penalty))
            self._coef.append(coef)
            self._intercept.append(intercept)
            del states  # as large as the layer, and so is the index
        self._store(data)
        for index in self._indexes:
            votes = np.empty(data.Y.shape)
            for rows, near in index.blocks(self._k, groups=data.groups):
                found = neighbor_means(near.index, data.Y, [self._k], weight=data.weight)
                votes[rows] = found[0]
                del near
            scores.append(votes)
        self._calibrations, self._last, self.member_log_odds_, self.oof_proba_ = average(
            scores, data.Y, data.weight
        )
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (m, C) of new rows X (m, d); a fitted row votes for itself."""
        states = self._check_predict(X)
        ridge, knn = self._parts(states.shape[1])
        scores = []
        for part, coef, intercept in zip(ridge, self._coef, self._intercept, strict=True):
            score = np.empty((len(states), len(intercept)))
            for rows in row_chunks(len(states), 8 * len(coef)):
                score[rows] = states[rows, part].astype(np.float64) @ coef + intercept
            scores.append(score)
        for part, index in zip(knn, self._indexes, strict=True):
            near = index.query(_columns(states, part), self._k).index
            scores.append(
                neighbor_means(near, self._data.Y, [self._k], weight=self._data.weight)[0]
            )
        pairs = zip(self._calibrations, scores, strict=True)
        mean = np.mean([calibration.log_odds(score) for calibration, score in pairs], axis=0)
        return np.asarray(softmax(self._last.log_odds(mean), axis=1))

    def notes_for(self, *_: Any) -> list[str]:
        """A sentence for the user about approximate searches."""
        return recall_notes(self._indexes)

    def refits(self) -> Refits:
        """Prepare fits to other labels of the same rows."""
        data = self._data
        states = [
            RidgeStates(data.X[:, part], groups=data.groups, weight=data.weight)
            for part in self._parts(data.X.shape[1])[0]
        ]
        near = [index.others(self._k, groups=data.groups).index for index in self._indexes]
        return Refits(states, self.penalties_, near, self._k, data.weight)

    def _store(self, data: Training) -> None:
        """Index the rows of each layer for the neighbour search."""
        left = len(data.X) - int(np.bincount(data.groups).max())
        if left < 1:
            raise ProbeError(
                f"All {len(data.X)} rows are copies of one text; no other row can predict them."
            )
        self._data, self._k = data, min(int(self.k), left)
        self._indexes = [
            NeighborIndex(
                _columns(data.X, part),
                backend=self.backend,
                approximate=self.approximate,
            )
            for part in self._parts(data.X.shape[1])[1]
        ]

    def _parts(self, width: int) -> tuple[list[slice], list[slice]]:
        """Columns of the layers with a ridge fit, and of those with a kNN vote."""
        widths = [width] if self.widths is None else list(self.widths)
        if sum(widths) != width or min(widths, default=0) < 1:
            raise ProbeError(
                f"X has {width} columns, and the layers' widths {widths} must sum to that."
            )
        places = range(len(widths))
        ridge = list(places if self.ridge is None else self.ridge)
        knn = list(places if self.knn is None else self.knn)
        if not ridge + knn or not all(i in places for i in ridge + knn):
            raise ProbeError(
                f"ridge and knn must name layers 0 to {len(widths) - 1} of X, at least one, got "
                f"{self.ridge!r} and {self.knn!r}."
            )
        layers = _slices(widths)
        return [layers[i] for i in ridge], [layers[i] for i in knn]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {**self._data.to_arrays(), "oof_proba": self.oof_proba_}
        for i, (coef, intercept) in enumerate(zip(self._coef, self._intercept, strict=True)):
            arrays |= {f"coef.{i}": coef, f"intercept.{i}": intercept}
        calibrations = [*self._calibrations, self._last]
        arrays["penalties"] = np.array(self.penalties_)
        arrays["slopes"] = np.array([c.slope for c in calibrations])
        arrays["offsets"] = np.stack([c.intercept for c in calibrations])
        return arrays

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.oof_proba_ = arrays["oof_proba"]
        self.penalties_ = arrays["penalties"].tolist()
        self._coef = [arrays[f"coef.{i}"] for i in range(len(self.penalties_))]
        self._intercept = [arrays[f"intercept.{i}"] for i in range(len(self.penalties_))]
        *self._calibrations, self._last = [
            Calibration(float(slope), offset)
            for slope, offset in zip(arrays["slopes"], arrays["offsets"], strict=True)
        ]
        self._store(Training.from_arrays(arrays))


def _columns(X: Any, part: slice) -> Any:
    return X[:, part] if isinstance(X, Streamed) else np.ascontiguousarray(X[:, part])


def _slices(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum([0, *widths]).tolist()
    return [slice(start, stop) for start, stop in pairwise(ends)]
