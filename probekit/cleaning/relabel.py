"""New labels of rows: from a probe (relabel), or from students after a filter (re-admission).

A filter drops hard questions along with wrong answers; a student trained on the kept rows may be
sure of some of them. Re-admission follows "filter, then re-admit" of
https://arxiv.org/abs/2503.04249, with agreement of several students, or one student's confidence,
in place of its self-consistency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.cuts import DECIMALS, Cut, count_of, largest, prior_matched, tied_decisions
from probekit.errors import LabelsError, UsageError, first_few
from probekit.joins import Keys
from probekit.kinds import ACTION_KINDS, check, checked
from probekit.labels import WeakLabels
from probekit.verdicts import Verdicts

__all__ = ["BLEND", "check_form", "decide_at_prior", "new_labels", "readmit"]

BLEND = 0.75
CONFIDENCE = 0.9
SUM_TOLERANCE = 1e-3


def check_form(
    blend: float | None,
    threshold: float | None,
    only_above: float | None,
    prior: Sequence[float] | None,
    flip: float | None = None,
    *,
    hard: bool,
) -> None:
    """Raise UsageError unless at most one form of a label is given, within its range."""
    check(blend=blend, only_above=only_above, hard=hard)
    given = {"threshold": threshold, "prior": prior, "flip": flip}
    for name, value in given.items():
        checked((name,), ACTION_KINDS["relabel"][name], value)
    forms = (blend, True if hard or prior is not None else None, threshold, flip)
    if sum(form is not None for form in forms) > 1:
        raise UsageError("Give one of blend, hard, threshold and flip; they are forms of a label.")


def _shares(prior: Sequence[float], classes: Sequence[str]) -> NDArray[np.float64]:
    """Class shares (C,) as given.

    Raises
    ------
    UsageError
        If there is not one for each class, or they do not sum to 1.
    """
    shares: NDArray[np.float64] = np.asarray(prior, np.float64)
    if len(shares) != len(classes) or abs(shares.sum() - 1) > SUM_TOLERANCE:
        raise UsageError(
            f"A prior is one share for each of the classes {', '.join(map(repr, classes))}, in "
            f"this order, and they sum to 1; got {', '.join(f'{share:g}' for share in shares)}."
        )
    return np.asarray(shares / shares.sum())


def new_labels(
    proba: NDArray[np.float64],
    labels: WeakLabels,
    *,
    blend: float | None,
    hard: bool,
    threshold: float | None,
    ties: NDArray[Any],
    disagreement: NDArray[np.float64],
    prior: Sequence[float] | None = None,
    flip: float | None = None,
    calibrated: bool = False,
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """New labels (n, C) from a probe's ``proba`` (n, C) and weak labels, and their provenance.

    ``calibrated``: trusted labels have corrected ``proba``, so that hard labels are the most
    probable classes, whatever the class shares of the weak labels. All others are as in
    :func:`probekit.cleaning.predict.relabel`.
    """
    n_classes = len(labels.classes)
    form: dict[str, Any]
    if prior is not None:
        shares = _shares(prior, labels.classes)
        decided, tied = decide_at_prior(proba, shares * len(proba), ties=ties)
        form = {"form": "hard, at the given prior", "prior": shares.tolist()}
        return np.eye(n_classes)[decided], {**form, "ties": {"rows": int(tied.sum())}}
    if flip is not None:
        flipped, cut = _flipped(proba, labels.hard, flip, disagreement, ties)
        form = {"form": "hard, flipped", "flip": flip}
        return np.eye(n_classes)[flipped], {**form, "ties": cut.tie_counts()}
    if hard and calibrated:
        decided = np.round(proba, DECIMALS).argmax(axis=1)
        return np.eye(n_classes)[decided], {"form": "hard, as trusted labels calibrated it"}
    if hard:
        size = np.bincount(labels.hard, minlength=n_classes)
        decided, tied = decide_at_prior(proba, size, ties=ties)
        form = {"form": "hard, at the weak prior"}
        return np.eye(n_classes)[decided], {**form, "ties": {"rows": int(tied.sum())}}
    if threshold is not None:
        if n_classes != 2:
            raise UsageError(
                f"A threshold cuts the probability of the second of two classes, and there are "
                f"{n_classes}; use --hard (hard=True) or a soft blend."
            )
        # Means of k votes may miss 0.5 by rounding; 0.5 is class 0.
        second = np.round(proba[:, 1], DECIMALS) > threshold
        label = np.eye(2)[second.astype(np.int64)]
        return label, {"form": "hard, at a threshold", "threshold": threshold}
    beta = BLEND if blend is None else blend
    return (1 - beta) * labels.probs + beta * proba, {"form": "soft", "blend": beta}


def _flipped(
    proba: NDArray[np.float64],
    weak: NDArray[np.int64],
    share: float,
    disagreement: NDArray[np.float64],
    ties: NDArray[Any],
) -> tuple[NDArray[np.int64], Cut]:
    """Classes (n,) with the most disagreeing share of each weak class given its best other one."""
    size = np.bincount(weak, minlength=proba.shape[1])
    cut = largest(disagreement, [count_of(share, n) for n in size], weak, ties=ties)
    other = np.round(proba, DECIMALS)
    np.put_along_axis(other, weak[:, None], -1, axis=1)
    return np.where(cut.selected, other.argmax(axis=1), weak), cut


def decide_at_prior(
    proba: NDArray[np.float64], size: NDArray[Any], *, ties: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Classes (n,) with ``size`` (C,) rows each, and the rows whose class a tie decided."""
    P = np.round(proba, DECIMALS)  # means of the same votes in another order are equal
    decided = prior_matched(P, size / len(P), ties=ties)
    return decided, tied_decisions(P, decided)


def readmit(
    verdicts: Verdicts,
    predictions: WeakLabels | Sequence[WeakLabels],
    *,
    confidence: float = CONFIDENCE,
) -> Verdicts:
    """Bring back dropped rows on whose class all students agree with enough mean confidence.

    Parameters
    ----------
    verdicts : Verdicts
        Verdicts of a filter.
    predictions
        Class probabilities of at least the dropped rows, from one student or several, each trained
        on the kept rows; joined by id, classes by name.
    confidence : float, default=0.9
        Minimum mean probability of that class, in [0.5, 1].

    Returns
    -------
    The verdicts with these rows kept and the students' mean probabilities as their labels; all
    else is unchanged.

    Raises
    ------
    UsageError, LabelsError
        If nothing was dropped, ``confidence`` is out of range, or a student lacks rows or classes.
    """
    check(verdicts=verdicts, confidence=confidence)
    dropped = np.flatnonzero(~verdicts.keep)
    if not len(dropped):
        raise UsageError("These verdicts drop no row, so none can be re-admitted.")
    students = [predictions] if isinstance(predictions, WeakLabels) else predictions
    keys = verdicts.keys.take(dropped)
    probs = np.stack([_of_rows(each, keys, verdicts.classes) for each in students])
    mean = probs.mean(axis=0)
    agreed = (probs.argmax(axis=2) == mean.argmax(axis=1)).all(axis=0)
    # Files may hold float32, in which 0.9 is 0.89999998.
    back = dropped[agreed & (mean.max(axis=1) >= confidence - 1e-6)]
    keep, label = verdicts.keep.copy(), verdicts.label.copy()
    keep[back] = True
    label[back] = mean[np.isin(dropped, back)]
    readmitted = {"students": len(students), "confidence": confidence, "rows": len(back)}
    provenance = {**verdicts.provenance, "readmitted": readmitted}
    return replace(verdicts, keep=keep, label=label, provenance=provenance)


def _of_rows(
    labels: WeakLabels, rows: Keys, classes: Sequence[str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Probabilities (m, C) of these rows, columns in the order of ``classes``."""
    if sorted(labels.classes) != sorted(classes):
        raise LabelsError(
            f"{labels.source} has the classes {first_few(labels.classes)}, and the verdicts have "
            f"{first_few(classes)}; they must be the same."
        )
    aligned = labels.align(rows, rows_name="the dropped rows").labels
    columns = [labels.classes.index(name) for name in classes]
    return np.asarray(aligned.probs[:, columns], np.float64)
