"""Predictions for rows by a probe that has not seen them: what every cleaning step reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["out_of_fold"]


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
    """Return P (n, C) of every row from a fit without it, and the fold (n,) it was held out in.

    kNN and TopoFilter leave out the row and its duplicates one at a time: one fit, fold -1. Any
    other scikit-learn classifier is cloned and fitted on K - 1 of K folds, stratified on the hard
    labels, duplicates in one fold; ``probe`` itself stays unfitted.

    Parameters
    ----------
    X, y
        States (n, d); labels as :func:`probekit.probes.base.label_matrix` takes them. A probekit
        probe (also as the last step of a Pipeline) is fitted on soft labels, any other classifier
        on the hard ones.
    groups
        Rows of one group are never used to predict each other (n,); by default rows with the very
        same states.

    Raises
    ------
    ProbeError
        A class that is absent from the training rows of a fold, or any error of the probe's fit.
    """
    import numpy as np
    from sklearn.base import clone

    from probekit.errors import ProbeError
    from probekit.groups import duplicate_groups, stratified_folds
    from probekit.probes.base import BaseProbe, hard_labels, label_matrix
    from probekit.states import as_array

    if hasattr(probe, "out_of_fold"):  # of pairs, whose mirror images take part
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

    hard = hard_labels(Y)
    # The last step of a Pipeline decides what it can be fitted on, and is named in its arguments.
    last, prefix = probe, ""
    if hasattr(probe, "steps"):
        prefix, last = f"{probe.steps[-1][0]}__", probe.steps[-1][1]
    soft = isinstance(last, BaseProbe)
    extra = {} if weight is None else {f"{prefix}sample_weight": weight}
    if soft:
        extra[f"{prefix}groups"] = np.asarray(groups)
    fold = stratified_folds(hard, n_folds=n_folds, groups=np.asarray(groups), seed=seed)
    proba = np.zeros_like(Y)
    for number in np.unique(fold):
        held_out, seen = fold == number, fold != number
        lost = classes[Y[seen].max(axis=0) <= 0]
        if len(lost):
            raise ProbeError(
                f"Class {lost[0]!s} has no row outside fold {number}; use fewer folds or leave "
                "this class out."
            )
        targets = Y[seen] if soft else hard[seen]
        given = {name: values[seen] for name, values in extra.items()}
        fitted = clone(probe).fit(states[seen], targets, **given)
        columns = np.asarray(fitted.classes_, dtype=np.int64)
        proba[np.ix_(held_out, columns)] = fitted.predict_proba(states[held_out])
    return proba, fold
