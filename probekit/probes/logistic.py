"""The logistic probe: one linear direction per class, its penalty chosen out of fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from sklearn.utils import check_random_state

from probekit.groups import folds_to_learn
from probekit.kinds import (
    COUNT,
    FLAG,
    FOLDS,
    KINDS,
    PENALTY,
    RANDOM_STATE,
    Choice,
    Kind,
    Listed,
    Maybe,
    Number,
    Text,
)
from probekit.probes.base import BaseProbe, Training, hard_labels
from probekit.probes.logistic_path import (
    Precision,
    Search,
    check_task,
    fit_path,
    log_loss,
    logits_to_proba,
)
from probekit.states import row_chunks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PENALTIES", "LogisticProbe"]

PENALTIES = tuple(float(p) for p in np.logspace(-4, 1, 11))
FALLBACK = 1e-2


class LogisticProbe(BaseProbe):
    """Penalised logistic regression on soft or hard labels.

    Minimises Σ w CE / Σ w + l2 ‖W‖² (:func:`logistic_path`).

    Parameters
    ----------
    l2 : float or "auto", default="auto"
        Penalty. ``"auto"``: the one of ``penalties`` with the smallest out-of-fold log-loss on the
        given (weak) labels, the larger of equals; 1e-2 unless two classes have two different rows
        each. With many classes (more than 512 fits x classes: eight classes by default) penalties
        are tried from the largest on, until two in a row raise that loss; from 10^8 rows x columns
        x classes on two folds only are asked, until one raises it; from 4 · 10^8 on every second
        penalty. EleutherAI's numbers: ``l2=1e-2, standardize=False``.
    standardize : bool, default=True
        Penalise the coefficients of columns divided by their spread, so that the scale of a column
        does not matter; ``coef_`` is in the space of X all the same. Columns that are constant up
        to rounding have coefficient 0.
    fit_intercept : bool, default=True
        False: no bias, so that with two classes P(X) = 1 − P(−X), as differences of two states
        require (which of two completions is preferred must not depend on their order). Columns are
        then divided by their root mean square, not centred.
    n_folds : int, default=5
        Number of folds for ``oof_proba_`` and ``l2="auto"``, stratified, with duplicates in one
        fold.
    penalties : array-like of shape (P,), default=None
        Candidates of ``l2="auto"``; None: 11 values from 1e-4 to 10.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the computation.
    tol : float, default=None
        As in :func:`logistic_path`; None: 1e-6 in float32, 1e-10 in float64.
    max_iter : int, default=500
        Maximum number of passes over the rows.
    random_state : int, RandomState or None, default=0
        Decides the folds.
    device : str, default="auto"
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ...

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Classes in column order.
    n_features_in_ : int
        Number of columns d of X.
    coef_ : ndarray of shape (1, d) or (C, d)
        Coefficients; for two classes those of the second.
    intercept_ : ndarray of shape (1,) or (C,)
        Biases.
    oof_proba_ : ndarray of shape (n, C)
        Class probabilities of every row by the fit without its fold, at the penalty ``l2_``. That
        penalty was chosen with the same folds: it is one number, so it can have learned little from
        a row; ``out_of_fold(LogisticProbe(), X, y)`` is a strictly nested estimate. The class
        shares if folds are impossible.
    fold_ : ndarray of shape (n,)
        Fold of every row, -1 if folds are impossible.
    l2_ : float
        Penalty in use.
    penalties_, l2_scores_ : ndarray of shape (P,)
        Candidates for the penalty, and the out-of-fold log-loss of each, NaN if it was not tried;
        with many classes of fits exact to 3 ``tol``, and of the rows of the folds asked.
    n_iter_ : int
        Number of passes over X.
    grad_max_ : float
        Largest entry of the gradient at the end.

    See Also
    --------
    logistic_path : Every penalty of a path, and every fold, as arrays.
    PairProbe : Any probe on differences of two states.
    sklearn.linear_model.LogisticRegression : The same optimum at C = 1 / (2 l2 Σ w).

    References
    ----------
    https://github.com/EleutherAI/w2s (its default is ``l2=1e-3``)

    Examples
    --------
    >>> import numpy as np
    >>> from probekit.probes import LogisticProbe
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> probe = LogisticProbe().fit(X, X[:, 0] > 0)
    >>> probe.predict([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]).tolist()
    [False, True]
    >>> probe.oof_proba_.shape
    (60, 2)
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    streams = True
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
        """Fit every penalty with and without each fold, and choose the best penalty.

        Parameters
        ----------
        X : array-like of shape (n, d)
            States.
        y : array-like of shape (n,) or (n, C)
            Hard labels, P(second class), or class probabilities.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; None: 1.
        groups : array-like of shape (n,), default=None
            Rows of one group share a fold; None: rows with equal states.

        Returns
        -------
        self : LogisticProbe
        """
        self._check_parameters()
        candidates = self._candidates()
        data = self._check_fit(X, y, sample_weight, groups)
        folds = self._folds(data)
        if folds is None and self.l2 == "auto":
            candidates = np.array([FALLBACK])
        path, search = fit_path(
            check_task(data.X, data.Y, data.weight, folds),
            candidates,
            standardize=self.standardize,
            fit_intercept=self.fit_intercept,
            dtype=self.dtype,
            tol=self.tol,
            max_iter=self.max_iter,
            device=self.device,
            search=self.l2 == "auto",
        )
        weight = np.ones(len(data.Y)) if data.weight is None else data.weight
        self.penalties_, self._search = candidates, search
        if folds is None or path.oof_logits is None:
            self.fold_ = np.full(len(data.Y), -1, dtype=np.int16)
            self.l2_scores_ = np.full(len(candidates), np.nan)
            best = 0
            share = np.full(data.Y.shape[1], 1 / data.Y.shape[1])
            if self.fit_intercept:
                share = np.average(data.Y, axis=0, weights=weight)
            self.oof_proba_ = np.tile(share, (len(data.Y), 1))
        else:
            self.fold_ = folds
            scores = np.array([log_loss(z, data.Y, weight) for z in path.oof_logits])
            self.l2_scores_ = scores if search is None else search.scores
            equals = np.flatnonzero(scores == scores.min())
            best = int(equals[np.argmax(path.penalties[equals])])
            self.oof_proba_ = logits_to_proba(path.oof_logits[best])
        self.l2_ = float(path.penalties[best])
        self.coef_, self.intercept_ = path.coef_[best], path.intercept_[best]
        self.n_iter_, self.grad_max_ = int(path.n_iter_[best]), float(path.grad_max_[best])
        return self

    def notes_for(self, classes: Sequence[Any], _: Sequence[str] | None = None) -> list[str]:
        """A sentence for the user if the search for a penalty was cut short; classes (C,)."""
        search: Search | None = getattr(self, "_search", None)
        if search is None or search.n_folds == self.fold_.max() + 1:
            return []
        return [
            f"{len(classes):,} classes and {len(self.fold_):,} rows: the penalty {self.l2_:.3g} "
            f"was chosen on {search.n_folds} of {self.fold_.max() + 1} folds"
            f"{', of every second one' if search.every > 1 else ''}, from the strongest on until "
            "one was worse; --l2 sets it."
        ]

    def _candidates(self) -> NDArray[np.float64]:
        if self.l2 == "auto":
            return np.asarray(PENALTIES if self.penalties is None else self.penalties, np.float64)
        return np.array([float(self.l2)])

    def _folds(self, data: Training) -> NDArray[np.int16] | None:
        """Fold of each row; None unless two classes have two different rows each."""
        assert data.groups is not None
        state = self.random_state
        if not isinstance(state, Integral):
            state = check_random_state(state).randint(2**31)
        hard = hard_labels(data.Y)
        return folds_to_learn(hard, data.groups, n_folds=self.n_folds, seed=int(state))

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        states = self._check_predict(X)
        logits = np.empty((len(states), len(self.coef_)))
        for rows in row_chunks(len(states), 8 * states.shape[1]):
            logits[rows] = states[rows].astype(np.float64) @ self.coef_.T + self.intercept_
        return logits

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits of new rows X (n, d): (n,) of the second of two classes, or (n, C)."""
        logits = self._logits(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (n, C) of new rows X (n, d), columns as in ``classes_``."""
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
