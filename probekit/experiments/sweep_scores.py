"""Figures of a sweep's rows, and the choice of layer, probe and strength that needs no truth.

Against weak labels always, against the truth where it is given; what the choice cost is said
afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.cleaning.relabel import BLEND, decide_at_prior
from probekit.cuts import count_of, disagreement_of, largest
from probekit.metrics import accuracy, auroc, cross_entropy
from probekit.probes.registry import probe_spec

if TYPE_CHECKING:
    from probekit.experiments.sweep_probes import Prediction  # it loads scikit-learn

__all__ = [
    "KEYS",
    "Scorer",
    "choose",
    "choose_each",
    "filtered_name",
    "mean_over_seeds",
    "regret",
    "row_of",
    "truth_columns",
    "vote_proba",
]

TINY = float(np.finfo(np.float64).tiny)
NAN = float("nan")
# What a probe at a strength on a layer is known by.
KEYS = ("layer", "probe", "k", "l2", "k_cc", "k_zeta", "zeta", "contamination")
# All that a choice may read.
WEAK = ("weak_log_loss", "weak_log_loss_se")
# Of these a larger one is less regularised: it drops more rows.
SMALLER_IS_MORE = ("zeta", "contamination")

Row = Mapping[str, Any]


def filtered_name(share: float) -> str:
    """Column of the label accuracy after `filter` at a contamination."""
    return f"filtered_{share:g}"


def truth_columns(contaminations: Sequence[float]) -> tuple[str, ...]:
    """Columns that need the truth, in order."""
    filtered = (filtered_name(share) for share in contaminations)
    return (
        *("accuracy", "auroc", "auroc_gain"),
        *filtered,
        *("filtered_own", "relabelled_soft", "relabelled_hard"),
    )


def vote_proba(proba: NDArray[np.float64], votes: int | None) -> NDArray[np.float64]:
    """Probabilities (n, C) that a log-loss can be taken of: votes get one more, for all classes.

    A mean of k votes is 0 or 1 where they are of one mind, and one such row that is wrong would
    decide the log-loss. One more voter with 1/C for each class is the estimate of Krichevsky &
    Trofimov (1981) for two classes.
    """
    return proba if votes is None else (votes * proba + 1 / proba.shape[1]) / (votes + 1)


class Scorer:
    """Knows the labels of n rows, and compares predictions with them.

    Parameters
    ----------
    Y
        Weak labels (n, C), rows summing to 1.
    groups
        Duplicates share a number (n,) and count as one observation in standard errors; None: there
        are none.
    contaminations
        Shares to filter.
    truth
        True class numbers (n,), or None.
    ties
        Order of equal rows (n,); None: by row number.
    disagreement
        Its form, as ``filter`` takes it.
    """

    def __init__(
        self,
        Y: NDArray[np.float64],
        groups: NDArray[np.int64] | None,
        *,
        contaminations: Sequence[float],
        truth: NDArray[np.int64] | None = None,
        ties: NDArray[Any] | None = None,
        disagreement: str = "label",
    ) -> None:
        self.Y, self.truth = Y, truth
        self.ties = np.arange(len(Y)) if ties is None else ties
        self.disagreement = disagreement
        self.groups = np.arange(len(Y)) if groups is None else groups
        self.contaminations = tuple(contaminations)
        self.hard = np.asarray(Y.argmax(axis=1), dtype=np.int64)
        self.size = np.bincount(self.hard, minlength=Y.shape[1])

    def weak_labels(self) -> dict[str, float | None]:
        """How right the weak labels are: what the gains are over."""
        if self.truth is None:
            return {"accuracy": None, "auroc": None}
        return {"accuracy": accuracy(self.truth, self.hard), "auroc": auroc(self.truth, self.Y)}

    def row(self, prediction: Prediction) -> dict[str, Any]:
        """Every figure of one prediction, by column; None where the truth is not known."""
        P = prediction.proba
        loss = cross_entropy(self.Y, vote_proba(P, prediction.votes), floor=TINY)
        relabelled, _ = decide_at_prior(P, self.size, ties=self.ties)
        found: dict[str, Any] = {
            "weak_accuracy": accuracy(self.hard, P.argmax(axis=1)),
            "weak_auroc": auroc(self.hard, P),
            "weak_log_loss": float(loss.mean()),
            "weak_log_loss_se": standard_error(loss, self.groups),
            "changed": float(np.mean(relabelled != self.hard)),
            "kept_own": None if prediction.keep is None else float(prediction.keep.mean()),
        }
        if self.truth is None:
            return found | dict.fromkeys(truth_columns(self.contaminations))
        return found | self._truth(prediction, self.truth, relabelled)

    def _truth(
        self, prediction: Prediction, truth: NDArray[np.int64], relabelled: NDArray[np.int64]
    ) -> dict[str, Any]:
        P, right = prediction.proba, truth == self.hard
        score = auroc(truth, P)
        kept = prediction.keep_at or self._filtered(P)
        # As verdicts store it: in float32, which decides ties.
        soft = ((1 - BLEND) * self.Y + BLEND * P).astype(np.float32).argmax(axis=1)
        return {
            "accuracy": accuracy(truth, P.argmax(axis=1)),
            "auroc": score,
            "auroc_gain": score - auroc(truth, self.Y),
            **{filtered_name(share): _share(right[kept[share]]) for share in self.contaminations},
            "filtered_own": None if prediction.keep is None else _share(right[prediction.keep]),
            "relabelled_soft": accuracy(truth, soft),
            "relabelled_hard": accuracy(truth, relabelled),
        }

    def _filtered(self, P: NDArray[np.float64]) -> Mapping[float, NDArray[np.bool_]]:
        """What `filter` keeps at each contamination: ⌊c · n⌋ of each weak class go."""
        score = disagreement_of(P, self.Y, self.disagreement)
        return {
            share: ~largest(
                score, [count_of(share, n) for n in self.size], self.hard, ties=self.ties
            ).selected
            for share in self.contaminations
        }


def standard_error(loss: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Standard error of the mean of ``loss`` (n,), rows of one group counting as one observation.

    Without groups of several rows it is the standard deviation over √n.
    """
    total = np.bincount(groups, weights=loss - loss.mean())
    many = int(np.count_nonzero(np.bincount(groups)))
    if many < 2:
        return NAN
    return float(np.sqrt((total**2).sum() * many / (many - 1)) / len(loss))


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else NAN


def mean_over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each layer, probe and strength: means of its seeds' figures."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEYS), []).append(row)
    means = []
    for same in groups.values():
        first = dict(same[0])
        for name, value in first.items():
            if name not in KEYS and isinstance(value, float) and len(same) > 1:
                first[name] = math.fsum(row[name] for row in same) / len(same)
        first["seed"] = None if len(same) > 1 else first["seed"]
        means.append(first)
    return means


def choose_each(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each layer and probe the strength of the one-standard-error rule.

    Among the strengths whose out-of-fold weak log-loss is within one standard error of the least,
    the most regularised: the largest k or l2; of TopoFilter the largest k_zeta, then k_cc, then the
    smallest zeta or contamination. ``least`` is that least log-loss (Breiman, Friedman, Olshen &
    Stone 1984, §3.4.3).
    """
    told = [{name: row[name] for name in (*KEYS, *WEAK)} for row in mean_over_seeds(rows)]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in told:
        groups.setdefault((row["layer"], row["probe"]), []).append(row)
    chosen = []
    for same in groups.values():
        least = min(same, key=lambda row: row["weak_log_loss"])
        error = least["weak_log_loss_se"]
        limit = least["weak_log_loss"] + (0 if math.isnan(error) else error)
        near = [row for row in same if row["weak_log_loss"] <= limit]
        strongest = max(near, key=_regularised)
        chosen.append({**strongest, "least": least["weak_log_loss"]})
    return chosen


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Choose a layer and probe by the least out-of-fold weak log-loss that any strength has there.

    The strength is that of :func:`choose_each`. Of equal layers and probes the first in the order
    of ``rows``. Nothing but the weak log-loss and its standard error is read.
    """
    best = min(choose_each(rows), key=lambda row: row["least"])
    return {name: value for name, value in best.items() if value is not None}


def regret(rows: Sequence[Row], choice: Row, measures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How far the choice is behind the best row, of each measure that the truth gives.

    Each has ``chosen``, ``oracle``, ``regret`` (their difference), ``by_strength`` (how far the
    choice is behind the best strength of its own layer and probe) and ``at``, the oracle's layer,
    probe and strength; the oracle of each measure is another row.
    """
    means = mean_over_seeds(rows)
    mine = row_of(means, choice)
    found = {}
    for measure in measures:
        known = [row for row in means if _finite(row[measure])]
        if not known or not _finite(mine[measure]):
            continue
        best = max(known, key=lambda row: row[measure])
        here = [row for row in known if all(row[name] == mine[name] for name in KEYS[:2])]
        found[measure] = {
            "chosen": mine[measure],
            "oracle": best[measure],
            "regret": best[measure] - mine[measure],
            "by_strength": max(row[measure] for row in here) - mine[measure],
            "at": {name: best[name] for name in KEYS if best[name] is not None},
        }
    return found


def row_of(rows: Sequence[Row], choice: Row) -> Row:
    """Of the rows (one for each strength) the one with the choice's layer, probe and strength."""
    return next(row for row in rows if all(row[name] == choice.get(name) for name in KEYS))


def _regularised(row: Row) -> tuple[float, ...]:
    return tuple(
        -row[name] if name in SMALLER_IS_MORE else row[name]
        for name in probe_spec(row["probe"]).strengths
        if row[name] is not None
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
