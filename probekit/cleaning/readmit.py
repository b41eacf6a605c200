"""Re-admit: rows that a filter dropped come back with the labels of a student trained on the rest.

A filter takes the hard questions out with the wrong answers; a student that has learned from the
rows kept may be sure of some of them. After "filter, then re-admit" of
https://arxiv.org/abs/2503.04249, its self-consistency taken as agreement of several students, or
one student's confidence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probekit.errors import LabelsError, UsageError, first_few
from probekit.joins import Keys
from probekit.kinds import check
from probekit.labels import WeakLabels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probekit.verdicts import Verdicts

__all__ = ["readmit"]

CONFIDENCE = 0.9


def readmit(
    verdicts: Verdicts,
    predictions: WeakLabels | Sequence[WeakLabels],
    *,
    confidence: float = CONFIDENCE,
) -> Verdicts:
    """Keep dropped rows that every student gives one class to, on average surely enough.

    Parameters
    ----------
    verdicts
        Of a filter.
    predictions
        Class probabilities for at least the rows dropped, of one student or several, each trained
        on the rows kept; joined by id, classes by name.
    confidence
        Least mean probability of that class, in [0.5, 1].

    Returns
    -------
    The verdicts with these rows kept, their label being the students' mean probabilities; all else
    is as it was.

    Raises
    ------
    UsageError, LabelsError
        Nothing was dropped, the confidence lies outside, or a student lacks rows or classes.
    """
    check(verdicts=verdicts, confidence=confidence)
    dropped = np.flatnonzero(~verdicts.keep)
    if not len(dropped):
        raise UsageError("These verdicts drop no row, so that none can be re-admitted.")
    several = [predictions] if isinstance(predictions, WeakLabels) else predictions
    keys = verdicts.keys.take(dropped.tolist())
    said = np.stack([_of_rows(each, keys, verdicts.classes) for each in several])
    mean = said.mean(axis=0)
    one = (said.argmax(axis=2) == mean.argmax(axis=1)).all(axis=0)
    # Files may hold float32, in which 0.9 is 0.89999998.
    back = dropped[one & (mean.max(axis=1) >= confidence - 1e-6)]
    keep, label = verdicts.keep.copy(), verdicts.label.copy()
    keep[back] = True
    label[back] = mean[np.isin(dropped, back)]
    told = {"students": len(several), "confidence": confidence, "rows": len(back)}
    return replace(
        verdicts, keep=keep, label=label, provenance={**verdicts.provenance, "readmitted": told}
    )


def _of_rows(
    labels: WeakLabels, rows: Keys, classes: Sequence[str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Probabilities (m, C) of these rows, columns in the order of ``classes``."""
    if sorted(labels.classes) != sorted(classes):
        raise LabelsError(
            f"{labels.source} has the classes {first_few(labels.classes)}, and the verdicts have "
            f"{first_few(classes)}; they must be the same."
        )
    found = labels.align(rows, rows_name="the dropped rows").labels
    columns = [labels.classes.index(name) for name in classes]
    return np.asarray(found.probs[:, columns], np.float64)
