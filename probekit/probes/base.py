"""What every probe shares: labels as a matrix, checked input, predictions out of fold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from probekit.errors import ProbeError, UsageError, first_few
from probekit.groups import duplicate_groups, stratified_folds
from probekit.kinds import Kind, check_names
from probekit.probes.saving import save_probe
from probekit.states import Streamed, as_array, as_states, check_finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore

__all__ = [
    "BaseProbe",
    "Training",
    "check_weight",
    "full_float32",
    "hard_labels",
    "label_matrix",
    "out_of_fold",
]

ROW_SUM_TOLERANCE = 1e-3  # float16 probabilities of a dozen classes sum to 1 within this


class Training(NamedTuple):
    """Checked training input: X (n, d), Y (n, C), weights (n,) or None, group numbers (n,)."""

    X: NDArray[Any]
    Y: NDArray[np.float64]
    weight: NDArray[np.float64] | None
    groups: NDArray[np.int64]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays by name, as a probe that stores its rows writes them to disk."""
        return {name: array for name, array in self._asdict().items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Undo ``to_arrays``; other arrays are ignored."""
        return cls(arrays["X"], arrays["Y"], arrays.get("weight"), arrays["groups"])


def label_matrix(
    y: ArrayLike, *, classes: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Labels as class probabilities.

    Parameters
    ----------
    y : array-like of shape (n,) or (n, C)
        Hard labels (numbers, booleans or strings), P(second class) (floats in [0, 1]), or class
        probabilities whose rows sum to 1.
    classes : array-like of shape (C,), default=None
        Class of each column; None: the sorted labels, or 0 ... C - 1 for soft labels.

    Returns
    -------
    classes : ndarray of shape (C,)
    Y : ndarray of shape (n, C)
        float64, rows summing to 1.

    Raises
    ------
    ProbeError
        If y has NaN, a probability outside [0, 1], continuous values, an unknown label, or only one
        class.

    Examples
    --------
    >>> classes, Y = label_matrix(["no", "yes", "no"])
    >>> classes.tolist(), Y[:, 1].tolist()
    (['no', 'yes'], [0.0, 1.0, 0.0])
    """
    values = _as_array(y)
    names = None if classes is None else np.asarray(classes)
    if names is not None and (names.ndim != 1 or len(np.unique(names)) != len(names)):
        raise ProbeError("classes must be a list of different class names.")
    if values.ndim == 2 and values.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected; pass y.ravel().",
            DataConversionWarning,
            stacklevel=2,
        )
        values = values.ravel()
    if values.ndim not in (1, 2) or values.size == 0:
        raise ProbeError(f"y should be a 1d array or (n, C) with rows, got shape {values.shape}.")
    if values.ndim == 2:
        names, Y = _soft_rows(values, names)
    elif values.dtype.kind == "f" and np.all((values >= 0) & (values <= 1)):
        second = values.astype(np.float64)
        names, Y = _named(np.column_stack([1 - second, second]), names)
    else:
        names, Y = _hard_rows(values, names)
    present = np.flatnonzero(Y.max(axis=0) > 0)
    if len(present) < 2:
        raise ProbeError(
            f"y has one class only ({names[present[0]]!s}); a probe needs rows of at least two "
            "classes."
        )
    return names, Y


def _as_array(y: ArrayLike) -> NDArray[Any]:
    if y is None:
        raise ProbeError("A probe requires y to be passed, but the target y is None.")
    try:
        values = np.asarray(y) if isinstance(y, list | tuple) else as_array(y, name="y")
        if values.dtype.kind == "O":
            y = values.tolist()
            values = np.asarray(y)
    except ValueError as error:
        raise ProbeError(f"y is not a rectangular array of labels: {error}.") from None
    if values.dtype.kind == "U" and isinstance(y, list) and not all(isinstance(v, str) for v in y):
        raise ProbeError("y mixes strings with other values; give one kind of label.")
    if values.dtype.kind not in "biufU":
        raise ProbeError(
            f"y has values of type {values.dtype}; allowed are numbers, booleans and strings."
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        rows = np.unique(np.nonzero(~np.isfinite(values))[0])
        raise ProbeError(
            f"Input y contains NaN or infinity in {len(rows)} rows (first: {first_few(rows)}); "
            "leave these rows out."
        )
    return values


def _named(
    Y: NDArray[np.float64], classes: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if classes is None:
        return np.arange(Y.shape[1]), Y
    if len(classes) != Y.shape[1]:
        raise ProbeError(f"y has {Y.shape[1]} classes but {len(classes)} class names were given.")
    return classes, Y


def _soft_rows(
    values: NDArray[Any], classes: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if values.dtype.kind not in "biuf":
        raise ProbeError("y with several columns must be class probabilities, not strings.")
    Y = values.astype(np.float64)
    total = Y.sum(axis=1)
    bad = np.flatnonzero((Y < 0).any(axis=1) | (np.abs(total - 1) > ROW_SUM_TOLERANCE))
    if len(bad):
        raise ProbeError(
            f"y has {len(bad)} rows that are not class probabilities (first: {first_few(bad)}); "
            "each row must lie in [0, 1] and sum to 1."
        )
    return _named(Y / total[:, None], classes)


def _hard_rows(
    values: NDArray[Any], classes: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if values.dtype.kind == "f":
        broken = np.flatnonzero(values != np.rint(values))
        if len(broken):
            outside = np.flatnonzero((values < 0) | (values > 1))
            raise ProbeError(
                f"Unknown label type: continuous. y must be class labels or probabilities in "
                f"[0, 1], got {values[outside[0]]:g} in row {outside[0]}."
            )
    names, column = np.unique(values, return_inverse=True)
    if classes is None:
        classes = names
    else:
        place = {name: i for i, name in enumerate(classes.tolist())}
        unknown = [name for name in names.tolist() if name not in place]
        if unknown:
            raise ProbeError(
                f"y has {first_few(unknown)}, which is none of the classes "
                f"{first_few(classes.tolist(), 10)}."
            )
        column = np.array([place[name] for name in names.tolist()])[column]
    Y = np.zeros((len(values), len(classes)))
    Y[np.arange(len(values)), column.ravel()] = 1
    return classes, Y


def hard_labels(Y: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Most probable class (n,) of labels Y (n, C); ties go to the first, so 0.5 is class 0."""
    return np.asarray(np.argmax(Y, axis=1), dtype=np.int64)


class BaseProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Base of all probes: a scikit-learn classifier that also takes soft labels.

    A subclass defines ``fit(X, y, sample_weight=None, groups=None)``, which begins with
    ``_check_fit``; ``predict_proba(X)``, which begins with ``_check_predict``; and ``_arrays`` and
    ``_restore``, which write and read what ``fit`` learned.
    """

    classes_: NDArray[Any]
    n_features_in_: int
    # Name of each parameter -> its kind of value.
    kinds: ClassVar[Mapping[str, Kind]] = {}
    # Whether states that are streamed need not become an array.
    streams: ClassVar[bool] = False
    # Whether P(−x) = 1 − P(x) for differences of pairs if it is fitted without a bias.
    odd_without_bias: ClassVar[bool] = False
    oof_proba_: NDArray[np.float64]

    def _check_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Training:
        """Check the arguments of ``fit``; set ``classes_`` and ``n_features_in_``.

        Without ``groups``, rows with equal states form a group.
        """
        self._check_parameters()
        if y is None:
            raise ProbeError(
                f"{type(self).__name__} requires y to be passed, but the target y is None."
            )
        states = self._check_states(X, reset=True)
        classes, Y = label_matrix(y)
        n = len(states)
        if len(Y) != n:
            raise ProbeError(f"X has {n} rows but y has {len(Y)}; they must be the same rows.")
        weight = None if sample_weight is None else check_weight(sample_weight, Y)
        numbers = duplicate_groups(states) if groups is None else _check_groups(groups, n)
        self.classes_ = classes
        return Training(states, Y, weight, numbers)

    def _check_parameters(self) -> None:
        """Raise ProbeError for a parameter of another type or outside its range."""
        given = self.get_params(deep=False)
        try:
            check_names({name: given[name] for name in self.kinds if name in given}, self.kinds)
        except UsageError as error:
            raise ProbeError(str(error)) from None

    def _check_predict(self, X: ArrayLike) -> Any:
        """Check the states of new rows against those the probe was fitted on."""
        check_is_fitted(self)
        return self._check_states(X, reset=False)

    def _check_states(self, X: Any, *, reset: bool) -> Any:
        if isinstance(X, Streamed) and self.streams:
            # A row for all: what scikit-learn checks is the number and the names of columns.
            validate_data(self, X[:1], reset=reset, ensure_all_finite=False)
            check_finite(X)
            return X
        numbers: Any = as_states(X)
        if hasattr(X, "iloc") and hasattr(X, "columns"):
            frame: Any = type(X)
            numbers = frame(numbers, columns=X.columns)  # scikit-learn compares their names
        states: NDArray[Any] = validate_data(
            self,
            numbers,
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        check_finite(states)
        return states

    def for_store(self, store: ActivationStore) -> tuple[Self, tuple[int, ...] | None]:
        """Return the probe for a store, and the layers that it reads side by side (None: one)."""
        del store
        return self, None

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (n, C) of new rows X (n, d), columns as in ``classes_``."""
        raise NotImplementedError

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class (n,) of new rows X (n, d); ties go to the smaller class."""
        proba = self.predict_proba(X)
        return self.classes_[hard_labels(proba)]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays by name of all that was learned, except ``classes_``."""
        raise NotImplementedError

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Undo ``_arrays``; parameters and ``classes_`` are set before."""
        raise NotImplementedError

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Write the fitted probe to ``folder`` as ``probe.json`` and ``probe.safetensors``."""
        save_probe(self, folder, overwrite=overwrite)
        return self


def check_weight(sample_weight: ArrayLike, Y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Checked weights (n,) of rows with labels Y (n, C): finite, at least 0, of two classes."""
    weight = np.asarray(as_array(sample_weight, name="sample_weight"), dtype=np.float64)
    if weight.shape != (len(Y),):
        raise ProbeError(f"sample_weight must have shape ({len(Y)},), got {weight.shape}.")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ProbeError("sample_weight must be finite numbers of at least 0.")
    if not weight.any():
        raise ProbeError("sample_weight is zero in every row; some must be above 0.")
    if np.count_nonzero(weight @ Y) < 2:
        raise ProbeError("sample_weight leaves rows of one class only; at least two are needed.")
    return weight


def _check_groups(groups: ArrayLike, n: int) -> NDArray[np.int64]:
    values = as_array(groups, name="groups")
    if values.shape != (n,):
        raise ProbeError(f"groups must have shape ({n},), one group per row, got {values.shape}.")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def out_of_fold(
    probe: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_folds: int = 5,
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """Predict every row by a fit that has not seen it.

    Probes with a closed form (kNN, TopoFilter, ensemble, mass-mean) leave out each row and its
    group in one fit. Any other scikit-learn classifier is cloned and fitted once per fold; the
    probe itself stays unfitted.

    Parameters
    ----------
    probe : classifier
        A probe, or a scikit-learn classifier with ``predict_proba``, also a Pipeline.
    X : array-like of shape (n, d)
        States.
    y : array-like of shape (n,) or (n, C)
        Labels as in :func:`probekit.probes.base.label_matrix`. A probe (also as the last step of a
        Pipeline) is fitted on soft labels, any other classifier on hard ones.
    groups : array-like of shape (n,), default=None
        Rows of one group never predict each other; None: rows with equal states.
    n_folds : int, default=5
        Number of folds, stratified on the hard labels, with each group in one fold.
    seed : int, default=0
        Decides the folds.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows in the fits.

    Returns
    -------
    proba : ndarray of shape (n, C)
        Class probabilities.
    fold : ndarray of shape (n,)
        Fold of each row; -1 if it was left out without folds.

    Raises
    ------
    ProbeError
        If a class is missing in the training rows of a fold, or the probe cannot be fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from probekit.probes import out_of_fold
    >>> X = np.random.default_rng(0).normal(size=(40, 2))
    >>> proba, fold = out_of_fold(GaussianNB(), X, X[:, 0] > 0, n_folds=4)
    >>> proba.shape, np.bincount(fold).tolist()
    ((40, 2), [10, 10, 10, 10])
    """
    if hasattr(probe, "out_of_fold"):  # PairProbe, which also fits mirror images
        paired: tuple[NDArray[np.float64], NDArray[np.int16]] = probe.out_of_fold(
            X, y, groups=groups, n_folds=n_folds, seed=seed, sample_weight=sample_weight
        )
        return paired
    states = as_array(X)
    classes, Y = label_matrix(y)
    if len(Y) != len(states):
        raise ProbeError(f"X has {len(states)} rows but y has {len(Y)}; they must be the same.")
    if groups is None:
        groups = duplicate_groups(states)
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    probe = clone(probe)
    if getattr(probe, "leave_one_out", False):
        probe.fit(states, y, sample_weight=weight, groups=groups)
        return probe.oof_proba_, np.full(len(Y), -1, dtype=np.int16)
    hard, numbers = hard_labels(Y), np.asarray(groups)
    fold = stratified_folds(hard, n_folds=n_folds, groups=numbers, seed=seed)
    # The last step of a Pipeline decides the form of the labels, and prefixes the arguments.
    last, prefix = probe, ""
    if hasattr(probe, "steps"):
        prefix, last = f"{probe.steps[-1][0]}__", probe.steps[-1][1]
    soft = isinstance(last, BaseProbe)
    extra = {} if weight is None else {f"{prefix}sample_weight": weight}
    if soft:
        extra[f"{prefix}groups"] = numbers
    proba = np.zeros_like(Y)
    for number in np.unique(fold):
        held_out, training = fold == number, fold != number
        missing = classes[Y[training].max(axis=0) <= 0]
        if len(missing):
            raise ProbeError(
                f"Class {missing[0]!s} has no row outside fold {number}; use fewer folds or leave "
                "this class out."
            )
        targets = Y[training] if soft else hard[training]
        arguments = {name: values[training] for name, values in extra.items()}
        fitted = clone(probe).fit(states[training], targets, **arguments)
        columns = np.asarray(fitted.classes_, dtype=np.int64)
        proba[np.ix_(held_out, columns)] = fitted.predict_proba(states[held_out])
    return proba, fold


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute torch's float32 products in full, even if the program allows TF32 or bfloat16."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
