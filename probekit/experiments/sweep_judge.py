"""Figures of one row of a sweep: against weak labels always, against truth where it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.cleaning.relabel import BLEND, decide_at_prior
from probekit.cuts import count_of, disagreement_of, largest
from probekit.metrics import accuracy, auroc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from probekit.experiments.sweep_probes import Prediction

__all__ = ["Judge", "filtered_name", "truth_columns", "vote_proba"]

TINY = np.finfo(np.float64).tiny
NAN = float("nan")


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


class Judge:
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
        loss = -(self.Y * np.log(np.maximum(vote_proba(P, prediction.votes), TINY))).sum(axis=1)
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
            ).taken
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
