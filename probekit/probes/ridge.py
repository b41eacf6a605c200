"""Ridge regression on class indicators, with exact leave-one-group-out predictions.

One eigendecomposition of the states' covariance Σ = V diag(σ²) Vᵀ serves every penalty λ, every
label and every row left out. Leave-one-out in closed form is PRESS (Allen 1974,
https://doi.org/10.1080/00401706.1974.10489157), here for groups of rows. Regression on indicators
has the directions of linear discriminant analysis, shrunk by λ (Hastie, Buja & Tibshirani 1995,
https://doi.org/10.1214/aos/1176324456).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from probekit.errors import ProbeError
from probekit.held import Here, Share, hold
from probekit.states import Streamed, constant_columns, row_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PENALTIES", "RidgeStates", "choose_penalty"]

# λ in units of s², the mean eigenvalue of Σ.
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)

# Projections of more rows are kept in float32: each row's leverage is then far from 1, so that
# rounding stays as small as it is.
EXACT_BYTES = 1 << 30


class RidgeStates:
    """States X decomposed once, for ridge fits with any labels and penalties.

    A fit minimises Σ_i w_i (y_i − a − x_i · b)² + λ n s² ‖b‖² over coefficients b and intercept a.
    The intercept is not penalised, so X can be centred. s² = tr Σ / d is the mean square of the
    centred entries, so that λ means the same for states of any size, and weights have mean 1.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        States, finite; :class:`probekit.states.Streamed` ones are read in every pass. The workers
        of :func:`probekit.engine.on_ray` each hold a share of the rows.
    groups : ndarray of shape (n,), default=None
        Rows of one group are left out together. Set it if rows have copies or belong to one
        question: a fit that has seen a copy of a row predicts it too well. None: each row alone.
    weight : ndarray of shape (n,), default=None
        Weights of the rows; None: equal weights.

    Raises
    ------
    ProbeError
        If one group has all the weight, so that no row could be predicted without it.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> Y = np.eye(2)[(X[:, 0] > 0).astype(int)]
    >>> states = RidgeStates(X)
    >>> penalty, scores = choose_penalty(states, Y)
    >>> float((scores.argmax(axis=1) == Y.argmax(axis=1)).mean()) > 0.9
    True
    >>> coef, intercept = states.fit(Y, penalty)
    >>> coef.shape, intercept.shape
    ((3, 2), (2,))
    """

    def __init__(
        self,
        X: Any,
        *,
        groups: NDArray[np.int64] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        n, d = X.shape
        # w with mean 1, so that λ does not depend on their scale.
        self.weight = np.ones(n) if weight is None else weight * (n / weight.sum())
        groups_by_size = _groups_by_size(groups, self.weight)
        self._rows = hold(X) if d <= n else Here(X)
        self._sent = self._rows.put(self.weight)
        # x̄ = Σ w_i x_i / n
        self.mean = self._rows.sum(_add_mean, self._sent)[0] / n
        square = self._rows.sum(_add_square, self._sent, self.mean)[0] / n
        constant = constant_columns(self.mean, np.sqrt(square), X.dtype)
        # Σ = V diag(σ²) Vᵀ
        vectors, values = self._decompose(X, constant)
        vectors[constant] = 0  # rounding may leave small numbers
        # s² = tr Σ / d
        scale = float(np.sqrt(max(values.sum(), 0.0) / d))
        self.scale = scale if scale > 0 else 1.0
        # σ² / s² (r,) and V / s (d, r)
        self.values = np.maximum(values, 0) / self.scale**2
        self.vectors = vectors / self.scale
        exact = 8 * n * len(values) <= EXACT_BYTES
        frame = _Frame(uuid4().hex, self.mean, constant, self.vectors, exact=exact)
        self._frame, self._groups = self._rows.put(frame), self._rows.put(groups_by_size)
        # The labels that were fitted last, and what is known of them: it takes a pass.
        self._known: tuple[Any, Any, Any] = (None, None, None)

    def _decompose(
        self, X: Any, constant: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvectors (d, r) and eigenvalues (r,) of the weighted covariance, r = min(n, d)."""
        n, d = X.shape
        if d <= n:
            # Σ = (X − x̄)ᵀ W (X − x̄) / n
            (total,) = self._rows.sum(_add_covariance, self._sent, self.mean, constant)
            values, vectors = np.linalg.eigh(total / n)
            return vectors, values
        # d > n: with A = W^½ (X − x̄), the smaller A Aᵀ / n = U diag(σ²) Uᵀ has the same eigenvalues
        # except zeros, and V = Aᵀ U / (σ √n).
        scaled = _centred(X[:], self.mean, constant) * np.sqrt(self.weight)[:, None]
        values, left = np.linalg.eigh(scaled @ scaled.T / n)
        keep = values > 1e-12 * max(float(values[-1]), 0.0)
        values, left = values[keep], left[:, keep]
        return scaled.T @ left / np.sqrt(values * n), values

    def __len__(self) -> int:
        return len(self.weight)

    def leave_out(self, Y: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        """Predict every row by the fit without its group.

        With weights W, hat matrix K W, K = Z D Zᵀ + 1/n, and the fit to all rows F = K W Y, the
        scores of a group G without its labels are Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G): those of a
        refit without G at the same λ n s², up to rounding. For a single row with leverage
        h = K_ii w_i that is (F_i − h y_i) / (1 − h).

        Parameters
        ----------
        Y : ndarray of shape (n, c)
            Labels, such as class probabilities.
        penalty : float
            λ.

        Returns
        -------
        ndarray of shape (n, c)
            Scores.
        """
        scores: NDArray[np.float64] = self._of_rows(_scores, Y, [penalty])
        return scores

    def errors(self, Y: NDArray[np.float64], penalties: Sequence[float]) -> NDArray[np.float64]:
        """Squared errors w_i ‖ŷ_i − y_i‖² (n, p) of :meth:`leave_out` with each penalty."""
        errors: NDArray[np.float64] = self._of_rows(_errors, Y, penalties)
        return errors

    def leading(self, count: int) -> NDArray[np.float64]:
        """The columns (n, count) of Z with the largest variance."""
        order = np.argsort(-self.values)[:count]
        found = self._rows.each(_some_columns, self._frame, order)
        return np.concatenate([Z for _, (Z,) in found])

    def fit(self, Y: NDArray[np.float64], penalty: float) -> tuple[NDArray[np.float64], Any]:
        """Fit all rows: coefficients (d, c) and intercept (c,) for labels Y (n, c)."""
        fit = self._fit(self._rows.put(Y), Y, [penalty])
        # b = V D Zᵀ W (Y − ȳ) / s
        coef = self.vectors @ (fit.shrinks[0][:, None] * fit.moment)
        # a = ȳ − x̄ · b
        return coef, fit.y_mean - self.mean @ coef

    def _fit(self, sent: Any, Y: NDArray[np.float64], penalties: Sequence[float]) -> _Fit:
        n = len(self)
        if self._known[0] is not Y:
            # ȳ = Σ w_i y_i / n, what the intercept alone predicts
            y_mean = self.weight @ Y / n
            # Zᵀ W (Y − ȳ) (r, c)
            (moment,) = self._rows.sum(_add_moment, self._frame, self._sent, sent, y_mean)
            self._known = Y, y_mean, moment
        _, y_mean, moment = self._known
        # D = (n (σ² / s² + λ))⁻¹
        return _Fit(n, y_mean, moment, [1 / ((self.values + p) * n) for p in penalties])

    def _of_rows(self, work: Any, Y: NDArray[np.float64], penalties: Sequence[float]) -> Any:
        """What ``work`` returns for every row: of a share's rows, and of others by number."""
        sent = self._rows.put(Y)
        fit = self._fit(sent, Y, penalties)
        common = self._frame, self._sent, self._groups, sent, fit
        found = [each for _, each in self._rows.each(work, *common)]
        own = found[0][0] if len(found) == 1 else np.concatenate([each[0] for each in found])
        result = np.require(own, requirements="W")
        for _, numbers, values in found:
            result[numbers] = values
        return result


@dataclass(frozen=True)
class _Frame:
    """What projects rows: all that a share of them needs."""

    key: str
    mean: NDArray[np.float64]
    constant: NDArray[np.bool_]
    vectors: NDArray[np.float64]
    exact: bool
    """Whether projections are kept in float64."""


@dataclass(frozen=True)
class _Fit:
    """What predicts rows without themselves: ȳ, Zᵀ W (Y − ȳ), and D of every penalty."""

    n: int
    y_mean: NDArray[np.float64]
    moment: NDArray[np.float64]
    shrinks: list[NDArray[np.float64]]


def _states(share: Share) -> Any:
    """Rows by slices of a share: a worker reads them once if they fit."""
    n, d = len(share), share.X.shape[1]
    if not isinstance(share.X, Streamed) or 2 * 4 * n * d > share.room:  # projections, too
        return share
    return share.keep("states", "all", lambda: share[:n])


def _chunks(share: Share) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Some rows of a share at a time: their numbers among all, in the share, and states."""
    states, first = _states(share), share.rows.start
    for part in row_chunks(len(share), 8 * share.X.shape[1]):
        yield slice(first + part.start, first + part.stop), part, states[part]


def _centred(
    X: NDArray[Any], mean: NDArray[np.float64], constant: NDArray[np.bool_]
) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = X.astype(np.float64) - mean
    if constant.any():
        centred[:, constant] = 0
    return centred


def _add_mean(share: Share, weight: NDArray[np.float64]) -> list[Any]:
    total = np.zeros(share.X.shape[1])
    for rows, _, X in _chunks(share):
        total += weight[rows] @ X.astype(np.float64)
    return [total]


def _add_square(share: Share, weight: NDArray[np.float64], mean: NDArray[np.float64]) -> list[Any]:
    total = np.zeros(share.X.shape[1])
    for rows, _, X in _chunks(share):
        total += weight[rows] @ (X.astype(np.float64) - mean) ** 2
    return [total]


def _add_covariance(
    share: Share,
    weight: NDArray[np.float64],
    mean: NDArray[np.float64],
    constant: NDArray[np.bool_],
) -> list[Any]:
    total = np.zeros((len(mean), len(mean)))
    for rows, _, X in _chunks(share):
        centred = _centred(X, mean, constant)
        total += (centred * weight[rows, None]).T @ centred
    return [total]


def _projected(share: Share, frame: _Frame) -> NDArray[Any] | None:
    """Z = (X − x̄) V / s (b, r) of a share, with Zᵀ W Z = n diag(σ² / s²); None if too large."""
    size = 4 * len(share) * len(frame.mean)
    if not frame.exact and isinstance(share.X, Streamed) and 2 * size > share.room:
        return None

    def project() -> NDArray[Any]:
        shape = len(share), frame.vectors.shape[1]
        projected = np.empty(shape, np.float64 if frame.exact else np.float32)
        for _, part, X in _chunks(share):
            projected[part] = _centred(X, frame.mean, frame.constant) @ frame.vectors
        share.drop("states")
        return projected

    Z: NDArray[Any] = share.keep("projected", frame.key, project)
    return Z


def _project(share: Share, frame: _Frame, rows: slice | NDArray[np.int64]) -> NDArray[np.float64]:
    """Z in float64 of some rows, by their numbers among all."""
    kept, first = _projected(share, frame), share.rows.start
    if isinstance(rows, slice):
        inside, own = True, slice(rows.start - first, rows.stop - first)
    else:
        inside, own = bool((rows >= first).all() and (rows < share.rows.stop).all()), rows - first
    if kept is not None and inside:
        return np.asarray(kept[own], dtype=np.float64)
    Z = _centred(share.X[rows], frame.mean, frame.constant) @ frame.vectors
    # To the numbers of a copy.
    return Z if frame.exact else np.asarray(Z.astype(np.float32), dtype=np.float64)


def _projections(share: Share, frame: _Frame) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some rows of a share at a time, by their numbers among all, and their Z."""
    for part in row_chunks(len(share), 8 * frame.vectors.shape[1]):
        rows = slice(share.rows.start + part.start, share.rows.start + part.stop)
        yield rows, _project(share, frame, rows)


def _add_moment(
    share: Share,
    frame: _Frame,
    weight: NDArray[np.float64],
    Y: NDArray[np.float64],
    y_mean: NDArray[np.float64],
) -> list[Any]:
    total = np.zeros((frame.vectors.shape[1], Y.shape[1]))
    for rows, Z in _projections(share, frame):
        total += Z.T @ (weight[rows, None] * (Y[rows] - y_mean))
    return [total]


def _some_columns(share: Share, frame: _Frame, columns: NDArray[np.int64]) -> list[Any]:
    return [np.concatenate([Z[:, columns] for _, Z in _projections(share, frame)])]


def _left_out(
    share: Share,
    frame: _Frame,
    weight: NDArray[np.float64],
    groups_by_size: list[NDArray[np.int64]],
    Y: NDArray[np.float64],
    fit: _Fit,
) -> Iterator[tuple[Any, list[NDArray[np.float64]]]]:
    """Yield rows and their scores for every penalty; later ones replace earlier ones.

    Groups of several rows belong to the share of their first row.
    """
    n, y_mean, moment = fit.n, fit.y_mean, fit.moment
    for part, Z in _projections(share, frame):
        # Y − F = Y − ȳ − Z D Zᵀ W (Y − ȳ)
        residuals = [Y[part] - y_mean - Z @ (shrink[:, None] * moment) for shrink in fit.shrinks]
        # Rows alone: h_i = w_i (Σ_r z_ir² D_r + 1/n), and y_i − (y_i − F_i) / (1 − h_i)
        squares, own = Z**2, weight[part]
        leverages = [own * (squares @ shrink + 1 / n) for shrink in fit.shrinks]
        yield (
            part,
            [
                Y[part] - residual / (1 - leverage)[:, None]
                for residual, leverage in zip(residuals, leverages, strict=True)
            ],
        )
    for every in groups_by_size:
        first = every[:, 0]
        rows = every[(first >= share.rows.start) & (first < share.rows.stop)]
        for some in row_chunks(len(rows), 8 * rows.shape[1] * frame.vectors.shape[1]):
            group = rows[some]
            Z = _project(share, frame, group.ravel()).reshape(*group.shape, -1)
            own, scores = weight[group][:, None, :], []
            for shrink in fit.shrinks:
                residual = Y[group] - y_mean - Z @ (shrink[:, None] * moment)
                # K_GG = Z_G D Z_Gᵀ + 1/n (groups, |G|, |G|), many groups of one size at once
                K = (Z * shrink) @ Z.transpose(0, 2, 1) + 1 / n
                # Y_G − (I − K_GG W_G)⁻¹ (Y_G − F_G)
                without = np.eye(group.shape[1]) - K * own
                scores.append(Y[group] - np.linalg.solve(without, residual))
            yield group, scores


def _scores(share: Share, *common: Any) -> list[Any]:
    """Scores of the first penalty, as :func:`_of_share`."""
    *_, Y, _fit = common
    found = ((rows, scores[0]) for rows, scores in _left_out(share, *common))
    return _of_share(share, Y.shape[1], found)


def _errors(share: Share, *common: Any) -> list[Any]:
    """w_i ‖ŷ_i − y_i‖² of every penalty, as :func:`_of_share`."""
    _frame, weight, _groups, Y, fit = common
    found = (
        (
            rows,
            np.stack([weight[rows] * ((s - Y[rows]) ** 2).sum(axis=-1) for s in scores], axis=-1),
        )
        for rows, scores in _left_out(share, *common)
    )
    return _of_share(share, len(fit.shrinks), found)


def _of_share(
    share: Share, width: int, found: Iterator[tuple[Any, NDArray[np.float64]]]
) -> list[Any]:
    """Values (b, width) of a share's rows; and numbers (g,) and values (g, width) of others."""
    first, stop = share.rows.start, share.rows.stop
    own = np.empty((stop - first, width))
    numbers, values = [np.zeros(0, np.int64)], [np.empty((0, width))]
    for rows, value in found:
        if isinstance(rows, slice):
            own[rows.start - first : rows.stop - first] = value
            continue
        inside = (rows >= first) & (rows < stop)
        own[rows[inside] - first] = value[inside]
        numbers.append(rows[~inside])
        values.append(value[~inside])
    return [own, np.concatenate(numbers), np.concatenate(values)]


def choose_penalty(
    states: RidgeStates, Y: NDArray[np.float64], penalties: Sequence[float] = PENALTIES
) -> tuple[float, NDArray[np.float64]]:
    """Choose λ by the leave-one-out error on the labels at hand, without ground truth.

    The one-standard-error rule: noisy labels favour penalties that fit the noise, so of all whose
    mean squared error is within one standard error of the smallest, the largest is chosen.

    Parameters
    ----------
    states : RidgeStates
        The decomposed states.
    Y : ndarray of shape (n, c)
        Labels.
    penalties : sequence of float, default=PENALTIES
        Candidates for λ.

    Returns
    -------
    penalty : float
        The chosen λ.
    scores : ndarray of shape (n, c)
        ``states.leave_out(Y, penalty)``.
    """
    candidates = sorted(penalties)
    # e_i = w_i ‖ŷ_i − y_i‖². Scores are computed again for the one that is chosen: with many
    # classes those of all penalties would need several times the memory of the labels.
    errors = states.errors(Y, candidates).T
    means = np.array([error.mean() for error in errors])
    best = int(means.argmin())
    # The smallest mean error, plus its standard error.
    bound = means[best] + errors[best].std() / np.sqrt(len(Y))
    chosen = int(np.flatnonzero(means <= bound)[-1])
    return candidates[chosen], states.leave_out(Y, candidates[chosen])


def _groups_by_size(
    groups: NDArray[np.int64] | None, weight: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    """Row numbers of groups of several rows: one array (m, size) for the m groups of each size."""
    n = len(weight)
    numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    size = np.bincount(numbers)
    if np.bincount(numbers, weights=weight).max() >= n * (1 - 1e-12):
        raise ProbeError(
            f"All {n} rows with weight are copies of one text; no other row can predict them."
        )
    order = np.argsort(numbers, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    return [
        order[starts[size == n_rows][:, None] + np.arange(n_rows)]
        for n_rows in np.unique(size[size > 1]).tolist()
    ]
