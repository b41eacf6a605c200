"""The logistic probe: one linear direction per class, its penalty chosen out of fold."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from scipy.special import log_expit, log_softmax
from sklearn.utils import check_random_state

from probekit.errors import ProbeError
from probekit.folds import stratified_folds
from probekit.groups import duplicate_groups
from probekit.kinds import Choice, Kind, Listed, Maybe, Number, Text
from probekit.limits import COUNT, FLAG, FOLDS, KINDS, PENALTY, RANDOM_STATE
from probekit.probes.base import BaseProbe, Training, hard_labels, row_chunks
from probekit.probes.logistic_path import (
    LogisticPath,
    Precision,
    logistic_path,
    logits_to_proba,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LogisticPath", "LogisticProbe", "logistic_path"]

PENALTIES = tuple(float(p) for p in np.logspace(-4, 1, 11))
FALLBACK = 1e-2


class LogisticProbe(BaseProbe):
    """Penalised logistic regression on soft or hard labels.

    Minimises Σ w CE / Σ w + l2 ‖W‖², see :func:`logistic_path`.

    Parameters
    ----------
    l2
        Penalty, or ``"auto"``: the one of ``penalties`` with the smallest out-of-fold log-loss on
        the given (weak) labels; the larger of equals. Needs two classes with two different rows
        each; with less, 1e-2 is taken. EleutherAI's numbers: ``l2=1e-2, standardize=False``.
    standardize
        Penalise the coefficients of columns divided by their spread; ``coef_`` is in the space of
        X all the same. Columns that are constant up to rounding have coefficient 0.
    fit_intercept
        False: no bias, so that with two classes P(X) = 1 − P(−X). What differences of two states
        need (which of two completions is preferred, whichever stands first); columns are then
        divided by their root mean square, not centred.
    n_folds
        Folds for ``oof_proba_`` and ``l2="auto"``, stratified, duplicates in one fold.
    penalties
        What ``l2="auto"`` chooses from; by default 11 values from 1e-4 to 10.
    dtype
        ``"float32"`` or ``"float64"``: precision of the computation.
    tol, max_iter
        As :func:`logistic_path`.
    random_state
        Decides the folds.
    device
        ``"auto"`` (CUDA if there), ``"cpu"``, ``"cuda"``, ...

    Attributes
    ----------
    classes_, n_features_in_
        Classes in column order; width of X.
    coef_, intercept_
        (1, d), (1,) for two classes, the direction of the second; (C, d), (C,) for more.
    oof_proba_
        P (n, C) of every row by the fit without its fold, at the penalty ``l2_``. That penalty was
        chosen with the same folds: one number, so what it could have learned from a row is little,
        but a strictly nested estimate is ``out_of_fold(LogisticProbe(), X, y)``. The class shares
        where folds cannot be made.
    fold_
        Fold of every row (n,), -1 where folds cannot be made.
    l2_, l2_scores_, penalties_
        Penalty in use; out-of-fold log-loss (P,) of every penalty tried; those penalties (P,).
    n_iter_, grad_max_
        Passes over X; largest entry of the gradient.

    Source: https://github.com/EleutherAI/w2s (its default is ``l2=1e-3``).
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    # Without a bias, P(−x) = 1 − P(x).
    odd_without_bias = True

    kinds: ClassVar[Mapping[str, Kind]] = {
        "l2": KINDS["l2"],
        "standardize": FLAG,
        "fit_intercept": FLAG,
        "n_folds": FOLDS,
        "penalties": Maybe(Listed(PENALTY, least=1, each_once=False)),
        "dtype": Choice("float32", "float64"),
        "tol": Maybe(Number(0, 1, above=True)),
        "max_iter": COUNT,
        "random_state": RANDOM_STATE,
        "device": Text("a device such as auto or cpu,"),
    }

    def __init__(
        self,
        l2: float | Literal["auto"] = "auto",
        *,
        standardize: bool = True,
        fit_intercept: bool = True,
        n_folds: int = 5,
        penalties: ArrayLike | None = None,
        dtype: Precision = "float32",
        tol: float | None = None,
        max_iter: int = 500,
        random_state: Any = 0,
        device: str = "auto",
    ) -> None:
        self.l2 = l2
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.n_folds = n_folds
        self.penalties = penalties
        self.dtype = dtype
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit every penalty with and without each fold, and keep the best penalty.

        Rows of one group (n,) share a fold; by default rows with the very same states do.
        """
        self._check_parameters()
        tried = self._tried()
        data = self._check_fit(X, y, sample_weight, groups)
        folds = self._folds(data)
        if folds is None and self.l2 == "auto":
            tried = np.array([FALLBACK])
        path = logistic_path(
            data.X,
            data.Y,
            tried,
            sample_weight=data.weight,
            folds=folds,
            standardize=self.standardize,
            fit_intercept=self.fit_intercept,
            dtype=self.dtype,
            tol=self.tol,
            max_iter=self.max_iter,
            device=self.device,
        )
        weight = np.ones(len(data.Y)) if data.weight is None else data.weight
        self.penalties_ = path.penalties
        if folds is None or path.oof_logits is None:
            self.fold_ = np.full(len(data.Y), -1, dtype=np.int16)
            self.l2_scores_ = np.full(len(tried), np.nan)
            best = 0
            share = np.full(data.Y.shape[1], 1 / data.Y.shape[1])
            if self.fit_intercept:
                share = np.average(data.Y, axis=0, weights=weight)
            self.oof_proba_ = np.tile(share, (len(data.Y), 1))
        else:
            self.fold_ = folds
            self.l2_scores_ = np.array([_log_loss(z, data.Y, weight) for z in path.oof_logits])
            least = np.flatnonzero(self.l2_scores_ == self.l2_scores_.min())
            best = int(least[np.argmax(path.penalties[least])])
            self.oof_proba_ = logits_to_proba(path.oof_logits[best])
        self.l2_ = float(path.penalties[best])
        self.coef_, self.intercept_ = path.coef_[best], path.intercept_[best]
        self.n_iter_, self.grad_max_ = int(path.n_iter_[best]), float(path.grad_max_[best])
        return self

    def _tried(self) -> NDArray[np.float64]:
        if self.l2 == "auto":
            return np.asarray(PENALTIES if self.penalties is None else self.penalties, np.float64)
        l2: Any = self.l2
        if isinstance(l2, Real) and 0 <= float(l2) < np.inf:
            return np.array([float(l2)])
        raise ProbeError(f"l2 must be 'auto' or a number of at least 0, got {l2!r}.")

    def _folds(self, data: Training) -> NDArray[np.int16] | None:
        """Fold of each row, or None where two classes with two different rows each are missing."""
        n_folds: Any = self.n_folds
        if not isinstance(n_folds, Integral) or n_folds < 2:
            raise ProbeError(f"n_folds must be an integer of at least 2, got {n_folds!r}.")
        hard = hard_labels(data.Y)
        groups = duplicate_groups(data.X) if data.groups is None else data.groups
        pairs = np.unique(np.column_stack([hard, groups]), axis=0)
        several = np.bincount(pairs[:, 0]) >= 2
        if np.count_nonzero(several) < 2:
            return None
        state = self.random_state
        if not isinstance(state, Integral):
            state = check_random_state(state).randint(2**31)
        return stratified_folds(hard, n_folds=int(n_folds), groups=groups, seed=int(state))

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        states = self._check_predict(X)
        logits = np.empty((len(states), len(self.coef_)))
        for rows in row_chunks(len(states), 8 * states.shape[1]):
            logits[rows] = states[rows].astype(np.float64) @ self.coef_.T + self.intercept_
        return logits

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return logits of new rows: (n,) of the second of two classes, or (n, C)."""
        logits = self._logits(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n, C) of new rows X (n, d), columns as in ``classes_``."""
        return logits_to_proba(self._logits(X))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {name: np.asarray(getattr(self, name)) for name in _LEARNED}
        return arrays | {"scalars": np.array([self.l2_, self.n_iter_, self.grad_max_])}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        for name in _LEARNED:
            setattr(self, name, arrays[name])
        l2, n_iter, grad_max = arrays["scalars"].tolist()
        self.l2_, self.n_iter_, self.grad_max_ = l2, int(n_iter), grad_max


_LEARNED = ("coef_", "intercept_", "oof_proba_", "fold_", "l2_scores_", "penalties_")


def _log_loss(
    logits: NDArray[np.float64], Y: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean cross-entropy of logits (n, V) with labels (n, C)."""
    if logits.shape[1] == 1:
        log_p = np.column_stack([log_expit(-logits[:, 0]), log_expit(logits[:, 0])])
    else:
        log_p = log_softmax(logits, axis=1)
    return float(-(weight @ (Y * log_p).sum(axis=1)) / weight.sum())
