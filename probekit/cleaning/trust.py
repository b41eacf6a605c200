"""P(a weak label is right) of every row, from a probe and a few true labels.

After Uzunoğlu et al. 2026, "Trust Functions" (https://arxiv.org/abs/2606.01000), in few dimensions:
the probe's log-odds are an offset, and all that is learned on top is drawn towards 0, where the
probe stands alone. So few true labels change little, and change it only where they have to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
from scipy.special import expit, logit
from sklearn.base import BaseEstimator

from probekit.errors import ProbeError, UsageError
from probekit.kinds import Whole, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FEWEST",
    "UNKNOWN",
    "TrustModel",
    "leave_one_out_losses",
    "penalised_logistic",
]

F = TypeVar("F", np.float32, np.float64)

UNKNOWN = -1
"""Class number of a row whose true label is not known."""
FEWEST = 10
"""Fewer true labels are no evidence: standard errors of so few mean nothing."""
# Candidates of λ; the last one leaves the probe as it is.
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf)
# Standard errors by which a weaker penalty must be better: with fewer, fifty labels do harm where
# the probe needs no correction; with more, they do not find errors that depend on the class.
ERRORS = 1.8
CLOSEST = 1e-6  # of a probability to 0 and 1, so that log-odds are finite
STEPS, HALVINGS, SMALL = 100, 40, 1e-12


def penalised_logistic(
    X: NDArray[np.float64], y: NDArray[np.bool_], offset: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """Coefficients w (p,) that minimise Σ log-loss(offset + X w, y) + λ ‖w‖², by Newton steps.

    An infinite penalty gives 0. A step is halved until the loss falls.
    """
    w = np.zeros(X.shape[1])
    if np.isinf(penalty):
        return w

    def loss(w: NDArray[np.float64]) -> float:
        return float(_log_loss(offset + X @ w, y).sum() + penalty * w @ w)

    value = loss(w)
    for _ in range(STEPS):
        P = expit(offset + X @ w)
        gradient = X.T @ (P - y) + 2 * penalty * w
        step = np.linalg.solve(_hessian(X, P, penalty), gradient)
        decrement = float(gradient @ step)
        if decrement < SMALL:
            break
        for halving in range(HALVINGS):
            trial = w - step * 0.5**halving
            if loss(trial) <= value - 1e-4 * 0.5**halving * decrement:
                break
        else:
            break  # no step falls by more than rounding: this is the minimum
        w, value = trial, loss(trial)
    return w


def leave_one_out_losses(
    X: NDArray[np.float64],
    y: NDArray[np.bool_],
    offset: NDArray[np.float64],
    penalty: float,
    coef: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Log-loss (m,) of every row by the fit without it: one Newton step from the fit ``coef``.

    With h_i = x_i' H⁻¹ x_i and v_i = P_i (1 − P_i) that step gives the row the log-odds
    η_i + h_i (P_i − y_i) / (1 − h_i v_i). Rad & Maleki 2020, https://arxiv.org/abs/1801.10243.
    """
    eta = offset + X @ coef
    if np.isinf(penalty):
        return _log_loss(eta, y)
    P = expit(eta)
    h = (X * np.linalg.solve(_hessian(X, P, penalty), X.T).T).sum(axis=1)
    return _log_loss(eta + h * (P - y) / (1 - h * P * (1 - P)), y)


def _hessian(X: NDArray[np.float64], P: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    hessian: NDArray[np.float64] = (X * (P * (1 - P))[:, None]).T @ X
    hessian[np.diag_indices_from(hessian)] += 2 * penalty
    return hessian


def _log_loss(eta: NDArray[np.float64], y: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0, eta) - y * eta)


class _Choice(NamedTuple):
    coef: NDArray[np.float64]
    penalty: float


def _choose(
    X: NDArray[np.float64],
    y: NDArray[np.bool_],
    offset: NDArray[np.float64],
    penalties: Sequence[float],
) -> _Choice:
    """The strongest penalty whose leave-one-out loss is not clearly above the least one."""
    penalties = sorted(penalties)
    coefs = [penalised_logistic(X, y, offset, penalty) for penalty in penalties]
    losses = np.stack(
        [
            leave_one_out_losses(X, y, offset, penalty, coef)
            for penalty, coef in zip(penalties, coefs, strict=True)
        ]
    )
    # Differences row by row: their spread is far smaller than that of the losses themselves.
    more = losses - losses[losses.mean(axis=1).argmin()]
    error = more.std(axis=1, ddof=1) / np.sqrt(len(y))
    chosen = int(np.flatnonzero(more.mean(axis=1) <= ERRORS * error)[-1])
    return _Choice(coefs[chosen], penalties[chosen])


class TrustModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """P(the weak label is right) of every row, from a probe and the true labels of some rows.

    logit P(right) = z + b + w · f, where z is the probe's log-odds of the weak label. First b and
    the weights of z, of the weak class, of the supervisor's confidence and of what other probes say
    beyond z are fitted to the rows whose true label is known, with the penalty λ (‖w‖² + b²); then,
    with that as offset, those of the states' leading components, each times ±1 for the two weak
    classes (with more classes: one weight for each class). λ of either fit is the strongest one
    whose leave-one-out log-loss is not above the least one by more than 1.8 standard errors of the
    difference; an infinite one leaves the probe as it is. Features are standardised over all rows,
    those of the weak class times 2 / C.

    Parameters
    ----------
    components : int, default=8
        Number of leading principal components of the states that are features; 0: none.
    penalties : sequence of float, default=(0.1, 0.3, 1, 3, 10, 30, 100, inf)
        Candidates of λ.
    random_state : int, default=0
        Seed of the randomised search for the components.

    Attributes
    ----------
    right_ : ndarray of shape (n,)
        P(the weak label is right).
    proba_ : ndarray of shape (n, C)
        Class probabilities: ``right_`` for the weak class; the others share the rest as the probe
        has them.
    coef_ : dict of str to float
        Weights of b and of the standardised features.
    penalty_, components_penalty_ : float
        λ of the two fits.
    n_trusted_ : int
        Number of rows that it was fitted to.

    See Also
    --------
    probekit.filter_labels : Its argument ``trusted`` fits this model.

    Examples
    --------
    Of the labels of class 0 every other one is wrong, and the probe does not know:

    >>> import numpy as np
    >>> from probekit.cleaning.trust import TrustModel
    >>> weak = np.arange(200) % 2
    >>> truth = np.where(np.arange(200) % 4 == 0, 1, weak)
    >>> known = np.where(np.arange(200) < 60, truth, -1)  # 60 true labels
    >>> model = TrustModel().fit(np.full((200, 2), 0.5), np.eye(2)[weak], known)
    >>> [round(float(model.right_[weak == k].mean()), 1) for k in (0, 1)]
    [0.5, 1.0]
    """

    def __init__(
        self,
        *,
        components: int = 8,
        penalties: Sequence[float] = PENALTIES,
        random_state: int = 0,
    ) -> None:
        self.components = components
        self.penalties = penalties
        self.random_state = random_state

    def fit(
        self,
        proba: ArrayLike,
        weak: ArrayLike,
        truth: ArrayLike,
        states: ArrayLike | None = None,
        supervisor_states: ArrayLike | None = None,
        others: Sequence[ArrayLike] = (),
    ) -> Self:
        """Fit to the rows whose true class is known.

        Parameters
        ----------
        proba : array-like of shape (n, C)
            The probe's class probabilities, out of fold.
        weak : array-like of shape (n, C)
            Weak labels as class probabilities.
        truth : array-like of shape (n,)
            True class numbers, -1 where they are not known.
        states, supervisor_states : array-like of shape (n, d), default=None
            Hidden states of the same rows, of the strong model and of the supervisor; None: no
            components of them.
        others : sequence of array-like of shape (n, C), default=()
            Class probabilities of other probes, out of fold, such as on other layers.

        Returns
        -------
        self : TrustModel

        Raises
        ------
        UsageError, ProbeError
            If a parameter is out of range, shapes differ, or fewer than 10 true labels are known.
        """
        checked(("components",), Whole(0, 1000), self.components)
        if not self.penalties or not all(penalty > 0 for penalty in self.penalties):
            raise UsageError(f"penalties are numbers above 0, got {self.penalties!r}.")
        P, Y, codes = np.asarray(proba, float), np.asarray(weak, float), np.asarray(truth)
        if P.ndim != 2 or P.shape != Y.shape or codes.shape != (len(P),):
            raise ProbeError(
                f"proba {P.shape} and weak {Y.shape} are (n, C), truth {codes.shape} is (n,); they "
                "must be of the same rows and classes."
            )
        hard = Y.argmax(axis=1)
        known = np.flatnonzero(codes != UNKNOWN)
        if len(known) < FEWEST:
            raise ProbeError(f"{len(known)} true labels are known; {FEWEST} are needed.")
        y = codes[known] == hard[known]
        z = _log_odds(P, hard)
        features = _features(z, hard, Y)
        for i, other in enumerate(others):
            features[f"other {i}"] = _log_odds(np.asarray(other, float), hard) - z
        X = np.column_stack([np.ones(len(P)), *map(_standardised, features.values())])
        # Of C classes each has a C-th of the trusted rows, but its standardised column, which is
        # √C where it is not near 0, would have its log-odds nearly free.
        of_class = np.array([name.startswith("class ") for name in ("", *features)])
        scale = np.where(of_class, 2 / Y.shape[1], 1.0)
        X *= scale
        first = _choose(X[known], y, z[known], self.penalties)
        eta = z + X @ first.coef
        self.penalty_, self.components_penalty_ = first.penalty, np.inf
        weights = (first.coef * scale).tolist()
        self.coef_ = dict(zip(("intercept", *features), weights, strict=True))
        parts = [
            self._components(np.asarray(part), hard, Y.shape[1])
            for part in (states, supervisor_states)
            if part is not None and self.components
        ]
        if parts:
            U = np.hstack(parts)
            second = _choose(U[known], y, eta[known], self.penalties)
            eta = eta + U @ second.coef
            self.components_penalty_ = second.penalty
            names = (f"component {i}" for i in range(U.shape[1]))
            self.coef_ |= dict(zip(names, second.coef.tolist(), strict=True))
        self.right_, self.n_trusted_ = expit(eta), len(known)
        self.proba_ = _shared(self.right_, P, hard)
        return self

    def _components(
        self, states: NDArray[Any], hard: NDArray[np.int64], n_classes: int
    ) -> NDArray[np.float64]:
        """Leading components (n, k), signed by the weak class; above two classes (n, k C)."""
        from sklearn.decomposition import PCA

        # Divided by the largest number, so that squares fit float32; and columns made equal, since
        # a few of a decoder's are thousands of times as large as the others.
        largest = float(np.abs(states).max()) or 1.0
        X = _standardised((states / largest).astype(np.float32))
        pca = PCA(
            min(self.components, *X.shape), svd_solver="randomized", random_state=self.random_state
        )
        U = _standardised(pca.fit_transform(X).astype(np.float64))
        if n_classes == 2:
            # A direction that speaks for class 1 speaks against the weak label where that is 0.
            return U * np.where(hard == 1, 1.0, -1.0)[:, None]
        of_class = np.eye(n_classes)[hard]
        return (U[:, :, None] * of_class[:, None, :]).reshape(len(U), -1)


def _log_odds(P: NDArray[np.float64], hard: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log-odds (n,) of the weak class."""
    return np.asarray(logit(np.clip(P[np.arange(len(P)), hard], CLOSEST, 1 - CLOSEST)))


def _features(
    z: NDArray[np.float64], hard: NDArray[np.int64], Y: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """The log-odds z (so that their slope is 1 + w), weak class, supervisor's log-odds if soft."""
    features = {"log-odds": z}
    features |= {f"class {k}": (hard == k).astype(np.float64) for k in range(Y.shape[1])}
    top = Y.max(axis=1)
    if (top < 1 - CLOSEST).any():
        features["confidence"] = logit(np.clip(top, CLOSEST, 1 - CLOSEST))
    return features


def _standardised(X: NDArray[F]) -> NDArray[F]:
    """Columns with mean 0 and variance 1; those that are constant up to rounding are 0."""
    centred = X - X.mean(axis=0)
    spread = X.std(axis=0)
    constant = spread <= 8 * np.finfo(X.dtype).eps * np.abs(X).max(axis=0)
    scaled: NDArray[F] = centred / np.where(constant, np.inf, spread).astype(X.dtype)
    return scaled


def _shared(
    right: NDArray[np.float64], P: NDArray[np.float64], hard: NDArray[np.int64]
) -> NDArray[np.float64]:
    """P (n, C) with ``right`` for the weak class; the others share the rest in P's proportions."""
    rows = np.arange(len(P))
    others = np.maximum(P, CLOSEST)
    others[rows, hard] = 0
    proba: NDArray[np.float64] = others * ((1 - right) / others.sum(axis=1))[:, None]
    proba[rows, hard] = right
    return proba
