"""Relabel: train every row on what a probe that has not seen its label makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probekit.cleaning.scoring import Scored, score_rows
from probekit.cuts import DECIMALS, prior_matched, tied_decisions
from probekit.errors import UsageError
from probekit.kinds import ACTION_KINDS, check, checked

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = ["decide_at_prior", "relabel"]

BLEND = 0.75


def relabel(
    states: ActivationStore | ArrayLike,
    labels: WeakLabels | ArrayLike | str | Path,
    *,
    probe: Any = None,
    layer: int | None = None,
    blend: float | None = None,
    hard: bool = False,
    threshold: float | None = None,
    only_above: float | None = None,
    in_sample: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    only_labelled: bool = False,
    disagreement: Literal["label", "distance"] = "label",
    ties: Literal["hash", "index"] = "hash",
) -> Verdicts:
    """Give every row a new label.

    Parameters
    ----------
    states, labels, probe, layer, in_sample, n_folds, seed, only_labelled, disagreement, ties
        As :func:`probekit.cleaning.scoring.score_rows`.
    blend
        β of the soft label (1 − β) Y + β P, in (0, 1]; by default 0.75.
    hard
        Hard labels instead, with the class shares of the weak labels: for two classes P is cut at
        the weak-prior quantile, for more the sum of P over the classes decided for is largest.
    threshold
        Hard labels instead: the second of two classes where its probability exceeds this
        (EleutherAI: 0.5).
    only_above
        Leave the weak label where the disagreement is not above this.

    Returns
    -------
    Verdicts that keep every row.
    """
    _check_form(blend, threshold, only_above, hard=hard)
    scored = score_rows(
        states,
        labels,
        probe,
        layer=layer,
        in_sample=in_sample,
        n_folds=n_folds,
        seed=seed,
        only_labelled=only_labelled,
        disagreement=disagreement,
        ties=ties,
    )
    action: dict[str, Any] = {"action": "relabel"}
    if hard:
        decided, tied = decide_at_prior(
            scored.proba,
            np.bincount(scored.labels.hard, minlength=len(scored.labels.classes)),
            ties=scored.ties,
        )
        label = np.eye(len(scored.labels.classes))[decided]
        action |= {"form": "hard, at the weak prior", "ties": {"rows": int(tied.sum())}}
    elif threshold is not None:
        label = _cut(scored, threshold)
        action |= {"form": "hard, at a threshold", "threshold": threshold}
    else:
        beta = BLEND if blend is None else blend
        label = (1 - beta) * scored.labels.probs + beta * scored.proba
        action |= {"form": "soft", "blend": beta}
    if only_above is not None:
        label = np.where((scored.disagreement > only_above)[:, None], label, scored.labels.probs)
        action["only_above"] = only_above
    return scored.verdicts(label=label, keep=np.ones(len(label), dtype=bool), action=action)


def decide_at_prior(
    proba: NDArray[np.float64], size: NDArray[np.int64], *, ties: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Classes (n,) with ``size`` (C,) rows each, and the rows of which a tie decided the class."""
    P = np.round(proba, DECIMALS)  # means of the same votes in another order are equal
    decided = prior_matched(P, size / len(P), ties=ties)
    return decided, tied_decisions(P, decided)


def _cut(scored: Scored, threshold: float) -> NDArray[np.float64]:
    if len(scored.labels.classes) != 2:
        raise UsageError(
            f"A threshold cuts the probability of the second of two classes, and there are "
            f"{len(scored.labels.classes)}; use --hard (hard=True) or a soft blend."
        )
    # Means of k votes may miss 0.5 by rounding; 0.5 is class 0.
    second = np.round(scored.proba[:, 1], 12) > threshold
    return np.asarray(np.eye(2)[second.astype(np.int64)])


def _check_form(
    blend: float | None, threshold: float | None, only_above: float | None, *, hard: bool
) -> None:
    check(blend=blend, only_above=only_above, hard=hard)
    checked(("threshold",), ACTION_KINDS["relabel"]["threshold"], threshold)
    if (blend is not None) + hard + (threshold is not None) > 1:
        raise UsageError("Give one of blend, hard and threshold; they are three forms of a label.")
