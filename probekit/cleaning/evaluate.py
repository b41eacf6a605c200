"""What verdicts do: counts without ground truth, and metrics with it beside a random choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cuts import prior_matched
from probekit.errors import LabelsError
from probekit.metrics import (
    accuracy,
    auroc,
    brier,
    calibration_error,
    log_loss,
    pairwise_accuracy,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.verdicts import Verdicts

__all__ = ["ClassSummary", "Summary", "evaluate", "summarize"]


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One weak class: the number of rows, dropped and changed, and how far labels moved."""

    name: str
    weak: int
    dropped: int
    changed: int
    """Kept rows whose most probable class has changed."""
    shift: float
    """Mean ½ ‖label − weak‖₁ of the kept rows."""
    disagreement: float
    """Mean ½ ‖probe − weak‖₁."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What verdicts do to their rows."""

    rows: int
    dropped: int
    changed: int
    disagreement: float
    classes: tuple[ClassSummary, ...]
    alarms: tuple[str, ...]
    """Results that are probably not intended."""


def summarize(verdicts: Verdicts) -> Summary:
    """Count what verdicts do, per weak class, without ground truth."""
    weak = verdicts.weak.argmax(axis=1)
    keep = verdicts.keep
    changed = keep & (verdicts.hard != weak)
    shift = 0.5 * np.abs(verdicts.label - verdicts.weak).sum(axis=1, dtype=np.float64)
    classes = []
    for c, name in enumerate(verdicts.classes):
        mine = weak == c
        classes.append(
            ClassSummary(
                name=name,
                weak=int(mine.sum()),
                dropped=int((mine & ~keep).sum()),
                changed=int((mine & changed).sum()),
                shift=_mean(shift[mine & keep]),
                disagreement=_mean(verdicts.disagreement[mine]),
            )
        )
    return Summary(
        rows=len(verdicts),
        dropped=int((~keep).sum()),
        changed=int(changed.sum()),
        disagreement=_mean(verdicts.disagreement),
        classes=tuple(classes),
        alarms=tuple(_alarms(verdicts, weak, changed)),
    )


def _alarms(verdicts: Verdicts, weak: NDArray[np.int64], changed: NDArray[np.bool_]) -> list[str]:
    alarms = []
    kept = np.unique(verdicts.hard[verdicts.keep])
    unchanged = verdicts.keep.all() and not changed.any()
    if unchanged and verdicts.provenance.get("action") != "leave":
        alarms.append(
            "The relabels equal the weak labels: no row changes its class. A probe that has seen "
            "the labels repeats them (in_sample), or there is nothing to change."
            if verdicts.provenance.get("action") == "relabel"
            else "No row is dropped: the training set is unchanged."
        )
    if len(kept) < 2 <= len(np.unique(weak)):
        only = f"only class {verdicts.classes[kept[0]]!r}" if len(kept) else "nothing"
        alarms.append(
            f"The training set collapses: {only} is left; nothing can be learned from it."
        )
    elif lost := [verdicts.classes[c] for c in np.setdiff1d(weak, kept)]:
        alarms.append(f"No row of class {', '.join(map(repr, lost))} is left to learn from.")
    return alarms


def evaluate(verdicts: Verdicts, truth: ArrayLike) -> dict[str, Any]:
    """Compare verdicts with ground truth, to evaluate results and never to produce them.

    Parameters
    ----------
    verdicts
        n verdicts.
    truth
        True class numbers (n,), as in ``verdicts.classes``, in the order of the verdicts.

    Returns
    -------
    ``labels``: accuracy of the labels to train on, before and after, and after a random choice of
    as many rows of each weak class (dropped, or moved to the same classes); ``probe`` and ``weak``:
    accuracy at 0.5 and with the class shares of the weak labels, AUROC, Brier score, log loss and
    calibration error; ``dropped``: precision and recall of finding wrong labels, of the verdicts
    and of the random choice. The random choice is an exact expectation, not one draw. For pairs
    (differences of states), ``probe`` and ``weak`` also have their pairwise accuracy.

    Raises
    ------
    LabelsError
        If ``truth`` is not of shape (n,).
    """
    true = np.asarray(truth)
    if true.shape != (len(verdicts),):
        raise LabelsError(f"{len(verdicts)} verdicts need as many true labels, got {true.shape}.")
    n_classes = len(verdicts.classes)
    weak = verdicts.weak.argmax(axis=1)
    share = np.bincount(weak, minlength=n_classes) / len(weak)
    result: dict[str, Any] = {
        "rows": len(verdicts),
        "labels": _labels(verdicts, weak, true),
        "probe": _predictions(verdicts.probe, share, true, verdicts.ties),
        "weak": _predictions(verdicts.weak, share, true, verdicts.ties),
    }
    if verdicts.provenance.get("pairs"):
        for name, P in (("probe", verdicts.probe), ("weak", verdicts.weak)):
            result[name]["pairwise_accuracy"] = pairwise_accuracy(true, P)
    if not verdicts.keep.all():
        result["dropped"] = _dropped(verdicts.keep, weak, true, n_classes)
    return result


def _labels(
    verdicts: Verdicts, weak: NDArray[np.int64], true: NDArray[np.int64]
) -> dict[str, float]:
    keep, n_classes = verdicts.keep, len(verdicts.classes)
    # moved[k, c]: rows of weak class k that get class c, the last column being dropped rows;
    # counts[k, c]: rows of weak class k and true class c.
    target = np.where(keep, verdicts.hard, n_classes)
    moved = np.zeros((n_classes, n_classes + 1))
    np.add.at(moved, (weak, target), 1)
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (weak, true), 1)
    size = np.maximum(moved.sum(axis=1, keepdims=True), 1)
    right_by_chance = float((moved[:, :n_classes] * counts / size).sum())
    kept = int(keep.sum())
    return {
        "before": accuracy(true, weak),
        "after": accuracy(true[keep], verdicts.hard[keep]),
        "after_random": right_by_chance / kept if kept else float("nan"),
    }


def _predictions(
    proba: NDArray[np.float32],
    share: NDArray[np.float64],
    true: NDArray[np.int64],
    ties: NDArray[np.uint64],
) -> dict[str, float]:
    P = proba.astype(np.float64)
    return {
        "accuracy": accuracy(true, P.argmax(axis=1)),
        "accuracy_prior_matched": accuracy(true, prior_matched(P, share, ties=ties)),
        "auroc": auroc(true, P),
        "brier": brier(true, P),
        "log_loss": log_loss(true, P),
        "calibration_error": calibration_error(true, P),
    }


def _dropped(
    keep: NDArray[np.bool_], weak: NDArray[np.int64], true: NDArray[np.int64], n_classes: int
) -> dict[str, float]:
    dropped, wrong = ~keep, weak != true
    size = np.bincount(weak, minlength=n_classes)
    dropped_of = np.bincount(weak[dropped], minlength=n_classes)
    wrong_of = np.bincount(weak[wrong], minlength=n_classes)
    by_chance = float((dropped_of * wrong_of / np.maximum(size, 1)).sum())
    hits, n_dropped, n_wrong = int((dropped & wrong).sum()), int(dropped.sum()), int(wrong.sum())
    nan = float("nan")
    return {
        "rows": n_dropped,
        "precision": hits / n_dropped,
        "recall": hits / n_wrong if n_wrong else nan,
        "precision_random": by_chance / n_dropped,
        "recall_random": by_chance / n_wrong if n_wrong else nan,
    }


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
