"""Logistic regression along a whole path of penalties, and all its folds, in one computation.

With many classes a search fits one penalty after another, and only the best one to the end.
"""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning

from probekit.errors import ProbeError
from probekit.held import Share, hold
from probekit.probes.base import check_weight, full_float32, label_matrix
from probekit.probes.logistic_design import (
    Design,
    Frame,
    StandardRows,
    device_of,
    ready_rows,
)
from probekit.probes.logistic_solver import MANY, Objective, Solution, minimise
from probekit.states import as_array, as_states

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = [
    "LogisticPath",
    "Precision",
    "Search",
    "check_task",
    "fit_path",
    "log_loss",
    "logistic_path",
    "logits_to_proba",
]

Precision = Literal["float32", "float64"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-10}
MAX_COLUMNS = 512  # fits x classes that are iterated at once; bounds memory with many classes
WORSE = 2  # weaker penalties with a larger loss after which a search ends
LARGE = 10**8  # rows x columns x classes from which on a search costs minutes
FEW_FOLDS = 2  # that a large search asks
HUGE = 4 * 10**8  # rows x columns x classes from which on it tries every second penalty only
# Rows of a class from which on the mean of the folds' fits is a better start than none: with 100 it
# saves a sixth of the time, with 2 to 20 it costs up to four times as much.
ROWS_OF_A_CLASS = 50
SEARCH_TOL = 3  # times tol; 30 chose wrongly where classes have two rows: their bias moves last
WALK_TOL = 30  # times tol, of fits that only lead to the next penalty


def log_loss(
    logits: NDArray[np.floating[Any]], Y: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Weighted mean cross-entropy of logits (n, V) with labels (n, C)."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[1] == 1:
        log_p = np.column_stack([log_expit(-logits[:, 0]), log_expit(logits[:, 0])])
    else:
        log_p = log_softmax(logits, axis=1)
    return float(-(weight @ (Y * log_p).sum(axis=1)) / weight.sum())


@dataclass(frozen=True)
class LogisticPath:
    """Fits for P penalties; V = 1 vector with two classes, V = C with more (summing to 0).

    Everything is in the space of X: logits are ``X @ coef_[p].T + intercept_[p]``, for two classes
    those of the second.
    """

    penalties: NDArray[np.float64]
    """(P,) as given."""
    classes: NDArray[Any]
    """(C,) class of each column."""
    coef_: NDArray[np.float64]
    """(P, V, d)."""
    intercept_: NDArray[np.float64]
    """(P, V)."""
    n_iter_: NDArray[np.int64]
    """(P,) passes over the rows."""
    grad_max_: NDArray[np.float64]
    """(P,) largest entry of the objective's gradient at the end, for standardised features."""
    converged_: NDArray[np.bool_]
    """(P,) whether ``tol`` was reached, or float64 allows no more and ``error_`` is below 1e-4."""
    error_: NDArray[np.float64]
    """(P,) estimated largest error of new rows' probabilities, compared with the optimum."""
    folds: NDArray[np.int64] | None = None
    """(n,) place of each row's fold in the arrays below."""
    fold_coef_: NDArray[np.float64] | None = None
    """(P, F, V, d), fitted without the fold's rows."""
    fold_intercept_: NDArray[np.float64] | None = None
    """(P, F, V)."""
    fold_n_iter_: NDArray[np.int64] | None = None
    """(P, F)."""
    fold_grad_max_: NDArray[np.float64] | None = None
    """(P, F)."""
    fold_error_: NDArray[np.float64] | None = None
    """(P, F)."""
    oof_logits: NDArray[np.floating[Any]] | None = None
    """(P, n, V) of every row by the fit without its fold, in the fit's precision."""

    @property
    def oof_proba(self) -> NDArray[np.float64] | None:
        """Class probabilities (P, n, C) of every row by the fit without its fold."""
        return None if self.oof_logits is None else logits_to_proba(self.oof_logits)


@dataclass(frozen=True)
class Task:
    """Checked input of a path."""

    X: Any
    classes: NDArray[Any]
    targets: NDArray[np.float64]
    """(V, n)."""
    weight: NDArray[np.float64]
    """(n,), summing to 1."""
    folds: NDArray[np.int64] | None
    n_folds: int


def logistic_path(
    X: Any,
    y: ArrayLike,
    penalties: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    standardize: bool = False,
    fit_intercept: bool = True,
    dtype: Precision = "float32",
    tol: float | None = None,
    max_iter: int = 500,
    device: str = "auto",
) -> LogisticPath:
    """Minimise Σ w CE / Σ w + l2 ‖W‖² for every penalty at once, and for every fold left out.

    The bias is not penalised, labels may be soft. Two classes have one weight vector, more have
    one each under a softmax: from two classes to three the effective penalty is halved, as in
    scikit-learn, whose ``C`` is 1 / (2 l2 Σ w).

    Parameters
    ----------
    X : array-like of shape (n, d)
        States: an array of any float type, a memory map, an HDF5 data set, a tensor; anything that
        returns rows for a slice. More than 1 GiB is read in every pass, not copied.
    y : array-like of shape (n,) or (n, C)
        Labels as in :func:`probekit.probes.base.label_matrix`.
    penalties : array-like of shape (P,)
        l2, each at least 0.
    sample_weight : array-like of shape (n,), default=None
        Row weights; None: 1.
    folds : array-like of shape (n,), default=None
        Number of each row's fold. Fits without a fold give its rows weight 0; centre, scale and
        preconditioner are those of all rows. None: fits to all rows only.
    standardize : bool, default=False
        Penalise the coefficients of columns divided by their (weighted) spread; a column that is
        constant up to rounding is left out.
    fit_intercept : bool, default=True
        False: no bias (``intercept_`` is 0), so that with two classes P(X) = 1 − P(−X), as
        differences of two states require. Nothing is centred then: spread is the root mean square.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the computation. Fits that float32 cannot bring to ``tol`` are finished in
        float64.
    tol : float, default=None
        Largest entry of the gradient at the end, for columns divided by their spread or, without
        ``standardize``, by one common scale; and a hundredth of the largest error of a probability
        of new rows. None: 1e-6 in float32, 1e-10 in float64.
    max_iter : int, default=500
        Maximum number of passes over the rows.
    device : str, default="auto"
        ``"auto"`` (CUDA if available), or a torch device.

    Returns
    -------
    LogisticPath

    Raises
    ------
    ProbeError
        If X has NaN or infinity, or lengths, penalties, weights, folds or settings are wrong.

    Warns
    -----
    ConvergenceWarning
        If ``max_iter`` passes were not enough (``error_`` estimates the error of probabilities), or
        l2 = 0 and the labels are linearly separable, so that no optimum exists; ``converged_`` is
        False for these fits.

    Notes
    -----
    The method is described in :mod:`probekit.probes.logistic_solver`. Bounds on the Hessian that
    led to it: Böhning (1988), https://doi.org/10.1007/BF00049423, and Böhning (1992),
    https://doi.org/10.1007/BF00048682.
    """
    return fit_path(
        check_task(X, y, sample_weight, folds),
        penalties,
        standardize=standardize,
        fit_intercept=fit_intercept,
        dtype=dtype,
        tol=tol,
        max_iter=max_iter,
        device=device,
        search=False,
    )[0]


def fit_path(
    task: Task,
    penalties: ArrayLike,
    *,
    standardize: bool,
    fit_intercept: bool,
    dtype: Precision,
    tol: float | None,
    max_iter: int,
    device: str,
    search: bool,
) -> tuple[LogisticPath, Search | None]:
    """:func:`logistic_path` of a checked task; in a ``search`` of many fits of the best penalty."""
    l2 = _check_penalties(penalties)
    if dtype not in TOLERANCE:
        raise ProbeError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
    tol = TOLERANCE[dtype] if tol is None else tol
    if not (np.isfinite(tol) and tol > 0) or max_iter < 1:
        raise ProbeError(f"tol must be positive and max_iter at least 1, got {tol}, {max_iter}.")
    precision, place = getattr(torch, dtype), device_of(device)
    rows_in_shares = hold(task.X)
    with torch.inference_mode(), full_float32():

        def design(precision: torch.dtype) -> Design:
            rows = StandardRows(
                rows_in_shares,
                task.weight,
                standardize=standardize,
                dtype=precision,
                device=place,
                centre=fit_intercept,
            )
            return Design(rows, turn=len(task.targets) >= MANY)

        solver = _Path(task, design(precision), l2, bias=fit_intercept)
        found = None
        if search and task.n_folds and solver.many:
            found = solver.search(tol=tol, max_iter=max_iter)
            solver, l2 = solver.only(found.best), l2[[found.best]]
            solution, every = Solution.empty(solver.objective), torch.arange(solver.fits)
            solver.refine(solution, every, start=found.theta, tol=tol, max_iter=max_iter)
        else:
            solution = solver.solve(tol=tol, max_iter=max_iter)
        stuck = ~solution.converged & (solution.n_iter < max_iter)
        if precision != torch.float64 and stuck.any():
            states = solver.states(solution.theta)
            del solver  # frees its copy of the states for a wider one
            solver = _Path(task, design(torch.float64), l2, bias=fit_intercept)
            solution.theta = solver.theta(*states)
            solver.finish(solution, stuck, tol=tol, max_iter=max_iter)
        return solver.result(solution), found


@dataclass(frozen=True)
class Search:
    """What a search for the best penalty found."""

    best: int
    """Place of the penalty."""
    scores: NDArray[np.float64]
    """(P,) out-of-fold log-loss of each penalty, NaN if it was not tried."""
    n_folds: int
    """Number of folds that were asked."""
    every: int
    """1, or 2 if only every second penalty was allowed."""
    theta: Tensor
    """(1 + F, V, width + 1) where the fits of that penalty may start."""


class _Path:
    """All fits of a path: for each penalty one to all rows, then one without each fold."""

    def __init__(self, task: Task, design: Design, l2: NDArray[np.float64], *, bias: bool) -> None:
        self.task, self.design, self.penalties = task, design, l2
        self.fits = 1 + task.n_folds
        row_weight = torch.empty(self.fits, design.n, dtype=design.dtype)
        row_weight[0] = torch.as_tensor(task.weight)
        for fold in range(task.n_folds):
            assert task.folds is not None
            kept = np.where(task.folds == fold, 0.0, task.weight)
            row_weight[1 + fold] = torch.as_tensor(kept / kept.sum())
        self.objective = Objective(
            design,
            torch.as_tensor(task.targets, device=design.device),
            row_weight.to(design.device),
            torch.arange(self.fits, device=design.device).repeat(len(l2)),
            torch.as_tensor(np.repeat(l2, self.fits), device=design.device)
            / design.rows.common_scale**2,
            bias=bias,
        )

    def solve(self, *, tol: float, max_iter: int) -> Solution:
        """Minimise every fit.

        Fits that are too many to be iterated at once go from the strongest penalty to the weakest,
        and start at the solution for the one before.
        """
        solution = Solution.empty(self.objective)
        every, start = torch.arange(self.fits), None
        at_once = max(1, MAX_COLUMNS // (self.fits * len(self.task.targets)))
        for group in torch.split(self._from_strongest(), at_once):
            where = (group[:, None] * self.fits + every).flatten()
            repeated = None if start is None else start.repeat(len(group), 1, 1)
            self.refine(solution, where, start=repeated, tol=tol, max_iter=max_iter)
            start = solution.theta[where[-self.fits :]]
        return solution

    @property
    def many(self) -> bool:
        """Whether the fits are too many to be iterated at once."""
        return len(self.penalties) * self.fits * len(self.task.targets) > MAX_COLUMNS

    def search(self, *, tol: float, max_iter: int) -> Search:
        """Choose a penalty by the out-of-fold loss of fits that are no more exact than that needs.

        Penalties are tried from the strongest on, each from the solution for the one before, until
        ``WORSE`` in a row have a larger loss than the best. A large search asks some folds only,
        and ends at the first larger loss.
        """
        size = self.design.n * self.design.width * len(self.task.targets)
        large = size > LARGE
        asked = min(FEW_FOLDS, self.fits - 1) if large else self.fits - 1
        worse = 1 if large else WORSE
        some = torch.arange(1, asked + 1)  # fit 0 is that to all rows
        solution, scores = Solution.empty(self.objective), np.full(len(self.penalties), np.nan)
        every = 2 if size > HUGE else 1
        start, losses, order = None, list[float](), self._from_strongest()[::every]
        for penalty in order:
            where = penalty * self.fits + some
            self.refine(solution, where, start=start, tol=SEARCH_TOL * tol, max_iter=max_iter)
            start = solution.theta[where]
            losses.append(self._loss(start))
            scores[penalty] = losses[-1]
            if min(losses[-worse:]) > min(losses):
                break
        best = int(order[np.argmin(losses)])  # of equals the strongest
        theta = solution.theta[best * self.fits + some]
        start = self.objective.start()[best * self.fits : (best + 1) * self.fits]
        if self.design.n >= ROWS_OF_A_CLASS * len(self.task.targets):
            start[:] = theta.mean(0)
        elif every > 1:
            stronger = order[: int(np.argmin(losses))][::2]
            self._walk(start, stronger, 1 + asked, tol=WALK_TOL * tol, max_iter=max_iter)
        start[1 : 1 + asked] = theta
        return Search(best, scores, asked, every, start)

    def _walk(
        self, start: Tensor, penalties: Tensor, first: int, *, tol: float, max_iter: int
    ) -> None:
        """Lead the fit to all rows, and those from ``first`` on, along stronger penalties.

        From zero, fits of a thousand rare classes are stuck before a weak penalty's optimum.
        """
        fits = torch.tensor([0, *range(first, self.fits)])
        solution = Solution.empty(self.objective)
        for penalty in penalties:
            where = penalty * self.fits + fits
            self.refine(solution, where, start=start[fits], tol=tol, max_iter=max_iter)
            start[fits] = solution.theta[where]

    def only(self, penalty: int) -> _Path:
        """The fits of one penalty."""
        one = copy(self)
        one.penalties = self.penalties[penalty : penalty + 1]
        place = torch.arange(self.fits, device=self.design.device) + penalty * self.fits
        one.objective = self.objective.pick(place)
        return one

    def _from_strongest(self) -> Tensor:
        return torch.as_tensor(np.argsort(-self.penalties, kind="stable"))

    def refine(
        self, solution: Solution, where: Tensor, *, start: Tensor | None, tol: float, max_iter: int
    ) -> None:
        """Minimise the fits ``where`` (J,) from ``start`` (J, V, width + 1) into ``solution``."""
        block = max(1, MAX_COLUMNS // len(self.task.targets))
        for part in torch.split(torch.arange(len(where)), block):
            fits = where[part].to(self.design.device)
            begin = None if start is None else start[part.to(start.device)]
            result = minimise(self.objective.pick(fits), tol=tol, max_iter=max_iter, start=begin)
            for name, value in vars(result).items():
                getattr(solution, name)[fits] = value

    def _loss(self, theta: Tensor) -> float:
        """Log-loss of the first F folds' rows by the fits theta (F, V, width + 1) without them."""
        assert self.task.folds is not None
        targets = self.task.targets
        Y = np.column_stack([1 - targets[0], targets[0]]) if len(targets) == 1 else targets.T
        inside = self.task.folds < len(theta)
        logits = self._logits(theta[None], np.where(inside, self.task.folds, 0))[0]
        return log_loss(logits[inside], Y[inside], self.task.weight[inside])

    def states(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (J, V, d) and intercept (J, V) in the space of X."""
        fits, vectors, _ = theta.shape
        flat = theta.reshape(fits * vectors, -1)
        coef, intercept = self.design.to_states(flat[:, :-1], flat[:, -1])
        return coef.view(fits, vectors, -1), intercept.view(fits, vectors)

    def theta(self, coef: Tensor, intercept: Tensor) -> Tensor:
        """Undo ``states``."""
        weights, bias = self.design.from_states(coef.flatten(0, 1), intercept.flatten())
        return torch.cat([weights, bias[:, None]], 1).view(*intercept.shape, -1)

    def finish(self, solution: Solution, some: Tensor, *, tol: float, max_iter: int) -> None:
        """Continue ``some`` of the fits (J,) from their solution, which is overwritten."""
        before = solution.n_iter.clone()
        passes = max(max_iter - int(before[some].max()), 1)
        self.refine(
            solution,
            torch.nonzero(some)[:, 0].cpu(),
            start=solution.theta[some],
            tol=tol,
            max_iter=passes,
        )
        solution.n_iter[some] += before[some]

    def result(self, solution: Solution) -> LogisticPath:
        theta = solution.theta
        if theta.shape[1] > 1:
            # Only differences between the classes matter; choose vectors that sum to 0.
            theta = theta - theta.mean(1, keepdim=True)
        shape = (len(self.penalties), self.fits, theta.shape[1])
        coef, intercept = self.states(theta)
        coefs, intercepts = _numpy(coef).reshape(*shape, -1), _numpy(intercept).reshape(shape)
        n_iter, peak, error, converged = (
            _numpy(value).reshape(shape[:2])
            for value in (solution.n_iter, solution.peak, solution.error, solution.converged)
        )
        theta = theta.view(*shape, -1)
        converged &= ~self._separable(theta[:, 0])[:, None]
        self._warn(converged, error)
        path = LogisticPath(
            self.penalties,
            self.task.classes,
            coefs[:, 0],
            intercepts[:, 0],
            n_iter[:, 0],
            peak[:, 0],
            converged[:, 0],
            error[:, 0],
        )
        if self.task.folds is None:
            return path
        return replace(
            path,
            folds=self.task.folds,
            fold_coef_=coefs[:, 1:],
            fold_intercept_=intercepts[:, 1:],
            fold_n_iter_=n_iter[:, 1:],
            fold_grad_max_=peak[:, 1:],
            fold_error_=error[:, 1:],
            oof_logits=self._logits(theta[:, 1:], self.task.folds),
        )

    def _logits(self, theta: Tensor, which: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Logits (P, n, V) of every row by its fit ``which`` (n,) of theta (P, F, V, width + 1)."""
        chosen = torch.as_tensor(which, device=theta.device)
        found = [each for _, (each,) in self.design.rows.each(_own_logits, theta, chosen)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _separable(self, theta: Tensor) -> NDArray[np.bool_]:
        """Mask (P,) of penalties 0 whose fit predicts every hard label: they have no optimum."""
        separable = np.zeros(len(self.penalties), dtype=bool)
        targets = self.task.targets[:, self.task.weight > 0]
        if (self.penalties > 0).all() or not np.isin(targets, (0, 1)).all():
            return separable
        free = np.flatnonzero(self.penalties == 0)
        logits = self._logits(theta[free[:1]][:, None], np.zeros(self.design.n, dtype=np.int64))
        proba = logits_to_proba(logits[0, self.task.weight > 0])
        own = targets[0] if len(targets) == 1 else targets.argmax(axis=0)
        separable[free] = (proba.argmax(axis=1) == own).all()
        return separable

    def _warn(self, converged: NDArray[np.bool_], error: NDArray[np.float64]) -> None:
        if converged.all():
            return
        lost = sorted({float(p) for p in self.penalties[~converged.all(axis=1)]})
        if lost == [0]:
            reason, repair = (
                "its labels are linearly separable",
                "no optimum exists: give an l2 > 0",
            )
        else:
            reason = f"probabilities may be off by {min(error[~converged].max(), 1.0):.1g}"
            repair = "raise max_iter or l2"
        warnings.warn(
            f"The logistic fit did not converge for l2 = {', '.join(f'{p:g}' for p in lost)} "
            f"({reason}): {repair}.",
            ConvergenceWarning,
            stacklevel=5,  # who called logistic_path or fit
        )


def logits_to_proba(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Class probabilities (..., C) of logits (..., V); V = 1 means two classes."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        return np.concatenate([expit(-logits), expit(logits)], axis=-1)
    return np.asarray(softmax(logits, axis=-1))


def check_task(X: Any, y: ArrayLike, sample_weight: ArrayLike | None, folds: Any) -> Task:
    """Check the input of a path; raises ProbeError if rows, weights or folds are wrong."""
    X = X if _gives_rows(X) else as_states(X)
    if len(X.shape) != 2 or not X.shape[0] or not X.shape[1]:
        raise ProbeError(f"X must be states (n, d) with rows and columns, got {tuple(X.shape)}.")
    n = X.shape[0]
    classes, Y = label_matrix(y)
    if len(Y) != n:
        raise ProbeError(f"X has {n} rows but y has {len(Y)}; they must be the same rows.")
    weight = np.ones(n) if sample_weight is None else check_weight(sample_weight, Y)
    targets = Y[:, 1:].T if Y.shape[1] == 2 else Y.T
    numbers, count = None, 0
    if folds is not None:
        values = as_array(folds, name="folds")
        if values.shape != (n,):
            raise ProbeError(f"folds must have shape ({n},), one per row, got {values.shape}.")
        names, numbers = np.unique(values, return_inverse=True)
        numbers, count = numbers.astype(np.int64), len(names)
        for fold in range(count):
            if not weight[numbers != fold].any():
                raise ProbeError(f"No row with weight is outside fold {names[fold]}.")
    return Task(X, classes, np.ascontiguousarray(targets), weight / weight.sum(), numbers, count)


def _gives_rows(X: Any) -> bool:
    """Whether X need not be copied, because slices of it are rows."""
    dense = str(getattr(X, "layout", "torch.strided")) == "torch.strided"
    other = any(hasattr(X, name) for name in ("iloc", "tocsr", "to_coo"))
    return hasattr(X, "shape") and hasattr(X, "__getitem__") and dense and not other


def _check_penalties(penalties: ArrayLike) -> NDArray[np.float64]:
    values = np.array(penalties, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
        raise ProbeError(f"penalties must be a list of numbers of at least 0, got {penalties!r}.")
    return values


def _own_logits(
    share: Share, frame: Frame, theta: Any, which: Any
) -> list[NDArray[np.floating[Any]]]:
    """Logits (P, b, V) of every row of a share by its fit, as :meth:`_Path._logits`.

    They are as precise as the fit, and take the memory of that.
    """
    ready = ready_rows(share, frame)
    theta, chosen = ready.tensor(theta), ready.tensor(which[share.rows])
    some, fits, vectors, _ = theta.shape
    columns = some * fits * vectors
    flat = theta.reshape(columns, -1).to(ready.dtype)
    weights, bias = flat[:, :-1], flat[:, -1:]
    out = np.empty((some, len(share), vectors), str(ready.dtype).removeprefix("torch."))
    for rows, x in ready.passes(columns):
        logits = torch.addmm(bias, weights, x.T).view(some, fits, vectors, -1)
        index = chosen[rows].expand(some, 1, vectors, -1)
        out[:, rows] = _numpy(logits.gather(1, index)[:, 0].mT)
    return [out]


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.cpu().numpy()
    return array
